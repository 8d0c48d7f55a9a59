"""Access to each engine, for tests that do not depend on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import psycopg
import pymysql
import pytest
import sqlalchemy
import sqlalchemy.exc
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import await_only

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from tests.waiting import wait_until

__all__ = [
    "ASYNCIO",
    "ASYNCPG",
    "ASYNC_POOL",
    "KITS",
    "WAYS",
    "Kit",
    "Sqlalchemy",
    "extra_kits",
    "kit_of",
    "on_each_engine",
    "sleepers",
]


class Kit(ABC):
    """The operations that a test needs of an engine.

    Attributes:
        error: The driver's OperationalError.
        programming_error: Its ProgrammingError.
    """

    engine: Engine
    error: type[Exception]
    programming_error: type[Exception] | tuple[type[Exception], ...]

    #: True if the test runs in a greenlet of SQLAlchemy, see tests.greenlets.
    in_greenlet = False

    @property
    def name(self) -> str:
        """The engine's name in test ids."""
        return self.engine.value

    @abstractmethod
    def execute(self, conn: Any, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement; none where it has no result."""

    @abstractmethod
    def where(self, conn: Any) -> str:
        """The IP address of the server."""

    @abstractmethod
    def session(self, conn: Any) -> int:
        """Return the server's id of the connection."""

    @abstractmethod
    def sleep(self, conn: Any, seconds: float) -> None:
        """Have the server sleep."""

    @abstractmethod
    def kill(self, pair: Pair, session: int) -> None:
        """Have blue end a session, and wait until it has."""

    @abstractmethod
    def count_sessions(self, pair: Pair) -> int:
        """The application's sessions on blue."""

    @abstractmethod
    def connect(self, pair: Pair) -> Any:
        """A connection to blue that is no pool's."""

    @abstractmethod
    def refused_as_read_only(self, error: BaseException) -> bool:
        """Return whether *error* has the code of a read-only server."""

    def drivers(self, conn: Any) -> Any:
        """The driver's connection under *conn*."""
        return conn

    def adapted(self, sql: str) -> str:
        """*sql*, with %s for each parameter, as the driver has it."""
        return sql

    def read(self, conn: Any) -> int:
        """Read a table, which begins a transaction."""
        return int(self.execute(conn, "SELECT count(*) FROM ledger")[0][0])

    def write(self, conn: Any) -> None:
        """Write a row that no test reads."""
        self.execute(conn, "INSERT INTO ledger (worker, thread, n) VALUES (77, 7, 7)")


class _Postgres(Kit):
    engine = Engine.POSTGRESQL
    error = psycopg.OperationalError
    programming_error = psycopg.ProgrammingError

    def execute(self, conn: Any, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        cursor = conn.execute(sql, params or None)
        return list(cursor.fetchall()) if cursor.description else []

    def where(self, conn: Any) -> str:
        return str(conn.info.hostaddr)

    def session(self, conn: Any) -> int:
        return int(conn.info.backend_pid)

    def sleep(self, conn: Any, seconds: float) -> None:
        conn.execute("SELECT pg_sleep(%s)", (seconds,))

    def kill(self, pair: Pair, session: int) -> None:
        pair.blue.execute(f"SELECT pg_terminate_backend({session})")
        wait_until(lambda: not pair.blue.execute(f"SELECT 1 FROM pg_stat_activity WHERE pid = {session}"))

    def count_sessions(self, pair: Pair) -> int:
        return int(pair.blue.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'")[0][0])

    def connect(self, pair: Pair) -> Any:
        return psycopg.connect(pair.direct_dsn(pair.blue))

    def refused_as_read_only(self, error: BaseException) -> bool:
        return isinstance(error, psycopg.Error) and error.sqlstate == "25006"


class AsyncPostgres(_Postgres):
    """PostgreSQL through SQLAlchemy's asyncio extension: what a test does, it does in a greenlet of a task's."""

    in_greenlet = True

    @property
    def name(self) -> str:
        return "postgresql-asyncio"

    def execute(self, conn: Any, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        if not isinstance(conn, psycopg.AsyncConnection):
            return super().execute(conn, sql, params)
        cursor: Any = await_only(conn.execute(sql.encode(), params or None))
        return list(await_only(cursor.fetchall())) if cursor.description else []

    def sleep(self, conn: Any, seconds: float) -> None:
        self.execute(conn, "SELECT pg_sleep(%s)", (seconds,))


class Asyncpg(AsyncPostgres):
    """The same on asyncpg."""

    @property
    def name(self) -> str:
        return "postgresql-asyncpg"

    def where(self, conn: Any) -> str:
        return str(conn.bgpool_address)

    def session(self, conn: Any) -> int:
        return int(conn.get_server_pid())

    def sleep(self, conn: Any, seconds: float) -> None:
        await_only(conn.execute(f"SELECT pg_sleep({seconds})"))

    def refused_as_read_only(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) == "25006"

    def adapted(self, sql: str) -> str:
        parts = sql.split("%s")
        return parts[0] + "".join(f"${number}{part}" for number, part in enumerate(parts[1:], 1))


class _AsyncPool(_Postgres):
    """PostgreSQL through an AsyncPool, whose coroutines a thread waits for: see tests/pools/bridge.py."""

    @property
    def name(self) -> str:
        return "async-pool"


class _Mysql(Kit):
    engine = Engine.MYSQL
    error = pymysql.err.OperationalError
    programming_error = pymysql.err.ProgrammingError

    def execute(self, conn: Any, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with conn.cursor() as cursor:
            cursor.execute(sql, params or None)
            return list(cursor.fetchall()) if cursor.description else []

    def where(self, conn: Any) -> str:
        return str(conn.peer)

    def session(self, conn: Any) -> int:
        return int(conn.thread_id())

    def sleep(self, conn: Any, seconds: float) -> None:
        self.execute(conn, "SELECT sleep(%s)", (seconds,))

    def kill(self, pair: Pair, session: int) -> None:
        pair.blue.execute(f"KILL CONNECTION {session}")
        wait_until(lambda: not pair.blue.execute(f"SELECT 1 FROM information_schema.processlist WHERE id = {session}"))

    def count_sessions(self, pair: Pair) -> int:
        return int(pair.blue.execute("SELECT count(*) FROM information_schema.processlist WHERE user = 'app'")[0][0])

    def connect(self, pair: Pair) -> Any:
        return pymysql.connect(
            host=pair.blue.address, port=pair.port, user="app", password=pair.app_password, database="app"
        )

    def refused_as_read_only(self, error: BaseException) -> bool:
        return isinstance(error, pymysql.err.OperationalError) and error.args[0] in (1290, 1792)


ASYNCIO = AsyncPostgres()
ASYNCPG = Asyncpg()
ASYNC_POOL = _AsyncPool()
KITS = {kit.engine: kit for kit in (_Postgres(), _Mysql())}


class Sqlalchemy(Kit):
    """An engine through SQLAlchemy: what a test executes on is a Session, or a Connection."""

    error = sqlalchemy.exc.OperationalError
    programming_error = (sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.InvalidRequestError)

    def __init__(self, kit: Kit, *, sessions: bool) -> None:
        self.engine = kit.engine
        self.sessions = sessions
        self.in_greenlet = kit.in_greenlet
        self._kit = kit

    @property
    def on_asyncpg(self) -> bool:
        """True if the driver is asyncpg."""
        return self._kit is ASYNCPG

    @property
    def suffix(self) -> str:
        """The suffix of the dialects after the engine's name in a URL."""
        return "+bgpool_asyncpg" if self.on_asyncpg else "+bgpool"

    @property
    def name(self) -> str:
        return f"{self._kit.name}-{'session' if self.sessions else 'connection'}"

    def execute(self, conn: Any, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        connection = conn.connection() if isinstance(conn, Session) else conn
        result = connection.exec_driver_sql(self._kit.adapted(sql), tuple(params) or None)
        return [tuple(row) for row in result] if result.returns_rows else []

    def where(self, conn: Any) -> str:
        return self._kit.where(self.drivers(conn))

    def session(self, conn: Any) -> int:
        return self._kit.session(self.drivers(conn))

    def sleep(self, conn: Any, seconds: float) -> None:
        self._kit.sleep(self.drivers(conn), seconds)

    def kill(self, pair: Pair, session: int) -> None:
        self._kit.kill(pair, session)

    def count_sessions(self, pair: Pair) -> int:
        return self._kit.count_sessions(pair)

    def connect(self, pair: Pair) -> Any:
        return self._kit.connect(pair)

    def refused_as_read_only(self, error: BaseException) -> bool:
        return isinstance(error, sqlalchemy.exc.DBAPIError) and self._kit.refused_as_read_only(error.orig or error)

    def drivers(self, conn: Any) -> Any:
        connection = conn.connection() if isinstance(conn, Session) else conn
        return connection.connection.driver_connection if isinstance(connection, sqlalchemy.Connection) else connection


#: The ways in which a unit of work can be run on an engine.
WAYS: dict[Engine, tuple[Kit, ...]] = {
    engine: (kit, Sqlalchemy(kit, sessions=True), Sqlalchemy(kit, sessions=False)) for engine, kit in KITS.items()
}
WAYS[Engine.POSTGRESQL] += (Sqlalchemy(ASYNCIO, sessions=True), Sqlalchemy(ASYNCIO, sessions=False))


def sleepers(pair: Pair) -> set[int]:
    """The sessions that blue has sleep just now; those of clients that are gone sleep on, too."""
    query = {
        Engine.POSTGRESQL: "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
        Engine.MYSQL: "SELECT id FROM information_schema.processlist WHERE state = 'User sleep'",
    }[pair.engine]
    return {int(row[0]) for row in pair.blue.execute(query)}


def kit_of(conn: Any) -> Kit:
    """The kit for a connection."""
    return KITS[Engine.MYSQL if isinstance(conn, pymysql.connections.Connection) else Engine.POSTGRESQL]


def on_each_engine(metafunc: pytest.Metafunc) -> None:
    """A test with a *kit* runs on both engines, or on those that its module's ``ENGINES`` name.

    And in SQLAlchemy's form for asyncio, where its module says ``ASYNCIO``, unless it is marked ``threads_alone``.
    """
    if "kit" in metafunc.fixturenames:
        engines = getattr(metafunc.module, "ENGINES", tuple(KITS))
        kits = [KITS[engine] for engine in engines] + extra_kits(metafunc)
        metafunc.parametrize("kit", kits, ids=[kit.name for kit in kits])


def extra_kits(metafunc: pytest.Metafunc) -> list[Kit]:
    """The kit for asyncio, for a test that also runs there."""
    wanted = getattr(metafunc.module, "ASYNCIO", False)
    alone = any(metafunc.definition.iter_markers("threads_alone"))
    return [ASYNCIO] if wanted and not alone else []
