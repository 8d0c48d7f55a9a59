"""Operations of an asyncpg pool, and of an AsyncEngine on asyncpg, that are cancelled: at each wait, and at random."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from typing import Any, Final, cast

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from bgpool.core.phase import Phase
from bgpool.integrations import asyncpg as bg
from bgpool.integrations.asyncpg.wire import Wire
from bgpool.integrations.sqlalchemy import arun
from bgpool.lab import Pair
from bgpool.lab.ledger import Key
from bgpool.testing import Deployment
from tests.asyncpg.conftest import Opened, Run
from tests.asyncpg.test_sqlalchemy import Engines, engines
from tests.engines import sleepers
from tests.pools.cancelling import HOW, Cancelled, Scene
from tests.pools.test_cancel_random import INTERRUPTED, Crowd, _switch_over, same_server
from tests.waiting import PATIENCE_S, until

__all__ = ["engines", "same_server"]

pytestmark = pytest.mark.lab

SIZE: Final = 6
INSERT: Final = "INSERT INTO ledger (worker, thread, n) VALUES ($1, $2, $3)"
BY_NAME: Final = text("INSERT INTO ledger (worker, thread, n) VALUES (:worker, :thread, :n)")


async def _settle(scene: Scene, pool: bg.Pool) -> None:
    """Wait until the server has no more sessions than the pool, and all of these are idle."""

    async def use() -> None:
        async with pool.acquire(timeout=PATIENCE_S) as connection, connection.transaction():
            await connection.fetchval("SELECT 1")

    await asyncio.gather(*(use() for _ in range(pool.get_max_size())))
    for _ in range(3000):
        tasks = len(asyncio.all_tasks())
        states = scene.sessions()
        free = all(holder._in_use is None for holder in pool._holders)
        if free and set(states) <= {"idle"} and len(states) <= pool.get_max_size() and tasks <= scene.things[0]:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError(f"{states}, free: {free}, {asyncio.all_tasks()}")
    assert pool.connector.stats().held == 0


@pytest.mark.parametrize("way", ["unit", "block"])
def test_cancelled_at_each_wait(opened: Opened, deployment: Deployment, pair: Pair, run: Run, way: str) -> None:
    async def work(connection: Any, key: Key) -> str:
        calls[key] += 1
        await connection.execute(INSERT, *key)
        async with connection.transaction():
            await connection.fetchval("SELECT 1", timeout=PATIENCE_S)
        return "done"

    async def unit(pool: bg.Pool, key: Key) -> str:
        return await bg.run(pool, work, key)

    async def block(pool: bg.Pool, key: Key) -> str:
        async with pool.acquire(timeout=PATIENCE_S) as connection, connection.transaction():
            return await work(connection, key)

    calls: Counter[Key] = Counter()

    async def main() -> None:
        with psycopg.connect(pair.direct_dsn(pair.blue), autocommit=True) as monitor:
            monitor.execute("DELETE FROM ledger WHERE worker = 97")
            async with opened(max_size=1) as pool:
                await pool.fetchval("SELECT 1")
                scene = Scene(pair, None, monitor)
                for how in HOW:
                    for at in itertools.count(1):
                        key = (97, HOW.index(how), at)
                        steps = Cancelled({"unit": unit, "block": block}[way](pool, key), how, at, lambda: None)
                        result = await steps.end()
                        await _settle(scene, pool)
                        row = monitor.execute(
                            "SELECT count(*) FROM ledger WHERE (worker, thread, n) = (%s, %s, %s)", key
                        ).fetchone()
                        assert row is not None
                        assert calls[key] <= 1
                        assert row[0] <= 1
                        assert result == "done" or isinstance(result, asyncio.CancelledError), result
                        if result == "done":
                            assert row[0] == 1
                        if not steps.hit:
                            break
        assert deployment.snapshot.phase is Phase.CREATED

    run(main())


class _Crowd(Crowd):
    """The tasks that use an asyncpg pool."""

    _pool: Any

    async def _work(self, connection: Any, key: Key) -> str:
        await connection.execute(INSERT, *key)
        if self._random.random() < 0.3:
            await asyncio.sleep(self._random.random() * 0.02)
        if self._random.random() < 0.3:
            await connection.execute("SELECT pg_sleep($1)", self._random.random() * 0.02)
        return "done"

    async def _unit(self, key: Key) -> str:
        return await bg.run(self._pool, self._work, key)

    async def _block(self, key: Key) -> str:
        async with self._pool.acquire(timeout=30) as connection, connection.transaction():
            return await self._work(connection, key)

    async def _by_hand(self, key: Key) -> str:
        connection = await self._pool.acquire()
        try:
            async with connection.transaction():
                return await self._work(connection, key)
        finally:
            await self._pool.release(connection)


@pytest.mark.parametrize("count", [400, pytest.param(1_000, marks=pytest.mark.full)])
def test_operations_cancelled_at_random_lose_nothing(
    opened: Opened, same_server: Deployment, pair: Pair, run: Run, count: int
) -> None:
    deployment = same_server

    async def main() -> None:
        dice = random.Random(count)
        with psycopg.connect(pair.direct_dsn(pair.blue), autocommit=True) as monitor:
            monitor.execute("DELETE FROM ledger WHERE worker = 96")
            async with opened(max_size=SIZE, bg_drain_timeout_ms=20) as pool:
                await _switch_over(deployment, pair, dice)
                scene = Scene(pair, None, monitor)
                await _settle(scene, pool)
                scene.note()
                crowd = _Crowd(cast(Any, pool), count, count)
                running = asyncio.ensure_future(crowd.run())
                for number in range(3):
                    while crowd.done < (number + 0.5) * count / 3:
                        await asyncio.sleep(0.005)
                    await _switch_over(deployment, pair, dice)
                await asyncio.wait_for(running, 60)
                assert not crowd.failed
                assert set(crowd.ended) <= {"str", "CancelledError", *INTERRUPTED}, crowd.ended
                await _settle(scene, pool)
                rows = Counter(monitor.execute("SELECT worker, thread, n FROM ledger WHERE worker = 96").fetchall())
                assert not [key for key, times in rows.items() if times > 1], "doubled"
                assert not [key for key in crowd.acknowledged if key not in rows], "lost"

    run(main())


@pytest.mark.usefixtures("deployment")
@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("way", ["unit", "session"])
def test_a_session_cancelled_at_each_wait(
    engines: Engines, run: Run, way: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy's adapter forgets a transaction whose ROLLBACK was cancelled, and its pool keeps the connection."""

    query = Wire.query

    async def slow_query(self: Wire, sql: str, timeout: Any) -> Any:
        # This cancels it before the server receives it, which would otherwise be rare.
        if sql.startswith("ROLLBACK"):
            await asyncio.sleep(0.001)
        return await query(self, sql, timeout)

    async def work(session: Any) -> str:
        await session.execute(text("SELECT txid_current()"))
        if fails:
            raise KeyError("mine")
        return "done"

    async def operation(engine: AsyncEngine) -> str:
        maker = async_sessionmaker(engine)
        if way == "unit":
            return await arun(maker, work)
        async with maker.begin() as session:
            return await work(session)

    monkeypatch.setattr(Wire, "query", slow_query)

    async def main() -> None:
        async with engines(pool_size=1, pool_timeout=PATIENCE_S) as engine:
            for how in HOW:
                for at in itertools.count(1):
                    steps = Cancelled(operation(engine), how, at, lambda: None)
                    result = await steps.end()
                    assert result == "done" or isinstance(result, (KeyError, asyncio.CancelledError))
                    async with engine.begin() as connection:
                        await connection.execute(text("SELECT 1"))
                    if not steps.hit:
                        break

    run(main())


