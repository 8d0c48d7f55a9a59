"""asyncpg's pool through a switchover: the callers that are held, the connections that are cut, and the errors."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

import bgpool
from bgpool.core.phase import Phase
from bgpool.errors import ConfigurationError
from bgpool.integrations import asyncpg as bg
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.asyncpg.conftest import Opened, Run
from tests.engines import sleepers
from tests.pools.cancelling import Cancelled
from tests.waiting import until

pytestmark = pytest.mark.lab

WHERE = "SELECT host(inet_server_addr())"
INSERT = "INSERT INTO ledger (worker, thread, n) VALUES (77, 7, 7)"


def raw_of(connection: Any) -> Any:
    return connection._con


def test_callers_are_held_before_they_take_a_place_and_go_on_to_green(
    opened: Opened, deployment: Deployment, pair: Pair, run: Run
) -> None:
    async def main() -> None:
        async with opened(min_size=2) as pool:
            old = [await pool.acquire() for _ in range(2)]
            pids = {connection.get_server_pid() for connection in old}
            assert [await one.fetchval(WHERE) for one in old] == [pair.blue.address] * 2
            for connection in old:
                await pool.release(connection)
            deployment.phase(Phase.IN_PROGRESS)
            held = [asyncio.create_task(pool.fetchval(WHERE)) for _ in range(20)]
            await until(lambda: pool.connector.stats().held >= 20)
            # Idle connections were cut at once, and asyncpg has detected it.
            await until(lambda: not pool.get_size())
            assert all(holder._in_use is None for holder in pool._holders)
            began = time.monotonic()
            deployment.release()
            assert await asyncio.gather(*held) == [pair.green.address] * 20
            assert time.monotonic() - began < 15.0
            async with pool.acquire() as connection:
                assert connection.get_server_pid() not in pids
            assert pool.connector.usage().served >= 23

    run(main())


def test_a_connection_in_use_may_end_its_transaction_and_is_cut_after_the_grace(
    opened: Opened, deployment: Deployment, run: Run
) -> None:
    async def main() -> None:
        async with opened(bg_drain_timeout_ms=2000, max_size=3) as pool:
            done, cut, idle = [await pool.acquire() for _ in range(3)]
            blocks = [one.transaction() for one in (done, cut)]
            for block in blocks:
                await block.start()
            deployment.phase(Phase.IN_PROGRESS)
            await done.execute(INSERT)
            await blocks[0].commit()
            # In the middle of a statement; and between two.
            with pytest.raises(bg.SwitchoverInterrupted, match="it did not commit, run it again"):
                await cut.execute("SELECT pg_sleep(60)")
            await blocks[1].rollback()
            await until(raw_of(idle).is_closed)
            with pytest.raises(bg.SwitchoverInterrupted) as caught:
                await idle.execute(INSERT)
            assert isinstance(caught.value, asyncpg.PostgresConnectionError)
            assert isinstance(caught.value, bgpool.SwitchoverInterrupted)
            # Lost or not, its place belongs to its user.
            assert [holder._in_use is None for holder in pool._holders] == [False] * 3
            for connection in (done, cut, idle):
                await pool.release(connection)
            assert pool.get_size() == 0
            deployment.release()
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_a_block_on_a_lost_connection_ends_with_the_error_that_explains_the_loss(
    opened: Opened, deployment: Deployment, pair: Pair, run: Run
) -> None:
    """asyncpg's own block would end with an InterfaceError: the connection is closed."""

    async def main() -> None:
        async with opened(bg_drain_timeout_ms=100, max_size=4) as pool:
            before, begun = sleepers(pair), list[int]()

            async def in_statement() -> None:
                async with pool.acquire() as connection, connection.transaction(), connection.transaction():
                    await connection.fetch("SELECT pg_sleep(60)")

            async def between_statements() -> None:
                async with pool.acquire() as connection, connection.transaction():
                    begun.append(1)
                    await until(raw_of(connection).is_closed)

            async def own_error() -> None:
                async with pool.acquire() as connection, connection.transaction():
                    begun.append(1)
                    await until(raw_of(connection).is_closed)
                    raise KeyError("mine")

            tasks = [asyncio.create_task(one()) for one in (in_statement, between_statements, own_error)]
            await until(lambda: sleepers(pair) - before and len(begun) == 2)
            deployment.phase(Phase.IN_PROGRESS)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(end) for end in ends] == [bg.SwitchoverInterrupted, bg.SwitchoverInterrupted, KeyError]
            deployment.release()

    run(main())


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (lambda c: c.execute("INSERT INTO ledger (worker, thread, n) SELECT 77, 7, 7 FROM pg_sleep(60)"), "unknown"),
        (lambda c: c.fetch("SELECT pg_sleep($1)", 60), "unknown"),
        (lambda c: c.executemany("SELECT pg_sleep($1)", [(60,)]), "unknown"),
        (lambda c: c.copy_from_query("SELECT pg_sleep(60)", output=os.devnull), "unknown"),
        (lambda c: c.execute("BEGIN; SELECT pg_sleep(60); COMMIT"), "unknown"),
        (lambda c: c.execute("SET application_name = 'x'"), None),
    ],
    ids=["execute", "fetch", "executemany", "copy", "several", "harmless"],
)
def test_in_autocommit_what_was_cut_is_in_doubt(
    opened: Opened, deployment: Deployment, pair: Pair, what: Callable[[Any], Awaitable[Any]], kind: str | None
) -> None:
    async def main() -> None:
        async with opened(bg_drain_timeout_ms=0) as pool, pool.acquire() as connection:
            before = sleepers(pair)
            task = asyncio.ensure_future(what(connection))
            await until(lambda: task.done() or sleepers(pair) - before)
            deployment.phase(Phase.IN_PROGRESS)
            if kind is None:
                await task
            else:
                with pytest.raises(bg.CommitOutcomeUnknown):
                    await task
            deployment.release()

    asyncio.run(main())


