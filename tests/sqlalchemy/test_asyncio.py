"""SQLAlchemy's asyncio extension: what is a task's or a loop's own. All else is in the tests of both forms."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import random
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import NullPool, func, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.errors import ConfigurationError, SwitchoverInterrupted
from bgpool.integrations.sqlalchemy import arun, transactional
from bgpool.lab import Pair
from bgpool.pools.fork import keep_forever
from bgpool.testing import Deployment
from tests.engines import sleepers
from tests.processes.test_fork import in_child
from tests.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from typing_extensions import LiteralString

ENGINES = (Engine.POSTGRESQL,)

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("kit")]

ONE = text("SELECT 1")

MakeEngine = Callable[..., AsyncEngine]


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders_of_tasks"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@pytest.fixture
def make_async(make_engine: Callable[..., sqlalchemy.Engine], url: URL, deployment: Deployment) -> MakeEngine:
    """Makes engines, as make_engine; a test is to dispose of them in its loop."""

    def make(url: URL = url, **options: Any) -> AsyncEngine:
        assert deployment.snapshot.ready
        bg = {name: str(options.pop(name)) for name in [*options] if name.startswith("bg_")}
        return create_async_engine(url.update_query_dict(bg), **options)

    assert make_engine is not None
    return make


@pytest.fixture
def orders(pair: Pair) -> None:
    """An empty table."""
    as_owner(pair, "DROP TABLE IF EXISTS orders_of_tasks", "CREATE TABLE orders_of_tasks (number int PRIMARY KEY)")


def as_owner(pair: Pair, *statements: LiteralString) -> None:
    with psycopg.connect(pair.direct_dsn(pair.blue)) as connection:
        for sql in statements:
            connection.execute(sql)


async def where(connection: AsyncConnection) -> str:
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    return str(driver.info.hostaddr)


def stats(engine: AsyncEngine) -> Any:
    return engine.dialect.bgpool_connector.stats()  # type: ignore[attr-defined]  # bgpool's


def count_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


# -- held --------------------------------------------------------------------------------------------------------


def test_held_callers_take_no_slot_and_leave_the_loop_alone(
    make_async: MakeEngine, deployment: Deployment, pair: Pair
) -> None:
    async def ask(engine: AsyncEngine) -> str:
        async with engine.connect() as connection:
            return await where(connection)

    async def longest_gap() -> float:
        """Of twenty pauses of 0.01 s."""
        at = [time.monotonic()]
        for _ in range(20):
            await asyncio.sleep(0.01)
            at.append(time.monotonic())
        return max(later - before for before, later in itertools.pairwise(at))

    async def main() -> None:
        engine = make_async(pool_size=3, max_overflow=0, pool_timeout=PATIENCE_S)
        assert await ask(engine) == pair.blue.address
        deployment.phase(Phase.IN_PROGRESS)
        callers = [asyncio.create_task(ask(engine)) for _ in range(60)]
        await until(lambda: stats(engine).held == 60)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a queue
        # Other work of the machine makes some long, and what holds up the loop makes all.
        assert min([await longest_gap() for _ in range(5)]) < 0.1
        await ended(*callers[:50])
        assert stats(engine).held == 10
        deployment.release()
        assert set(await asyncio.gather(*callers[50:])) == {pair.green.address}
        assert (stats(engine).held, engine.pool.checkedout()) == (0, 0)  # type: ignore[attr-defined]  # a queue
        await engine.dispose()
        assert stats(engine).size == 0

    asyncio.run(main())


# -- cancelled ---------------------------------------------------------------------------------------------------


def test_a_caller_that_is_cancelled_anywhere_keeps_no_slot(make_async: MakeEngine, deployment: Deployment) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(0.02)"))
            await connection.commit()

    async def main() -> None:
        engine = make_async(pool_size=2, max_overflow=0, pool_timeout=PATIENCE_S)
        await work(engine)
        for step in range(40):
            task = asyncio.create_task(work(engine))
            await asyncio.sleep(step / 1000)
            task.cancel()
            await asyncio.wait([task])
        deployment.phase(Phase.IN_PROGRESS)
        held = [asyncio.create_task(work(engine)) for _ in range(5)]
        await until(lambda: stats(engine).held == 5)
        await ended(*held)
        deployment.roll_back()
        await asyncio.gather(*(work(engine) for _ in range(4)))
        assert engine.pool.checkedout() == stats(engine).held == 0  # type: ignore[attr-defined]  # a queue
        assert stats(engine).size <= 2
        await engine.dispose()
        assert stats(engine).size == 0

    asyncio.run(main())


# psycopg's cursor, which SQLAlchemy does not close where its statement is cancelled.
@pytest.mark.filterwarnings("ignore:.*ServerCursor:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("operations", "least"),
    [(300, 2), pytest.param(4_000, 20, marks=[pytest.mark.full, pytest.mark.timeout(500)])],
)
def test_random_cancels_leave_nothing_behind(
    make_async: MakeEngine, deployment: Deployment, operations: int, least: int
) -> None:
    """Units, plain transactions and streams, through switchovers that are rolled back."""
    insert = text("INSERT INTO ledger (worker, thread, n) VALUES (70, 1, :n)")
    numbers = text("SELECT generate_series(1, 3000)")
    rnd = random.Random(operations)
    numbered = itertools.count()

    async def write(work: AsyncSession | AsyncConnection, n: int) -> None:
        await work.execute(insert, {"n": n})
        if n % 3 == 0:
            await work.execute(text("SELECT pg_sleep(0.005)"))

    async def operate(engine: AsyncEngine, maker: async_sessionmaker[AsyncSession], n: int) -> None:
        if n % 4 == 0:
            await arun(maker, write, n)
        elif n % 4 == 1:
            await arun(engine, write, n)
        elif n % 4 == 2:
            async with maker.begin() as session:
                await write(session, n)
        else:
            async with engine.connect() as connection:
                async for _ in await connection.stream(numbers):
                    pass

    async def work(engine: AsyncEngine, errors: list[BaseException]) -> None:
        maker = async_sessionmaker(engine)
        while (n := next(numbered)) < operations:
            task = asyncio.create_task(operate(engine, maker, n))
            if rnd.random() < 0.7:
                await asyncio.sleep(rnd.choice([0, 0.001, 0.005, 0.02]) * rnd.random())
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                errors.append(error)

    async def switch(over: asyncio.Event) -> int:
        for count in itertools.count():
            if over.is_set():
                return count
            for phase in (Phase.PREPARATION, Phase.IN_PROGRESS, Phase.CREATED):
                deployment.phase(phase)
                await asyncio.sleep(0.05)
        raise AssertionError

    async def main() -> None:
        engine = make_async(pool_size=4, max_overflow=2, bg_drain_timeout_ms=20)
        async with engine.connect() as connection:
            await connection.execute(ONE)
        files = count_files()
        errors: list[BaseException] = []
        over = asyncio.Event()
        switching = asyncio.create_task(switch(over))
        await asyncio.gather(*(work(engine, errors) for _ in range(20)))
        over.set()
        assert await switching >= least
        for error in errors:
            # Those of a unit are bgpool's own.
            cause = error.orig if isinstance(error, OperationalError) else error
            assert isinstance(cause, (SwitchoverInterrupted, bgpool.CommitOutcomeUnknown)), error
        assert engine.pool.checkedout() == stats(engine).held == 0  # type: ignore[attr-defined]  # a queue
        assert stats(engine).size <= 6
        connections = [await engine.connect() for _ in range(6)]
        for connection in connections:
            await connection.close()
        await engine.dispose()
        errors.clear()
        await until(lambda: count_files() <= files)
        assert stats(engine).size == 0

    asyncio.run(main())
    gc.collect()


def test_a_unit_that_is_cancelled_is_not_run_again(
    make_async: MakeEngine, deployment: Deployment, pair: Pair, orders: None
) -> None:
    """Held, in its function, and in its COMMIT, which a trigger makes long."""
    assert orders is None
    as_owner(
        pair,
        "CREATE OR REPLACE FUNCTION be_long() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(20); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER long AFTER INSERT ON orders_of_tasks DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION be_long()",
    )
    calls: list[int] = []

    async def place(session: AsyncSession, seconds: float) -> None:
        calls.append(1)
        session.add(Order(number=1))
        await session.flush()
        await session.execute(text("SELECT pg_sleep(:s)"), {"s": seconds})

    async def main() -> None:
        engine = make_async(pool_size=1, max_overflow=0)
        maker = async_sessionmaker(engine)
        for seconds in (20.0, 0.0):
            before = sleepers(pair)
            placing = asyncio.create_task(arun(maker, place, seconds))
            await until(lambda before=before: sleepers(pair) - before)  # type: ignore[misc]  # as a condition is called
            await ended(placing)
        assert len(calls) == 2
        deployment.phase(Phase.IN_PROGRESS)
        held = asyncio.create_task(arun(maker, place, 0.0))
        await until(lambda: stats(engine).held == 1)
        await ended(held)
        deployment.roll_back()
        assert len(calls) == 2
        assert engine.pool.checkedout() == stats(engine).held == 0  # type: ignore[attr-defined]  # a queue
        async with maker() as session:
            assert await session.scalar(select(func.count()).select_from(Order)) == 0
        await engine.dispose()

    asyncio.run(main())


def test_a_connection_that_is_never_returned_is_closed(make_async: MakeEngine) -> None:
    async def main() -> None:
        engine = make_async(pool_size=1, max_overflow=0, pool_timeout=PATIENCE_S)
        lost = await engine.connect()
        await lost.execute(ONE)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            del lost
            gc.collect()
        assert sum("will be terminated" in str(one.message) for one in warned) == 1
        async with engine.connect() as connection:
            assert await connection.scalar(ONE) == 1
        assert stats(engine).size == 1
        await engine.dispose()

    asyncio.run(main())


# Psycopg's cursor, which SQLAlchemy does not close where its connection is lost.
@pytest.mark.filterwarnings("ignore:.*ServerCursor:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_across_the_drain(make_async: MakeEngine, deployment: Deployment) -> None:
    async def main() -> None:
        engine = make_async(bg_drain_timeout_ms=2000)
        async with engine.connect() as connection:
            options = connection.execution_options
            await options(yield_per=10)
            stream = await connection.stream(text("SELECT generate_series(1, 100000)"))
            assert len(await stream.fetchmany(10)) == 10
            deployment.phase(Phase.IN_PROGRESS)
            await asyncio.sleep(0.05)
            assert len(await stream.fetchmany(10)) == 10
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await until(lambda: driver.bgpool_cut)
            deployment.release()
            with pytest.raises(OperationalError) as caught:
                await stream.fetchall()
            assert isinstance(caught.value.orig, SwitchoverInterrupted)
        await engine.dispose()

    asyncio.run(main())
    gc.collect()


# -- loops -------------------------------------------------------------------------------------------------------


def test_one_loop_after_another_has_connections_of_its_own(make_async: MakeEngine, pair: Pair) -> None:
    engine = make_async(pool_size=2, max_overflow=0, pool_pre_ping=True)

    async def sessions() -> set[int]:
        async with engine.connect() as one, engine.connect() as other:
            return {int(await c.scalar(text("SELECT pg_backend_pid()"))) for c in (one, other)}  # noqa:RUF100  # both

    first = asyncio.run(sessions())
    second = asyncio.run(sessions())
    assert not first & second
    assert stats(engine).size == 2
    alive = pair.blue.execute("SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)", ([*first, *second],))
    assert {pid for (pid,) in alive} == second
    asyncio.run(engine.dispose())


@pytest.mark.parametrize("kind", [None, NullPool])
def test_two_loops_at_the_same_time(make_async: MakeEngine, kind: Any) -> None:
    engine = make_async(poolclass=kind)

    async def ask() -> int:
        async with engine.connect() as connection:
            return int(await connection.scalar(ONE) or 0)

    async def main() -> None:
        assert await ask() == 1
        other = asyncio.to_thread(lambda: asyncio.run(ask()))
        if kind is None:
            with pytest.raises(ConfigurationError, match="two event loops at the same time"):
                await other
        else:
            assert await other == 1
        assert await ask() == 1
        await engine.dispose()

    asyncio.run(main())


def test_a_fork_with_a_warm_engine(make_async: MakeEngine) -> None:
    engine = make_async()
    loop = asyncio.new_event_loop()
    question = text("SELECT pg_backend_pid()")

    async def session() -> int:
        async with engine.connect() as connection:
            return int(await connection.scalar(question) or 0)

    kept = loop.run_until_complete(_opened(engine))
    mine = loop.run_until_complete(session())

    def child() -> None:
        # The parent's loop is the parent's: its selector is shared.
        keep_forever(loop)
        own = asyncio.run(session())
        assert own != mine
        gc.collect()

    assert in_child(child) == 0
    assert loop.run_until_complete(session()) == mine
    assert loop.run_until_complete(kept.scalar(ONE)) == 1
    loop.run_until_complete(kept.close())
    loop.run_until_complete(engine.dispose())
    loop.close()


async def _opened(engine: AsyncEngine) -> AsyncConnection:
    return await engine.connect()


def test_no_loop_is_a_clear_error(make_async: MakeEngine) -> None:
    engine = make_async()
    with pytest.raises(ConfigurationError, match="inside of a running event loop"):
        engine.sync_engine.connect()


# -- units -------------------------------------------------------------------------------------------------------


def test_units_of_each_maker(make_async: MakeEngine, orders: None) -> None:
    assert orders is None

    async def add(session: AsyncSession, number: int) -> int:
        session.add(Order(number=number))
        return number

    async def add_plainly(connection: AsyncConnection, number: int) -> int:
        await connection.execute(sqlalchemy.insert(Order), {"number": number})
        return number

    async def main() -> None:
        engine = make_async(pool_size=1, max_overflow=0, pool_timeout=PATIENCE_S)
        maker = async_sessionmaker(engine)
        scoped = async_scoped_session(maker, asyncio.current_task)

        async def add_by_heart(session: AsyncSession, number: int) -> int:
            assert scoped() is session
            async with session.begin_nested():
                scoped.add(Order(number=number))
            return number

        @transactional(maker)
        async def place(session: AsyncSession, number: int) -> int:
            """Place an order."""
            return await add(session, number)

        assert await arun(maker, add, 1) == 1
        assert await arun(engine, add_plainly, 2, timeout=30.0) == 2
        assert await arun(scoped, add_by_heart, 3, idempotent=True) == 3
        assert not scoped.registry.has()
        assert await place(4) == 4
        assert inspect.iscoroutinefunction(place)
        assert list(inspect.signature(place).parameters) == ["number"]
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            await place(4)
        async with maker() as session:
            assert list(await session.scalars(select(Order.number).order_by(Order.number))) == [1, 2, 3, 4]
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a queue
        await engine.dispose()

    asyncio.run(main())


def test_a_unit_that_ends_its_transaction_or_returns_nothing_to_await_is_refused(make_async: MakeEngine) -> None:
    async def commit(session: AsyncSession) -> None:
        await session.execute(ONE)
        await session.commit()

    async def later(_session: AsyncSession) -> AsyncIterator[int]:
        yield 1

    async def main() -> None:
        engine = make_async()
        maker = async_sessionmaker(engine)
        with pytest.raises(sqlalchemy.exc.InvalidRequestError, match="committed by its runner"):
            await arun(maker, commit)
        wrong: Any
        for wrong in (lambda _session: 1, later):
            with pytest.raises(TypeError, match="a unit of work for asyncio is a coroutine function"):
                await arun(maker, wrong)
        await engine.dispose()

    asyncio.run(main())


def test_what_makes_sessions_is_asked_for() -> None:
    url = "postgresql+bgpool://app:secret@127.0.0.1/app"
    plain, ours = create_async_engine("postgresql+psycopg://app:secret@127.0.0.1/app"), create_async_engine(url)
    wrong: dict[Any, str] = {
        None: "None was given, and an async_sessionmaker",
        AsyncSession(ours): "each attempt needs a new session",
        AsyncConnection(ours): "give connection.engine",
        sessionmaker(): "what does not await is for run",
        async_sessionmaker(plain): r"make it with postgresql\+bgpool://",
        async_sessionmaker(): "bound to no engine",
    }

    async def nothing(_session: object) -> None:
        raise AssertionError

    for maker, said in wrong.items():
        with pytest.raises(ConfigurationError, match=said) as caught:
            asyncio.run(arun(maker, nothing))
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="timeout=-1"):
        asyncio.run(arun(ours, nothing, timeout=-1))
    with pytest.raises(ConfigurationError, match=r"transactional: fn=None .* a session or a connection is allowed"):
        bgpool.integrations.sqlalchemy.transactional(async_sessionmaker(ours))(None)
    with pytest.raises(ConfigurationError, match="run: the engine is of create_async_engine"):
        bgpool.integrations.sqlalchemy.run(ours.sync_engine, lambda _connection: None)


# -- what is given -----------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_refused_in_a_sentence() -> None:
    url = "postgresql+bgpool://app:secret@127.0.0.1/app"

    async def creator() -> Any:
        raise AssertionError

    refused: list[tuple[str, dict[str, Any], str]] = [
        ("mysql+bgpool://127.0.0.1/app", {}, r"mysql\+bgpool:// has no async dialect for MySQL"),
        ("mariadb+bgpool://127.0.0.1/app", {}, "no async dialect for MySQL"),
        (url, {"async_creator": creator}, r"create_async_engine\(async_creator=…\) makes the connections itself"),
        (url, {"connect_args": {"async_creator_fn": creator}}, "unknown parameter 'async_creator_fn'"),
        (url, {"executemany_mode": "values"}, "is for psycopg2"),
        (url + "?bg_interval_high_ms=fast", {}, "bg_interval_high_ms"),
    ]
    for text_of, options, said in refused:
        with pytest.raises(ConfigurationError, match=said) as caught:
            create_async_engine(text_of, **options)
        assert "secret" not in str(caught.value)


def test_without_greenlet() -> None:
    """SQLAlchemy 2.1 installs it only on request; bgpool's dialects for threads need none."""
    program = (
        "import sys; sys.modules['greenlet'] = None\n"
        "import bgpool.integrations.sqlalchemy as sa, sqlalchemy\n"
        "sqlalchemy.create_engine('postgresql+bgpool://127.0.0.1/')\n"
        "try: sa.arun\n"
        "except ImportError as error: print('greenlet' in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    # SQLAlchemy 2.0 says it later, when it is used.
    said = "" if sqlalchemy.__version__.startswith("2.0.") else "True\n"
    assert (done.stdout, done.returncode) == (said, 0), done.stderr
