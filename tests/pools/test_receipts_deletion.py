"""Old receipts are deleted by units of work: a part at a time, by one unit, and without delaying other units."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bgpool.core.engine import Engine
from bgpool.core.limits import RECEIPTS_BACKLOG_EVERY, RECEIPTS_DELETED_AT_ONCE
from bgpool.lab import Pair
from bgpool.pools.mysql import receipts as mysql
from bgpool.pools.pool import Pool
from tests.engines import Kit
from tests.pools.callers import wait_until
from tests.pools.test_receipts import TABLE, create, run_sql

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ON_ASYNC_POOL = [pytest.mark.lab]

MakePool = Callable[..., Pool[Any]]

RETENTION_S = 600


@pytest.fixture
def table(pair: Pair) -> Iterator[str]:
    """The table, empty; removed after the test."""
    create(pair)
    yield TABLE
    run_sql(pair, f"DROP TABLE IF EXISTS {TABLE}")


@pytest.fixture
def pool(make_pool: MakePool, table: str) -> Pool[Any]:
    """A pool of one connection that deletes receipts after ten minutes."""
    return make_pool(max_size=1, bg_receipts_table=table, bg_receipts_retention_s=RETENTION_S)


def fill(pair: Pair, rows: int, age_s: int) -> None:
    """Insert the given number of *rows* of that age."""
    if pair.engine is Engine.MYSQL:
        digits = " UNION ALL ".join(f"SELECT {n} AS n" for n in range(10))
        numbers = "a.n * 1000 + b.n * 100 + c.n * 10 + d.n"
        run_sql(
            pair,
            f"INSERT INTO {TABLE} SELECT CONCAT('{age_s}-', {numbers}), 'u', NOW() - INTERVAL {age_s} SECOND FROM "
            f"{', '.join(f'({digits}) AS {name}' for name in 'abcd')} WHERE {numbers} < {rows}",
        )
    else:
        run_sql(
            pair,
            f"INSERT INTO {TABLE} SELECT '{age_s}-' || n, 'u', now() - interval '{age_s} s' "
            f"FROM generate_series(1, {rows}) AS n",
        )


def rows(pair: Pair) -> int:
    """Return the number of rows."""
    return int(run_sql(pair, f"SELECT count(*) FROM {TABLE}")[0][0])


def test_rows_beyond_the_retention_are_deleted_part_by_part(kit: Kit, pool: Pool[Any], pair: Pair) -> None:
    fill(pair, 3, RETENTION_S - 100)
    fill(pair, 2 * RECEIPTS_DELETED_AT_ONCE + 7, RETENTION_S + 100)
    left = []
    for _ in range(4):
        pool.run(kit.read)
        left.append(rows(pair) - 3)
        # As if that number of units had left a receipt.
        for _ in range(RECEIPTS_BACKLOG_EVERY):
            pool._receipts.note_left()  # type: ignore[union-attr]  # there is a table
    assert left == [RECEIPTS_DELETED_AT_ONCE + 7, 7, 0, 0]


def test_without_an_index_nothing_is_deleted_and_this_is_logged_once(
    kit: Kit, make_pool: MakePool, pair: Pair, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    on = f"created_at ON {table}" if kit.engine is Engine.MYSQL else f"{table}_created_at_idx"
    run_sql(pair, f"DROP INDEX {on}")
    fill(pair, 5, 2 * RETENTION_S)
    with caplog.at_level(logging.WARNING, logger="bgpool"):
        pool = make_pool(max_size=1, bg_receipts_table=table, bg_receipts_retention_s=RETENTION_S)
        for _ in range(2):
            pool.run(kit.read)
            pool._receipts._due_at = 0.0  # type: ignore[union-attr]  # a minute later
    assert rows(pair) == 5
    lines = [record.getMessage() for record in caplog.records if "receipts" in record.getMessage()]
    assert len(lines) == 1, lines
    assert "has no index on created_at" in lines[0]


def test_a_missing_table_is_logged_before_it_is_needed(
    kit: Kit, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="bgpool"):
        pool = make_pool(max_size=1, bg_receipts_table=TABLE)
        assert [pool.run(kit.read) is not None for _ in range(3)] == [True] * 3
    lines = [record.getMessage() for record in caplog.records if "receipts" in record.getMessage()]
    assert len(lines) == 1, lines
    assert "does not exist" in lines[0]


def test_the_lock_of_mysql_needs_no_function_that_mysql_9_6_removed() -> None:
    assert not re.search(r"\b(MD5|SHA1?)\(", mysql.lock_of("app.receipts") + mysql.lock_of("receipts"))


#: Reasons to skip a deletion: another process deletes at the moment, or the table is being changed.
BUSY = {
    Engine.POSTGRESQL: {
        "another": f"SELECT pg_advisory_lock({0x62677263}, '{TABLE}'::regclass::oid::int4)",
        "a change": f"BEGIN; LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE",
    },
    Engine.MYSQL: {
        "another": mysql.LOCK.format(lock=mysql.lock_of(TABLE)),
        "a change": f"LOCK TABLES {TABLE} WRITE",
    },
}


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("by", ["another", "a change"])
def test_a_unit_that_would_have_to_wait_deletes_nothing(kit: Kit, pool: Pool[Any], pair: Pair, by: str) -> None:
    fill(pair, 5, 2 * RETENTION_S)
    other = kit.connect(pair)
    for statement in BUSY[kit.engine][by].split("; "):
        kit.execute(other, statement)
    session = pool.run(kit.session)
    began = time.monotonic()
    pool._receipts._due_at = 0.0  # type: ignore[union-attr]  # a minute later
    assert pool.run(kit.session) == session
    assert time.monotonic() - began < 20
    other.close()
    assert rows(pair) == 5
    pool._receipts._due_at = 0.0  # type: ignore[union-attr]  # a minute later
    if kit.engine is Engine.MYSQL:
        waits = "SELECT @@SESSION.lock_wait_timeout > 1 AND @@SESSION.innodb_lock_wait_timeout > 1"
        assert pool.run(kit.execute, waits) == [(1,)]
    else:
        assert pool.run(kit.execute, "SHOW lock_timeout") == [("0",)]

    def deleted() -> bool:
        pool._receipts._due_at = 0.0  # type: ignore[union-attr]  # a minute later
        pool.run(kit.read)
        return rows(pair) == 0

    # The server may need a moment to notice that the other session has ended.
    wait_until(deleted)


@pytest.mark.usefixtures("prepared")
def test_none_are_deleted_in_a_switchover(kit: Kit, pool: Pool[Any], pair: Pair) -> None:
    fill(pair, 5, 2 * RETENTION_S)
    pool.run(kit.read)
    assert rows(pair) == 5


def test_a_read_only_session_deletes_nothing_and_is_kept(kit: Kit, pool: Pool[Any], pair: Pair) -> None:
    """Like on a reader: a refused DELETE would make the pool replace all of its connections."""
    if kit.engine is Engine.POSTGRESQL:
        run_sql(pair, "ALTER ROLE app SET default_transaction_read_only = on")
    else:
        pair.blue.execute("SET GLOBAL read_only = 1")
    try:
        fill(pair, 5, 2 * RETENTION_S)
        session = pool.run(kit.session)
        pool._receipts._due_at = 0.0  # type: ignore[union-attr]  # a minute later
        assert pool.run(kit.session) == session
        assert rows(pair) == 5
    finally:
        if kit.engine is Engine.POSTGRESQL:
            run_sql(pair, "ALTER ROLE app RESET default_transaction_read_only")
        else:
            pair.blue.execute("SET GLOBAL read_only = 0")
