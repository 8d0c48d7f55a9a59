"""Queries about the sessions of a server, and their termination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pymysql

from bgpool.lab.mysql.conf import REPLICATION_ROLE
from bgpool.mysql import BoundedConnection, code_of

__all__ = ["CLIENTS", "NAMED", "OF_ROLE", "OTHERS", "kill", "rows"]

NO_SUCH_THREAD: Final = 1094

CLIENTS: Final = f"""
    SELECT id FROM information_schema.processlist
    WHERE host NOT IN ('', 'localhost') AND user NOT IN ('system user', '{REPLICATION_ROLE}')
"""
"""A query for the ids of all TCP clients, except for replicas."""

OF_ROLE: Final = "SELECT id FROM information_schema.processlist WHERE user = %s"
"""A query for the ids of one role's sessions."""

NAMED: Final = """
    SELECT count(*) FROM performance_schema.session_connect_attrs
    WHERE attr_name = 'program_name' AND left(attr_value, char_length(%s)) = %s
"""
"""A query for the number of sessions whose name starts with the prefix, which is given twice."""

OTHERS: Final = """
    SELECT count(*) FROM information_schema.processlist WHERE user = %s AND id NOT IN (
        SELECT processlist_id FROM performance_schema.session_connect_attrs
        WHERE attr_name = 'program_name' AND left(attr_value, char_length(%s)) = %s
    )
"""
"""A query for the number of a role's sessions, except for those that `NAMED` counts."""


def rows(connection: BoundedConnection, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, tuple(params) or None)
        return list(cursor.fetchall())


def kill(connection: BoundedConnection, number: int) -> None:
    """Kill the session *number*; does nothing if it has just ended."""
    try:
        rows(connection, f"KILL CONNECTION {number}")
    except pymysql.Error as error:
        if code_of(error) != NO_SUCH_THREAD:
            raise
