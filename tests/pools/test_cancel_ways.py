"""Sources of a task's cancellation (a time limit, a failed task of its group, anyio), and functions that handle it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, cast

import anyio
import psycopg
import pytest
import uvloop

from bgpool.core.phase import Phase
from bgpool.errors import SwitchoverInterrupted
from bgpool.lab import Pair
from bgpool.lab.ledger import INSERT_SQL
from bgpool.pools.postgres.async_pool import AsyncPool
from bgpool.testing import Deployment
from tests.engines import sleepers
from tests.pools.cancelling import Scene, end_sessions, new_pool, quiet
from tests.waiting import until

pytestmark = pytest.mark.lab

Enter = Callable[..., AbstractAsyncContextManager[Scene]]
Limit = Callable[[float, Callable[[], Coroutine[Any, Any, Any]]], Awaitable[Any]]

SLEEP = "SELECT pg_sleep(20)"
RUN = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop", marks=pytest.mark.full)]
needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no TaskGroup and no timeout")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture
def enter(postgres_pair: Pair, deployment: Deployment) -> Enter:
    """Enter a scene whose pool has one connection, and check at the end that it is as before."""

    @contextlib.asynccontextmanager
    async def scene() -> Any:
        pool = new_pool(postgres_pair, deployment.run_dir)
        with psycopg.connect(postgres_pair.direct_dsn(postgres_pair.blue), autocommit=True) as monitor:
            end_sessions(monitor)
            async with pool:
                # So that the scene includes everything that a process keeps after its first switchover.
                async with pool.connection() as connection:
                    generation: Any = connection.bgpool_generation  # type: ignore[attr-defined]  # bgpool's
                deployment.phase(Phase.IN_PROGRESS)
                await until(lambda: generation.drained)
                deployment.roll_back()
                async with pool.connection() as connection:
                    await connection.execute("SELECT 1")
                scene = Scene(postgres_pair, pool, monitor)
                scene.next()
                yield scene
                await scene.settle()

    return scene


def _pool(scene: Scene) -> AsyncPool:
    assert scene.pool is not None
    return scene.pool


# -- sources of the cancellation -----------------------------------------------------------------------------------


async def _wait_for(limit_s: float, steps: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return await asyncio.wait_for(steps(), limit_s)


async def _timeout(limit_s: float, steps: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async with cast(Any, asyncio).timeout(limit_s):
        return await steps()


async def _fail_after(limit_s: float, steps: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    with anyio.fail_after(limit_s):
        return await steps()


async def _group(limit_s: float, steps: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def fail() -> None:
        await asyncio.sleep(limit_s)
        raise TimeoutError

    try:
        async with cast(Any, asyncio).TaskGroup() as group:
            task = group.create_task(steps())
            group.create_task(fail())
    except Exception as group_error:
        assert task.cancelled()
        errors: Any = group_error
        raise errors.exceptions[0] from None


async def _anyio_group(limit_s: float, steps: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async with anyio.create_task_group() as group:
        group.start_soon(steps)
        await asyncio.sleep(limit_s)
        group.cancel_scope.cancel()
    raise TimeoutError


LIMITS = [
    _wait_for,
    pytest.param(_timeout, marks=needs_groups),
    _fail_after,
    pytest.param(_group, marks=needs_groups),
    _anyio_group,
]


@pytest.mark.parametrize("run", RUN)
@pytest.mark.parametrize("limit", LIMITS)
def test_a_caller_that_reaches_its_time_limit_leaves_nothing(
    enter: Enter, deployment: Deployment, limit: Limit, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with enter() as scene:
            pool = _pool(scene)

            async def work(connection: Any) -> None:
                scene.calls += 1
                await connection.execute(INSERT_SQL, scene.key)
                await connection.execute(SLEEP)

            async def block() -> None:
                async with pool.connection() as connection:
                    await work(connection)

            async def unit() -> None:
                await pool.run(work)

            for steps in (block, unit):
                # Double the limit until the unit begins within it, even on a busy machine.
                calls, limit_s = scene.calls, 0.02
                while scene.calls == calls:
                    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                        await limit(limit_s, steps)
                    await scene.settle()
                    limit_s *= 2
            async with pool.connection():
                with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                    await limit(0.02, unit)
            await scene.settle()
            deployment.phase(Phase.IN_PROGRESS)
            for steps in (block, unit):
                with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                    await limit(0.02, steps)
            assert pool.stats().held == 0
            deployment.roll_back()
            assert (scene.calls, scene.rows()) == (2, 0)

    run(main())


# -- functions that handle the cancellation ------------------------------------------------------------------------


def test_a_unit_whose_function_catches_the_end_of_its_task_is_not_run_again(
    enter: Enter, deployment: Deployment
) -> None:
    """The work that the function completes is committed, like on a blocking pool."""

    async def main() -> None:
        async with enter() as scene:

            async def work(connection: Any, *, is_cut: bool) -> str:
                scene.calls += 1
                await connection.execute(INSERT_SQL, scene.key)
                with contextlib.suppress(asyncio.CancelledError):
                    begun.set()
                    await asyncio.sleep(20)
                if is_cut:
                    connection.bgpool_generation.cut()
                await connection.execute("SELECT 1")
                return "done"

            deployment.phase(Phase.PREPARATION)
            for is_cut in (False, True):
                scene.next()
                begun = asyncio.Event()
                task = asyncio.ensure_future(_pool(scene).run(partial(work, is_cut=is_cut)))
                await begun.wait()
                task.cancel()
                await asyncio.wait({task})
                assert (scene.calls, scene.rows()) == (1, int(not is_cut))
                assert is_cut == isinstance(task.exception(), SwitchoverInterrupted)

    asyncio.run(main())


@pytest.mark.parametrize("limit", LIMITS)
def test_a_unit_that_continues_after_its_own_limit_is_committed_whole_or_not_at_all(enter: Enter, limit: Limit) -> None:
    async def main() -> None:
        async with enter() as scene:

            async def work(connection: Any, *statements: str, is_apart: bool = False) -> str:
                async def wait() -> None:
                    async with connection.transaction() if is_apart else contextlib.nullcontext():
                        for sql in statements:
                            await connection.execute(sql)
                    await asyncio.sleep(20)

                scene.calls += 1
                await connection.execute(INSERT_SQL, scene.key)
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await limit(0.2, wait)
                return "done"

            # Its transaction is unaffected.
            assert await _pool(scene).run(work) == "done"
            assert (scene.rows(), scene.calls) == (1, 1)
            if limit in (_wait_for, _timeout):
                # The statement was cancelled in a nested block.
                scene.next()
                assert await _pool(scene).run(partial(work, is_apart=True), SLEEP) == "done"
                assert (scene.rows(), scene.calls) == (1, 1)
            # The statement was cancelled, and with it the transaction.
            scene.next()
            with pytest.raises(psycopg.Error) as failed:
                await _pool(scene).run(work, SLEEP)
            assert isinstance(failed.value, (psycopg.errors.InFailedSqlTransaction, psycopg.ProgrammingError))
            assert (scene.rows(), scene.calls) == (0, 1)

    asyncio.run(main())


def test_a_shielded_unit_is_committed(enter: Enter) -> None:
    async def main() -> None:
        async with enter() as scene:

            async def work(connection: Any) -> str:
                scene.calls += 1
                await connection.execute(INSERT_SQL, scene.key)
                begun.set()
                await go_on.wait()
                return "done"

            begun, go_on = asyncio.Event(), asyncio.Event()
            unit = asyncio.ensure_future(_pool(scene).run(work))

            async def wait() -> None:
                await asyncio.shield(unit)

            caller = asyncio.ensure_future(wait())
            await begun.wait()
            caller.cancel()
            await asyncio.wait({caller})
            assert caller.cancelled()
            go_on.set()
            assert await unit == "done"
            assert (scene.calls, scene.rows()) == (1, 1)

    asyncio.run(main())


def test_a_unit_that_is_cancelled_during_its_commit_is_applied_once_or_not_at_all(enter: Enter) -> None:
    async def main() -> None:
        async with enter() as scene:
            slow = (
                "CREATE TEMP TABLE slow (n int)",
                "CREATE FUNCTION pg_temp.wait() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(20); RETURN NULL; END $$",
                "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
                "EXECUTE FUNCTION pg_temp.wait()",
            )
            async with _pool(scene).connection() as connection:
                for sql in slow:
                    await connection.execute(sql)

            async def work(connection: Any) -> None:
                scene.calls += 1
                await connection.execute(INSERT_SQL, scene.key)
                await connection.execute("INSERT INTO slow VALUES (1)")

            before = sleepers(scene.pair)
            task = asyncio.ensure_future(_pool(scene).run(work))
            await until(lambda: sleepers(scene.pair) - before)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            assert scene.calls == 1
            assert scene.rows() <= 1

    asyncio.run(main())
