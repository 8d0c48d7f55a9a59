"""What every engine's DSN comes to, and how the parameters that all of them have are read."""

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

#: Makes a password from a host name, a port and a user.
Password = Callable[[str, int, str], str]


@dataclass(frozen=True, slots=True)
class Dsn:
    """Where and how to connect.

    Attributes:
        engine: What kind of server is there.
        host: The endpoint's name as given, or a socket directory; empty for the driver's default.
        port: Its port.
        params: Every connection parameter by the driver's name, password included; never shown. PyMySQL's are typed,
            and without host and port.
        monitoring: Those of the monitoring connections, complete.
        password: Makes the password of each connection; None where *params* have it, or none is needed.
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
        """Whom connections log in as."""
        return user_of(self.params)

    @property
    def names_matter(self) -> bool:
        """Whether a host has to prove its name, or gets a password that is for one name."""
        return self.password is not None or names_are_proved(self.params)

    @property
    def endpoint(self) -> str:
        """The host as the metadata spells names."""
        return normalise_host(self.host)


@dataclass(frozen=True, slots=True, repr=False)
class RawDsn:
    """What an engine has to make a Dsn of. Its repr shows nothing: all of it may hold a password.

    Attributes:
        url: The DSN without bgpool's own parameters.
        overrides: The parameters of the monitoring connections alone, not looked at yet.
        options: get_pool's keywords; an engine takes out what is about connecting.
    """

    url: str
    overrides: dict[str, Any]
    options: dict[str, Any]


def shown(value: object) -> str:
    """How an error shows *value*: numbers as they are; text not, which in a mistyped DSN may be part of a password."""
    is_number = isinstance(value, (int, float)) or re.fullmatch(r"[-+]?\d+(\.\d+)?", str(value), re.ASCII)
    return repr(value) if is_number else f"<{type(value).__name__}>"


def check_host(name: str, value: object) -> None:
    """Make sure that *value* is one host.

    Raises:
        ConfigurationError: It is not; the text names *name* and does not quote it.
    """
    text = str(value or "")
    if "," in text:
        raise ConfigurationError(f"{name}: one endpoint is allowed, not a list")
    if "@" in text[1:]:  # abstract sockets begin with one
        raise ConfigurationError(
            f"{name}: a name or an address is allowed, and an @ in a user or a password of a URL has to be written as "
            "%40 (the text is not repeated here, it may hold a password)"
        )


def user_of(params: Mapping[str, Any]) -> str:
    """Whom connections with *params* log in as, as libpq finds it out; empty where the system has no name for the user.

    A container may run as a user id without an account. The driver's own error then says that a user is missing.
    """
    given = params.get("user") or os.environ.get("PGUSER")
    if given:
        return str(given)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # before and from Python 3.13 on
        return ""


def names_are_proved(params: Mapping[str, Any]) -> bool:
    """Whether a server has to prove its name to a connection with *params*, of either driver."""
    asked = params.get("ssl_verify_identity") or (params.get("ssl") or {}).get("check_hostname")
    return params.get("sslmode") == "verify-full" or bool(asked)


def take_password(name: str, value: object, params: dict[str, Any]) -> Password | None:
    """The callable that *value* is, if it is one; a string goes into *params*.

    Raises:
        ConfigurationError: It is neither.
    """
    if value is None:
        return None
    params.pop("password", None)
    if is_coroutine_function(value):
        raise ConfigurationError(
            f"{name}: a string or a callable (host, port, user) -> str is allowed, not a coroutine function: it is "
            "called in a thread, where nobody awaits it, and may block there"
        )
    if callable(value):
        return cast(Password, value)
    if not isinstance(value, str):
        # Not repr(value): whatever it is, it was meant to be a secret.
        raise ConfigurationError(
            f"{name}: a string or a callable (host, port, user) -> str is allowed, not {type(value).__name__}"
        )
    params["password"] = value
    return None


def read_port(value: object) -> int:
    """The port that *value* is.

    Raises:
        ConfigurationError: It is none.
    """
    text = str(value)
    if not text.isdecimal() or len(text) > 5 or not 0 < int(text) < 65536:
        # Where the @ is missing, digits are a password's, too.
        given = shown(value) if isinstance(value, int) else f"<{type(value).__name__}>"
        raise ConfigurationError(
            f"dsn: port={given}: a number from 1 to 65535 is allowed; is there an @ between password and host?"
        )
    return int(text)
