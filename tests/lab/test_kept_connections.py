"""Connections kept by other owners than bgpool's pools, by their own rules, in a whole switchover of real servers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
import sqlalchemy as sa
from dbutils.persistent_db import PersistentDB
from dbutils.pooled_db import PooledDB

import bgpool
from bgpool.core.engine import Engine
from bgpool.lab import Director, Pair, ledger
from bgpool.lab.ledger import INSERT_SQL, Key
from bgpool.lab.scenarios.scenario import FAST
from tests.engines import KITS, Kit
from tests.pools.callers import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

DRIVERS = {Engine.POSTGRESQL: psycopg, Engine.MYSQL: pymysql}
DIALECTS = {Engine.POSTGRESQL: "postgresql+psycopg://", Engine.MYSQL: "mysql+pymysql://"}
#: The number of threads for each recipe.
THREADS = 2

Connect = Callable[[], Any]
#: A connection for one transaction.
Take = Callable[[], AbstractContextManager[Any]]


@contextlib.contextmanager
def rolled_back_on_error(conn: Any) -> Iterator[Any]:
    """Commit at the end, or roll back; a connection that is gone is treated as rolled back."""
    try:
        yield conn
        conn.commit()
    except BaseException:
        with contextlib.suppress(Exception):
            conn.rollback()
        raise


def thread_local(_engine: Engine, connect: Connect) -> Take:
    """Keep one connection for each thread, and replace it when it is closed."""
    mine = threading.local()

    def take() -> AbstractContextManager[Any]:
        conn = getattr(mine, "conn", None)
        if conn is None or conn.closed:
            if conn is not None:
                conn.close()
            conn = mine.conn = connect()
        return rolled_back_on_error(conn)

    return take


def plain_list(_engine: Engine, connect: Connect) -> Take:
    """Keep idle connections in a list, and do not use closed ones again."""
    idle: list[Any] = []

    @contextlib.contextmanager
    def take() -> Iterator[Any]:
        conn = idle.pop() if idle else connect()
        if conn.closed:
            conn.close()
            conn = connect()
        try:
            with rolled_back_on_error(conn):
                yield conn
        finally:
            idle.append(conn)

    return take


def sqlalchemys(engine: Engine, connect: Connect) -> Take:
    """Use SQLAlchemy's QueuePool, with its own dialect of the driver."""
    made = sa.create_engine(DIALECTS[engine], creator=connect, pool_size=THREADS, max_overflow=0)

    return made.begin


def dbutils(kind: Callable[..., Any]) -> Callable[[Engine, Connect], Take]:
    """Use DBUtils' own pools."""

    def recipe(engine: Engine, connect: Connect) -> Take:
        def creator() -> Any:
            return connect()

        creator.dbapi = DRIVERS[engine]  # type: ignore[attr-defined]  # DBUtils looks for it here
        pool = kind(creator)

        @contextlib.contextmanager
        def take() -> Iterator[Any]:
            with contextlib.closing(pool.connection()) as conn:
                conn.begin()
                with rolled_back_on_error(conn):
                    yield conn

        return take

    return recipe


def insert(conn: Any, key: Key) -> Any:
    """Write a row; return the driver's connection that was used."""
    if isinstance(conn, sa.Connection):
        conn.exec_driver_sql(INSERT_SQL, key)
        return conn.connection.dbapi_connection
    with conn.cursor() as cursor:
        cursor.execute(INSERT_SQL, key)
    return getattr(conn, "dbapi_connection", conn)


RECIPES: dict[str, Callable[[Engine, Connect], Take]] = {
    "thread-local": thread_local,
    "list": plain_list,
    "QueuePool": sqlalchemys,
    "PooledDB": dbutils(PooledDB),
    "PersistentDB": dbutils(PersistentDB),
}


class Writers:
    """Threads that write a row in each transaction."""

    def __init__(self, worker: int, kit: Kit, take: Take) -> None:
        self.acknowledged: list[Key] = []
        self.unknown: list[Key] = []
        self.errors: list[BaseException] = []
        self.last = ""
        self._worker, self._kit, self._take = worker, kit, take
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _write(self, thread: int) -> None:
        n = 0
        while not self._over.wait(0.005):
            n += 1
            key = (self._worker, thread, n)
            try:
                with self._take() as conn:
                    where = self._kit.where(insert(conn, key))
                self.acknowledged.append(key)
                self.last = where
            except (psycopg.Error, pymysql.MySQLError, sa.exc.DBAPIError) as error:
                cause = getattr(error, "orig", error)
                self.errors.append(cause)
                if isinstance(cause, bgpool.CommitOutcomeUnknown):
                    self.unknown.append(key)

    def end(self) -> None:
        """Stop the threads."""
        self._over.set()
        for thread in self._threads:
            thread.join(15)
        assert not any(thread.is_alive() for thread in self._threads)


def noted(made: list[Any], connect: Connect) -> Connect:
    """Return *connect* with its connections also added to *made*, so that they can be closed at the end."""

    def note() -> Any:
        made.append(connect())
        return made[-1]

    return note


@pytest.mark.parametrize("engine", [Engine.POSTGRESQL, pytest.param(Engine.MYSQL, marks=pytest.mark.full)])
def test_every_owner_replaces_its_connections(engine: Engine, tmp_path: Path) -> None:
    with Pair(engine=engine.value) as pair:
        ledger.create(pair)
        director = Director(pair, FAST)
        director.create_deployment()
        own: dict[str, Any] = {"bg_run_dir": tmp_path / "run", "bg_resolver": pair.resolver, "bg_id": "kept",
                               "bg_interval_baseline_ms": 500, "bg_interval_high_ms": 50}  # fmt: skip
        pool = bgpool.get_pool(pair.dsn, **own, min_size=0, max_size=20, timeout=10.0)
        connector = bgpool.get_connector(pair.dsn, **own)
        made: list[Any] = []
        writers: dict[str, Writers] = {}
        for source, connect in (("pool", noted(made, pool.getconn)), ("connector", noted(made, connector.connect))):
            for name, recipe in RECIPES.items():
                writers[f"{name} of {source}"] = Writers(len(writers), KITS[engine], recipe(engine, connect))
        reader = pool.participant.reader
        wait_until(lambda: (seen := reader.refresh().snapshot) is not None and seen.ready)
        director.run()
        before = {name: len(one.acknowledged) for name, one in writers.items()}
        wait_until(lambda: all(len(one.acknowledged) > before[name] + 20 for name, one in writers.items()))
        for one in writers.values():
            one.end()
        acknowledged = [key for one in writers.values() for key in one.acknowledged]
        verdict = ledger.judge(pair, acknowledged, [key for one in writers.values() for key in one.unknown])
        for conn in made:
            conn.close()
    assert verdict.clean, verdict
    for name, one in writers.items():
        assert one.last == pair.green.address, name
        # Each connection gets this error once. The number of writes that blue refuses before the monitor has read of
        # the switchover does not depend on the owner: the monitor may be slow on a busy machine.
        stale = [error for error in one.errors if "from before the switchover" in str(error)]
        assert len(stale) <= THREADS, (name, stale)
