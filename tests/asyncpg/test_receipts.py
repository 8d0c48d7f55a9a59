"""Receipts of units of work on asyncpg pools: a key decides, whatever asyncpg itself makes of an error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

import bgpool
from bgpool.core.phase import Phase
from bgpool.integrations import asyncpg as bg
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.asyncpg.conftest import Opened, Run
from tests.asyncpg.test_units import Work
from tests.pools.proxy import CommitCutter
from tests.pools.test_receipts import TABLE, receipts, run_sql
from tests.pools.test_receipts import table as table

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("table")]


@pytest.fixture
def work() -> Work:
    return Work()


@contextlib.contextmanager
def slow(pair: Pair, seconds: float) -> Iterator[None]:
    """Delay the insertion of a receipt by *seconds* in the block."""
    pair.blue.execute(
        "CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$",
        database="app",
    )
    run_sql(pair, f"CREATE TRIGGER slow AFTER INSERT ON {TABLE} FOR EACH ROW EXECUTE FUNCTION be_slow()")
    try:
        yield
    finally:
        run_sql(pair, f"DROP TRIGGER slow ON {TABLE}; DROP FUNCTION be_slow()")


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("receipt_id", [None, "task-1"])
@pytest.mark.parametrize(("when", "answer"), [("after", "call 1"), ("before", "call 2")])
def test_a_key_decides_the_outcome_of_a_commit(
    opened: Opened, pair: Pair, cutter: CommitCutter, work: Work, when: Any, answer: str, receipt_id: str | None
) -> None:
    async def main() -> None:
        async with opened(max_size=1, bg_receipts_table=TABLE) as pool:
            cutter.when = when
            assert await bg.run(pool, work, receipt_id=receipt_id) == answer
            if receipt_id is not None:
                assert await bg.run(pool, work, receipt_id=receipt_id) == bgpool.AlreadyApplied(receipt_id)

    asyncio.run(main())
    assert (work.rows(pair), len(receipts(pair)), cutter.when) == (1, 1, "never")


def test_an_id_is_applied_once_in_both_loops(opened: Opened, deployment: Deployment, work: Work, run: Run) -> None:
    async def fail(_connection: Any) -> None:
        raise LookupError

    async def main() -> None:
        async with opened(max_size=1, bg_receipts_table=TABLE) as pool:
            with pytest.raises(LookupError):
                await bg.run(pool, work, fail, receipt_id="task-1")
            assert await bg.run(pool, work, receipt_id="task-1") == "call 2"
            assert await bg.run(pool, work, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
            with pytest.raises(bgpool.ConfigurationError, match=r"receipt_id=.* is allowed"):
                await bg.run(pool, work, receipt_id="two words")
        async with opened() as pool:
            with pytest.raises(bgpool.ConfigurationError, match="needs a table of receipts"):
                await bg.run(pool, work, receipt_id="task-1")

    run(main())
    assert deployment.snapshot.phase is Phase.CREATED
    assert work.calls == 2


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
@pytest.mark.usefixtures("deployment")
def test_another_run_is_waited_for_although_each_statement_has_a_time_limit(
    opened: Opened, work: Work, isolation: str
) -> None:
    """After asyncpg's TimeoutError a unit must not continue without a receipt: the function would be applied twice."""
    settings = {"default_transaction_isolation": isolation.replace("_", " ")}

    async def main() -> None:
        async with opened(bg_receipts_table=TABLE, command_timeout=1.0, server_settings=settings) as pool:
            began = asyncio.Event()

            async def first(connection: Any) -> str:
                began.set()
                await asyncio.sleep(2.5)
                return await work(connection)

            one = asyncio.create_task(bg.run(pool, first, receipt_id="task-1"))
            await began.wait()
            assert await bg.run(pool, work, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
            assert await one == "call 1"

    asyncio.run(main())
    assert work.calls == 1


@pytest.mark.parametrize("always", ["switchover", "always"])
def test_a_receipt_that_times_out_does_not_roll_back_without_an_error(
    opened: Opened, deployment: Deployment, pair: Pair, work: Work, always: str
) -> None:
    """asyncpg ends the statement, the transaction has failed, and its COMMIT would be answered without an error."""

    async def main() -> None:
        async with opened(bg_receipts_table=TABLE, bg_receipts=always, command_timeout=1.0) as pool:
            assert await bg.run(pool, work) == "call 1"
            if always == "switchover":
                deployment.phase(Phase.PREPARATION)
            with slow(pair, 4.0):
                assert await bg.run(pool, work) == "call 2"

    asyncio.run(main())
    assert work.rows(pair) == 2


@pytest.mark.usefixtures("prepared")
def test_a_unit_that_became_read_only_is_committed_without_a_receipt(opened: Opened, pair: Pair, work: Work) -> None:
    async def read_only(connection: Any) -> None:
        await connection.execute("SET TRANSACTION READ ONLY")

    async def main() -> None:
        async with opened(max_size=1, bg_receipts_table=TABLE) as pool:
            assert await bg.run(pool, work, read_only) == "call 1"

    asyncio.run(main())
    assert (work.rows(pair), receipts(pair)) == (1, [])


@pytest.mark.usefixtures("prepared")
def test_the_statements_of_the_unit_s_own_are_not_kept(opened: Opened, work: Work) -> None:
    """Each contains an id: they would displace statements that are used again."""

    async def main() -> None:
        async with opened(min_size=1, max_size=1, bg_receipts_table=TABLE) as pool:
            await bg.run(pool, work)
            await bg.run(pool, work, receipt_id="task-1")
            async with pool.acquire() as connection:
                before = set(connection._con._stmt_cache.iter_statements())
            for number in range(3):
                await bg.run(pool, work)
                await bg.run(pool, work, receipt_id=f"task-1{number}")
            async with pool.acquire() as connection:
                assert set(connection._con._stmt_cache.iter_statements()) == before
                assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") == len(before) + 1

    asyncio.run(main())


@pytest.mark.usefixtures("prepared")
def test_a_unit_that_is_cancelled_wherever_it_is_leaves_all_or_nothing(
    opened: Opened, pair: Pair, work: Work, own_log: pytest.LogCaptureFixture
) -> None:
    """Also in a savepoint of the unit's own: the next user of the connection finds no trace of it."""
    done: list[bool] = []

    async def main() -> None:
        async with opened(min_size=1, max_size=1, bg_receipts_table=TABLE) as pool:
            await bg.run(pool, work)
            for turns in range(0, 160, 3):
                unit = asyncio.create_task(bg.run(pool, work, receipt_id=f"task-{turns}"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                unit.cancel()
                await asyncio.wait([unit])
                done.append(not unit.cancelled())
                async with pool.acquire() as connection:
                    assert not connection.is_in_transaction()

    asyncio.run(main())
    assert len(receipts(pair)) == work.rows(pair)
    assert [record.getMessage() for record in own_log.records if record.name == "asyncio"] == []


@pytest.mark.usefixtures("prepared")
def test_a_table_that_is_missing_fails_no_unit(
    opened: Opened, pair: Pair, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    run_sql(pair, f"DROP TABLE {TABLE}")

    async def main() -> None:
        async with opened(bg_receipts_table=TABLE) as pool:
            assert [await bg.run(pool, work) for _ in range(2)] == ["call 1", "call 2"]
            assert await bg.run(pool, work, receipt_id="task-1") == "call 3"

    asyncio.run(main())
    assert work.rows(pair) == 3
    assert [r.getMessage() for r in caplog.records if "does not exist" in r.getMessage()] != []
    assert len([r for r in caplog.records if "receipts" in r.getMessage()]) == 1


@pytest.mark.usefixtures("prepared")
def test_a_key_that_is_taken_costs_no_connection(opened: Opened, pair: Pair, work: Work) -> None:
    run_sql(pair, f"INSERT INTO {TABLE} (id, unit) VALUES ('task-1', 'another')")

    async def main() -> None:
        async with opened(min_size=1, max_size=1, bg_receipts_table=TABLE) as pool:
            pid = await pool.fetchval("SELECT pg_backend_pid()")
            assert await bg.run(pool, work, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
            assert await pool.fetchval("SELECT pg_backend_pid()") == pid

    asyncio.run(main())
    assert work.calls == 0
