"""Getting to a server, of either engine: address by address and, where names have to be proved, name by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psycopg
import pymysql

from bgpool.core.plan import Target
from bgpool.core.routing import Names, names_to_try
from bgpool.failures import first_line, login_was_refused
from bgpool.monitor.session import SessionError

__all__ = ["reach"]

C = TypeVar("C")


def reach(target: Target, connect: Callable[[str, Names], C], *, proved: bool, tokens: bool) -> C:
    """What *connect* makes at the first of *target*'s addresses, under the first of its names, that lets us in.

    Args:
        target: Where to.
        connect: Takes an address, empty to go by name, and the names to go under.
        proved: Whether the host has to prove its name. Where it has not, one name is as good as another.
        tokens: Whether a password is for one name.

    Raises:
        SessionError: No address and no name would do; the last failure.
    """
    tried = target.names if proved and target.names else (target.host,)
    failure: Exception | None = None
    for address in target.addresses or ("",):
        for names in names_to_try(tried, tokens=tokens):
            try:
                return connect(address, names)
            except Exception as error:
                # Of any kind: a driver that stumbles over an answer must not end the monitor.
                failure = error
                if _is_silence(error):
                    break
    if failure is None:
        raise SessionError("no address to connect to")
    raise SessionError(first_line(failure), refused=login_was_refused(failure)) from None


def _is_silence(error: Exception) -> bool:
    """Whether nobody is there, whatever the name."""
    if isinstance(error, psycopg.Error):
        return isinstance(error, psycopg.errors.ConnectionTimeout)
    # PyMySQL has no error of its own for it, but raises what it has while the socket's error is handled.
    return isinstance(error, pymysql.err.Error) and isinstance(error.__context__, TimeoutError)
