"""How the tests speak to each engine, where a promise names none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import psycopg
import pymysql

from bgpool.core.engine import Engine
from bgpool.lab import Pair

__all__ = ["KITS", "Kit", "kit_of"]


class Kit(ABC):
    """What a test needs of an engine.

    Attributes:
        error: The driver's OperationalError.
        programming_error: Its ProgrammingError.
    """

    engine: ClassVar[Engine]
    error: ClassVar[type[Exception]]
    programming_error: ClassVar[type[Exception]]

    @abstractmethod
    def execute(self, conn: Any, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement; none where it has no result."""

    @abstractmethod
    def where(self, conn: Any) -> str:
        """The IP address of the server."""

    @abstractmethod
    def session(self, conn: Any) -> int:
        """What the server calls the connection."""

    @abstractmethod
    def sleep(self, conn: Any, seconds: float) -> None:
        """Have the server sleep."""

    @abstractmethod
    def kill(self, pair: Pair, session: int) -> None:
        """Have blue end a session."""

    @abstractmethod
    def count_sessions(self, pair: Pair) -> int:
        """The application's sessions on blue."""

    @abstractmethod
    def connect(self, pair: Pair) -> Any:
        """A connection to blue that is no pool's."""

    @abstractmethod
    def refused_as_read_only(self, error: BaseException) -> bool:
        """Whether *error* has the number that the server gave it."""

    def read(self, conn: Any) -> int:
        """Read a table, which begins a transaction."""
        return int(self.execute(conn, "SELECT count(*) FROM ledger")[0][0])

    def write(self, conn: Any) -> None:
        """Write a row that nobody looks for."""
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

    def count_sessions(self, pair: Pair) -> int:
        return int(pair.blue.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'")[0][0])

    def connect(self, pair: Pair) -> Any:
        return psycopg.connect(pair.direct_dsn(pair.blue))

    def refused_as_read_only(self, error: BaseException) -> bool:
        return isinstance(error, psycopg.Error) and error.sqlstate == "25006"


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

    def count_sessions(self, pair: Pair) -> int:
        return int(pair.blue.execute("SELECT count(*) FROM information_schema.processlist WHERE user = 'app'")[0][0])

    def connect(self, pair: Pair) -> Any:
        return pymysql.connect(
            host=pair.blue.address, port=pair.port, user="app", password=pair.app_password, database="app"
        )

    def refused_as_read_only(self, error: BaseException) -> bool:
        return isinstance(error, pymysql.err.OperationalError) and error.args[0] in (1290, 1792)


KITS = {kit.engine: kit for kit in (_Postgres(), _Mysql())}


def kit_of(conn: Any) -> Kit:
    """The kit for a connection."""
    return KITS[Engine.MYSQL if isinstance(conn, pymysql.connections.Connection) else Engine.POSTGRESQL]
