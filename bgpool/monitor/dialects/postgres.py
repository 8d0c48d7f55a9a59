"""RDS and Aurora PostgreSQL: detect which of the two a server is, and read its deployment's metadata."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg
from psycopg import pq, sql

from bgpool._version import __version__
from bgpool.auth import PasswordMaker
from bgpool.core.events import StatusRow
from bgpool.core.limits import TOPOLOGY_STALE_S
from bgpool.core.plan import Target
from bgpool.core.routing import Names
from bgpool.dsn import names_are_proved, user_of
from bgpool.failures import first_line
from bgpool.monitor.dialects.reach import reach
from bgpool.monitor.session import Answer, Application, SessionError

__all__ = ["AURORA", "RDS", "ROLES_SETTING", "Dialect", "PostgresSession"]


class _Missing(Exception):
    """The server answers but has no visible metadata; the text is advice."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The queries for one kind of server.

    Attributes:
        name: The name for logs.
        schema, function: The function that returns the status.
        topology: A query for server ids, the writer first; empty if the status rows name the instances.
        remedy: The advice if the function cannot be used.
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
    "SELECT server_id FROM pg_catalog.aurora_replica_status() WHERE session_id = 'MASTER_SESSION_ID'"
    f" OR last_update_timestamp IS NULL OR last_update_timestamp > now() - interval '{TOPOLOGY_STALE_S} seconds'"
    " ORDER BY session_id <> 'MASTER_SESSION_ID', server_id",
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

# One query for which functions exist and which may be used; calling them would not distinguish the two. It also returns
# the source of the session's own default; a role's default is read at login and kept.
_LOOK: Final = """
    SELECT 'source', source, true FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'
    UNION ALL
    SELECT 'catalog', 'pg_db_role_setting', has_table_privilege('pg_catalog.pg_db_role_setting', 'SELECT')
    UNION ALL
    SELECT 'catalog', 'pg_subscription', has_column_privilege('pg_catalog.pg_subscription', 'subenabled', 'SELECT')
    UNION ALL
    SELECT n.nspname, p.proname,
           has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE (n.nspname, p.proname) IN
        (('pg_catalog', 'aurora_version'), ('pg_catalog', 'aurora_replica_status'),
         ('pg_catalog', 'get_blue_green_fast_switchover_metadata'), ('rds_tools', 'show_topology'))
"""


#: The setting of a role or a database for read-only transactions, to be formatted with both names as SQL; NULL without
#: one. All users may read it for every role, in any database. The order is PostgreSQL's own.
ROLES_SETTING: Final = """(
    SELECT pg_catalog.split_part(c, '=', 2)::bool
    FROM pg_catalog.pg_db_role_setting AS s, pg_catalog.unnest(s.setconfig) AS c
    WHERE s.setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = {user}))
      AND s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = {database}))
      AND pg_catalog.split_part(c, '=', 1) = 'default_transaction_read_only'
    ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1)"""

_APPLICATIONS_SETTING: Final = ROLES_SETTING.format(user="$1::name", database="$2::name")

#: Replica; read-only for this session; read-only for the application's role by the catalog; follows another server.
_STATE: Final = (
    "pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')::bool,"
    " coalesce({roles_setting}, false), {subscribes}"
)
_SUBSCRIBES: Final = "EXISTS (SELECT FROM pg_catalog.pg_subscription WHERE subenabled)"
_STATES: Final = 4

#: Sources of a session's default that do not concern the whole server, so that it says nothing about other sessions.
_NOT_SERVERS: Final = frozenset({"global", "database", "user", "database user", "client", "session"})

_ROOM: Final = "pg_catalog.current_setting('max_connections')"

#: Waits until a replica is promoted, for the given number of ms at most: the functions are called for each row, and the
#: first returned row is the last. It needs no table, and no special permission.
_AWAIT: Final = (
    "SELECT true FROM pg_catalog.generate_series(1, 1000)"
    " WHERE CASE WHEN pg_catalog.pg_sleep(0.002)::text IS NOT NULL THEN NOT pg_catalog.pg_is_in_recovery()"
    " OR pg_catalog.clock_timestamp() > pg_catalog.statement_timestamp() + interval '{ms} ms' END LIMIT 1"
)

