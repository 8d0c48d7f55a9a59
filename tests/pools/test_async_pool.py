"""Promises that only an AsyncPool makes: it serves any number of event loops, and ends with each of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import DictRow, dict_row

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.lab.ledger import INSERT_SQL
from bgpool.pools.generations import Generations
from bgpool.pools.postgres.async_pool import AsyncPool
from bgpool.registry import ASYNC_POOLS, close_pools, get_async_pool, open_pools
from bgpool.testing import Deployment
from tests.engines import sleepers
from tests.pools.callers import Caller, wait_until
from tests.pools.conftest import Work, maker
from tests.waiting import PATIENCE_S, quickest, until

ENGINES = (Engine.POSTGRESQL,)

MakePool = Callable[..., AsyncPool]

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("kit")]

NOWHERE = "postgresql://app:s3cret@127.0.0.1:1/app"


@pytest.fixture
def make_pool(pair: Pair, tmp_path: Path) -> Iterator[MakePool]:
    yield from maker(ASYNC_POOLS, pair, tmp_path, {"min_size": 1, "max_size": 2, "timeout": 20.0})
    # Sleeping sessions would still exist when the next test counts them.
    pair.blue.cut_clients()


async def session(pool: AsyncPool) -> int:
    async with pool.connection() as conn:
        return conn.info.backend_pid


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 # a number is all that is asked for


@pytest.fixture
def quiet(own_log: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """Check that nothing is logged at WARNING and no warning is issued, not even by the collector."""
    own_log.set_level("WARNING")
    yield
    gc.collect()
    assert [record.getMessage() for record in own_log.records if record.levelname != "INFO"] == []
    assert [str(warning.message) for warning in recwarn] == []


# -- loops ---------------------------------------------------------------------------------------------------------


def test_two_loops_at_once_have_connections_of_their_own(
    make_pool: MakePool, deployment: Deployment, pair: Pair
) -> None:
    pool = make_pool(max_size=1)
    meet = threading.Barrier(2, timeout=PATIENCE_S)

    async def use() -> tuple[int, str]:
        async with pool.connection() as conn:
            mine = conn.info.backend_pid
            await asyncio.to_thread(meet.wait)
        if await asyncio.to_thread(meet.wait) == 0:
            deployment.phase(Phase.IN_PROGRESS)
        await asyncio.to_thread(meet.wait)
        late = asyncio.create_task(pool.getconn())
        await until(lambda: pool.stats().held == 2)
        if await asyncio.to_thread(meet.wait) == 0:
            deployment.release()
        conn = await late
        where = str(conn.info.hostaddr)
        await pool.putconn(conn)
        return mine, where

    callers = [Caller(lambda: asyncio.run(use())) for _ in range(2)]
    (one, at), (two, there) = (caller.wait() for caller in callers)
    assert one != two
    assert at == there == pair.green.address
    assert pool.usage().served == 4


@pytest.mark.usefixtures("quiet", "deployment")
@pytest.mark.parametrize("closes", [False, True])
def test_one_loop_after_the_other_leaves_nothing_open(make_pool: MakePool, *, closes: bool) -> None:
    """A closed loop leaves only its counts: this matters for scripts and test suites."""
    pool = make_pool(max_size=2, min_size=2)

    async def use() -> None:
        async with pool.connection() as one, pool.connection() as two:
            await one.execute("SELECT 1")
            await two.execute("SELECT 1")
        if closes:
            await pool.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(use())
    if closes:
        with pytest.raises(bgpool.PoolClosed):
            asyncio.run(use())
        return
    asyncio.run(use())
    before = descriptors(), threading.active_count()
    for _ in range(10):
        asyncio.run(use())
    # The pool's part in the last loop is removed by the next loop, or by the watcher.
    wait_until(lambda: descriptors() <= before[0] and threading.active_count() <= before[1])
    assert pool.usage().served == 24
    wait_until(lambda: pool.stats().size == 0)
    wait_until(lambda: descriptors() <= before[0] - 2)
    assert pool.usage().served == 24


@pytest.mark.usefixtures("deployment")
def test_counts_do_not_fall_while_the_remains_of_a_closed_loop_are_removed(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A falling count would look like a restart, in a table of workers or a graph."""
    pool = make_pool()
    seen: list[int] = []

    def close(succession: Generations, timeout_s: float) -> None:
        seen.append(pool.usage().served)
        own(succession, timeout_s)
        seen.append(pool.usage().served)

    own = Generations.close
    monkeypatch.setattr(Generations, "close", close)
    for _ in range(2):
        asyncio.run(session(pool))
    pool.tick()
    wait_until(lambda: len(seen) == 4)
    assert seen == [1, 1, 2, 2]
    assert pool.usage().served == 2


