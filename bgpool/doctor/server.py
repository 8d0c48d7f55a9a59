"""The server of one side, queried over one read-only connection with the parameters of the monitoring connections."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import psycopg
import pymysql

from bgpool.auth import PasswordMaker
from bgpool.core.engine import Engine
from bgpool.core.phase import Role
from bgpool.core.plan import Target
from bgpool.doctor import minimums
from bgpool.doctor.bounded import side_by_side
from bgpool.doctor.case import Case
from bgpool.doctor.findings import EarlyVerdict, failed, not_checked
from bgpool.dsn import Password
from bgpool.failures import first_line
from bgpool.monitor.dialects.mysql import MysqlSession
from bgpool.monitor.dialects.postgres import PostgresSession
from bgpool.monitor.session import Answer, SessionError
from bgpool.mysql import CUT_CODES, BoundedConnection, code_of
from bgpool.resolver import is_address
from bgpool.sockets import cut, identity

__all__ = ["Identity", "QueryFailed", "Server", "cache_warning", "open_session"]

_SPARE_S: Final = 1.0
"""Added to a driver's own time limit, whose error is more specific than the doctor's."""

_READ_ONLY: Final = {
    Engine.POSTGRESQL: "SET default_transaction_read_only = on",
    Engine.MYSQL: "SET SESSION TRANSACTION READ ONLY",
}
_WHO_POSTGRES: Final = """
    SELECT pg_catalog.current_setting('server_version'), pg_catalog.quote_ident(current_user),
           pg_catalog.quote_ident(pg_catalog.current_database()),
           EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
                   AND proname IN ('aurora_version', 'aurora_replica_status')),
           EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rdsadmin')
