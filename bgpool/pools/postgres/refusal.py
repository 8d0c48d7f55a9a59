"""Whose refusal a write has met: 25006 is said by a server that takes no writes, and in the caller's own transaction.

In a transaction that has failed nothing can be asked. Until it is over, what the server reports by itself (from
PostgreSQL 14 on) says what it seems to be. Then the server is asked.
"""

from __future__ import annotations

from typing import Any, Final

from psycopg._connection_base import BaseConnection
from psycopg.pq.abc import PGresult

__all__ = ["QUESTION", "REPORTED", "is_servers", "is_servers_by", "reports_read_only"]

#: Needs no transaction, and begins none that outlasts it.
QUESTION: Final = (
    "SELECT pg_catalog.pg_is_in_recovery(), setting, source FROM pg_catalog.pg_settings "
    "WHERE name = 'default_transaction_read_only'"
)
#: Settings that PostgreSQL 14 and later report without being asked.
REPORTED: Final = ("in_hot_standby", "default_transaction_read_only")
_STANDBY, _BY_DEFAULT = (name.encode() for name in REPORTED)
#: Where a setting comes from that is one server's. Those of a role or database are in the catalog, which green has,
#: too: another server would refuse the same, unless it is known that green alone has it.
_SERVERS_SOURCES: Final = frozenset({"configuration file", "command line", "environment variable"})
_ROLES_SOURCES: Final = frozenset({"global", "database", "user", "database user"})


def reports_read_only(connection: BaseConnection[Any]) -> bool | None:
    """Whether more than a transaction was read-only, by what the server reports; None where it reports nothing."""
    # Asked in each unit of work.
    report = connection.pgconn.parameter_status
    standby, by_default = report(_STANDBY), report(_BY_DEFAULT)
    return None if standby is None or by_default is None else standby == b"on" or by_default == b"on"


def is_servers(answer: PGresult, *, reported: bool | None, role_is_servers: bool = False) -> bool:
    """Whose a refusal was, by the server's *answer* to QUESTION; see is_servers_by."""
    in_recovery, setting, source = ((answer.get_value(0, column) or b"").decode("ascii") for column in range(3))
    return is_servers_by(
        in_recovery=in_recovery == "t",
        setting=setting,
        source=source,
        reported=reported,
        role_is_servers=role_is_servers,
    )


def is_servers_by(
    *, in_recovery: bool, setting: str, source: str, reported: bool | None, role_is_servers: bool = False
) -> bool:
    """Whose a refusal was.

    Args:
        in_recovery, setting, source: The server's answer to QUESTION, after the transaction.
        reported: What reports_read_only said when the write was refused.
        role_is_servers: Whether settings of roles and databases are this server's alone.

    Returns:
        Whether the server took no writes from anybody. It may take some by now.
    """
    if in_recovery:
        return True
    if setting == "on":
        return source in _SERVERS_SOURCES or (role_is_servers and source in _ROLES_SOURCES)
    return reported is True