def test_a_cursor_and_a_prepared_statement_raise_the_error_as_well(
    opened: Opened, deployment: Deployment, pair: Pair
) -> None:
    async def main() -> None:
        async with opened(bg_drain_timeout_ms=0) as pool:
            async with pool.acquire() as one, pool.acquire() as other:
                block = one.transaction()
                await block.start()
                cursor = await one.cursor("SELECT n, pg_sleep(n) FROM (VALUES (0), (60)) AS a (n)")
                statement = await other.prepare("SELECT pg_sleep($1)")
                before = sleepers(pair)
                tasks = [asyncio.ensure_future(cursor.fetch(2)), asyncio.ensure_future(statement.fetch(60))]
                await until(lambda: len(sleepers(pair) - before) == 2)
                deployment.phase(Phase.IN_PROGRESS)
                ends = await asyncio.gather(*tasks, return_exceptions=True)
                assert [type(end) for end in ends] == [bg.SwitchoverInterrupted, bg.CommitOutcomeUnknown]
            deployment.release()

    asyncio.run(main())


def test_a_new_transaction_is_held_on_a_connection_that_is_out(
    opened: Opened, deployment: Deployment, pair: Pair
) -> None:
    async def main() -> None:
        async with opened(bg_drop_blue_connections=False, max_size=3) as pool:
            first, second, third = [await pool.acquire() for _ in range(3)]
            prepared = await third.prepare("SELECT 1")
            deployment.phase(Phase.IN_PROGRESS)
            await until(lambda: not raw_of(first).bgpool_generation.live[0])
            began = time.monotonic()
            with pytest.raises(asyncio.TimeoutError):
                await first.fetchval("SELECT 1", timeout=0.2)
            assert time.monotonic() - began < 15.0
            tasks = [asyncio.create_task(step) for step in (first.execute(INSERT), second.transaction().start())]
            tasks.append(asyncio.ensure_future(prepared.fetch()))
            await until(lambda: pool.connector.stats().held == 3)
            deployment.roll_back()
            await asyncio.gather(*tasks)
            assert await first.fetchval(WHERE) == pair.blue.address
            for connection in (first, second, third):
                await pool.release(connection)
            # The connection may be the one from before the rollback; the connection that is handed out now is fit.
            assert await pool.fetchval(WHERE) == pair.blue.address
            third = await pool.acquire()
            deployment.phase(Phase.IN_PROGRESS)
            await until(lambda: not raw_of(third).bgpool_generation.live[0])
            late = asyncio.create_task(third.execute(INSERT))
            await until(lambda: pool.connector.stats().held == 1)
            deployment.release()
            with pytest.raises(bg.SwitchoverInterrupted, match="nothing was sent"):
                await late
            await pool.release(third)

    asyncio.run(main())