@pytest.mark.usefixtures("quiet", "deployment")
@pytest.mark.parametrize("how", ["cancelled", "closed at once"])
def test_a_loop_may_end_with_connections_in_use(make_pool: MakePool, how: str) -> None:
    pool = make_pool(max_size=2)
    out: list[Any] = []

    async def use() -> None:
        out.append(await pool.getconn())
        task = asyncio.create_task(session(pool))
        await task

    if how == "cancelled":
        asyncio.run(use())
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    assert asyncio.run(session(pool)) > 0
    conn = out.pop()
    assert conn.bgpool_is_open

    async def give_back() -> None:
        await pool.putconn(conn)

    asyncio.run(give_back())
    wait_until(lambda: not conn.bgpool_is_open)
    assert pool.usage().in_use == 0


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("at", ["connecting", "held", "configure", "reset", "waiting", "check"])
def test_a_loop_ends_in_any_state_of_the_pool(make_pool: MakePool, deployment: Deployment, pair: Pair, at: str) -> None:
    """Otherwise psycopg_pool's workers would continue, and asyncio.run would wait for them forever."""
    reached = threading.Event()

    async def dwell(conn: Any) -> None:
        reached.set()
        await conn.execute("SELECT pg_sleep(60)")

    def password(*_: object) -> str:
        reached.set()
        time.sleep(1.0)
        return pair.app_password

    hooks: dict[str, Any] = {at: dwell} if at in ("configure", "reset", "check") else {}
    if at == "connecting":
        pool = make_pool(pair.direct_dsn(pair.blue).replace(f":{pair.app_password}@", "@"), password=password)
    else:
        pool = make_pool(max_size=1, **hooks)

    out: list[Any] = []

    async def use() -> None:
        if at == "held":
            deployment.phase(Phase.IN_PROGRESS)
        if at in ("reset", "waiting"):
            out.append(await pool.getconn())
            if at == "reset":
                await pool.putconn(out.pop())
        waiter = asyncio.create_task(pool.getconn())
        if at == "held":
            await until(lambda: pool.stats().held)
        elif at == "waiting":
            await until(lambda: pool.stats().waiting)
        else:
            await until(reached.is_set)
            # By then the statement runs on the server, and can be cancelled.
            await until(lambda: at == "connecting" or sleepers(pair) - before)
        assert not waiter.done()

    before = sleepers(pair)
    began = time.monotonic()
    asyncio.run(use())
    assert time.monotonic() - began < 30
    for conn in out:
        asyncio.run(conn.close())
    assert pool.stats().held == 0


def test_use_without_asyncio_or_in_trio_is_refused(make_pool: MakePool) -> None:
    pool = make_pool()
    for steps in (pool.getconn(), pool.open(), pool.close()):
        with pytest.raises(bgpool.ConfigurationError, match="asyncio"):
            step(steps)
    trio = pytest.importorskip("trio")
    for call in (pool.getconn, pool.open, pool.__aenter__):
        with pytest.raises(bgpool.ConfigurationError, match="trio"):
            trio.run(call)


def step(steps: Coroutine[Any, Any, Any]) -> None:
    try:
        steps.send(None)
    finally:
        steps.close()


# -- forks, exits --------------------------------------------------------------------------------------------------


def in_child(check: Callable[[], object]) -> int:
    """The status of a child that calls *check*."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            check()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.usefixtures("deployment")
def test_forks_within_and_outside_of_a_running_loop_work(make_pool: MakePool) -> None:
    """Like a server that forks its workers; the child does not touch the parent's connections."""
    pool = make_pool(max_size=2)

    async def main() -> None:
        async with pool.connection() as conn:
            mine = {conn.info.backend_pid, await session(pool)}

            def child() -> None:
                assert pool.usage().served == 0
                assert asyncio.run(session(pool)) not in mine
                with pytest.raises(bgpool.InheritedConnection):
                    asyncio.run(execute(conn))
                asyncio.run(pool.putconn(conn))
                asyncio.run(conn.close())
                asyncio.run(pool.close())

            assert in_child(child) == 0
            await conn.execute("SELECT 1")
            assert await session(pool) in mine

    asyncio.run(main())
    assert in_child(lambda: asyncio.run(session(pool))) == 0
    asyncio.run(main())


