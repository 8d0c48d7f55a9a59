"""Many concurrent operations of an async pool, cancelled at random moments, while deployments are switched over."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import psycopg
import pytest
import uvloop

from bgpool.core.events import Resolved
from bgpool.core.phase import Phase, Role
from bgpool.errors import CommitOutcomeUnknown, SwitchoverInterrupted
from bgpool.lab import Pair
from bgpool.lab.ledger import INSERT_SQL, Key
from bgpool.monitor.probe import now
from bgpool.pools.postgres.async_pool import AsyncPool
from bgpool.testing import Deployment
from tests.pools.cancelling import HOW, Cancelled, Scene, end_sessions, new_pool, quiet

pytestmark = pytest.mark.lab

SIZE: Final = 6
CALLERS: Final = 48


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture
def same_server(postgres_pair: Pair, deployment: Deployment) -> Deployment:
    """Let green's name resolve to blue, too: one ledger then has all rows that were written on either side."""
    names = {host.name: (postgres_pair.blue.address,) for host in deployment.snapshot.hosts_of(Role.TARGET)}
    deployment.tell(Resolved(now(), names))
    deployment._addresses |= names
    return deployment


class Crowd:
    """Callers of a pool.

    Attributes:
        ended: The outcomes of the operations, counted.
        failed: Units of work that failed without being cancelled.
        acknowledged: The rows whose write was acknowledged to a caller.
        keys: The rows of all attempted writes.
    """

    def __init__(self, pool: AsyncPool, seed: int, count: int) -> None:
        self._pool = pool
        self._random = random.Random(seed)
        self._left = count
        self.ended: Counter[str] = Counter()
        self.failed: list[BaseException] = []
        self.acknowledged: list[Key] = []
        self.keys: list[Key] = []

    @property
    def done(self) -> int:
        """The number of operations that have ended."""
        return self.ended.total()

    async def run(self) -> None:
        """Run until all operations have ended."""
        await asyncio.gather(*(self._call() for _ in range(CALLERS)))

    async def _call(self) -> None:
        while self._left > 0:
            self._left -= 1
            operation = self._random.choice([self._block, self._unit, self._unit, self._by_hand])
            key = (96, 0, len(self.keys) + 1)
            self.keys.append(key)
            await self._cancelled(operation, key)

    async def _cancelled(self, operation: Callable[[Key], Any], key: Key) -> None:
        # Either by the number of waits, which reaches each of them, or by time.
        at, after_s = 0, None
        if self._random.random() < 0.6:
            at = self._random.randint(1, 14)
        else:
            after_s = self._random.expovariate(1 / 0.03)
        steps = Cancelled(operation(key), self._random.choice(HOW), at, lambda: None)
        result = await steps.end(30.0, after_s)
        self.ended[type(result).__name__] += 1
        if result == "done":
            self.acknowledged.append(key)
        elif isinstance(result, Exception) and operation == self._unit:
            self.failed.append(result)

    async def _work(self, connection: Any, key: Key) -> str:
        await connection.execute(INSERT_SQL, key)
        if self._random.random() < 0.3:
            await asyncio.sleep(self._random.random() * 0.02)
        if self._random.random() < 0.3:
            await connection.execute("SELECT pg_sleep(%s)", [self._random.random() * 0.02])
        return "done"

    async def _unit(self, key: Key) -> str:
        return await self._pool.run(self._work, key)

    async def _block(self, key: Key) -> str:
        async with self._pool.connection() as connection:
            return await self._work(connection, key)

    async def _by_hand(self, key: Key) -> str:
        connection = await self._pool.getconn()
        try:
            async with connection.transaction():
                return await self._work(connection, key)
        finally:
            await self._pool.putconn(connection)


async def _switch_over(deployment: Deployment, pair: Pair, dice: random.Random) -> None:
    """Switch over to green, or back to blue; the server may be silent during the switchover."""
    deployment.phase(Phase.PREPARATION)
    await asyncio.sleep(0.02)
    deployment.phase(Phase.IN_PROGRESS)
    is_silent = dice.random() < 0.5
    if is_silent:
        pair.blue.freeze()
    try:
        await asyncio.sleep(0.05 + 0.1 * dice.random())
    finally:
        if is_silent:
            pair.blue.thaw()
    if dice.random() < 0.3:
        deployment.roll_back()
        return
    deployment.release()
    await asyncio.sleep(0.05)
    deployment.phase(Phase.COMPLETED)
    await asyncio.sleep(0.02)
    deployment.phase(Phase.NOT_CREATED)
    deployment.phase(Phase.CREATED)


@pytest.mark.parametrize(
    ("run", "seed", "count", "switchovers"),
    [
        pytest.param(asyncio.run, 1, 1_000, 2, id="asyncio"),
        pytest.param(asyncio.run, 2, 10_000, 20, id="asyncio-long", marks=pytest.mark.full),
        pytest.param(uvloop.run, 3, 10_000, 20, id="uvloop-long", marks=pytest.mark.full),
    ],
)
def test_operations_cancelled_at_random_lose_nothing(
    same_server: Deployment,
    postgres_pair: Pair,
    run: Callable[[Awaitable[None]], None],
    seed: int,
    count: int,
    switchovers: int,
    record_property: Callable[[str, object], None],
) -> None:
    deployment = same_server

    async def main() -> None:
        pool = new_pool(
            postgres_pair, deployment.run_dir, min_size=SIZE, max_size=SIZE, timeout=30, bg_drain_timeout_ms=20
        )
        dice = random.Random(seed)
        with psycopg.connect(postgres_pair.direct_dsn(postgres_pair.blue), autocommit=True) as monitor:
            monitor.execute("DELETE FROM ledger WHERE worker = 96")
            end_sessions(monitor)
            async with pool:
                # Descriptors that a process keeps after its first switchover.
                await _switch_over(deployment, postgres_pair, dice)
                scene = Scene(postgres_pair, None, monitor)
                scene.pool = pool
                await _warm(pool)
                scene.note()
                began = time.monotonic()
                crowd = Crowd(pool, seed, count)
                running = asyncio.ensure_future(crowd.run())
                for number in range(switchovers):
                    while crowd.done < (number + 0.5) * count / switchovers:
                        await asyncio.sleep(0.005)
                    await _switch_over(deployment, postgres_pair, dice)
                await running
                told = f"{count} cancelled operations, {switchovers} switchovers, seed {seed}: {dict(crowd.ended)}"
                record_property("told", f"{told}, {time.monotonic() - began:.1f} s")
                assert not crowd.failed, told
                assert set(crowd.ended) <= {"str", "CancelledError", *INTERRUPTED}, told
                await scene.settle()
                rows = Counter(monitor.execute("SELECT worker, thread, n FROM ledger WHERE worker = 96").fetchall())
                assert not [key for key, times in rows.items() if times > 1], "doubled"
                assert not [key for key in crowd.acknowledged if key not in rows], "lost"
                assert crowd.ended["CancelledError"] > count / 2
                assert crowd.acknowledged

    run(main())


#: Errors of plain blocks whose transaction was cut by a switchover.
INTERRUPTED: Final = (SwitchoverInterrupted.__name__, CommitOutcomeUnknown.__name__)


async def _warm(pool: AsyncPool) -> None:
    """Open all connections."""
    taken = [await pool.getconn() for _ in range(SIZE)]
    for connection in taken:
        await pool.putconn(connection)