@pytest.mark.skipif(asyncpg.__version__ < "0.32", reason="it waits for the answer, whatever happens to the connection")
@pytest.mark.parametrize("way", ["unit", "block", "timeout"])
def test_a_silent_server_is_not_waited_for(
    opened: Opened, deployment: Deployment, pair: Pair, run: Run, way: str
) -> None:
    """A caller that is cancelled, or whose timeout has expired, gets its error soon."""
    timeout = 1.0 if way == "timeout" else None

    async def sleep(connection: Any) -> None:
        await connection.execute("SELECT pg_sleep(90)", timeout=timeout)

    async def block(pool: bg.Pool) -> None:
        async with pool.acquire() as connection, connection.transaction():
            await sleep(connection)

    async def main() -> None:
        async with opened(max_size=1) as pool:
            await pool.fetchval("SELECT 1")
            before = sleepers(pair)
            task = asyncio.ensure_future(bg.run(pool, sleep) if way == "unit" else block(pool))
            await until(lambda: sleepers(pair) - before)
            pair.blue.freeze()
            try:
                if timeout is None:
                    task.cancel()
                await asyncio.wait([task], timeout=PATIENCE_S)
                assert task.done()
                with pytest.raises(asyncio.CancelledError if timeout is None else asyncio.TimeoutError):
                    await task
            finally:
                pair.blue.thaw()
            assert await pool.fetchval("SELECT 1", timeout=PATIENCE_S) == 1
        assert deployment.snapshot.phase is Phase.CREATED

    run(main())