async def execute(conn: Any) -> None:
    await conn.execute("SELECT 1")


EXITS = {
    "asyncio.run": "asyncio.run(use())",
    "closed by hand": "loop = asyncio.new_event_loop(); loop.run_until_complete(use()); loop.close()",
    "a loop that is never closed": "asyncio.new_event_loop().run_until_complete(use())",
    "in a thread": "threading.Thread(target=asyncio.run, args=(forever(),), daemon=True).start(); taken.wait(20)",
}


@pytest.mark.parametrize("how", EXITS)
def test_a_process_that_closes_nothing_exits_cleanly(pair: Pair, deployment: Deployment, how: str) -> None:
    program = f"""
import asyncio, threading, time, bgpool
pool = bgpool.get_async_pool(
    {pair.dsn!r}, bg_run_dir={str(deployment.run_dir)!r}, bg_resolver={pair.resolver!r}, min_size=1
)
async def use():
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")
async def forever():
    await use()
    conn = await pool.getconn()
    taken.set()
    await asyncio.sleep(600)
taken = threading.Event()
{EXITS[how]}
"""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    # In debug mode asyncio logs every step that takes long on a busy machine.
    unasked = ("unclosed event loop", "Executing <")
    lines = [line for line in done.stderr.splitlines() if not any(text in line for text in unasked)]
    assert not [line for line in lines if "bgpool" in line or "psycopg" in line or "pending" in line], done.stderr


