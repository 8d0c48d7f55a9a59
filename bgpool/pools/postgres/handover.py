"""Moving a session from one psycopg connection object to another, so that the last user's object is closed."""

from __future__ import annotations

from functools import cache
from types import MemberDescriptorType, MethodType
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg._connection_base import BaseConnection
from psycopg.pq import PGconn, abc

__all__ = ["hand_over"]

C = TypeVar("C", bound=BaseConnection[Any])

_HANDLERS: Final = ("_notice_handlers", "_notify_handlers")


def hand_over(connection: C) -> C | None:
    """Return the session of *connection* under a new object of its class; *connection* is closed after that.

    The new object has all attributes of the old one. A subclass's ``__init__`` does not run again: it may use the
    session, or count its calls.

    Returns:
        The new object; None if the connection's lock is still held, for example by a ``notifies()`` that was not read
            to its end: it would make the next user wait.
    """
    # The lock is for threads or for tasks; and of tasks only one runs at a time.
    lock: Any = cast(Any, connection).lock
    is_async = isinstance(connection, psycopg.AsyncConnection)
    if lock.locked() if is_async else not lock.acquire(blocking=False):
        return None
    try:
        driver: Any = psycopg.AsyncConnection if is_async else psycopg.Connection
        heir: Any = object.__new__(type(connection))
        driver.__init__(heir, connection.pgconn)
        vars(heir).update(vars(connection), lock=heir.lock)
        kind: type = type(connection)
        for slot in _slots(kind):
            if hasattr(connection, slot.__name__):
                slot.__set__(heir, slot.__get__(connection))
        for name in _HANDLERS:
            setattr(heir, name, [_rebound(handler, connection, heir) for handler in getattr(connection, name)])
        closed = driver(_closed_pgconn())
        vars(connection).update(vars(closed), _closed=True, _pool=None)
        return cast(C, heir)
    finally:
        if not is_async:
            lock.release()


def _rebound(handler: Any, old: object, new: object) -> Any:
    """Return *handler*, bound to *new* if it is a method of *old*."""
    return MethodType(handler.__func__, new) if isinstance(handler, MethodType) and handler.__self__ is old else handler


@cache
def _slots(connection_class: type) -> tuple[MemberDescriptorType, ...]:
    """Return the attributes that a subclass keeps in ``__slots__``."""
    found = (value for base in connection_class.__mro__ for value in vars(base).values())
    return tuple(value for value in found if isinstance(value, MemberDescriptorType))


@cache
def _closed_pgconn() -> abc.PGconn:
    """Return a libpq connection that was never open: libpq refuses a parameter with an empty name at once."""
    pgconn = PGconn.connect_start(b"=")
    pgconn.finish()
    return pgconn
