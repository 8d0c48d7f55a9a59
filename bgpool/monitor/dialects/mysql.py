"""RDS and Aurora MySQL: which of the two a server is, and what it says about its deployment."""

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
    """The server answers but offers no metadata; the text says what would help."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server is asked. Both keep the status in the same table.

    Attributes:
        name: For logs.
        topology: A query for server ids, the writer first; empty where the status rows name the instances.
        remedy: What to do where there is no such table.
    """

    name: str
    topology: str
    remedy: str


AURORA: Final = Dialect(
    "Aurora MySQL",
    # The document says of LAST_UPDATE_TIMESTAMP only that it shows which rows are stale, not its time zone: fresh by
    # either clock is fresh.
    "SELECT server_id FROM information_schema.replica_host_status"
    f" WHERE session_id = 'MASTER_SESSION_ID' OR {TOPOLOGY_STALE_S} >= LEAST("
    "ABS(TIMESTAMPDIFF(SECOND, last_update_timestamp, NOW())),"
    " ABS(TIMESTAMPDIFF(SECOND, last_update_timestamp, UTC_TIMESTAMP())))"
    " ORDER BY session_id <> 'MASTER_SESSION_ID', server_id",
    "Aurora MySQL offers it from 3.07 on",
)
RDS: Final = Dialect("RDS for MySQL", "", "any version of RDS for MySQL that has this table will do")

_READ_ONLY: Final = "@@global.read_only OR @@global.innodb_read_only"

# One question: a server whose table is empty still says whether it takes writes. All columns, whatever there are:
# the table has two shapes. Source: sysown/proxysql, pull request 4992.
_STATUS: Final = (
    f"SELECT {_READ_ONLY} AS bgpool_read_only, @@global.max_connections AS bgpool_room, t.*"
    " FROM (SELECT 1) AS one LEFT JOIN mysql.rds_topology AS t ON TRUE"
)
_NEEDED: Final = ("endpoint", "role", "status")

#: AURORA_VERSION is not there: no such function, no database to look for one in, or no right to it. On Aurora it is
#: built in and everybody's.
_NOT_AURORA: Final = frozenset({1305, 1630, 1046, 1370, 1044, 1142})
_NO_TABLE: Final = 1146
#: The table, its database or its columns may not be read. A server without the table says so, too, to who may not know.
_DENIED: Final = frozenset({1142, 1143, 1044, 1227})

_TIMEOUTS: Final = ("connect_timeout", "read_timeout", "write_timeout")


class MysqlSession:
    """One monitoring connection to a MySQL server. An answer takes no longer than its read timeout."""

    def __init__(
        self,
        params: Mapping[str, Any],
        target: Target,
        passwords: PasswordMaker | None = None,
        application: Application | None = None,  # noqa:ARG002  # no account has a setting of its own here
    ) -> None:
        """Connect to *target*, at the first of its addresses and under the first of its names that lets us in.

        Args:
            params: Connection parameters by PyMySQL's names.
            target: Where to.
            passwords: Makes passwords; None where *params* have all it takes.
            application: As every session has it.

        Raises:
            SessionError: It cannot be reached, or does not let us in.
        """
        self._user: Final = user_of(params)
        self._connection: Final = _connect(params, target, passwords)
        self._dialect: Dialect | None = None

    @property
    def connection(self) -> BoundedConnection:
        """The connection, in autocommit: for who has other questions than a monitor."""
        return self._connection

    @property
    def socket(self) -> int:
        """As Session says."""
        return self._connection.fileno()

    def ask(self) -> Answer:
        """As Session says."""
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
            # Of any kind: what PyMySQL makes of an answer that is none must not end the monitor.
            raise SessionError(first_line(error)) from None

    def await_promotion(self, seconds: float) -> bool:  # noqa:ARG002  # a statement sees its variables as it began
        """As Session says: no."""
        return False

    def close(self) -> None:
        """As Session says."""
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
        """What would help against the error *code* at reading the status; None where it is another matter."""
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
        """Column names in lower case, and rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            return [str(column[0]).lower() for column in cursor.description or ()], cursor.fetchall()


def status_rows(columns: Sequence[str], found: Sequence[Sequence[Any]]) -> tuple[StatusRow, ...]:
    """The rows of the status table in *found*.

    Args:
        columns: All names, in lower case.
        found: As many values a row; a row of an empty table is all NULL.
    """
    rows = (dict(zip(columns, values, strict=True)) for values in found)
    return tuple(_row(row) for row in rows if any(value is not None for value in row.values()))


def _row(row: Mapping[str, Any]) -> StatusRow:
    endpoint, port, role, status, version = (
        _text(row.get(name)) for name in ("endpoint", "port", "role", "status", "version")
    )
    return StatusRow(endpoint, int(port) if port.isdecimal() else 0, role, status, version or "1.0")


def _text(value: object) -> str:
    """*value* as text; a binary collation would have made bytes of it."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


def _remedy(dialect: Dialect, missing: str, remedy: str) -> str:
    return f"no blue/green metadata, pools work as plain pools: {dialect.name}: {missing}; {remedy}"


def _connect(params: Mapping[str, Any], target: Target, passwords: PasswordMaker | None) -> BoundedConnection:
    # Without autocommit the first answer would be the answer for ever.
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
            # To refuse a certificate breaks a handshake off. A server counts those, and after max_connect_errors (100)
            # in a row it shuts everybody out who comes from our address, the application too. A login sets the count
            # back, and the host's own name is the one that it still goes by.
            with contextlib.suppress(SessionError, pymysql.Error, OSError):
                reach(replace(target, names=()), connect, proved=proved, passwords=passwords).close()
        raise
