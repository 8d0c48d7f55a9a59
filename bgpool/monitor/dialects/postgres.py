"""RDS and Aurora PostgreSQL: which of the two a server is, and what it says about its deployment."""

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

# One query that tells what is there and what may be used; asking the functions themselves would tell neither apart. And
# where the session's own default comes from; that of a role reaches a session when it begins, and stays.
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


#: What a role's or a database's setting says of read-only transactions, to be formatted with both names as SQL; NULL
#: where there is none. Everybody may read that of every role, in whichever database. The order is PostgreSQL's own.
ROLES_SETTING: Final = """(
    SELECT pg_catalog.split_part(c, '=', 2)::bool
    FROM pg_catalog.pg_db_role_setting AS s, pg_catalog.unnest(s.setconfig) AS c
    WHERE s.setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = {user}))
      AND s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = {database}))
      AND pg_catalog.split_part(c, '=', 1) = 'default_transaction_read_only'
    ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1)"""

_APPLICATIONS_SETTING: Final = ROLES_SETTING.format(user="$1::name", database="$2::name")

#: Replica; read-only to this session; to the application's role by the catalog; following another server.
_STATE: Final = (
    "pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')::bool,"
    " coalesce({roles_setting}, false), {subscribes}"
)
_SUBSCRIBES: Final = "EXISTS (SELECT FROM pg_catalog.pg_subscription WHERE subenabled)"
_STATES: Final = 4

#: Where the default of a session comes from that is not the server's: what the session says of it tells of nobody else.
_NOT_SERVERS: Final = frozenset({"global", "database", "user", "database user", "client", "session"})

_ROOM: Final = "pg_catalog.current_setting('max_connections')"

#: Waits until a replica is none any more, for so many milliseconds at most: the functions are called for each row, and
#: the first row that is returned is the last. It takes no table, and no right that not everybody has.
_AWAIT: Final = (
    "SELECT true FROM pg_catalog.generate_series(1, 1000)"
    " WHERE CASE WHEN pg_catalog.pg_sleep(0.002)::text IS NOT NULL THEN NOT pg_catalog.pg_is_in_recovery()"
    " OR pg_catalog.clock_timestamp() > pg_catalog.statement_timestamp() + interval '{ms} ms' END LIMIT 1"
)

#: What a server says, as it says it: rows of columns in PostgreSQL's text format.
_Told = tuple[tuple[bytes | None, ...], ...]


class PostgresSession:
    """One monitoring connection to a PostgreSQL server."""

    def __init__(
        self,
        params: Mapping[str, Any],
        target: Target,
        passwords: PasswordMaker | None = None,
        application: Application | None = None,
    ) -> None:
        """Connect to *target*, at the first of its addresses and under the first of its names that lets us in.

        Args:
            params: Connection parameters by libpq's names.
            target: Where to.
            passwords: Makes passwords; None where *params* have all it takes.
            application: Whose settings count beside the server's own; None for those of *params* alone.

        Raises:
            SessionError: It cannot be reached, or does not let us in.
        """
        self._connection: Final = _connect(params, target, passwords)
        self._dialect: Dialect | None = None
        encoding = self._connection.info.encoding
        # Of SQL_ASCII, which is any encoding's bytes.
        self._encoding: Final = "utf-8" if encoding == "ascii" else encoding
        self._asked_for: Final = [
            name.encode(self._encoding, "replace") for name in application or _own(self._connection)
        ]
        # What is asked of the server's state, and whether the session's own default is the server's: see _LOOK.
        self._state_sql = _STATE.format(roles_setting="NULL", subscribes="false")
        self._is_servers = True
        # The last answer, and what it was made of: a server says the same a million times before it says something
        # else.
        self._told: tuple[_Told, _Told] | None = None
        self._last = Answer(False)
        self._can_wait = True

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection, in autocommit: for who has other questions than a monitor."""
        return self._connection

    @property
    def socket(self) -> int:
        """As Session says."""
        return self._connection.pgconn.socket

    def ask(self) -> Answer:
        """As Session says."""
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
        """As Session says."""
        if not (self._can_wait and self._last.replica):
            return False
        try:
            self._query(_AWAIT.format(ms=round(1000 * seconds)))
        except (psycopg.Error, OSError) as error:
            if self._connection.broken or not isinstance(error, psycopg.Error):
                raise SessionError(first_line(error)) from None
            # A time limit that is shorter, or a function that was taken from everybody.
            self._can_wait = False
        return self._can_wait

    def close(self) -> None:
        """As Session says."""
        with contextlib.suppress(psycopg.Error, OSError):
            self._connection.close()

    def _read(self) -> Answer:
        if self._dialect is None:
            self._dialect = self._find_dialect()
        dialect = self._dialect
        try:
            # One question: a server without metadata still says whether it takes writes.
            found = self._query(
                f"SELECT {self._state_sql}, {_ROOM}, m.version, m.endpoint, m.port, m.role, m.status"
                " FROM (VALUES (1)) AS one LEFT JOIN"
                f" {dialect.schema}.{dialect.function}('bgpool-{__version__}') AS m ON true"
            )
            has_rows = any(any(column is not None for column in row[_STATES + 1 :]) for row in found)
            servers = self._query(dialect.topology) if dialect.topology and has_rows else ()
        except (psycopg.errors.UndefinedFunction, psycopg.errors.InsufficientPrivilege):
            # Dropped or revoked since it was found: say so, and look again the next time.
            self._dialect = None
            raise _Missing(self._remedy(dialect, f"{dialect.function} is gone")) from None
        if (found, servers) != self._told:
            self._last, self._told = self._answer(found, servers), (found, servers)
        return self._last

    def _state(self) -> Answer:
        """What the server says of itself, without its metadata."""
        return replace(self._answer(self._query(f"SELECT {self._state_sql}, NULL"), ()), rows=None)

    def _answer(self, found: _Told, servers: _Told) -> Answer:
        """What rows of a state, a number of connections and, where there are any, metadata come to."""
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
        """What the server says to *question*, in which $1 and $2 stand for the application's role and database."""
        # In one call of libpq's, which lets other threads run meanwhile: a cursor of psycopg's, which makes objects of
        # all that it is told, costs several times as much as the exchange. It ends as any wait of this connection
        # does, with an answer or when the socket is cut.
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
    # Said aloud, or $PGTARGETSESSIONATTRS would keep us from a host that takes no writes.
    own = {"target_session_attrs": "any", **params}
    if target.timeout_s:
        own["connect_timeout"] = min(int(own.get("connect_timeout") or target.timeout_s), target.timeout_s)

    def connect(address: str, names: Names) -> psycopg.Connection[Any]:
        # An empty hostaddr keeps libpq from taking $PGHOSTADDR, which is meant for the application.
        place: dict[str, Any] = {"host": names.host, "hostaddr": address, "port": target.port}
        if passwords is not None:
            place["password"] = passwords.make(names.token, target.port, user_of(own))
        return psycopg.connect("", **{**own, **place}, autocommit=True, prepare_threshold=None)

    return reach(target, connect, proved=passwords is not None or names_are_proved(own), passwords=passwords)
