"""The options of a driver's pool, checked at the creation of the pool and not at its first checkout; those of calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Final, get_origin

import psycopg

from bgpool.core.functions import is_coroutine_function
from bgpool.core.limits import OPTION_SECONDS_MAX
from bgpool.errors import ConfigurationError

__all__ = [
    "ASYNC_POSTGRES",
    "ASYNC_POSTGRES_CONNECTOR",
    "MYSQL",
    "MYSQL_CONNECTOR",
    "POSTGRES",
    "POSTGRES_CONNECTOR",
    "RESET_SESSION",
    "Check",
    "check_timeout",
    "check_unit",
    "check_wait",
    "deadline_of",
    "kind_of",
]

#: A check that raises ConfigurationError for a value that the option of that name cannot have.
Check = Callable[[str, object], None]

#: The value of *reset* that resets the session.
RESET_SESSION: Final = "session"


def _whole(least: int, *, or_none: bool = False) -> Check:
    def check(name: str, value: object) -> None:
        if value is None and or_none:
            return
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            also = ", or None," if or_none else ""
            raise ConfigurationError(f"{name}={value!r}: a whole number from {least}{also} is allowed")

    return check


def _seconds(*, above: bool = False, endless: bool = False, or_none: bool = False, past: bool = False) -> Check:
    """Return a check for seconds: >= 0, or *above* 0, or negative if that may be *past*; infinite if *endless*."""

    def check(name: str, value: object) -> None:
        if value is None and or_none:
            return
        seconds = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        fits = seconds > 0 if above else seconds >= (-OPTION_SECONDS_MAX if past else 0)
        if not fits or (seconds > OPTION_SECONDS_MAX and not (endless and seconds == math.inf)):
            least = "" if past else " above 0 and" if above else " from 0 and"
            also = ", or infinity," if endless else ", or None," if or_none else ""
            raise ConfigurationError(
                f"{name}={value!r}: a number of seconds{least} up to {OPTION_SECONDS_MAX}{also} is allowed"
            )

    return check


#: The timeout of a caller's wait, in seconds. A remaining time that a caller has computed may be below 0: it is up.
_WAIT: Final = _seconds(past=True)
#: The same, or None for the default.
check_wait: Final = _seconds(or_none=True, past=True)
#: The timeout of a unit, in seconds; None for the default.
check_timeout: Final = _seconds(or_none=True)


def check_unit(what: str, fn: object, timeout: object, given: str = "a connection") -> None:
    """Raise ConfigurationError for a unit of work that *what* cannot run.

    Args:
        what: The function that was called, for the text.
        fn: The unit's function.
        timeout: Its timeout.
        given: The first argument of *fn*, for the text.
    """
    check_timeout(f"{what}: timeout", timeout)
    if not callable(fn):
        raise ConfigurationError(
            f"{what}: fn={kind_of(fn)} cannot be called; a function of {given} is allowed, and its arguments follow it"
        )


def kind_of(value: object) -> str:
    """Return the type of *value* for an error about a wrong argument: a text may be a DSN, or SQL with a password."""
    return type(value).__name__ if value is not None else "None"


def deadline_of(timeout: float) -> float:
    """Return the end of the *timeout* of a call, in seconds, by time.monotonic().

    Raises:
        ConfigurationError: It is no number of seconds.
    """
    if timeout.__class__ is not float or not 0 < timeout < OPTION_SECONDS_MAX:
        _WAIT("timeout", timeout)
    return time.monotonic() + timeout


def _hook(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise ConfigurationError(f"{name}={value!r}: a function, or None, is allowed")


def _reset(name: str, value: object) -> None:
    if value is not None and value != RESET_SESSION and not callable(value):
        raise ConfigurationError(f"{name}={value!r}: a function, {RESET_SESSION!r} or None is allowed")


def _blocking(check: Check) -> Check:
    """Return *check* with a refusal of coroutine functions, which no code would await."""

    def check_also(name: str, value: object) -> None:
        check(name, value)
        if is_coroutine_function(value):
            raise ConfigurationError(
                f"{name}={value!r}: a coroutine function is for get_async_pool; here a plain one, or None, is allowed"
            )

    return check_also


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r}: True or False is allowed")


def _name(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigurationError(f"{name}={value!r}: a string that is not empty, or None, is allowed")


def _subclass_of(base: type) -> Check:
    def check(name: str, value: object) -> None:
        found = get_origin(value) or value  # psycopg.Connection[DictRow] is for the type checker
        if not isinstance(found, type) or not issubclass(found, base):
            raise ConfigurationError(f"{name}={value!r}: psycopg.{base.__name__} or a subclass of it is allowed")

    return check


def _unchecked(_name: str, _value: object) -> None:
    """Accept any value: it is checked with the connection parameters."""


#: The options that all pools have.
MYSQL: Final[Mapping[str, Check]] = {
    "min_size": _whole(0),
    "max_size": _whole(1, or_none=True),
    "timeout": _seconds(),
    "max_waiting": _whole(0),
    "max_lifetime": _seconds(above=True, endless=True),
    "max_idle": _seconds(above=True),
    "configure": _blocking(_hook),
    "check": _blocking(_hook),
    "reset": _blocking(_reset),
    "close_returns": _flag,
    "name": _name,
}

POSTGRES: Final[Mapping[str, Check]] = {
    **MYSQL,
    "reconnect_timeout": _seconds(endless=True),
    "reconnect_failed": _blocking(_hook),
    "num_workers": _whole(1),
    "connection_class": _subclass_of(psycopg.Connection),
    "kwargs": _unchecked,
}

ASYNC_POSTGRES: Final[Mapping[str, Check]] = {
    **POSTGRES,
    "configure": _hook,
    "check": _hook,
    "reset": _reset,
    "reconnect_failed": _hook,
    "connection_class": _subclass_of(psycopg.AsyncConnection),
}

#: The subset of these that a connector has.
MYSQL_CONNECTOR: Final[Mapping[str, Check]] = {}
POSTGRES_CONNECTOR: Final[Mapping[str, Check]] = {name: POSTGRES[name] for name in ("connection_class", "kwargs")}
ASYNC_POSTGRES_CONNECTOR: Final[Mapping[str, Check]] = {name: ASYNC_POSTGRES[name] for name in POSTGRES_CONNECTOR}
