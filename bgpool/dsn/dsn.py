"""The parsed DSN of any engine, and the parameters that all engines have in common."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from bgpool.core.endpoints import normalise_host
from bgpool.core.engine import Engine
from bgpool.core.functions import is_coroutine_function
from bgpool.errors import ConfigurationError

__all__ = [
    "MONITORING_PREFIX", "Dsn", "RawDsn", "Password", "check_host", "names_are_proved", "read_port", "shown",
    "take_password", "user_of",
]  # fmt: skip

MONITORING_PREFIX: Final = "blue-green-monitoring-"

#: A callable that makes a password from a host name, a port and a user.
Password = Callable[[str, int, str], str]


@dataclass(frozen=True, slots=True)
class Dsn:
    """A parsed DSN: the server, and the connection parameters.

    Attributes:
        engine: The database engine.
        host: The endpoint's name as given, or a socket directory; empty for the driver's default.
        port: The port.
        params: All connection parameters by the driver's name, including the password; never shown. PyMySQL's are
            typed, and do not include host and port.
        monitoring: All connection parameters of the monitoring connections.
        password: The callable that makes the password of each connection; None if *params* have it, or none is needed.
        monitoring_password: The same for the monitoring connections.
    """

    engine: Engine
    host: str
    port: int
    params: Mapping[str, Any] = field(repr=False)
    monitoring: Mapping[str, Any] = field(repr=False)
    password: Password | None = field(default=None, repr=False)
    monitoring_password: Password | None = field(default=None, repr=False)

    @property
    def user(self) -> str:
        """The user that connections log in as."""
        return user_of(self.params)

    @property
    def names_matter(self) -> bool:
        """True if a host's name is verified, or if the password is issued for one name."""
        return self.password is not None or names_are_proved(self.params)

    @property
    def endpoint(self) -> str:
        """The host in the spelling of the metadata."""
        return normalise_host(self.host)


@dataclass(frozen=True, slots=True, repr=False)
class RawDsn:
    """The input from which an engine makes a Dsn. Its repr shows nothing, because any part may hold a password.

    Attributes:
        url: The DSN without bgpool's own parameters.
        overrides: The parameters that only the monitoring connections use, not validated yet.
        options: get_pool's keywords; the engine removes those that concern connecting.
    """

    url: str
    overrides: dict[str, Any]
    options: dict[str, Any]


def shown(value: object) -> str:
    """Return *value* for an error text: numbers are shown, text is not, because it may be part of a password."""
    is_number = isinstance(value, (int, float)) or re.fullmatch(r"[-+]?\d+(\.\d+)?", str(value), re.ASCII)
    return repr(value) if is_number else f"<{type(value).__name__}>"


def check_host(name: str, value: object) -> None:
    """Check that *value* is a single host.

    Raises:
        ConfigurationError: It is not. The text has *name* and does not quote the value.
    """
    text = str(value or "")
    if "," in text:
        raise ConfigurationError(f"{name}: one endpoint is allowed, not a list")
    if "@" in text[1:]:  # abstract sockets begin with an @
        raise ConfigurationError(
            f"{name}: a name or an address is allowed, and an @ in a user or a password of a URL has to be written as "
            "%40 (the text is not repeated here, it may hold a password)"
        )


def user_of(params: Mapping[str, Any]) -> str:
    """Return the user of connections with *params*, found like in libpq; empty if the system has no name for it.

    A container may run under a user id without an account. The driver's own error then reports the missing user.
    """
    given = params.get("user") or os.environ.get("PGUSER")
    if given:
        return str(given)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # until Python 3.12, and from 3.13 on
        return ""


def names_are_proved(params: Mapping[str, Any]) -> bool:
    """Return whether the server's name is verified with the connection parameters *params*, of either driver."""
    asked = params.get("ssl_verify_identity") or (params.get("ssl") or {}).get("check_hostname")
    return params.get("sslmode") == "verify-full" or bool(asked)


def take_password(name: str, value: object, params: dict[str, Any]) -> Password | None:
    """Return *value* if it is a callable; put it into *params* if it is a string.

    Raises:
        ConfigurationError: It is neither.
    """
    if value is None:
        return None
    params.pop("password", None)
    if is_coroutine_function(value):
        raise ConfigurationError(
            f"{name}: a string or a callable (host, port, user) -> str is allowed, not a coroutine function: it is "
            "called in a thread, and may block there"
        )
    if callable(value):
        return cast(Password, value)
    if not isinstance(value, str):
        # Without repr(value), because the value is meant to be a secret.
        raise ConfigurationError(
            f"{name}: a string or a callable (host, port, user) -> str is allowed, not {type(value).__name__}"
        )
    params["password"] = value
    return None


def read_port(value: object) -> int:
    """Return *value* as a port.

    Raises:
        ConfigurationError: It is not a valid port.
    """
    text = str(value)
    if not text.isdecimal() or len(text) > 5 or not 0 < int(text) < 65536:
        # If the @ is missing, the digits may be part of a password.
        given = shown(value) if isinstance(value, int) else f"<{type(value).__name__}>"
        raise ConfigurationError(
            f"dsn: port={given}: a number from 1 to 65535 is allowed; is there an @ between password and host?"
        )
    return int(text)
