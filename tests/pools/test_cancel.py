"""Every operation of an async pool, cancelled wherever it yields to the event loop: nothing is lost, or done twice.

Each operation is repeated and cancelled one wait later each time, until it completes. After each attempt the pool's
slots, its connections and their state on the server, file descriptors, tasks and held callers are as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import uvloop

from bgpool.core.phase import Phase
from bgpool.errors import PoolClosed
from bgpool.lab import Pair
from bgpool.lab.ledger import INSERT_SQL
from bgpool.pools.postgres.async_connector import AsyncPostgresConnector
from bgpool.pools.postgres.async_pool import AsyncPool
from bgpool.testing import Deployment
from tests.pools.cancelling import HOW, Cancelled, Scene, end_sessions, new_connector, new_pool, quiet
from tests.pools.proxy import CommitCutter
from tests.pools.test_receipts import TABLE, create, run_sql

pytestmark = pytest.mark.lab

Operation = Callable[["Stage"], Awaitable[Any]]


class Stage:
    """The objects that an operation uses."""

    def __init__(
        self,
        scene: Scene,
        deployment: Deployment,
        cutter: CommitCutter,
        make: Callable[[], AsyncPool],
        make_connector: Callable[[], AsyncPostgresConnector],
    ) -> None:
        self.scene = scene
        self.deployment = deployment
        self.cutter = cutter
        self.make = make
        self.make_connector = make_connector

    @property
    def pool(self) -> AsyncPool:
        """The pool, which has one connection."""
        assert self.scene.pool is not None
        return self.scene.pool

    async def work(self, connection: Any) -> int:
        """A unit of work."""
        self.scene.calls += 1
        await connection.execute(INSERT_SQL, self.scene.key)
        await asyncio.sleep(0)
        return 7

    def soon(self, function: Callable[[], object]) -> None:
        """Call *function* while the operation waits."""
        asyncio.get_running_loop().call_later(0.003, function)


async def block(stage: Stage) -> None:
    async with stage.pool.connection() as connection:
        await stage.work(connection)


async def failing_block(stage: Stage) -> None:
    async with stage.pool.connection() as connection:
        await stage.work(connection)
        raise ZeroDivisionError


async def blocks_in_a_block(stage: Stage) -> None:
    async with stage.pool.connection() as connection:
        async with connection.transaction():
            await stage.work(connection)
        async with connection.pipeline():
            await connection.execute("SELECT 1")
            async with connection.transaction():
                await connection.execute("SELECT 1")


async def results_left_in_the_middle(stage: Stage) -> None:
    async with stage.pool.connection() as connection, connection.cursor() as cursor:
        async for _ in cursor.stream("SELECT generate_series(1, 100000)"):
            break
        async with cursor.copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT") as copy:
            async for _ in copy:
                break


async def by_hand(stage: Stage) -> None:
    connection = await stage.pool.getconn()
    try:
        await stage.work(connection)
    finally:
        await stage.pool.putconn(connection)


async def closed_by_hand(stage: Stage) -> None:
    connection = await stage.pool.getconn()
    try:
        await stage.work(connection)
        await connection.commit()
    finally:
        await connection.close()


async def refused_and_closed(stage: Stage) -> None:
    connection = await stage.pool.getconn()
    try:
        await connection.execute("SET TRANSACTION READ ONLY")
        await stage.work(connection)
    finally:
        # This queries the server to find the cause of the refusal.
        await connection.close()


async def refused_block(stage: Stage) -> None:
    async with stage.pool.connection() as connection:
        await connection.execute("SET TRANSACTION READ ONLY")
        await stage.work(connection)


async def unit(stage: Stage) -> Any:
    return await stage.pool.run(stage.work)


async def unit_with_an_id(stage: Stage) -> Any:
    """Run a unit whose receipt is inserted first."""
    return await stage.pool.run(stage.work, receipt_id=f"task-{stage.scene.key[2]}")


async def refused_unit(stage: Stage) -> Any:
    async def work(connection: Any) -> int:
        await connection.execute("SET TRANSACTION READ ONLY")
        return await stage.work(connection)

    return await stage.pool.run(work)


async def unit_in_doubt(stage: Stage) -> Any:
    """Run a unit whose COMMIT was applied and not answered: the server is queried for its outcome."""
    stage.cutter.when = "after"
    return await stage.pool.run(stage.work)


async def unit_run_again(stage: Stage) -> Any:
    """Run a unit whose COMMIT had no effect."""
    stage.cutter.when = "before"
    return await stage.pool.run(stage.work)


async def interrupted_unit(stage: Stage) -> Any:
    """Run a unit whose transaction is cut in a switchover, so that it is run again."""

    async def work(connection: Any) -> int:
        if not stage.scene.calls:
            connection.bgpool_generation.cut()
        return await stage.work(connection)

    return await stage.pool.run(work)


async def interrupted_between_statements(stage: Stage) -> Any:
    """Run a unit whose transaction is cut between statements, so that its ROLLBACK cannot be sent."""

    async def work(connection: Any) -> int:
        stage.scene.calls += 1
        await connection.execute(INSERT_SQL, stage.scene.key)
        if stage.scene.calls == 1:
            stage.deployment.phase(Phase.IN_PROGRESS)
            while not connection.bgpool_generation.drained:
                time.sleep(0.001)
            connection.bgpool_generation.cut()
            stage.soon(stage.deployment.roll_back)
            await asyncio.sleep(0)
        await connection.execute("SELECT 1")
        return 7

    return await stage.pool.run(work)


async def queue(stage: Stage) -> None:
    """Wait for the connection that another task has and returns."""
    taken = await stage.pool.getconn()
    stage.soon(lambda: asyncio.ensure_future(stage.pool.putconn(taken)))
    await block(stage)


async def queue_in_vain(stage: Stage) -> None:
    taken = await stage.pool.getconn()
    try:
        await stage.pool.getconn(0.003)
    finally:
        await stage.pool.putconn(taken)


async def drained(stage: Stage) -> None:
    connection = await stage.pool.getconn()
    try:
        await stage.work(connection)
        stage.pool.drain()
        await connection.commit()
    finally:
        await stage.pool.putconn(connection)


async def held(stage: Stage) -> None:
    stage.deployment.phase(Phase.IN_PROGRESS)
    stage.soon(stage.deployment.roll_back)
    await block(stage)


async def held_in_vain(stage: Stage) -> None:
    stage.deployment.phase(Phase.IN_PROGRESS)
    await stage.pool.getconn(0.003)


async def held_with_a_connection(stage: Stage) -> None:
    async with stage.pool.connection() as connection:
        stage.deployment.phase(Phase.IN_PROGRESS)
        while not connection.bgpool_generation.drained:  # type: ignore[attr-defined]  # an attribute of bgpool
            time.sleep(0.001)  # an await would be cancelled
        stage.soon(stage.deployment.roll_back)
        await stage.work(connection)


async def first_checkout(stage: Stage) -> None:
    pool = stage.make()
    async with pool, pool.connection() as connection:
        await stage.work(connection)


async def opened_by_a_connector(stage: Stage) -> None:
    connector = stage.make_connector()
    try:
        connection = await connector.aconnect()
        try:
            async with connection.transaction():
                await stage.work(connection)
        finally:
            await connection.close()
    finally:
        connector.stop()


async def closed_while_held(stage: Stage) -> None:
    pool, waiting = stage.make(), set[asyncio.Task[Any]]()
    try:
        async with pool:
            stage.deployment.phase(Phase.IN_PROGRESS)
            waiting = {asyncio.ensure_future(pool.getconn()) for _ in range(3)}
            await asyncio.sleep(0.002)
    finally:
        while not all(task.done() for task in waiting):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(waiting)
        assert all(isinstance(task.exception(), PoolClosed) for task in waiting)


OPERATIONS: list[Operation] = [
    block, failing_block, blocks_in_a_block, results_left_in_the_middle, by_hand, closed_by_hand, refused_and_closed,
    refused_block, unit, refused_unit, unit_in_doubt, unit_run_again, interrupted_unit,
    interrupted_between_statements, queue, queue_in_vain, drained, held, held_in_vain, held_with_a_connection,
]  # fmt: skip
WITH_RECEIPTS: list[Operation] = [unit_in_doubt, unit, unit_run_again, unit_with_an_id]
OF_A_POOL: list[Operation] = [first_checkout, opened_by_a_connector, closed_while_held]


def _ways(operations: Iterable[Operation], telling: Iterable[Operation]) -> list[Any]:
    """Return each operation with each way to cancel it; outside *telling*, the default run has one way only."""
    return [
        pytest.param(operation, how, marks=() if how == "early" or operation in telling else pytest.mark.full)
        for operation, how in itertools.product(operations, HOW)
    ]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.mark.parametrize(
    ("operation", "how"),
    _ways(OPERATIONS, {block, queue, interrupted_between_statements, held, held_with_a_connection}),
)
def test_a_cancelled_operation_loses_nothing(
    prepared: Deployment, cutter: CommitCutter, postgres_pair: Pair, tmp_path: Path, operation: Operation, how: str
) -> None:
    asyncio.run(_cancel_everywhere(operation, how, prepared, cutter, postgres_pair, tmp_path))


@pytest.mark.parametrize(
    ("operation", "how"),
    [
        pytest.param(operation, how, marks=[] if (operation, how) == (unit_in_doubt, "early") else [pytest.mark.full])
        for operation, how in itertools.product(WITH_RECEIPTS, HOW)
    ],
)
def test_a_cancelled_operation_with_receipts_loses_nothing(
    prepared: Deployment, cutter: CommitCutter, postgres_pair: Pair, tmp_path: Path, operation: Operation, how: str
) -> None:
    create(postgres_pair)
    try:
        asyncio.run(
            _cancel_everywhere(operation, how, prepared, cutter, postgres_pair, tmp_path, bg_receipts_table=TABLE)
        )
    finally:
        run_sql(postgres_pair, f"DROP TABLE {TABLE}")


@pytest.mark.parametrize(("operation", "how"), _ways(OF_A_POOL, {first_checkout}))
def test_a_pool_that_is_cancelled_while_it_opens_or_closes_leaves_nothing(
    prepared: Deployment, cutter: CommitCutter, postgres_pair: Pair, tmp_path: Path, operation: Operation, how: str
) -> None:
    asyncio.run(_cancel_everywhere(operation, how, prepared, cutter, postgres_pair, tmp_path, has_pool=False))


@pytest.mark.parametrize("operation", [closed_by_hand, refused_and_closed])
def test_a_cancelled_operation_with_close_returns_loses_nothing(
    prepared: Deployment, cutter: CommitCutter, postgres_pair: Pair, tmp_path: Path, operation: Operation
) -> None:
    asyncio.run(_cancel_everywhere(operation, "always", prepared, cutter, postgres_pair, tmp_path, close_returns=True))


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(one, marks=[] if one is blocks_in_a_block else [pytest.mark.full], id=one.__name__)
        for one in OPERATIONS
    ],
)
def test_a_cancelled_operation_loses_nothing_where_the_driver_yields(
    prepared: Deployment,
    cutter: CommitCutter,
    postgres_pair: Pair,
    tmp_path: Path,
    operation: Operation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """psycopg yields there, from 3.3.9 on, if a loop has been busy for a while."""
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", -1.0, raising=False)
    asyncio.run(_cancel_everywhere(operation, "early", prepared, cutter, postgres_pair, tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_cancelled_operation_on_uvloop_loses_nothing(
    prepared: Deployment, cutter: CommitCutter, postgres_pair: Pair, tmp_path: Path, operation: Operation, how: str
) -> None:
    uvloop.run(_cancel_everywhere(operation, how, prepared, cutter, postgres_pair, tmp_path))


async def _cancel_everywhere(
    operation: Operation,
    how: str,
    deployment: Deployment,
    cutter: CommitCutter,
    pair: Pair,
    directory: Path,
    *,
    has_pool: bool = True,
    **options: Any,
) -> None:
    def make() -> AsyncPool:
        return new_pool(pair, directory / "run", **options)

    pool = make() if has_pool else None
    with psycopg.connect(pair.direct_dsn(pair.blue), autocommit=True) as monitor:
        end_sessions(monitor)
        try:
            if pool is not None:
                async with pool.connection() as connection:
                    await connection.execute("SELECT 1")
            scene = Scene(pair, pool, monitor)
            stage = Stage(scene, deployment, cutter, make, lambda: new_connector(pair, directory / "run"))
            for at in itertools.count(1):
                if not await _cancel_once(operation, how, at, stage):
                    break
            assert at > 1
        finally:
            if pool is not None:
                await pool.close()


async def _cancel_once(operation: Operation, how: str, at: int, stage: Stage) -> bool:
    """Return whether the operation was cancelled before it was complete."""
    scene, calls = stage.scene, [0]
    scene.next()
    steps = Cancelled(operation(stage), how, at, lambda: calls.append(scene.calls))  # type: ignore[arg-type]  # a coroutine
    result = await steps.end()
    stage.cutter.when = "never"
    if stage.deployment.snapshot.phase is Phase.IN_PROGRESS:
        stage.deployment.roll_back()
    # The timer of a cancelled operation may still run.
    await asyncio.sleep(0.004)
    if stage.deployment.snapshot.phase is Phase.CREATED:
        stage.deployment.phase(Phase.PREPARATION)
    where = f"{operation.__name__} cancelled {how} at wait {at} of {steps.waits}: {result!r}"
    try:
        await scene.settle()
    except Exception as error:
        raise AssertionError(where) from error
    assert scene.rows() <= 1, where
    if steps.hit:
        assert isinstance(result, asyncio.CancelledError), where
        assert scene.calls <= calls[-1] + (scene.calls == 1), where
    return steps.hit
