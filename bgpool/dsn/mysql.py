"""MySQL: URLs, and connection parameters by PyMySQL's names, with the types that PyMySQL expects."""

from __future__ import annotations

import inspect
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import quote, unquote

from pymysql.connections import DEFAULT_USER, Connection

from bgpool.core.engine import Engine
from bgpool.core.limits import (
    MONITOR_CONNECT_TIMEOUT_S,
    MONITOR_STATEMENT_TIMEOUT_S,
    MYSQL_READ_TIMEOUT_S,
    MYSQL_WRITE_TIMEOUT_S,
)
from bgpool.dsn.dsn import MONITORING_PREFIX, Dsn, RawDsn, check_host, names_are_proved, read_port, take_password
from bgpool.dsn.keywords import READERS, read_text
from bgpool.dsn.tls import has_authority, merge_tls, take_sqlalchemys
from bgpool.errors import ConfigurationError
from bgpool.mysql_driver import check_driver

__all__ = ["read", "renamed", "url_of"]

_DEFAULT_PORT: Final = 3306
_LOGIN: Final = ("user", "password", "database")
#: PyMySQL's old names of parameters.
_OLD_NAMES: Final = {"passwd": "password", "db": "database"}
#: The beginnings of the dialects' URLs, in which ssl_ca and similar parameters have SQLAlchemy's meaning.
_SQLALCHEMYS_SCHEMES: Final = ("mysql+bgpool:", "mariadb+bgpool:")

#: The parameters of PyMySQL that are not allowed, and the reasons.
_REFUSED: Final = {
    "host": "the DSN names it",
    "port": "the DSN names it",
    "db": "give database, or the DSN's path",
    "passwd": "give password",
    "ssl": "give ssl_ca, ssl_cert, ssl_key, ssl_verify_cert, ssl_verify_identity or ssl_disabled",
    "defer_connect": "connections are open when they are handed out",
    "read_default_file": "the monitor and every worker must go to the same place",
    "read_default_group": "the monitor and every worker must go to the same place",
    "named_pipe": "PyMySQL does not support it",
    "compress": "PyMySQL does not support it",
}
#: The keywords that are allowed in kwargs, including objects.
_KEYWORDS: Final = [
    *(name for name in inspect.signature(Connection.__init__).parameters if name not in {"self", *_REFUSED}),
    "ssl",
    "tcp_user_timeout",
]

#: Parameters that are always set, so that every wait is bounded and the character set does not depend on PyMySQL's
#: version.
_DEFAULTS: Final = {
    "charset": "utf8mb4",
    "connect_timeout": MONITOR_CONNECT_TIMEOUT_S,
    "read_timeout": MYSQL_READ_TIMEOUT_S,
    "write_timeout": MYSQL_WRITE_TIMEOUT_S,
}

#: The parameters that monitoring connections inherit: login, network and TLS. They do not inherit the application's
#: statements (init_command, sql_mode) and objects (conv, cursorclass). They do not inherit its database either:
#: connecting to it requires a grant, and the metadata require only their own.
_TLS: Final = frozenset({"ssl", *(name for name in READERS if name.startswith("ssl_"))})
_INHERITED: Final = _TLS | {"user", "password", "bind_address", "unix_socket", "server_public_key", "tcp_user_timeout"}
#: A monitoring connection must see the current state, and connects to several hosts.
_NOT_FOR_MONITORING: Final = frozenset({"autocommit", "unix_socket"})
_MONITORING_NAMES: Final = [
    *_LOGIN,
    "host",
    "port",
    "ssl",
    *(name for name in READERS if name not in _NOT_FOR_MONITORING),
]


def read(given: RawDsn) -> Dsn:
    """Return the parsed DSN, with parameters by PyMySQL's names; host and port are not among them.

    Raises:
        ConfigurationError: A part is invalid, or the version of PyMySQL is not supported. The text never contains the
            password.
    """
    check_driver()
    overrides = _overrides(given.overrides)
    host, port, params = _read_url(given.url)
    given_password = given.options.pop("password", None)
    static = _keywords(given.options.pop("kwargs", None))
    static_password = static.pop("password", None)
    params = {**_DEFAULTS, **params, **static}
    merge_tls(params)
    password = take_password("password", static_password if given_password is None else given_password, params)
    if "user" not in params:
        params["user"] = _default_user()
    if "unix_socket" in params:
        host = _without_host(host)
    _check(params)
    monitoring = _monitoring_params(params, overrides)
    own = overrides.get("password")
    monitoring_password = password if own is None else take_password("monitoring password", own, monitoring)
    _check(monitoring, MONITORING_PREFIX)
    return Dsn(Engine.MYSQL, host, port, params, monitoring, password, monitoring_password)


def _default_user() -> str:
    if DEFAULT_USER is None:
        raise ConfigurationError("dsn: no user is given and the system names none; mysql://USER@HOST/ is allowed")
    return DEFAULT_USER


def _without_host(host: str) -> str:
    """Return the host of a connection through a Unix socket, for which PyMySQL would silently ignore a name."""
    if host not in ("", "localhost"):
        raise ConfigurationError("unix_socket: a host or a socket is allowed, not both")
    return ""


# -- the URL -----------------------------------------------------------------------------------------------------


