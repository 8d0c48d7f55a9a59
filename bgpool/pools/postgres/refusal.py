"""The origin of a refused write: a server that takes no writes sends 25006, and so does the caller's own transaction.

A failed transaction accepts no query. Until it is over, the settings that the server reports by itself (from PostgreSQL
14 on) give a preliminary result. After that the server is queried.
"""

from __future__ import annotations

from typing import Any, Final

from psycopg._connection_base import BaseConnection
from psycopg.pq.abc import PGresult

__all__ = ["QUESTION", "REPORTED", "is_servers", "is_servers_by", "reports_read_only"]

#: It needs no transaction, and begins none that outlasts it.
QUESTION: Final = (
    "SELECT pg_catalog.pg_is_in_recovery(), setting, source FROM pg_catalog.pg_settings "
    "WHERE name = 'default_transaction_read_only'"
)
#: Settings that PostgreSQL 14 and later report without a query.
REPORTED: Final = ("in_hot_standby", "default_transaction_read_only")
_STANDBY, _BY_DEFAULT = (name.encode() for name in REPORTED)
#: The sources of settings that belong to one server. Settings of a role or database are in the catalog, which green
#: has, too: another server would refuse the same write, unless it is known that only green has the setting.
_SERVERS_SOURCES: Final = frozenset({"configuration file", "command line", "environment variable"})
_ROLES_SOURCES: Final = frozenset({"global", "database", "user", "database user"})


def reports_read_only(connection: BaseConnection[Any]) -> bool | None:
    """Return whether more than a transaction was read-only, by the server's reports; None if it reports nothing."""
    # This runs in each unit of work.
    report = connection.pgconn.parameter_status
    standby, by_default = report(_STANDBY), report(_BY_DEFAULT)
    return None if standby is None or by_default is None else standby == b"on" or by_default == b"on"


def is_servers(answer: PGresult, *, reported: bool | None, role_is_servers: bool = False) -> bool:
    """Return the origin of a refusal, by the server's *answer* to QUESTION; see is_servers_by."""
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
    """Return the origin of a refusal.

    Args:
        in_recovery, setting, source: The server's answer to QUESTION, after the transaction.
        reported: The result of reports_read_only when the write was refused.
        role_is_servers: True if settings of roles and databases are this server's alone.

    Returns:
        True if the server took no writes from any client. It may take some by now.
    """
    if in_recovery:
        return True
    if setting == "on":
        return source in _SERVERS_SOURCES or (role_is_servers and source in _ROLES_SOURCES)
    return reported is True
