"""RDS and Aurora PostgreSQL: which of the two a server is, and what it says about its deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from bgpool._version import __version__
from bgpool.core.events import StatusRow
from bgpool.core.plan import Target

__all__ = ["AURORA", "RDS", "Dialect", "MissingMetadata", "PostgresSession"]


class MissingMetadata(Exception):
    """The server answers but offers no metadata; the text says what would help."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server is asked.

    Attributes:
        name: For logs.
        schema, function: The function that tells the status.
        topology: A query for server ids, the writer first; empty where the status rows name the instances.
        remedy: What to do where the function cannot be used.
    """

    name: str
    schema: str
    function: str
    topology: str
    remedy: str


AURORA: Final = Dialect(
    "Aurora PostgreSQL",
    "pg_catalog",
    "get_blue_green_fast_switchover_metadata",
    "SELECT server_id FROM pg_catalog.aurora_replica_status() ORDER BY session_id <> 'MASTER_SESSION_ID', server_id",
    "Aurora PostgreSQL offers it from 17.5, 16.9, 15.13, 14.18 and 13.21 on, to every user",
)
RDS: Final = Dialect(
    "RDS for PostgreSQL",
    "rds_tools",
    "show_topology",
    "",
    "run as an administrator in this database: CREATE EXTENSION rds_tools; "
    "GRANT USAGE ON SCHEMA rds_tools TO {user}; "
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rds_tools TO {user};"
    " (rds_tools 1.7: PostgreSQL 17.1, 16.5, 15.9, 14.14, 13.17, 12.21 and above)",
)

# One query that tells what is there and what may be used; asking the functions themselves would tell neither apart.
_LOOK: Final = """
    SELECT n.nspname, p.proname,
           has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE (n.nspname, p.proname) IN
        (('pg_catalog', 'aurora_version'), ('pg_catalog', 'aurora_replica_status'),
         ('pg_catalog', 'get_blue_green_fast_switchover_metadata'), ('rds_tools', 'show_topology'))
"""


class PostgresSession:
    """One monitoring connection: opened, asked and closed by one thread."""

    def __init__(self, params: Mapping[str, Any], target: Target) -> None:
        """Connect to *target*.

        Raises:
            psycopg.Error: It cannot be reached, or does not let us in.
        """
        place: dict[str, Any] = {"host": target.host, "port": target.port}
        if target.addresses:
            place["hostaddr"] = target.addresses[0]
        self._connection: Final = psycopg.connect("", **{**params, **place}, autocommit=True, prepare_threshold=None)
        self._dialect: Dialect | None = None

    @property
    def socket(self) -> int:
        """The connection's descriptor, for cutting it."""
        return self._connection.pgconn.socket

    def read(self) -> tuple[tuple[StatusRow, ...], tuple[str, ...]]:
        """The metadata's rows, and the ids of this side's servers.

        Raises:
            MissingMetadata: There is none to be seen.
            psycopg.Error: The question was not answered.
        """
        if self._dialect is None:
            self._dialect = self._find_dialect()
        dialect = self._dialect
        try:
            rows = self._connection.execute(
                "SELECT version, endpoint, port, role, status"
                f" FROM {dialect.schema}.{dialect.function}('bgpool-{__version__}')"
            ).fetchall()
            servers = self._connection.execute(dialect.topology).fetchall() if dialect.topology and rows else []
        except (psycopg.errors.UndefinedFunction, psycopg.errors.InsufficientPrivilege):
            # Dropped or revoked since it was found: say so, and look again the next time.
            self._dialect = None
            raise MissingMetadata(self._remedy(dialect, f"{dialect.function} is gone")) from None
        return (
            tuple(
                StatusRow(str(endpoint or ""), int(port or 0), str(role or ""), str(status or ""), str(version))
                for version, endpoint, port, role, status in rows
            ),
            tuple(str(server) for (server,) in servers),
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _find_dialect(self) -> Dialect:
        found = {(schema, name): usable for schema, name, usable in self._connection.execute(_LOOK)}
        aurora = any((AURORA.schema, name) in found for name in ("aurora_version", "aurora_replica_status"))
        dialect = AURORA if aurora else RDS
        usable = found.get((dialect.schema, dialect.function))
        if usable:
            return dialect
        missing = "does not exist" if usable is None else "may not be used by this user"
        raise MissingMetadata(self._remedy(dialect, f"{dialect.schema}.{dialect.function} {missing}"))

    def _remedy(self, dialect: Dialect, missing: str) -> str:
        user = self._connection.info.user
        return (
            "no blue/green metadata, pools work as plain pools: "
            f"{dialect.name}: {missing}; {dialect.remedy.format(user=user)}"
        )
