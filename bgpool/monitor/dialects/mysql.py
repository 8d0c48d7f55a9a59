"""RDS and Aurora MySQL: detect which of the two a server is, and read its deployment's metadata."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pymysql

from bgpool.auth import PasswordMaker
from bgpool.core.events import StatusRow
from bgpool.core.limits import TOPOLOGY_STALE_S
from bgpool.core.plan import Target
from bgpool.core.routing import Names
from bgpool.dsn import names_are_proved, user_of
from bgpool.failures import first_line
from bgpool.monitor.dialects.reach import reach
from bgpool.monitor.session import Answer, Application, SessionError
from bgpool.mysql import CUT_CODES, BoundedConnection, code_of

__all__ = ["AURORA", "RDS", "Dialect", "MysqlSession", "status_rows"]


class _Missing(Exception):
    """The server answers but has no visible metadata; the text is advice."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The queries for one kind of server. Both keep the status in the same table.

    Attributes:
        name: The name for logs.
        topology: A query for server ids, the writer first; empty if the status rows name the instances.
        remedy: The advice if the table does not exist.
    """

    name: str
    topology: str
    remedy: str


AURORA: Final = Dialect(
    "Aurora MySQL",
    # The documentation says that LAST_UPDATE_TIMESTAMP shows which rows are stale, but not its time zone. A row that is
    # fresh in either one counts.
    "SELECT server_id FROM information_schema.replica_host_status"
    f" WHERE session_id = 'MASTER_SESSION_ID' OR {TOPOLOGY_STALE_S} >= LEAST("
    "ABS(TIMESTAMPDIFF(SECOND, last_update_timestamp, NOW())),"
    " ABS(TIMESTAMPDIFF(SECOND, last_update_timestamp, UTC_TIMESTAMP())))"
    " ORDER BY session_id <> 'MASTER_SESSION_ID', server_id",
    "Aurora MySQL offers it from 3.07 on",
)
RDS: Final = Dialect("RDS for MySQL", "", "any version of RDS for MySQL that has this table will do")

_READ_ONLY: Final = "@@global.read_only OR @@global.innodb_read_only"

# A single query, so that a server with an empty table still reports whether it accepts writes. All columns: the table
# has two layouts. Source: sysown/proxysql, pull request 4992.
_STATUS: Final = (
    f"SELECT {_READ_ONLY} AS bgpool_read_only, @@global.max_connections AS bgpool_room, t.*"
    " FROM (SELECT 1) AS one LEFT JOIN mysql.rds_topology AS t ON TRUE"
)
_NEEDED: Final = ("endpoint", "role", "status")

#: AURORA_VERSION is not available: no such function, no database to look for it in, or no permission. On Aurora it is
#: built in and available to all users.
_NOT_AURORA: Final = frozenset({1305, 1630, 1046, 1370, 1044, 1142})
_NO_TABLE: Final = 1146
#: The table, its database or its columns may not be read. A server without the table answers the same to users that may
#: not know that.
_DENIED: Final = frozenset({1142, 1143, 1044, 1227})

_TIMEOUTS: Final = ("connect_timeout", "read_timeout", "write_timeout")


class MysqlSession:
    """A monitoring connection to a MySQL server. Its read timeout limits every answer."""

    def __init__(
        self,
        params: Mapping[str, Any],
        target: Target,
        passwords: PasswordMaker | None = None,
        application: Application | None = None,  # noqa:ARG002  # accounts have no read-only setting here
    ) -> None:
        """Connect to *target*, at the first of its addresses and under the first of its names that accepts the login.

        Args:
            params: Connection parameters by PyMySQL's names.
            target: The server.
            passwords: Makes passwords; None if *params* have the credentials.
            application: Unused; part of the interface of sessions.

        Raises:
            SessionError: It cannot be reached, or refuses the login.
        """
        self._user: Final = user_of(params)
        self._connection: Final = _connect(params, target, passwords)
        self._dialect: Dialect | None = None

    @property
    def connection(self) -> BoundedConnection:
        """The connection, in autocommit mode, for other queries than the monitor's."""
        return self._connection

    @property
    def socket(self) -> int:
        """See Session."""
        return self._connection.fileno()

    def ask(self) -> Answer:
        """See Session."""
        try:
            try:
                return self._read()
            except _Missing as missing:
                return Answer(self._is_read_only(), missing=str(missing))
            except pymysql.Error as error:
                if not self._connection.open or code_of(error) in CUT_CODES:
                    raise
                return Answer(self._is_read_only(), failure=first_line(error))
        except Exception as error:
            # Any error: PyMySQL's reaction to a malformed answer must not end the monitor.
            raise SessionError(first_line(error)) from None

    def await_promotion(self, seconds: float) -> bool:  # noqa:ARG002  # not supported on MySQL
        """See Session; not supported."""
        return False

    def close(self) -> None:
        """See Session."""
        with contextlib.suppress(pymysql.Error, OSError):
            self._connection.close()

    def _read(self) -> Answer:
        if self._dialect is None:
            self._dialect = self._find_dialect()
        dialect = self._dialect
        try:
            columns, found = self._query(_STATUS)
        except pymysql.Error as error:
            missing = self._explain(dialect, code_of(error))
            if missing is None:
                raise
            raise _Missing(missing) from None
        absent = [name for name in _NEEDED if name not in columns]
        if absent:
            what = f"mysql.rds_topology has no {' and no '.join(absent)}, as in an RDS Multi-AZ DB cluster"
            raise _Missing(_remedy(dialect, what, "these are not supported"))
        rows = status_rows(columns[2:], [values[2:] for values in found])
        servers = self._query(dialect.topology)[1] if dialect.topology and rows else []
        read_only, room, *_ = found[0]
        ids = tuple(_text(server) for (server,) in servers)
        return Answer(bool(read_only), rows=rows, servers=ids, max_connections=int(room))

    def _is_read_only(self) -> bool:
        return bool(self._query(f"SELECT {_READ_ONLY}")[1][0][0])

    def _find_dialect(self) -> Dialect:
        try:
            self._query("SELECT AURORA_VERSION()")
        except pymysql.Error as error:
            if code_of(error) not in _NOT_AURORA:
                raise
            return RDS
        return AURORA

    def _explain(self, dialect: Dialect, code: int) -> str | None:
        """Return advice for the error *code* at reading the status; None for other errors."""
        if code == _NO_TABLE:
            return _remedy(dialect, "mysql.rds_topology does not exist", dialect.remedy)
        if code not in _DENIED:
            return None
        user = self._user.replace("\\", "\\\\").replace("'", "\\'")
        grant = f"GRANT SELECT ON mysql.rds_topology TO '{user}'@'%';"
        return _remedy(
            dialect,
            "mysql.rds_topology may not be read by this user, or does not exist",
            f"run as an administrator, best before the deployment is created, so that green has it, too: {grant}"
            f" ({dialect.remedy})",
        )

    def _query(self, sql: str) -> tuple[list[str], Sequence[Sequence[Any]]]:
        """Return column names in lower case, and rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            return [str(column[0]).lower() for column in cursor.description or ()], cursor.fetchall()


def status_rows(columns: Sequence[str], found: Sequence[Sequence[Any]]) -> tuple[StatusRow, ...]:
    """Return the rows of the status table in *found*.

    Args:
        columns: All names, in lower case.
        found: Rows with one value per column; a row of an empty table is all NULL.
    """
    rows = (dict(zip(columns, values, strict=True)) for values in found)
    return tuple(_row(row) for row in rows if any(value is not None for value in row.values()))


def _row(row: Mapping[str, Any]) -> StatusRow:
    endpoint, port, role, status, version = (
        _text(row.get(name)) for name in ("endpoint", "port", "role", "status", "version")
    )
    return StatusRow(endpoint, int(port) if port.isdecimal() else 0, role, status, version or "1.0")


def _text(value: object) -> str:
    """Return *value* as text; with a binary collation it is bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