"""
_WHO_MYSQL: Final = "SELECT VERSION(), CURRENT_USER(), @@basedir"


class QueryFailed(EarlyVerdict):
    """The server refused a query. This ends a check that does not handle it.

    Attributes:
        code: The SQLSTATE, or MySQL's number as text.
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(not_checked(f"the server refuses the question: {text}"))
        self.code: Final = code


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity that a server reports.

    Attributes:
        product: One of the four products of `minimums`.
        version: The version that minimums compare.
        runs: Engine and version, for texts.
        doubt: The evidence that it is not RDS or Aurora; empty if there is none.
        account: The user in the spelling of grants.
        database: The database, quoted if necessary; empty for MySQL.
    """

    product: str
    version: str
    runs: str
    doubt: str
    account: str
    database: str = ""


class Server:
    """Blue's or green's server.

    Attributes:
        host, port: The host and port that the monitor would use.
        failure: The reason for which it cannot be queried (any longer); empty if it can.
        remedy: Advice if its login was refused; otherwise empty.
    """

    def __init__(self, case: Case, role: Role, host: str, port: int, *, as_application: bool = False) -> None:
        """The server of *role* at *host* and *port*; with *as_application*, use the application's login."""
        self._as_application: Final = as_application
        self.case: Final = case
        self.role: Final = role
        self.host: Final = host
        self.port: Final = port
        self.failure = "not connected yet"
        self.remedy = ""
        self._session: PostgresSession | MysqlSession | None = None

    def open(self) -> None:
        """Connect, within the case's time limit; `failure` contains the result."""
        self.failure = ""
        finished = side_by_side([self._open], self.case.timeout_s + _SPARE_S)
        if finished == [None]:
            self.failure = f"no answer within {self.case.timeout_s} s"

    @property
    def cache_warning(self) -> str:
        """The result of the function of that name for the open session."""
        return cache_warning(self._session) if self._session is not None else ""

    def close(self) -> None:
        """Close the connection; never raises."""
        if self._session is not None:
            self._session.close()

    @property
    def connection(self) -> psycopg.Connection[Any] | BoundedConnection:
        """The connection.

        Raises:
            EarlyVerdict: There is none.
        """
        return self._reached().connection

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of *sql*; none if it returns no rows.

        Raises:
            QueryFailed: The server refuses it.
            EarlyVerdict: The server is not available, or did not answer in time.
        """
        session = self._reached()
        with self._bounded(session) as late:
            try:
                if isinstance(session, PostgresSession):
                    found = session.connection.execute(sql.encode())
                    return found.fetchall() if found.description else []
                with session.connection.cursor() as cursor:
                    cursor.execute(sql)
                    return list(cursor.fetchall())
            except (psycopg.Error, pymysql.Error, OSError, RuntimeError) as error:
                text = self.case.without_secrets(first_line(error))
                if late.is_set() or _is_lost(session, error):
                    raise self._lost("" if late.is_set() else text) from None
                raise QueryFailed(text, _code(error)) from None

    @cached_property
    def answer(self) -> Answer:
        """The answer that a monitor would get.

        Raises:
            EarlyVerdict: The server is not available, or did not answer in time.
        """
        session = self._reached()
        with self._bounded(session) as late:
            try:
                return session.ask()
            except SessionError as error:
                raise self._lost("" if late.is_set() else self.case.without_secrets(str(error))) from None

    @cached_property
    def identity(self) -> Identity:
        """The server's identity.

        Raises:
            QueryFailed, EarlyVerdict: See `query`.
        """
        if self.case.dsn.engine is Engine.POSTGRESQL:
            version, account, database, aurora, admin = self.query(_WHO_POSTGRES)[0]
            product = minimums.AURORA_POSTGRES if aurora else minimums.RDS_POSTGRES
            doubt = "" if admin else "it has no role rdsadmin, which every one of RDS's has"
            return Identity(product, version, f"PostgreSQL {version}", doubt, account, database)
        version, account, base = map(_text, self.query(_WHO_MYSQL)[0])
        aurora_version = self._aurora_version()
        user, _, host = account.rpartition("@")
        doubt = "" if base.startswith("/rdsdbbin") else "its basedir is not /rdsdbbin, as on RDS"
        if "mariadb" in version.lower():
            doubt = f"MariaDB {version.partition('-')[0]}"
        return Identity(
            minimums.AURORA_MYSQL if aurora_version else minimums.RDS_MYSQL,
            aurora_version or version,
            f"version {version}",
            doubt,
            f"{_quoted(user)}@{_quoted(host)}",
        )

    # -- inside --------------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        try:
            params, password = self.case.config.params, self.case.dsn.monitoring_password
            if self._as_application:
                params, password = self.case.application, self.case.dsn.password
            session = open_session(self.case, params, self.host, self.port, password)
        except (SessionError, OSError) as error:
            text = str(error) if isinstance(error, SessionError) else first_line(error)
            self.failure = self.case.without_secrets(text)
            self.remedy = error.remedy if isinstance(error, SessionError) else ""
            return True
        if self.failure:  # too late
            session.close()
            return True
        self._session = session
        try:
            self.query(_READ_ONLY[self.case.dsn.engine])
            if self.case.dsn.engine is Engine.POSTGRESQL:
                # A little less than the doctor's own limit, which would close the connection.
                self.query(f"SET statement_timeout = '{self.case.timeout_s * 1000 - 500}ms'")
        except EarlyVerdict as early:
            # No further query to a server that might allow writes.
            self.failure = str(early)
        return True

    def _reached(self) -> PostgresSession | MysqlSession:
        if self.failure or self._session is None:
            raise EarlyVerdict(not_checked(f"{self.role.colour} cannot be asked, see login"))
        return self._session

    @contextlib.contextmanager
    def _bounded(self, session: PostgresSession | MysqlSession) -> Iterator[threading.Event]:
        """Cut the connection if the block takes too long, and set the event then."""
        late = threading.Event()

        def end(fd: int, expected: tuple[int, int]) -> None:
            late.set()
            cut(fd, expected)

        try:
            fd = session.socket
            timer = threading.Timer(self.case.timeout_s, end, (fd, identity(fd)))
        except (psycopg.Error, OSError) as error:
            raise self._lost(first_line(error)) from None
        timer.daemon = True
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()

    def _lost(self, why: str) -> EarlyVerdict:
        """Return the verdict of the check in which the connection was lost; *why* is empty if there was no answer."""
        self.failure = f"the connection was lost: {why or f'no answer within {self.case.timeout_s} s'}"
        return EarlyVerdict(failed(self.failure, "see the server's log, and whether it hangs"))

    def _aurora_version(self) -> str:
        """Return the result of AURORA_VERSION(); empty if there is no such function."""
        try:
            return _text(self.query("SELECT AURORA_VERSION()")[0][0])
        except QueryFailed:
            return ""


def open_session(
    case: Case, params: Mapping[str, Any], host: str, port: int, password: Password | None
) -> PostgresSession | MysqlSession:
    """Log in at *host* like a monitor, with *params*, and with the password of *password* if it is given.

    Raises:
        SessionError, OSError: It cannot be reached, or refuses the login.
    """
    passwords = PasswordMaker(password) if password is not None else None
    name = case.real_name(host)
    addresses: tuple[str, ...] = ()
    if case.settings.bg_resolver != "system" and name and not name.startswith("/") and not is_address(name):
        addresses = case.resolver.resolve(name)
        if not addresses:
            raise SessionError(f"{name} does not resolve")
    target = Target(name, port, addresses, timeout_s=case.timeout_s)
    if case.dsn.engine is Engine.POSTGRESQL:
        return PostgresSession(params, target, passwords, case.config.application)
    return MysqlSession(params, target, passwords)


def cache_warning(session: PostgresSession | MysqlSession) -> str:
    """Return a warning if *session*'s login would fail on a server without the password in its cache; else empty."""
    return session.connection.cache_warning if isinstance(session, MysqlSession) else ""


def _is_lost(session: PostgresSession | MysqlSession, error: BaseException) -> bool:
    if isinstance(session, PostgresSession):
        return session.connection.closed
    return not session.connection.open or code_of(error) in CUT_CODES


def _code(error: BaseException) -> str:
    return (error.sqlstate or "") if isinstance(error, psycopg.Error) else str(code_of(error))


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
