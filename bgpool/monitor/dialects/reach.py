"""Connect to a server of either engine: address by address and, if names are verified, name by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import psycopg
import pymysql

from bgpool.auth import GIVE_PASSWORD, PasswordMaker
from bgpool.core.plan import Target
from bgpool.core.routing import Names, names_to_try
from bgpool.failures import first_line, login_was_refused
from bgpool.monitor.session import SessionError

__all__ = ["reach"]

C = TypeVar("C")

_REMEDY: Final = (
    "if the application's password comes with each connection (from a do_connect listener), the monitor does not have "
    f"it: {GIVE_PASSWORD}"
)


def reach(target: Target, connect: Callable[[str, Names], C], *, proved: bool, passwords: PasswordMaker | None) -> C:
    """Return the connection that *connect* makes at the first of *target*'s addresses and names that accepts the login.

    Args:
        target: The server.
        connect: A function of an address, empty to connect by name, and the names to use.
        proved: True if names are verified. Otherwise all names are equivalent.
        passwords: Makes passwords, each for one name. After a refused login its cached state is dropped; the next
            attempt follows soon.

    Raises:
        SessionError: No address and name succeeded; the last failure.
    """
    tried = target.names if proved and target.names else (target.host,)
    failures: list[Exception] = []
    for address in target.addresses or ("",):
        for names in names_to_try(tried, tokens=passwords is not None):
            try:
                return connect(address, names)
            except Exception as error:
                # Any error: a driver's reaction to a malformed answer must not end the monitor.
                failures.append(error)
                if _is_silence(error):
                    break
    if not failures:
        raise SessionError("no address to connect to")
    refused = any(map(login_was_refused, failures))
    if refused and passwords is not None:
        passwords.forget()
    remedy = _REMEDY if refused and passwords is None else ""
    raise SessionError(first_line(failures[-1]), refused=refused, remedy=remedy) from None


def _is_silence(error: Exception) -> bool:
    """Return whether the error means that no server is there, independent of the name."""
    if isinstance(error, psycopg.Error):
        return isinstance(error, psycopg.errors.ConnectionTimeout)
    # PyMySQL has no separate error for this; it raises its error while it handles the socket's.
    return isinstance(error, pymysql.Error) and isinstance(error.__context__, TimeoutError)