def _read_url(url: str) -> tuple[str, int, dict[str, Any]]:
    """Return host, port and parameters of *url*."""
    base, _, query = url.partition("://")[2].partition("?")
    authority, _, path = base.partition("/")
    if "@" in path or "@" in query or "/" in path:
        # Check this before anything is quoted: text after an unescaped / or ? may be the rest of a password.
        _refuse_url()
    login, _, place = authority.rpartition("@")
    user, _, password = login.partition(":")
    host, port = _read_place(place)
    params: dict[str, Any] = {}
    for name, text in zip(_LOGIN, map(_decoded, (user, password, path)), strict=True):
        if text:
            params[name] = text
    pairs = (item.partition("=") for item in query.split("&") if item)
    given = {_decoded(name): _decoded(value) for name, _, value in pairs}
    if url.lower().startswith(_SQLALCHEMYS_SCHEMES) and (tls := take_sqlalchemys(given)):
        params["ssl"] = tls
    for name, value in given.items():
        params[name] = _read_parameter("dsn", name, value, READERS)
    return host, port, params


def renamed(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return PyMySQL's *params* with old names replaced."""
    return {_OLD_NAMES.get(name, name): value for name, value in params.items()}


def url_of(params: dict[str, Any]) -> str:
    """Return a URL for the ``host`` and ``port`` in PyMySQL's *params*, and remove them there.

    Raises:
        ConfigurationError: The port is not a number.
    """
    host, port = params.pop("host", None) or "localhost", params.pop("port", None) or _DEFAULT_PORT
    if not str(port).isdecimal():
        raise ConfigurationError(f"port={port!r}: a number is allowed")
    place = f"[{host}]" if ":" in str(host) else quote(str(host), safe="")
    return f"mysql://{place}:{port}/"


def _read_place(place: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; the port is optional."""
    match = re.fullmatch(r"(?:\[(?P<address>[^\[\]]+)\]|(?P<name>[^\s:\[\]]*))(?::(?P<port>\d{1,5}))?", place, re.ASCII)
    if match is None:
        _refuse_url()
    host = _decoded(match["address"] or match["name"] or "")
    check_host("dsn: host", host)
    if match["address"]:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            _refuse_url()
    return host, read_port(match["port"] or _DEFAULT_PORT)


def _decoded(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", text):
        _refuse_url()
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        _refuse_url()


def _refuse_url() -> NoReturn:
    raise ConfigurationError(
        "dsn: it cannot be read; mysql://USER:PASSWORD@HOST:PORT/DATABASE?NAME=VALUE is allowed, with / ? @ and % in a "
        "part of it written as %2F %3F %40 and %25 (the text is not repeated here, it may hold a password)"
    ) from None


# -- parameters --------------------------------------------------------------------------------------------------


def _keywords(static: object) -> dict[str, Any]:
    """Return the connection parameters in kwargs. None counts as not given, unless it has a meaning in PyMySQL."""
    if static is None:
        return {}
    if not isinstance(static, Mapping):
        raise ConfigurationError("kwargs: a mapping of connection parameters is allowed")
    return {
        name: _read_parameter("kwargs", name, value, _KEYWORDS) if value is not None else None
        for name, value in static.items()
        if value is not None or name == "autocommit"
    }


def _read_parameter(where: str, name: str, value: object, allowed: Iterable[str], prefix: str = "") -> object:
    """Return *value* with the type that PyMySQL expects; objects and secrets are returned unchanged."""
    shown = f"{prefix}{name}"
    if name not in allowed:
        if name in _REFUSED:
            raise ConfigurationError(f"{where}: {shown} is not allowed: {_REFUSED[name]}")
        keywords = "; the pool's options are keywords of get_pool" if where == "dsn" else ""
        raise ConfigurationError(f"{where}: unknown parameter {shown!r}: allowed are {', '.join(allowed)}{keywords}")
    if name == "port":
        return read_port(value)
    if name in ("user", "database", "host"):
        return read_text(shown, value)
    return READERS[name](shown, value) if name in READERS else value


def _overrides(given: Mapping[str, object]) -> dict[str, Any]:
    """Return the parameters that only the monitoring connections use; None for one that they must not have."""
    overrides = {
        name: _read_parameter("monitoring", name, value, _MONITORING_NAMES, MONITORING_PREFIX)
        if value is not None
        else None
        for name, value in given.items()
    }
    check_host(f"{MONITORING_PREFIX}host", overrides.get("host"))
    return overrides


def _check(params: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse parameters that PyMySQL would silently ignore, or fail at with the password in the error."""
    if names_are_proved(params) and (params.get("ssl_disabled") or not has_authority(params)):
        raise ConfigurationError(
            f"{prefix}ssl_verify_identity: ssl_ca has to be given, and ssl_disabled is not allowed; "
            "PyMySQL would compare no names"
        )
    try:
        str(params.get("password", "")).encode("latin-1")
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{prefix}password: characters of Latin-1 are allowed; PyMySQL sends no others"
        ) from None


def _monitoring_params(params: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in params.items() if name in _INHERITED and name not in overrides}
    monitoring = {
        **own,
        "charset": "utf8mb4",
        "autocommit": True,
        "connect_timeout": MONITOR_CONNECT_TIMEOUT_S,
        "read_timeout": MONITOR_STATEMENT_TIMEOUT_S,
        "write_timeout": MONITOR_STATEMENT_TIMEOUT_S,
        "program_name": "bgpool-monitor",
        **{name: value for name, value in overrides.items() if value is not None},
    }
    merge_tls(monitoring, MONITORING_PREFIX)
    return monitoring
