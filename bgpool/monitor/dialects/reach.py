"""Getting to a server, of either engine: address by address and, where names have to be proved, name by name."""

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
    """What *connect* makes at the first of *target*'s addresses, under the first of its names, that lets us in.

    Args:
        target: Where to.
        connect: Takes an address, empty to go by name, and the names to go under.
        proved: Whether the host has to prove its name. Where it has not, one name is as good as another.
        passwords: What makes passwords, each for one name; told to forget where a login is refused. The next attempt
            comes soon enough.

    Raises:
        SessionError: No address and no name would do; the last failure.
    """
    tried = target.names if proved and target.names else (target.host,)
    failures: list[Exception] = []
    for address in target.addresses or ("",):
        for names in names_to_try(tried, tokens=passwords is not None):
            try:
                return connect(address, names)
            except Exception as error:
                # Of any kind: a driver that stumbles over an answer must not end the monitor.
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
    """Whether nobody is there, whatever the name."""
    if isinstance(error, psycopg.Error):
        return isinstance(error, psycopg.errors.ConnectionTimeout)
    # PyMySQL has no error of its own for it, but raises what it has while the socket's error is handled.
    return isinstance(error, pymysql.Error) and isinstance(error.__context__, TimeoutError)
