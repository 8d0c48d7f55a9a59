"""Whose refusal a write has met: 25006 is said by a server that takes no writes, and in the caller's own transaction.

In a transaction that has failed nothing can be asked. Until it is over, what the server reports by itself (from
PostgreSQL 14 on) says what it seems to be. Then the server is asked.
"""

from __future__ import annotations

from typing import Any, Final

from psycopg._connection_base import BaseConnection
from psycopg.pq.abc import PGresult

__all__ = ["QUESTION", "is_servers", "reports_read_only"]

#: Needs no transaction, and begins none that outlasts it.
QUESTION: Final = (
    "SELECT pg_catalog.pg_is_in_recovery(), setting, source FROM pg_catalog.pg_settings "
    "WHERE name = 'default_transaction_read_only'"
)
_REPORTED: Final = (b"in_hot_standby", b"default_transaction_read_only")
#: Where a setting comes from that is one server's. Those of a role or database are in the catalog, which green has,
#: too: another server would refuse the same.
_SERVERS_SOURCES: Final = frozenset({b"configuration file", b"command line", b"environment variable"})


def reports_read_only(connection: BaseConnection[Any]) -> bool | None:
    """Whether more than a transaction was read-only, by what the server reports; None where it reports nothing."""
    reports = [connection.pgconn.parameter_status(name) for name in _REPORTED]
    return None if None in reports else b"on" in reports


def is_servers(answer: PGresult, *, reported: bool | None) -> bool:
    """Whose a refusal was.

    Args:
        answer: The server's to QUESTION, after the transaction.
        reported: What reports_read_only said when the write was refused.

    Returns:
        Whether the server took no writes from anybody. It may take some by now.
    """
    in_recovery, setting, source = (answer.get_value(0, column) for column in range(3))
    if in_recovery == b"t":
        return True
    return source in _SERVERS_SOURCES if setting == b"on" else reported is True
