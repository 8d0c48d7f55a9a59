"""``postgresql+bgpool_asyncpg://``: SQLAlchemy's asyncio extension on asyncpg, through a switchover."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

import bgpool
from bgpool.core.phase import Phase
from bgpool.errors import ConfigurationError
from bgpool.integrations.sqlalchemy import arun
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.asyncpg.conftest import Run
from tests.pools.proxy import CommitCutter
from tests.waiting import until

pytestmark = pytest.mark.lab

WHERE = text("SELECT host(inet_server_addr())")
INSERT = text("INSERT INTO ledger (worker, thread, n) VALUES (:worker, :thread, :n)")

Engines = Callable[..., contextlib.AbstractAsyncContextManager[AsyncEngine]]


@pytest.fixture
def engines(pair: Pair, tmp_path: Path) -> Engines:
    """Create engines that follow *deployment*; check at their end that every place in the pool is free."""

    @contextlib.asynccontextmanager
    async def make(bg: dict[str, str] | None = None, **options: Any) -> AsyncIterator[AsyncEngine]:
        place = make_url(pair.dsn.partition("?")[0])
        query = {"bg_resolver": str(pair.resolver), "bg_run_dir": str(tmp_path / "run"), **(bg or {})}
        url = place.set(drivername="postgresql+bgpool_asyncpg").update_query_dict(query)
        engine = create_async_engine(url, **{"pool_size": 2, "max_overflow": 0, **options})
        try:
            yield engine
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # of a QueuePool
        finally:
            await engine.dispose()
            engine.dialect.bgpool_connector.stop()  # type: ignore[attr-defined]  # bgpool's dialect

    return make


def test_held_callers_continue_on_green_and_cut_ones_get_an_error(
    engines: Engines, deployment: Deployment, pair: Pair, run: Run
) -> None:
    async def where(engine: AsyncEngine) -> Any:
        async with engine.connect() as connection:
            return (await connection.execute(WHERE)).scalar()

    async def main() -> None:
        async with engines({"bg_drain_timeout_ms": "200"}) as engine:
            assert await where(engine) == pair.blue.address
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                deployment.phase(Phase.IN_PROGRESS)
                with pytest.raises(exc.OperationalError) as caught:
                    await connection.execute(text("SELECT pg_sleep(60)"))
                assert isinstance(caught.value.orig, bgpool.SwitchoverInterrupted)
                assert caught.value.connection_invalidated
            held = [asyncio.create_task(where(engine)) for _ in range(10)]
            connector = engine.dialect.bgpool_connector  # type: ignore[attr-defined]  # bgpool's dialect
            await until(lambda: connector.stats().held == 10)
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # of a QueuePool
            held[0].cancel()
            deployment.release()
            assert await asyncio.gather(*held[1:]) == [pair.green.address] * 9

    run(main())


def test_a_hold_that_is_too_long_is_an_operational_error(engines: Engines, deployment: Deployment) -> None:
    async def main() -> None:
        async with engines({"bg_connect_timeout_ms": "200"}) as engine:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            deployment.phase(Phase.IN_PROGRESS)
            with pytest.raises(exc.OperationalError, match="was held") as caught:
                async with engine.connect():
                    pass
            assert isinstance(caught.value.orig, bgpool.SwitchoverHoldTimeout)
            deployment.release()

    asyncio.run(main())


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(("when", "calls"), [("after", 1), ("before", 2)])
def test_a_unit_is_applied_once(engines: Engines, pair: Pair, cutter: CommitCutter, when: Any, calls: int) -> None:
    called: list[int] = []

    async def insert(session: AsyncSession) -> int:
        called.append(1)
        await session.execute(INSERT, {"worker": 83, "thread": calls, "n": len(called)})
        return len(called)

    async def main() -> None:
        async with engines(pool_size=1) as engine:
            cutter.when = when
            assert await arun(async_sessionmaker(engine), insert) == calls

    asyncio.run(main())
    assert cutter.when == "never"
    rows = pair.blue.execute(f"SELECT count(*) FROM ledger WHERE worker = 83 AND thread = {calls}", database="app")
    assert rows[0][0] == 1


def test_a_unit_is_repeated_after_a_loss_between_two_statements(engines: Engines, deployment: Deployment) -> None:
    """SQLAlchemy keeps prepared statements; asyncpg reports them as closed together with their connection."""
    told: list[BaseException] = []

    async def select(session: AsyncSession) -> int:
        for _ in range(2):
            await session.execute(text("SELECT 1"))
        if told:
            return len(told)
        raw = await (await session.connection()).get_raw_connection()
        drivers: Any = raw.driver_connection
        deployment.phase(Phase.IN_PROGRESS)
        asyncio.get_running_loop().call_later(0.4, deployment.release)
        await until(drivers.is_closed)
        try:
            await session.execute(text("SELECT 1"))
        except exc.OperationalError as error:
            told.append(error)
            raise
        return 0

    async def main() -> None:
        async with engines({"bg_drain_timeout_ms": "50"}) as engine:
            assert await arun(async_sessionmaker(engine), select) == 1

    asyncio.run(main())
    (error,) = told
    assert isinstance(error, exc.OperationalError)
    assert isinstance(error.orig, bgpool.SwitchoverInterrupted)


@pytest.mark.usefixtures("deployment")
def test_parameters_reach_asyncpg(engines: Engines) -> None:
    async def main() -> None:
        given: dict[str, Any] = {"server_settings": {"application_name": "mine"}, "command_timeout": 5}
        async with engines({"prepared_statement_cache_size": "0"}, connect_args=given) as engine:
            async with engine.connect() as connection:
                assert (await connection.execute(text("SHOW application_name"))).scalar() == "mine"
            async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                await connection.execute(text("SELECT 1"))
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                auto = engine.execution_options(isolation_level="AUTOCOMMIT")
                await arun(auto, lambda connection: connection.execute(text("SELECT 1")))
        with pytest.raises(ConfigurationError, match="create_async_engine: unknown parameter 'nonsense'"):
            async with engines({"nonsense": "1"}):
                pass

    asyncio.run(main())


def test_connections_of_a_closed_loop_are_closed_without_an_error(
    engines: Engines, deployment: Deployment, own_log: pytest.LogCaptureFixture
) -> None:
    async def pid(engine: AsyncEngine) -> Any:
        async with engine.connect() as connection:
            return (await connection.execute(text("SELECT pg_backend_pid()"))).scalar()

    async def main() -> AsyncEngine:
        async with engines() as engine:
            pids = {await asyncio.to_thread(lambda: asyncio.run(pid(engine))) for _ in range(3)}
            assert len({*pids, await pid(engine)}) == 4
            return engine

    with warnings.catch_warnings():
        # Python's own warning, for every transport whose loop is closed first.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(main())
        gc.collect()
    assert deployment.snapshot.phase is Phase.CREATED
    assert [record for record in own_log.records if record.levelname == "ERROR"] == []