#: A server's answer: rows of columns in PostgreSQL's text format.
_Told = tuple[tuple[bytes | None, ...], ...]


class PostgresSession:
    """A monitoring connection to a PostgreSQL server."""

    def __init__(
        self,
        params: Mapping[str, Any],
        target: Target,
        passwords: PasswordMaker | None = None,
        application: Application | None = None,
    ) -> None:
        """Connect to *target*, at the first of its addresses and under the first of its names that accepts the login.

        Args:
            params: Connection parameters by libpq's names.
            target: The server.
            passwords: Makes passwords; None if *params* have the credentials.
            application: The user and database whose settings count in addition to the server's; None for those of
                *params*.

        Raises:
            SessionError: It cannot be reached, or refuses the login.
        """
        self._connection: Final = _connect(params, target, passwords)
        self._dialect: Dialect | None = None
        encoding = self._connection.info.encoding
        # The encoding of SQL_ASCII, which may contain any bytes.
        self._encoding: Final = "utf-8" if encoding == "ascii" else encoding
        self._asked_for: Final = [
            name.encode(self._encoding, "replace") for name in application or _own(self._connection)
        ]
        # The query for the server's state, and whether the session's own default is the server's: see _LOOK.
        self._state_sql = _STATE.format(roles_setting="NULL", subscribes="false")
        self._is_servers = True
        # The last answer, and the rows that it was made from: a server repeats the same answer very often.
        self._told: tuple[_Told, _Told] | None = None
        self._last = Answer(False)
        self._can_wait = True

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection, in autocommit mode, for other queries than the monitor's."""
        return self._connection

    @property
    def socket(self) -> int:
        """See Session."""
        return self._connection.pgconn.socket

    def ask(self) -> Answer:
        """See Session."""
        try:
            try:
                return self._read()
            except _Missing as missing:
                return replace(self._state(), missing=str(missing))
            except psycopg.Error as error:
                if self._connection.broken:
                    raise
                return replace(self._state(), failure=first_line(error))
        except (psycopg.Error, OSError) as error:
            raise SessionError(first_line(error)) from None

    def await_promotion(self, seconds: float) -> bool:
        """See Session."""
        if not (self._can_wait and self._last.replica):
            return False
        try:
            self._query(_AWAIT.format(ms=round(1000 * seconds)))
        except (psycopg.Error, OSError) as error:
            if self._connection.broken or not isinstance(error, psycopg.Error):
                raise SessionError(first_line(error)) from None
            # A shorter statement timeout, or a function whose permission was revoked.
            self._can_wait = False
        return self._can_wait

    def close(self) -> None:
        """See Session."""
        with contextlib.suppress(psycopg.Error, OSError):
            self._connection.close()

    def _read(self) -> Answer:
        if self._dialect is None:
            self._dialect = self._find_dialect()
        dialect = self._dialect
        try:
            # A single query, so that a server without metadata still reports whether it accepts writes.
            found = self._query(
                f"SELECT {self._state_sql}, {_ROOM}, m.version, m.endpoint, m.port, m.role, m.status"
                " FROM (VALUES (1)) AS one LEFT JOIN"
                f" {dialect.schema}.{dialect.function}('bgpool-{__version__}') AS m ON true"
            )
            has_rows = any(any(column is not None for column in row[_STATES + 1 :]) for row in found)
            servers = self._query(dialect.topology) if dialect.topology and has_rows else ()
        except (psycopg.errors.UndefinedFunction, psycopg.errors.InsufficientPrivilege):
            # Dropped or revoked since it was found: report it, and detect the kind of server again next time.
            self._dialect = None
            raise _Missing(self._remedy(dialect, f"{dialect.function} is gone")) from None
        if (found, servers) != self._told:
            self._last, self._told = self._answer(found, servers), (found, servers)
        return self._last

    def _state(self) -> Answer:
        """Return the server's state, without its metadata."""
        return replace(self._answer(self._query(f"SELECT {self._state_sql}, NULL"), ()), rows=None)

    def _answer(self, found: _Told, servers: _Told) -> Answer:
        """Return the answer from rows of a state, a number of connections and, if available, metadata."""
        replica, read_only, role_read_only, subscribes = (value == b"t" for value in found[0][:_STATES])
        room = found[0][_STATES]
        told = (row[_STATES + 1 :] for row in found)
        return Answer(
            replica or (read_only and self._is_servers),
            replica,
            rows=tuple(self._row(*columns) for columns in told if any(column is not None for column in columns)),
            servers=tuple(self._text(server) for (server,) in servers),
            max_connections=int(room or 0),
            role_read_only=role_read_only,
            subscribes=subscribes,
        )

    def _row(
        self,
        version: bytes | None,
        endpoint: bytes | None,
        port: bytes | None,
        role: bytes | None,
        status: bytes | None,
    ) -> StatusRow:
        text = self._text
        return StatusRow(text(endpoint), int(port or 0), text(role), text(status), text(version))

    def _text(self, value: bytes | None) -> str:
        return (value or b"").decode(self._encoding, "replace")

    def _query(self, question: str) -> _Told:
        """Return the server's answer to *question*, in which $1 and $2 are the application's role and database."""
        # In a single call of libpq, which releases the interpreter: a psycopg cursor, which converts all values to
        # objects, costs several times as much as the exchange. It ends like any wait of this connection: with an
        # answer, or when the socket is cut.
        asked_for = self._asked_for if "$1" in question else None
        result = self._connection.pgconn.exec_params(question.encode(), asked_for)
        if self._connection.closed:
            raise psycopg.OperationalError(result.get_error_message(self._encoding))
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result, self._encoding)
        columns = range(result.nfields)
        return tuple(tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples))

    def _find_dialect(self) -> Dialect:
        found = {(schema, name): usable for schema, name, usable in self._connection.execute(_LOOK)}
        self._is_servers = not any(("source", source) in found for source in _NOT_SERVERS)
        self._state_sql = _STATE.format(
            roles_setting=_APPLICATIONS_SETTING if found["catalog", "pg_db_role_setting"] else "NULL",
            subscribes=_SUBSCRIBES if found["catalog", "pg_subscription"] else "false",
        )
        aurora = any((AURORA.schema, name) in found for name in ("aurora_version", "aurora_replica_status"))
        dialect = AURORA if aurora else RDS
        usable = found.get((dialect.schema, dialect.function))
        if usable:
            return dialect
        missing = "does not exist" if usable is None else "may not be used by this user"
        raise _Missing(self._remedy(dialect, f"{dialect.schema}.{dialect.function} {missing}"))

    def _remedy(self, dialect: Dialect, missing: str) -> str:
        user = sql.Identifier(self._connection.info.user).as_string(self._connection)
        return (
            "no blue/green metadata, pools work as plain pools: "
            f"{dialect.name}: {missing}; {dialect.remedy.format(user=user)}"
        )


def _own(connection: psycopg.Connection[Any]) -> Application:
    return Application(connection.info.user, connection.info.dbname)


def _connect(params: Mapping[str, Any], target: Target, passwords: PasswordMaker | None) -> psycopg.Connection[Any]:
    # Set explicitly, because $PGTARGETSESSIONATTRS would prevent connections to a read-only host.
    own = {"target_session_attrs": "any", **params}
    if target.timeout_s:
        own["connect_timeout"] = min(int(own.get("connect_timeout") or target.timeout_s), target.timeout_s)

    def connect(address: str, names: Names) -> psycopg.Connection[Any]:
        # An empty hostaddr prevents libpq from using $PGHOSTADDR, which is meant for the application.
        place: dict[str, Any] = {"host": names.host, "hostaddr": address, "port": target.port}
        if passwords is not None:
            place["password"] = passwords.make(names.token, target.port, user_of(own))
        return psycopg.connect("", **{**own, **place}, autocommit=True, prepare_threshold=None)

    return reach(target, connect, proved=passwords is not None or names_are_proved(own), passwords=passwords)