def test_a_connection_that_is_given_back_while_it_is_lost_is_no_error(
    opened: Opened, deployment: Deployment, run: Run
) -> None:
    """asyncpg leaves the block with an error although its body has ended; uvloop with an InternalClientError."""

    async def main() -> None:
        async with opened(bg_drain_timeout_ms=0, max_size=8) as pool:
            for number in range(8):
                connection = await pool.acquire()
                task = asyncio.create_task(connection.execute("SELECT pg_sleep(1)"))
                await asyncio.sleep(0.01)
                if number % 2:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                else:
                    task.add_done_callback(lambda task: task.exception())
                raw_of(connection).bgpool_generation.cut()
                if number % 4 < 2:
                    await asyncio.sleep(0)
                if not number % 2:
                    await asyncio.wait([task])
                await pool.release(connection)
            assert await pool.fetchval("SELECT 1") == 1
        assert deployment.snapshot.phase is Phase.CREATED

    run(main())


def test_cancelled_callers_leave_nothing(opened: Opened, deployment: Deployment, run: Run) -> None:
    async def main() -> None:
        async with opened(bg_drain_timeout_ms=100) as pool:

            async def work(number: int) -> None:
                async with pool.acquire(timeout=20) as connection, connection.transaction():
                    await connection.execute("SELECT pg_sleep($1)", number % 3 / 100)

            for round_ in range(3):
                tasks = [asyncio.create_task(work(number)) for number in range(40)]
                if round_ == 1:
                    deployment.phase(Phase.IN_PROGRESS)
                for number, task in enumerate(tasks):
                    await asyncio.sleep(number % 5 / 1000)
                    task.cancel()
                if round_ == 1:
                    deployment.release()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(
                    isinstance(end, (type(None), asyncio.CancelledError, bg.SwitchoverInterrupted)) for end in ends
                )
            assert await asyncio.wait_for(pool.fetchval("SELECT 1"), 5) == 1
            assert pool.connector.stats().held == 0

    run(main())


def test_a_hold_ends_with_the_callers_time(opened: Opened, deployment: Deployment) -> None:
    async def main() -> None:
        async with opened(bg_connect_timeout_ms=400) as pool:
            await pool.fetchval("SELECT 1")
            deployment.phase(Phase.IN_PROGRESS)
            with pytest.raises(bg.SwitchoverHoldTimeout, match=r"was held for 0\.1 s"):
                async with pool.acquire(timeout=0.1):
                    pass
            with pytest.raises(asyncpg.PostgresConnectionError, match=r"was held for 0\.4 s"):
                await pool.fetchval("SELECT 1")
            deployment.release()
            async with pool.acquire(), pool.acquire():
                with pytest.raises(asyncio.TimeoutError):
                    await pool.acquire(timeout=0.1)

    asyncio.run(main())


def test_green_is_refused_after_the_switchover(opened: Opened, deployment: Deployment, pair: Pair) -> None:
    async def main() -> None:
        async with opened(pair.dsn_of(pair.names.green.primary)) as pool:
            deployment.phase(Phase.IN_PROGRESS)
            deployment.release()
            with pytest.raises(bg.GreenHostRejected):
                await pool.fetchval("SELECT 1")

    asyncio.run(main())


def test_a_write_that_the_server_refuses_has_the_connection_replaced(
    opened: Opened, deployment: Deployment, pair: Pair
) -> None:
    async def main() -> None:
        async with opened(max_size=1) as pool:
            async with pool.acquire() as connection:
                first = connection.get_server_pid()
                with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                    async with connection.transaction(readonly=True):
                        await connection.execute(INSERT)
            async with pool.acquire() as connection:
                assert connection.get_server_pid() == first, "a transaction of the caller's own"
                pair.blue.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                pair.blue.execute("SELECT pg_reload_conf()")
                try:
                    while await connection.fetchval("SHOW default_transaction_read_only") == "off":
                        await asyncio.sleep(0.01)
                    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                        await connection.execute(INSERT)
                finally:
                    pair.blue.execute("ALTER SYSTEM RESET default_transaction_read_only")
                    pair.blue.execute("SELECT pg_reload_conf()")
            async with pool.acquire() as connection:
                assert connection.get_server_pid() != first
        assert deployment.snapshot.phase is Phase.CREATED

    asyncio.run(main())