def _remedy(dialect: Dialect, missing: str, remedy: str) -> str:
    return f"no blue/green metadata, pools work as plain pools: {dialect.name}: {missing}; {remedy}"


def _connect(params: Mapping[str, Any], target: Target, passwords: PasswordMaker | None) -> BoundedConnection:
    # Without autocommit every answer would repeat the first one's snapshot.
    own = {**params, "autocommit": True}
    for name in ("host", "port", *(["unix_socket"] if target.host or target.addresses else [])):
        own.pop(name, None)
    if target.timeout_s:
        own |= {name: min(own.get(name) or target.timeout_s, target.timeout_s) for name in _TIMEOUTS}
    user = user_of(own)
    proved = passwords is not None or names_are_proved(own)

    def connect(address: str, names: Names) -> BoundedConnection:
        if passwords is not None:
            own["password"] = passwords.make(names.token, target.port, user)
        return BoundedConnection(address=address, host=names.host, port=target.port, **own)

    try:
        return reach(target, connect, proved=proved, passwords=passwords)
    except SessionError:
        if proved and target.names and target.host not in target.names:
            # Refusing a certificate aborts a handshake. A server counts these per address, and after max_connect_errors
            # (100) in a row it blocks the address, including the application. A successful login resets the count, so
            # log in under the host's own name, which is still valid.
            with contextlib.suppress(SessionError, pymysql.Error, OSError):
                reach(replace(target, names=()), connect, proved=proved, passwords=passwords).close()
        raise
