"""TLS of MySQL: merge PyMySQL's dict ``ssl`` and its ``ssl_`` keywords.

PyMySQL uses only one of the two: with any keyword it ignores the dict, including the CA certificate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bgpool.dsn.keywords import read_text
from bgpool.errors import ConfigurationError
from bgpool.settings import read_flag

__all__ = ["has_authority", "merge_tls", "take_sqlalchemys"]

_TEXTS: Final = ("ca", "capath", "cert", "key", "password", "cipher")
_FLAGS: Final = ("check_hostname", "verify_mode")
#: PyMySQL's keyword for each key of the dict.
_KEYWORDS: Final = {
    "ssl_ca": "ca",
    "ssl_cert": "cert",
    "ssl_key": "key",
    "ssl_key_password": "password",
    "ssl_verify_cert": "verify_mode",
    "ssl_verify_identity": "check_hostname",
}
_VERIFY_MODES: Final = ("none", "optional", "required")
#: The parameters that SQLAlchemy moves from a URL to the dict. Source: sqlalchemy/dialects/mysql/mysqldb.py.
_SQLALCHEMYS: Final = ("ssl_ca", "ssl_key", "ssl_cert", "ssl_capath", "ssl_cipher", "ssl_check_hostname")


def merge_tls(params: dict[str, Any], prefix: str = "") -> None:
    """Move the ``ssl_`` keywords of *params* into the dict ``ssl``, if there is one.

    As in PyMySQL, a dict with a CA certificate means that the server's name is verified, unless the dict disables that.

    Raises:
        ConfigurationError: It is not a dict, or a key or value is not valid in PyMySQL. Possible secrets are not
            quoted.
    """
    given = params.pop("ssl", None)
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"{prefix}ssl: a dict with {', '.join((*_TEXTS, *_FLAGS))} is allowed, not {type(given).__name__}; the "
            "monitor is another process and needs it as text"
        )
    tls = {key: _read(f"{prefix}ssl: {key}", key, value) for key, value in given.items() if value is not None}
    tls |= {key: params.pop(name) for name, key in _KEYWORDS.items() if params.get(name) is not None}
    if not tls:
        return
    # Set explicitly: if names are verified, bgpool tries a green host under several names. Python refuses to check
    # names if certificates are not verified.
    tls.setdefault("check_hostname", has_authority({"ssl": tls}) and tls.get("verify_mode") not in (False, "none"))
    if tls["check_hostname"]:
        tls["verify_mode"] = True
    params["ssl"] = tls


def has_authority(params: Mapping[str, Any]) -> bool:
    """Return whether *params* name CA certificates to verify the server's certificate with."""
    tls = params.get("ssl") or {}
    return bool(params.get("ssl_ca") or tls.get("ca") or tls.get("capath"))


def take_sqlalchemys(query: dict[str, str]) -> dict[str, str] | None:
    """Return the dict that SQLAlchemy makes of a URL's *query*, and remove its parameters there; None without any."""
    return {name.removeprefix("ssl_"): query.pop(name) for name in _SQLALCHEMYS if name in query} or None


def _read(where: str, key: object, value: object) -> object:
    if key == "verify_mode" and str(value).strip().lower() in _VERIFY_MODES:
        return str(value).strip().lower()
    if key in _FLAGS:
        try:
            return read_flag(where, value)
        except ConfigurationError:
            more = ", or none, optional or required" if key == "verify_mode" else ""
            raise ConfigurationError(f"{where}={value!r}: true or false{more} is allowed") from None
    if key not in _TEXTS:
        raise ConfigurationError(
            f"{where} is not known: allowed are {', '.join((*_TEXTS, *_FLAGS))}; {{'verify_mode': 'none'}} insists on "
            "TLS and does not look at the certificate"
        )
    return read_text(where, value)
