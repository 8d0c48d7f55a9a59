"""Units of work on an asyncpg pool: applied once, and never reported as failed if they did not fail."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from bgpool.core.phase import Phase
from bgpool.errors import ConfigurationError
from bgpool.integrations import asyncpg as bg
from bgpool.lab import Pair
from bgpool.pools import units
from bgpool.testing import Deployment
from tests.asyncpg.conftest import Opened, Run
from tests.pools.proxy import CommitCutter
from tests.pools.test_outcome import REFUSALS, refused
from tests.pools.test_read_only import read_only
from tests.waiting import until

pytestmark = pytest.mark.lab


class Work:
    """The function of a unit: each call writes a row under a number that only this object writes."""

    numbers = iter(range(1_000, 1_000_000))

    def __init__(self) -> None:
        self.number = next(self.numbers)
        self.calls = 0
        # Green accepts no writes: it is not promoted.
        self.writes = True

    async def __call__(self, connection: Any, then: Any = None) -> str:
        self.calls += 1
        if self.writes:
            sql = "INSERT INTO ledger (worker, thread, n) VALUES (79, $1, $2)"
            await connection.execute(sql, self.number, self.calls)
        if then is not None:
            await then(connection)
        return f"call {self.calls}"

    def rows(self, pair: Pair) -> int:
        """Return the number of its rows on blue."""
        sql = f"SELECT count(*) FROM ledger WHERE worker = 79 AND thread = {self.number}"
        return int(pair.blue.execute(sql, database="app")[0][0])


@pytest.fixture
def work() -> Work:
    return Work()


def test_a_unit_is_committed_and_what_it_returns_is_returned(
    opened: Opened, deployment: Deployment, pair: Pair, work: Work, run: Run
) -> None:
    async def fail(_connection: Any) -> None:
        raise KeyError("mine")

    async def main() -> None:
        async with opened() as pool:
            assert await bg.run(pool, work) == "call 1"
            with pytest.raises(KeyError):
                await bg.run(pool, work, fail)
            with pytest.raises(TypeError, match="is a coroutine function"):
                await bg.run(pool, lambda _: 1)  # type: ignore[arg-type, return-value]  # that is what is tested
        assert deployment.snapshot.phase is Phase.CREATED

    run(main())
    assert (work.calls, work.rows(pair)) == (2, 1)


def test_a_unit_that_is_cut_is_run_again_after_the_switchover(
    opened: Opened, deployment: Deployment, pair: Pair, work: Work
) -> None:
    async def wait(connection: Any) -> None:
        if work.calls == 1:
            deployment.phase(Phase.IN_PROGRESS)
            asyncio.get_running_loop().call_later(0.3, deployment.release)
        await connection.execute("SELECT pg_sleep($1)", 60 if work.calls == 1 else 0)

    async def main() -> None:
        work.writes = False
        async with opened(bg_drain_timeout_ms=100) as pool:
            assert await bg.run(pool, work, wait) == "call 2"
            assert await pool.fetchval("SELECT host(inet_server_addr())") == pair.green.address

    asyncio.run(main())


def test_an_interruption_that_the_function_swallows_is_one_all_the_same(
    opened: Opened, deployment: Deployment, work: Work
) -> None:
    async def swallow(connection: Any) -> None:
        if work.calls > 1:
            return
        deployment.phase(Phase.IN_PROGRESS)
        asyncio.get_running_loop().call_later(0.3, deployment.release)
        with pytest.raises(bg.SwitchoverInterrupted):
            await connection.execute("SELECT pg_sleep(60)")

    async def main() -> None:
        work.writes = False
        async with opened(bg_drain_timeout_ms=100) as pool:
            assert await bg.run(pool, work, swallow) == "call 2"

    asyncio.run(main())


@pytest.mark.parametrize("what", ["statement", "cursor"])
def test_use_of_a_connection_lost_between_two_statements_is_explained(
    opened: Opened, deployment: Deployment, work: Work, what: str
) -> None:
    """asyncpg checks whether it is closed, and reports no more than that."""
    told: list[type[BaseException]] = []

    async def use(connection: Any) -> None:
        statement = await connection.prepare("SELECT generate_series(1, 9)")
        fetch = statement.fetch if what == "statement" else (await statement.cursor()).fetchrow
        await fetch()
        if work.calls > 1:
            return
        raw = connection._con
        deployment.phase(Phase.IN_PROGRESS)
        asyncio.get_running_loop().call_later(0.3, deployment.release)
        while not raw.is_closed():
            await asyncio.sleep(0.01)
        try:
            await fetch()
        except Exception as error:
            told.append(type(error))
            raise

    async def main() -> None:
        work.writes = False
        async with opened(bg_drain_timeout_ms=50) as pool:
            assert await bg.run(pool, work, use) == "call 2"

    asyncio.run(main())
    assert told == [bg.SwitchoverInterrupted if what == "statement" else asyncpg.InterfaceError]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(("when", "answer"), [("after", "call 1"), ("before", "call 2")])
def test_the_outcome_of_a_commit_is_queried(
    opened: Opened, pair: Pair, cutter: CommitCutter, work: Work, when: Any, answer: str, run: Run
) -> None:
    async def main() -> None:
        async with opened(max_size=1) as pool:
            cutter.when = when
            assert await bg.run(pool, work) == answer

    run(main())
    assert (work.rows(pair), cutter.when) == (1, "never")


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("how", REFUSALS)
def test_without_a_receipt_the_outcome_is_unknown(
    opened: Opened, pair: Pair, cutter: CommitCutter, work: Work, how: str
) -> None:
    async def main() -> None:
        async with opened(max_size=1) as pool:
            assert await bg.run(pool, work) == "call 1"
            cutter.when = "after"
            with pytest.raises(bg.CommitOutcomeUnknown, match="during COMMIT"):
                await bg.run(pool, work)
            cutter.when = "after"
            assert await bg.run(pool, work, idempotent=True) == "call 4"

    with refused(pair, "pg_current_wal_insert_lsn()", how):
        asyncio.run(main())
    assert (work.calls, work.rows(pair)) == (4, 4)


def test_a_failed_transaction_raises_an_error(opened: Opened, deployment: Deployment, pair: Pair, work: Work) -> None:
    """asyncpg's own block ends without an error, and the server has rolled back."""

    async def swallow(connection: Any) -> None:
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.execute("SELECT FROM there_is_none")

    async def commit(connection: Any) -> None:
        await connection.execute("COMMIT")

    async def close(connection: Any) -> None:
        await connection.close()

    async def main() -> None:
        async with opened() as pool:
            with pytest.raises(asyncpg.InFailedSQLTransactionError, match="was rolled back"):
                await bg.run(pool, work, swallow)
            with pytest.raises(asyncpg.InterfaceError, match="committed by its runner"):
                await bg.run(pool, work, commit)
            with pytest.raises(asyncpg.InterfaceError, match="closed its connection"):
                await bg.run(pool, work, close)
        assert deployment.snapshot.phase is Phase.CREATED

    asyncio.run(main())
    assert (work.calls, work.rows(pair)) == (3, 1)


