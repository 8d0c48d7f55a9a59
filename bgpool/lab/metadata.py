"""RDS-shaped metadata of a Blue/Green Deployment, different on each server and changeable on a replica.

The functions that a monitor asks read a file in the server's own data directory. Tables would be replicated
from blue to green, and could not be changed while a server is in recovery.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from psycopg import sql

from bgpool.lab.postgres import PostgresServer

Flavour = Literal["rds", "aurora"]

TOPOLOGY_FILE = "bgpool_topology.json"
REPLICAS_FILE = "bgpool_replicas.json"

AVAILABLE = "AVAILABLE"
INITIATED = "SWITCHOVER_INITIATED"
IN_PROGRESS = "SWITCHOVER_IN_PROGRESS"
POST = "SWITCHOVER_IN_POST_PROCESSING"
COMPLETED = "SWITCHOVER_COMPLETED"

SOURCE = "BLUE_GREEN_DEPLOYMENT_SOURCE"
TARGET = "BLUE_GREEN_DEPLOYMENT_TARGET"


@dataclass(frozen=True, slots=True)
class TopologyRow:
    """One row of the status function."""

    id: str
    endpoint: str
    port: int
    role: str
    status: str
    version: str = "1.0"


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One instance of an Aurora cluster."""

    server_id: str
    is_writer: bool = True
    lag_ms: float = 0.0


# SECURITY DEFINER: reading files takes a superuser. VOLATILE, as RDS's own: each call sees the file as it
# is then. The four-argument pg_read_file returns NULL for a missing file on every version, and NULL makes
# no rows.
_STATUS_FUNCTION = """
CREATE FUNCTION {function}(client text)
RETURNS TABLE (id text, endpoint text, port integer, role text, status text, version text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT row.id, row.endpoint, row.port, row.role, row.status, row.version
    FROM jsonb_to_recordset(pg_read_file('bgpool_topology.json', 0, 1048576, true)::jsonb)
        AS row (id text, endpoint text, port integer, role text, status text, version text)
$$
"""

_RDS = (
    "CREATE SCHEMA rds_tools",
    _STATUS_FUNCTION.replace("{function}", "rds_tools.show_topology"),
    "REVOKE ALL ON SCHEMA rds_tools FROM PUBLIC",
    "REVOKE ALL ON FUNCTION rds_tools.show_topology(text) FROM PUBLIC",
)

_AURORA = (
    "SET allow_system_table_mods = on",
    _STATUS_FUNCTION.replace("{function}", "pg_catalog.get_blue_green_fast_switchover_metadata"),
    """
    CREATE FUNCTION pg_catalog.aurora_replica_status() RETURNS TABLE (
        server_id text, session_id text, last_update_timestamp timestamptz, replica_lag_in_msec float8
    ) LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT row.server_id, row.session_id, clock_timestamp(), row.lag_ms
        FROM jsonb_to_recordset(pg_read_file('bgpool_replicas.json', 0, 1048576, true)::jsonb)
            AS row (server_id text, session_id text, lag_ms float8)
    $$
    """,
    """
    CREATE FUNCTION pg_catalog.aurora_version() RETURNS text LANGUAGE sql STABLE AS $$
        SELECT current_setting('server_version')
    $$
    """,
)


def install(server: PostgresServer, flavour: Flavour, database: str) -> None:
    """Create the functions of *flavour* in *database* of a primary; its replicas get them by replication."""
    with server.superuser(database) as connection:
        for statement in _RDS if flavour == "rds" else _AURORA:
            connection.execute(statement)


def grant(server: PostgresServer, role: str, database: str) -> None:
    """Let *role* read the RDS metadata, with the two statements of AWS's documentation."""
    with server.superuser(database) as connection:
        name = sql.Identifier(role)
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA rds_tools TO {}").format(name))
        connection.execute(sql.SQL("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rds_tools TO {}").format(name))


def publish(server: PostgresServer, rows: Iterable[TopologyRow]) -> None:
    """Let *server*, running or not, show *rows* from now on; no rows is an empty table."""
    server.write_file(TOPOLOGY_FILE, json.dumps([dataclasses.asdict(row) for row in rows]))


def publish_broken(server: PostgresServer) -> None:
    """Let the status query of *server* fail (SQLSTATE 22P02) until the next `publish`."""
    server.write_file(TOPOLOGY_FILE, "not json")


def publish_replicas(server: PostgresServer, rows: Iterable[ReplicaRow]) -> None:
    """Let ``aurora_replica_status()`` of *server* show *rows* from now on."""
    shown = [
        {
            "server_id": row.server_id,
            "session_id": "MASTER_SESSION_ID" if row.is_writer else f"session-{row.server_id}",
            "lag_ms": row.lag_ms,
        }
        for row in rows
    ]
    server.write_file(REPLICAS_FILE, json.dumps(shown))


def withdraw(server: PostgresServer) -> None:
    """Let *server* show nothing, as before a deployment was created."""
    for name in (TOPOLOGY_FILE, REPLICAS_FILE):
        (server.data_dir / name).unlink(missing_ok=True)
