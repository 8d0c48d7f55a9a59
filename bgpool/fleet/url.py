"""The parts of a bus's URL that a connection needs. bgpool/settings.py checks which parts are allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from bgpool.base_errors import ConfigurationError

__all__ = ["BusUrl", "parse_bus_url"]

PORT: Final = 6379


@dataclass(frozen=True, slots=True)
class BusUrl:
    """The parts of a URL.

    Attributes:
        db: The number of the database.
        user: The user; empty for the server's default user.
        password: The password; empty for none.
        tls: True to use TLS.
        ca_file, ca_path: The trusted CA certificates; those of the system if both are empty.
        certificate, key, key_password: The client's own files, and the password of the key; empty for none.
        verify: True to verify the server's certificate.
        check_name: True to verify it against *host*.
    """

    host: str
    port: int = PORT
    db: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    ca_file: str = ""
    ca_path: str = ""
    certificate: str = ""
    key: str = ""
    key_password: str = field(default="", repr=False)
    verify: bool = True
    check_name: bool = True


def parse_bus_url(url: str) -> BusUrl:
    """Parse *url*. Options that do not concern TLS are ignored: in a client they would override those of the program.

    Raises:
        ConfigurationError: It is no URL of a bus. The text repeats no part of it, because any may be the password.
    """
    try:
        parts = urlsplit(url)
        host, port, db = parts.hostname, parts.port, int(parts.path.strip("/") or 0)
    except ValueError:
        host = None
    if not host or parts.scheme not in ("redis", "rediss"):
        raise ConfigurationError("bg_fleet is no URL of redis:// or rediss:// that can be read")
    options = {name: values[0] for name, values in parse_qs(parts.query).items()}
    verify = options.get("ssl_cert_reqs") != "none"
    return BusUrl(
        host=unquote(host),
        port=PORT if port is None else port,
        db=db,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        tls=parts.scheme == "rediss",
        ca_file=options.get("ssl_ca_certs", ""),
        ca_path=options.get("ssl_ca_path", ""),
        certificate=options.get("ssl_certfile", ""),
        key=options.get("ssl_keyfile", ""),
        key_password=options.get("ssl_password", ""),
        verify=verify,
        check_name=verify and options.get("ssl_check_hostname") != "false",
    )