def test_a_unit_that_is_cancelled_is_not_run_again(
    opened: Opened, deployment: Deployment, pair: Pair, work: Work, run: Run
) -> None:
    async def wait(connection: Any) -> None:
        asyncio.get_running_loop().call_later(0.05, tasks[0].cancel)
        await connection.execute("SELECT pg_sleep(60)")

    tasks: list[asyncio.Task[str]] = []

    async def main() -> None:
        async with opened(bg_drain_timeout_ms=0) as pool:
            tasks.append(asyncio.create_task(bg.run(pool, work, wait)))
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            deployment.phase(Phase.IN_PROGRESS)
            held = asyncio.create_task(bg.run(pool, work))
            await until(lambda: pool.connector.stats().held)
            held.cancel()
            await asyncio.wait([held])
            deployment.release()

    run(main())
    assert (work.calls, work.rows(pair)) == (1, 0)


@pytest.mark.parametrize("kind", [FileNotFoundError, ConnectionResetError, asyncio.TimeoutError])
def test_an_os_error_of_the_functions_own_is_no_cut(
    opened: Opened, deployment: Deployment, work: Work, kind: type[Exception]
) -> None:
    """The error is of a file, of another service, or of a statement whose timeout expired."""

    async def fail(connection: Any) -> None:
        if kind is asyncio.TimeoutError:
            await connection.execute("SELECT pg_sleep(5)", timeout=0.01)
        raise kind("mine")

    async def main() -> None:
        async with opened() as pool:
            deployment.phase(Phase.PREPARATION)
            with pytest.raises(kind):
                await bg.run(pool, work, fail)

    asyncio.run(main())
    assert work.calls == 1


