"""The functions that return PostgreSQL's metadata on RDS and Aurora, and read the files of `bgpool.lab.metadata`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from bgpool.lab.server import Flavour

if TYPE_CHECKING:
    from typing_extensions import LiteralString

__all__ = ["FUNCTIONS", "STATUS_FUNCTIONS"]

STATUS_FUNCTIONS: Final[Mapping[Flavour, LiteralString]] = {
    "rds": "rds_tools.show_topology",
    "aurora": "pg_catalog.get_blue_green_fast_switchover_metadata",
}

# SECURITY DEFINER: only a superuser may read files. VOLATILE, the same as RDS's own: each call reads the current file.
# The four-argument pg_read_file returns NULL for a missing file on every version, and NULL makes no rows.
_STATUS = """
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
    _STATUS.replace("{function}", STATUS_FUNCTIONS["rds"]),
    "REVOKE ALL ON SCHEMA rds_tools FROM PUBLIC",
    "REVOKE ALL ON FUNCTION rds_tools.show_topology(text) FROM PUBLIC",
)

_AURORA = (
    "SET allow_system_table_mods = on",
    _STATUS.replace("{function}", STATUS_FUNCTIONS["aurora"]),
    """
    CREATE FUNCTION pg_catalog.aurora_replica_status() RETURNS TABLE (
        server_id text, session_id text, last_update_timestamp timestamptz, replica_lag_in_msec float8
    ) LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog AS $$
        SELECT row.server_id, row.session_id, clock_timestamp() - make_interval(secs => row.age_s), row.lag_ms
        FROM jsonb_to_recordset(pg_read_file('bgpool_replicas.json', 0, 1048576, true)::jsonb)
            AS row (server_id text, session_id text, lag_ms float8, age_s float8)
    $$
    """,
    """
    CREATE FUNCTION pg_catalog.aurora_version() RETURNS text LANGUAGE sql STABLE AS $$
        SELECT current_setting('server_version')
    $$
    """,
)

FUNCTIONS: Final[Mapping[Flavour, tuple[LiteralString, ...]]] = {"rds": _RDS, "aurora": _AURORA}
"""The statements for the applications' database of a primary; its replicas get the functions by replication."""