def test_hooks_of_the_pool_are_called_and_a_switchover_in_one_is_no_error(
    opened: Opened, deployment: Deployment, pair: Pair
) -> None:
    called: list[str] = []

    class Mine(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
        pass

    async def init(connection: Any) -> None:
        assert isinstance(connection, Mine)
        called.append(f"init {await connection.fetchval(WHERE)}")
        if len(called) == 1:
            deployment.phase(Phase.IN_PROGRESS)
            asyncio.get_running_loop().call_later(0.2, deployment.release)
            await asyncio.sleep(0.1)
            await connection.fetchval("SELECT 1")

    async def setup(_connection: Any) -> None:
        called.append("setup")

    async def main() -> None:
        async with opened(init=init, setup=setup, connection_class=Mine) as pool:
            assert await pool.fetchval(WHERE) == pair.green.address
        assert called == [f"init {pair.blue.address}", f"init {pair.green.address}", "setup"]

    asyncio.run(main())


def test_a_second_loop_and_a_child_are_refused(opened: Opened, deployment: Deployment) -> None:
    async def use(pool: bg.Pool) -> None:
        with pytest.raises(ConfigurationError, match="belongs to another event loop"):
            await pool.fetchval("SELECT 1")

    async def use_in_child(connection: Any) -> None:
        with pytest.raises(bg.InheritedConnection):
            await connection.execute("SELECT 1")
        connection.terminate()

    async def main() -> None:
        async with opened(min_size=1) as pool:
            await asyncio.to_thread(lambda: asyncio.run(use(pool)))
            connection = await pool.acquire()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    asyncio.run(use_in_child(connection))
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            assert await connection.fetchval("SELECT 1") == 1
            await pool.release(connection)
        assert deployment.snapshot.phase is Phase.CREATED

    asyncio.run(main())


def test_asyncpgs_own_pool_takes_connections_of_connect(deployment: Deployment, pair: Pair, run: Run) -> None:
    async def main() -> None:
        where: dict[str, Any] = {
            "bg_resolver": pair.resolver,
            "bg_run_dir": str(deployment.run_dir),
            "bg_drain_timeout_ms": 200,
        }
        connect = functools.partial(bg.connect, **where)
        async with asyncpg.create_pool(pair.dsn, connect=connect, min_size=1, max_size=2) as pool:
            busy = await pool.acquire()
            await pool.fetchval("SELECT 1")
            deployment.phase(Phase.IN_PROGRESS)
            await until(raw_of(busy).is_closed)
            with pytest.raises((bg.SwitchoverInterrupted, asyncpg.InterfaceError)):
                await busy.execute("SELECT 1")
            await pool.release(busy)
            held = asyncio.create_task(pool.fetchval(WHERE))
            deployment.release()
            assert await held == pair.green.address
        alone = await bg.connect(pair.dsn, timeout=30, **where)
        assert await alone.fetchval(WHERE) == pair.green.address
        await alone.close()

    run(main())


def test_a_release_that_is_cancelled_goes_on(opened: Opened, deployment: Deployment, run: Run) -> None:
    """After a refused write the server is queried whether it accepts writes; asyncpg's own part continues by itself."""

    async def main() -> None:
        async with opened(max_size=1) as pool:
            connection = await pool.acquire()
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                async with connection.transaction(readonly=True):
                    await connection.execute(INSERT)
            release = Cancelled(pool.release(connection), "early", 1, lambda: None)
            assert isinstance(await release.end(), asyncio.CancelledError)
            assert await pool.fetchval("SELECT 1", timeout=30) == 1
        assert deployment.snapshot.phase is Phase.CREATED

    run(main())


def test_a_task_cancelled_when_the_hold_ends_sends_nothing(opened: Opened, deployment: Deployment, run: Run) -> None:
    async def main() -> None:
        async with opened(bg_drop_blue_connections=False, max_size=1) as pool, pool.acquire() as connection:
            generation = raw_of(connection).bgpool_generation
            await_usable = generation.await_usable

            async def await_usable_and_be_cancelled() -> None:
                await await_usable()
                task.cancel()

            deployment.phase(Phase.IN_PROGRESS)
            await until(lambda: not generation.live[0])
            generation.await_usable = await_usable_and_be_cancelled
            task = asyncio.create_task(connection.fetchval("SELECT txid_current()", timeout=20))
            await until(lambda: pool.connector.stats().held == 1)
            deployment.roll_back()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())
