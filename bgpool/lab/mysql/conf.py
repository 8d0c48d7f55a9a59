"""The configuration that both families share, and the initial contents of a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pymysql.converters import escape_string

from bgpool.lab.server import Flavour, Setup

__all__ = ["COMMON", "LAB_DATABASE", "REPLICATION_ROLE", "SMALL", "STATUS_VIEW", "SUPERUSER", "setup_script"]

SUPERUSER: Final = "root"
REPLICATION_ROLE: Final = "replica"

LAB_DATABASE: Final = "lab"
"""The database of the objects behind the metadata's views; the proxy redirects queries for Aurora's built-in objects to
it."""

STATUS_VIEW: Final = "mysql.rds_topology"

SMALL: Final = (
    "--skip-name-resolve",
    "--key-buffer-size=64K",
    "--innodb-buffer-pool-size=16M",
    # No fsync: after a crash of the machine, the lab's data do not matter. A crash of the server alone loses nothing,
    # as every commit has been written to the kernel.
    "--innodb-flush-method=nosync",
    "--innodb-use-native-aio=0",  # of which a machine has a limited number
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-doublewrite=0",
    "--sync-binlog=0",
)
"""Settings for a small and quick server, for the life of a data directory."""

_ATTRIBUTES: Final = (
    # Clients' program_name is only in performance_schema. Without all the rest, it takes 3 MB and no time.
    "--performance-schema=ON",
    "--loose-performance-schema-session-connect-attrs-size=512",
    "--loose-performance-schema-max-thread-instances=400",
    *(
        f"--loose-performance-schema-{what}=0"
        for what in (
            *(f"max-{kind}-classes" for kind in ("mutex", "rwlock", "cond", "file", "socket", "stage", "statement")),
            *(f"max-{kind}-instances" for kind in ("mutex", "rwlock", "cond", "file", "socket", "table")),
            *(f"{kind}-size" for kind in ("accounts", "hosts", "users", "digests")),
            *(f"events-{kind}-history-size" for kind in ("waits", "stages", "statements", "transactions")),
            *(f"events-{kind}-history-long-size" for kind in ("waits", "stages", "statements", "transactions")),
            *(f"max-{kind}" for kind in ("memory-classes", "table-handles", "table-lock-stat", "index-stat")),
            *(f"max-{kind}" for kind in ("metadata-locks", "prepared-statements-instances", "program-instances")),
        )
    ),
)

COMMON: Final = (
    *_ATTRIBUTES,
    "--max-connections=200",
    "--max-user-connections=180",  # the lab can connect with any number of clients of one role
    "--default-time-zone=+00:00",
    "--character-set-server=utf8mb4",
    # Rows, not statements: a replica's table has the same numbers and times as its primary's.
    "--log-bin=binlog",
    "--relay-log=relay",
    "--pid-file=pid",
)


def setup_script(setup: Setup, replication_grants: str) -> str:
    """Return the statements that a server executes at its first start, one a line.

    Args:
        setup: The initial contents.
        replication_grants: The global privileges of the role that replicas log in with.
    """
    statements = [
        # Replication carries only the applications' data.
        "SET sql_log_bin = 0",
        _role(REPLICATION_ROLE, setup.lab_password),
        f"GRANT {replication_grants} ON *.* TO '{REPLICATION_ROLE}'@'%'",
        f"CREATE DATABASE {LAB_DATABASE} CHARACTER SET utf8mb4",
        f"CREATE DATABASE {setup.database} CHARACTER SET utf8mb4",
    ]
    for role, password in setup.passwords.items():
        statements.append(_role(role, password))
    statements += [f"GRANT ALL ON {setup.database}.* TO '{role}'@'%'" for role in setup.writers]
    statements += _metadata(setup.flavour, list(setup.passwords))
    statements += [f"GRANT SELECT ON {STATUS_VIEW} TO '{role}'@'%'" for role in setup.watchers]
    return "".join(f"{' '.join(statement.split())};\n" for statement in statements)


def _role(name: str, password: str) -> str:
    return f"CREATE USER '{name}'@'%' IDENTIFIED BY '{escape_string(password)}'"


# The files of `bgpool.lab.metadata`, read with the superuser's rights by views on which any role can get SELECT. A file
# that is missing is NULL, and NULL makes no rows.
_READ: Final = f"""
CREATE DEFINER='{SUPERUSER}'@'localhost' FUNCTION {LAB_DATABASE}.{{name}}() RETURNS LONGTEXT CHARSET utf8mb4
NOT DETERMINISTIC READS SQL DATA SQL SECURITY DEFINER RETURN LOAD_FILE(CONCAT(@@datadir, '{{file}}'))
"""
_STATUS: Final = f"""
CREATE DEFINER='{SUPERUSER}'@'localhost' SQL SECURITY DEFINER VIEW {STATUS_VIEW} AS
SELECT r.* FROM JSON_TABLE({LAB_DATABASE}.topology(), '$[*]' COLUMNS (
    id VARCHAR(64) PATH '$.id', endpoint VARCHAR(255) PATH '$.endpoint', port INT PATH '$.port',
    role VARCHAR(64) PATH '$.role', status VARCHAR(64) PATH '$.status', version VARCHAR(16) PATH '$.version'
)) AS r
"""
_REPLICAS: Final = f"""
CREATE DEFINER='{SUPERUSER}'@'localhost' SQL SECURITY DEFINER VIEW {LAB_DATABASE}.replica_host_status AS
SELECT r.SERVER_ID, r.SESSION_ID, NOW(6) - INTERVAL r.age_s SECOND AS LAST_UPDATE_TIMESTAMP,
    r.lag_ms AS REPLICA_LAG_IN_MILLISECONDS
FROM JSON_TABLE({LAB_DATABASE}.replicas(), '$[*]' COLUMNS (
    SERVER_ID VARCHAR(100) PATH '$.server_id', SESSION_ID VARCHAR(100) PATH '$.session_id',
    lag_ms DOUBLE PATH '$.lag_ms', age_s DOUBLE PATH '$.age_s'
)) AS r
"""
_VERSION: Final = f"""
CREATE DEFINER='{SUPERUSER}'@'localhost' FUNCTION {LAB_DATABASE}.aurora_version() RETURNS VARCHAR(16)
DETERMINISTIC NO SQL RETURN '3.08.0'
"""


def _metadata(flavour: Flavour, roles: Sequence[str]) -> list[str]:
    statements = [_READ.format(name="topology", file="bgpool_topology.json"), _STATUS]
    if flavour == "aurora":
        statements += [_READ.format(name="replicas", file="bgpool_replicas.json"), _REPLICAS, _VERSION]
        # Both are built in on Aurora, and available to all roles.
        for role in roles:
            statements.append(f"GRANT SELECT ON {LAB_DATABASE}.replica_host_status TO '{role}'@'%'")
            statements.append(f"GRANT EXECUTE ON FUNCTION {LAB_DATABASE}.aurora_version TO '{role}'@'%'")
    return statements
