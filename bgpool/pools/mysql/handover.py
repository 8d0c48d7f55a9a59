"""Moving a session from one PyMySQL connection object to another, so that the last user's object is closed."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import pymysql

__all__ = ["hand_over"]

C = TypeVar("C", bound="pymysql.connections.Connection[Any]")

#: The attributes of a connection after close(), without a slot of a pool.
_CLOSED: Final = {"_sock": None, "_rfile": None, "_result": None, "_closed": True, "bgpool_slot": None}


def hand_over(connection: C) -> C:
    """Return the session of *connection* under a new object of its class; *connection* is closed after that.

    The new object has all attributes of the old one. The cursors of the old one stay with it: they are closed, too.
    """
    heir = object.__new__(type(connection))
    vars(heir).update(vars(connection))
    vars(connection).update(_CLOSED)
    return heir