def test_a_refused_write_that_the_function_swallows_is_an_interruption(
    opened: Opened, deployment: Deployment, pair: Pair, work: Work
) -> None:
    async def insert(connection: Any) -> str:
        if not work.calls:
            deployment.phase(Phase.IN_PROGRESS)
            asyncio.get_running_loop().call_later(0.3, deployment.release)
            work.calls += 1
            with pytest.raises(bg.SwitchoverInterrupted, match="no longer takes writes"):
                await connection.execute("INSERT INTO ledger (worker, thread, n) VALUES (79, 0, 0)")
            return "call 1"
        return await work(connection)

    async def main() -> None:
        work.writes = False
        async with opened() as pool:
            assert await bg.run(pool, insert) == "call 2"

    with read_only(pair):
        asyncio.run(main())


def test_a_blue_that_takes_writes_again_before_it_refuses_one_has_refused_it_all_the_same(
    opened: Opened, deployment: Deployment, pair: Pair, work: Work
) -> None:
    """A transaction keeps the mode in which it began."""

    async def unit(connection: Any) -> str:
        if work.calls == 0:
            pair.blue.set_read_only(False)
        return await work(connection)

    async def main() -> str:
        async with opened() as pool:
            deployment.phase(Phase.PREPARATION)
            return str(await bg.run(pool, unit))

    with read_only(pair):
        assert asyncio.run(main()) == "call 2"
    assert work.rows(pair) == 1


def test_a_function_is_called_no_more_than_so_many_times(
    opened: Opened, deployment: Deployment, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_ATTEMPTS", 3)

    async def main() -> None:
        async with opened() as pool:
            deployment.phase(Phase.PREPARATION)

            async def cut(connection: Any) -> None:
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

            with pytest.raises(asyncpg.PostgresError):
                await bg.run(pool, work, cut)

    asyncio.run(main())
    assert work.calls == 3


def test_a_pool_of_asyncpgs_own_is_refused(pair: Pair) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="must be made by bgpool's create_pool, got Pool"):
            await bg.run(asyncpg.create_pool(pair.dsn), work)

    async def work(_connection: Any) -> None: ...

    asyncio.run(main())


def test_a_unit_that_is_cancelled_wherever_it_is_leaves_nothing_to_be_reset(
    opened: Opened, run: Run, own_log: pytest.LogCaptureFixture
) -> None:
    """asyncpg logs an ERROR for a transaction that is open when a connection is released, and rolls it back."""

    async def main() -> None:
        async with opened(min_size=1, max_size=1) as pool:

            async def one(connection: Any) -> int:
                return await connection.fetchval("SELECT 1")  # type: ignore[no-any-return]  # asyncpg has no types

            for turns in range(0, 120, 2):
                unit = asyncio.create_task(bg.run(pool, one))
                for _ in range(turns):
                    await asyncio.sleep(0)
                unit.cancel()
                await asyncio.wait([unit])
            assert await bg.run(pool, one) == 1

    run(main())
    assert [record.getMessage() for record in own_log.records if record.name == "asyncio"] == []
