"""psycopg's view of a unit of work: the function runs in a transaction block, as in one of psycopg's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.transaction import OutOfOrderTransactionNesting

import bgpool
from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from tests.pools.conftest import Work

pytestmark = [pytest.mark.lab, pytest.mark.threads]

ENGINES = (Engine.POSTGRESQL,)

MakePool = Callable[..., Pool[Any]]


def set_autocommit(conn: psycopg.Connection[Any]) -> None:
    conn.autocommit = True


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("options", [{}, {"configure": set_autocommit}], ids=["", "autocommit"])
def test_a_block_of_the_function_is_always_a_savepoint(
    make_pool: MakePool, pair: Pair, work: Work, options: dict[str, Any]
) -> None:
    def insert(conn: psycopg.Connection[Any]) -> str:
        with contextlib.suppress(ZeroDivisionError), conn.transaction() as inner:
            assert inner.savepoint_name
            raise ZeroDivisionError
        with conn.transaction():
            result = work(conn)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert work.rows(pair) == 0
        return result

    pool = make_pool(max_size=1, **options)
    assert pool.run(insert) == "call 1"
    assert work.rows(pair) == 1
    assert pool.run(lambda conn: conn.autocommit) is bool(options)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("options", [{}, {"configure": set_autocommit}], ids=["", "autocommit"])
def test_an_error_rolls_back_in_autocommit_as_well(
    make_pool: MakePool, pair: Pair, work: Work, options: dict[str, Any]
) -> None:
    def rolled_back(_conn: object) -> None:
        raise psycopg.Rollback

    work.meanwhile, pool = rolled_back, make_pool(max_size=1, **options)
    with pytest.raises(psycopg.Rollback):
        pool.run(work)
    assert (work.calls, work.rows(pair)) == (1, 0)
    work.meanwhile = lambda _conn: None
    assert pool.run(work) == "call 2"
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("prepared")
def test_psycopg_refuses_the_same_in_a_unit_as_in_a_block(make_pool: MakePool, pair: Pair, work: Work) -> None:
    pool = make_pool(max_size=1)
    for wrong in (lambda conn: conn.commit(), lambda conn: conn.rollback(), set_autocommit):
        work.meanwhile = wrong
        with pytest.raises(psycopg.ProgrammingError):
            pool.run(work)
        with pytest.raises(psycopg.ProgrammingError):
            # As the first statement.
            pool.run(wrong)
    assert work.rows(pair) == 0


@pytest.mark.usefixtures("prepared")
def test_a_block_that_the_function_has_left_open_is_an_error_and_nothing_is_committed(
    make_pool: MakePool, pair: Pair, work: Work
) -> None:
    with contextlib.ExitStack() as kept, contextlib.suppress(psycopg.Error):
        work.meanwhile = lambda conn: kept.enter_context(conn.transaction())
        with pytest.raises(OutOfOrderTransactionNesting):
            make_pool(max_size=1).run(work)
    assert (work.calls, work.rows(pair)) == (1, 0)


def test_async_units_behave_the_same(postgres_pair: Pair, tmp_path: Path) -> None:
    async def nested(conn: psycopg.AsyncConnection[Any]) -> bool:
        async with conn.transaction() as inner:
            return bool(inner.savepoint_name)

    async def rolled_back(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("SELECT 1")
        raise psycopg.Rollback

    async def commits(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.commit()

    async def use() -> None:
        dsn = postgres_pair.direct_dsn(postgres_pair.blue)
        async with bgpool.get_async_pool(dsn, bg_run_dir=tmp_path, min_size=1, max_size=1) as pool:
            assert await pool.run(nested)
            with pytest.raises(psycopg.Rollback):
                await pool.run(rolled_back)
            with pytest.raises(psycopg.ProgrammingError):
                await pool.run(commits)
            assert await pool.run(nested)

    asyncio.run(use())