def test_servers_hooks_open_and_close_it_from_any_thread(
    pair: Pair, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    pool = get_async_pool(pair.dsn, bg_run_dir=deployment.run_dir, bg_resolver=pair.resolver, min_size=1)
    open_pools()
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    assert pool.stats().phase is Phase.CREATED

    async def main() -> float:
        conn = await pool.getconn()
        deployment.phase(Phase.IN_PROGRESS)
        held = asyncio.create_task(pool.getconn())
        await until(lambda: pool.stats().held == 1)
        began = time.monotonic()
        await asyncio.to_thread(close_pools, deployment.run_dir, "1")
        with pytest.raises(bgpool.PoolClosed):
            await held
        took_s = time.monotonic() - began
        await pool.putconn(conn)
        assert conn.closed
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return took_s

    assert asyncio.run(main()) < 10
    assert pool.closed


# -- no stale connections, no blocking -----------------------------------------------------------------------------


@pytest.mark.usefixtures("deployment")
def test_an_idle_connection_that_was_cut_is_never_handed_out(make_pool: MakePool) -> None:
    pool = make_pool(min_size=2, max_size=2, bg_drain_timeout_ms=0)

    async def main() -> None:
        async with pool.connection() as one, pool.connection() as two:
            old = {one.info.backend_pid, two.info.backend_pid}
            generation: Any = one.bgpool_generation  # type: ignore[attr-defined]  # mixed in
        assert generation.cut() == 2
        for _ in range(2):
            async with pool.connection() as one, pool.connection() as two:
                assert not {one.info.backend_pid, two.info.backend_pid} & old
        assert pool.stats().size == 2
        assert pool.usage().served == 6

    asyncio.run(main())


def test_a_thousand_waiters_take_no_thread_and_the_loop_goes_on(make_pool: MakePool, deployment: Deployment) -> None:
    pool = make_pool(min_size=0, max_size=1)

    async def main() -> None:
        await session(pool)
        deployment.phase(Phase.IN_PROGRESS)
        await until(lambda: pool.stats().idle == 0)
        before = threading.active_count()
        held = [asyncio.create_task(pool.getconn(60.0)) for _ in range(1000)]
        await until(lambda: pool.stats().held == 1000)
        assert threading.active_count() <= before
        for task in held:
            task.cancel()
        await asyncio.wait(held)
        assert pool.stats().held == 0

    asyncio.run(main())


@pytest.mark.parametrize("holds", [False, True])
def test_an_idle_loop_is_never_woken(make_pool: MakePool, deployment: Deployment, *, holds: bool) -> None:
    """A loop in which a caller is held is not woken, either: it sleeps until a change is published."""
    pool = make_pool(min_size=1, max_size=1)
    turns: list[float] = []

    async def count_turns() -> int:
        """Count for 1.5 s; earlier work may still be unfinished on a busy machine."""
        loop: Any = asyncio.get_running_loop()
        turns.clear()
        select = loop._selector.select

        def counted(timeout: float | None = None) -> Any:
            turns.append(time.monotonic())
            return select(timeout)

        loop._selector.select = counted
        await asyncio.sleep(1.5)
        del loop._selector.select
        return len(turns)

    async def main() -> None:
        await session(pool)
        if holds:
            deployment.phase(Phase.IN_PROGRESS)
            held = asyncio.create_task(pool.getconn())
            await until(lambda: pool.stats().held)
        await asyncio.sleep(0.3)  # until the pool has settled
        # Each sleep causes one turn. A defect that wakes the loop would wake it in each attempt.
        for _ in range(5):
            if await count_turns() <= 3:
                break
        assert len(turns) <= 3
        if holds:
            held.cancel()
            await asyncio.wait([held])

    asyncio.run(main())


def test_without_a_watcher_held_callers_poll(
    make_pool: MakePool, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        if self.name.startswith("bgpool-watch"):
            raise RuntimeError("can't start new thread")
        start(self)

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool = make_pool(max_size=1, timeout=60.0)

    async def main() -> str:
        await session(pool)
        deployment.phase(Phase.IN_PROGRESS)
        held = asyncio.create_task(pool.getconn())
        await until(lambda: pool.stats().held == 1)
        deployment.release()
        conn = await asyncio.wait_for(held, PATIENCE_S)
        await pool.putconn(conn)
        return str(conn.info.hostaddr)

    assert asyncio.run(main()) != ""


def test_passwords_and_addresses_do_not_block_the_loop(make_pool: MakePool, pair: Pair) -> None:
    asked, go_on = threading.Event(), threading.Event()
    let_go: list[bool] = []

    def slow(*_: object) -> str:
        asked.set()
        let_go.append(go_on.wait(8.0))
        return pair.app_password

    pool = make_pool(pair.direct_dsn(pair.blue).replace(f":{pair.app_password}@", "@"), password=slow)

    async def main() -> None:
        working = asyncio.create_task(session(pool))
        await until(asked.is_set)
        # The loop runs while the password is made.
        for _ in range(20):
            await asyncio.sleep(0.01)
        go_on.set()
        await working

    asyncio.run(main())
    assert let_go[0], "the loop waited for the password"


# -- options and hooks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("awaits", [False, True])
def test_hooks_are_functions_or_coroutine_functions(make_pool: MakePool, *, awaits: bool) -> None:
    called: list[str] = []

    def hook(name: str) -> Callable[[Any], Any]:
        def call(_subject: Any) -> None:
            called.append(name)

        async def acall(_subject: Any) -> None:
            await asyncio.sleep(0)
            called.append(name)

        return acall if awaits else call

    pool = make_pool(max_size=1, **{name: hook(name) for name in ("configure", "check", "reset")})

    async def main() -> None:
        assert await session(pool) == await session(pool)
        await until(lambda: called.count("reset") == 2)
        await pool.close()

    asyncio.run(main())
    assert called[:2] == ["configure", "check"]
    assert called.count("check") == 2
    nowhere = make_pool(NOWHERE, reconnect_timeout=0.0, reconnect_failed=hook("failed"))

    async def fail() -> None:
        with pytest.raises(bgpool.PoolTimeout):
            await nowhere.getconn(0.3)
        await until(lambda: called[-1] == "failed")

    asyncio.run(fail())


def test_a_connection_that_its_check_refuses_is_replaced(make_pool: MakePool, pair: Pair) -> None:
    pool = make_pool(max_size=1, check=psycopg_check)

    async def main() -> float:
        mine = await session(pool)
        assert await session(pool) == mine
        pair.blue.cut_clients()
        began = time.monotonic()
        assert await session(pool) != mine
        took_s = time.monotonic() - began
        assert pool.stats().size == 1
        return took_s

    assert quickest(lambda: asyncio.run(main()), 1.0) < 1.0


async def psycopg_check(conn: Any) -> None:
    await psycopg_pool.AsyncConnectionPool.check_connection(conn)


def test_a_users_connection_class_works(make_pool: MakePool) -> None:
    class Own(psycopg.AsyncConnection[Any]):
        closed_by = 0

        async def close(self) -> None:
            Own.closed_by += 1
            await super().close()

    pool = make_pool(
        max_size=1, connection_class=Own, kwargs={"row_factory": dict_row}, reset="session", close_returns=True
    )

    async def main() -> None:
        async with pool.connection() as conn:
            assert isinstance(conn, Own)
            mine = conn.info.backend_pid
            cursor = await conn.execute("SELECT 1 AS one")
            assert await cursor.fetchall() == [{"one": 1}]
            await conn.execute("CREATE TEMPORARY TABLE left_over (n int)")
        conn = await pool.getconn()
        cursor = await conn.execute("SELECT to_regclass('left_over') AS it")
        assert await cursor.fetchone() == {"it": None}
        await conn.close()
        assert conn.closed
        assert await session(pool) == mine

    asyncio.run(main())


def test_options_are_checked_when_the_pool_is_made() -> None:
    for options, text in (
        ({"connection_class": psycopg.Connection}, "psycopg.AsyncConnection"),
        ({"configure": "SET x"}, "configure"),
        ({"max_size": 0}, "max_size"),
        ({"open": True}, "'open'"),
        ({"bg_idd": 1}, "bg_idd"),
    ):
        with pytest.raises(bgpool.ConfigurationError, match=text):
            get_async_pool(NOWHERE, bg_id="options", **options)
    with pytest.raises(bgpool.ConfigurationError, match=r"mysql.*postgresql:// is allowed"):
        get_async_pool("mysql://app@127.0.0.1/app")
    one = get_async_pool(NOWHERE, bg_id="options", connection_class=psycopg.AsyncConnection[DictRow])
    assert one is get_async_pool(NOWHERE, bg_id="options", connection_class=psycopg.AsyncConnection[DictRow])
    asyncio.run(one.close())


def test_a_plain_pool_works(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPOOL_DISABLE", "1")
    pool = get_async_pool(pair.direct_dsn(pair.blue), bg_id="plain", bg_run_dir=tmp_path)

    async def main() -> None:
        async with pool:
            assert await session(pool) > 0
            assert pool.stats().phase is None

    asyncio.run(main())
    assert not list(tmp_path.iterdir())


# -- units ---------------------------------------------------------------------------------------------------------


def test_decorated_coroutine_functions_are_units(make_pool: MakePool, pair: Pair, work: Work) -> None:
    pool = make_pool()

    @bgpool.transactional(pool)
    async def place_order(conn: psycopg.AsyncConnection[Any], item: str = "tea", *, count: int) -> str:
        """Write an order down."""
        await conn.execute(INSERT_SQL, work.key)
        return f"{count} {item}"

    assert inspect.iscoroutinefunction(place_order)
    assert str(inspect.signature(place_order)) == "(item: 'str' = 'tea', *, count: 'int') -> 'str'"
    assert place_order.__doc__ == "Write an order down."
    assert asyncio.run(place_order("cake", count=2)) == "2 cake"
    assert work.rows(pair) == 1


@pytest.mark.filterwarnings("error")
def test_a_function_of_the_wrong_kind_is_refused(
    make_pool: MakePool, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()

    def plain(_conn: Any) -> str:
        return "s3cret"

    async def coroutine(_conn: Any) -> None: ...

    def generator(_conn: Any) -> Any:
        yield 1

    unit: Any = bgpool.transactional(pool)
    for fn, what in ((plain, "str"), (generator, "generator")):
        for call in (unit(fn), lambda fn=fn: pool.run(fn)):
            with pytest.raises(TypeError, match=rf"{fn.__name__} returned {what}.*async def") as caught:
                asyncio.run(call())
            assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("BGPOOL_DISABLE", "1")  # otherwise a monitor would query the server for some seconds
    blocking = bgpool.get_pool(pair.direct_dsn(pair.blue), bg_id="colours", bg_run_dir=tmp_path)
    with pytest.raises(TypeError, match=r"coroutine is asynchronous.*async"):
        _ = blocking.run(coroutine)
    blocking.close()


# -- cancelled tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["the cancel", "the end of the statement"])
def test_a_cancelled_task_gets_a_cancelled_error(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """This also holds with psycopg 3.3.0 to 3.3.8, which raise the error of the attempt to end the statement."""

    async def wait(self: Any, gen: Any, interval: float = 0.1) -> Any:
        try:
            return await psycopg.waiting.wait_async(gen, self.pgconn.socket, interval=interval)
        except asyncio.CancelledError as error:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                await self._try_cancel(timeout=5.0)
                with contextlib.suppress(psycopg.errors.QueryCanceled):
                    if fails == "the end of the statement":
                        raise psycopg.OperationalError("the connection is lost") from error
                    await psycopg.waiting.wait_async(gen, self.pgconn.socket, interval=interval)
            raise

    monkeypatch.setattr(psycopg.AsyncConnection, "wait", wait)
    pool = make_pool(max_size=1)

    async def main() -> None:
        async with pool.connection() as conn:
            sleeping = asyncio.create_task(execute_sleep(conn))
            await until(lambda: conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE)
            if fails == "the cancel":
                conn.bgpool_generation.cut()  # type: ignore[attr-defined]  # mixed in
            sleeping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sleeping
            with contextlib.suppress(psycopg.Error):
                await conn.rollback()
        assert await session(pool) > 0

    asyncio.run(main())


async def execute_sleep(conn: Any) -> None:
    await conn.execute("SELECT pg_sleep(10)")


def test_leaving_a_stream_that_was_cut_raises_no_cancelled_error(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, kwargs={"autocommit": True})

    async def main() -> None:
        conn = await pool.getconn()
        rows: Any = conn.cursor().stream("SELECT generate_series(1, 1000000)")
        await rows.__anext__()
        conn.bgpool_generation.cut()  # type: ignore[attr-defined]  # mixed in
        with contextlib.suppress(psycopg.Error):
            await rows.aclose()
        await pool.putconn(conn)
        assert await session(pool) > 0

    asyncio.run(main())


@pytest.mark.usefixtures("deployment")
def test_an_error_is_freed_with_its_last_reference(make_pool: MakePool) -> None:
    """An error that waits for the collector keeps the frames of its task alive, and their sockets."""

    async def fail(pool: AsyncPool) -> weakref.ref[BaseException]:
        async with pool.connection() as conn:
            await conn.execute("CREATE TEMP TABLE twice (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            await conn.execute("INSERT INTO twice VALUES (1), (1)")
            try:
                await conn.commit()
            except psycopg.errors.UniqueViolation as error:
                return weakref.ref(error)
        raise AssertionError("no error")

    async def main() -> None:
        pool = make_pool()
        gc.disable()
        try:
            assert (await fail(pool))() is None
        finally:
            gc.enable()
        await pool.close()

    asyncio.run(main())


# -- connections returned to the wrong pool ------------------------------------------------------------------------


def test_a_connection_goes_back_to_a_pool_of_its_kind_in_its_own_loop(
    make_pool: MakePool, pair: Pair, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """psycopg_pool accepts it from another loop, and does not wake the callers that wait for it in its own loop."""
    pool = make_pool(max_size=1)
    with bgpool.get_pool(pair.dsn, bg_resolver=pair.resolver, bg_run_dir=tmp_path / "run", min_size=1) as threads:

        async def main() -> None:
            conn, other = await pool.getconn(), threads.getconn()
            with pytest.raises(ValueError, match=r"belongs to an async pool: return it there, with await"):
                threads.putconn(conn)
            with pytest.raises(ValueError, match=r"was not checked out from <AsyncPool"):
                await pool.putconn(other)
            threads.putconn(other)
            with pytest.raises(ValueError, match=r"belongs to another event loop: return it there"):
                await asyncio.to_thread(asyncio.run, pool.putconn(conn))
            waiting = asyncio.create_task(session(pool))
            await until(lambda: pool.stats().waiting)
            mine = conn.info.backend_pid
            await pool.putconn(conn)
            assert await asyncio.wait_for(waiting, PATIENCE_S) == mine
            await pool.close()

        asyncio.run(main())
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_psycopg_pool_names_the_hook_that_is_at_fault(make_pool: MakePool) -> None:
    async def leaves_a_transaction(conn: Any) -> None:
        await conn.execute("SELECT 1")

    async def main() -> None:
        pool = make_pool(configure=leaves_a_transaction)
        # Until the hook has been called.
        for _ in range(50):
            with pytest.raises(bgpool.PoolTimeout) as caught:
                await pool.getconn(0.3)
            if "INTRANS" in str(caught.value):
                break
        assert re.search(r"INTRANS by configure function .*leaves_a_transaction", str(caught.value))
        await pool.close()

    asyncio.run(main())
