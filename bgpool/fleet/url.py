"""The parts of a bus's URL, as a connection needs them. What is allowed in one is checked in bgpool/settings.py."""

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
        user: Empty for the server's default user.
        password: Empty for none.
        tls: Whether to speak TLS.
        ca_file, ca_path: The authorities to trust; those of the system where both are empty.
        certificate, key, key_password: Files of the client's own, and what opens the key; empty for none.
        verify: Whether the server has to prove itself.
        check_name: Whether it has to prove *host* in particular.
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
    """Take *url* apart. Options that are none of TLS's are passed over: a client would let them win over a program's.

    Raises:
        ConfigurationError: It is no URL of a bus. The text repeats no part of it: any may be the password.
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
