"""The effect of reset="session" on the state that psycopg keeps on its own side of a connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from bgpool.pools.pool import Pool
from tests.pools.callers import wait_until

pytestmark = pytest.mark.lab

ON_ASYNC_POOL = ()

MakePool = Callable[..., Pool[Any]]


@pytest.fixture
def pool(make_pool: MakePool) -> Pool[Any]:
    return make_pool(max_size=1, reset="session", close_returns=True)


def test_prepared_statements_are_prepared_again(pool: Pool[Any]) -> None:
    # Nothing is prepared at the first reset; psycopg does not notice a later reset by itself.
    for executions, prepared in ((1, 0), (8, 1), (1, 0)):
        conn = pool.getconn()
        for number in range(executions):
            assert conn.execute("SELECT %s::int", (number,)).fetchall() == [(number,)]
        assert conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchall() == [(prepared,)]
        conn.commit()
        conn.close()


def test_a_prepared_statement_may_refer_to_another_table(pool: Pool[Any]) -> None:
    for kind, value in (("int", 1), ("text", "one")):
        with pool.connection() as conn:
            conn.execute(f"CREATE TEMPORARY TABLE mine AS SELECT '{value}'::{kind} AS it")
            for _ in range(8):
                assert conn.execute("SELECT it FROM mine").fetchall() == [(value,)]


def test_modes_are_restored(pool: Pool[Any]) -> None:
    with pool.connection() as conn:
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.read_only = True
        conn.row_factory = dict_row
        conn.prepare_threshold = None
    conn = pool.getconn()
    conn.autocommit = True
    pool.putconn(conn)
    with pool.connection() as conn:
        assert not conn.autocommit
        assert (conn.isolation_level, conn.read_only, conn.prepare_threshold) == (None, None, 5)
        assert conn.execute("SHOW transaction_read_only").fetchall() == [("off",)]


def test_a_pool_in_autocommit_stays_in_it(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, reset="session", kwargs={"autocommit": True})
    for _ in range(2):
        with pool.connection() as conn:
            assert conn.autocommit


@pytest.mark.threads
def test_the_reset_runs_in_a_thread_of_the_pool(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(max_size=1, reset="session")
    conn = pool.getconn()
    monkeypatch.setattr(conn, "execute", lambda *_args, **_kwargs: executed.append(threading.current_thread()))
    executed: list[threading.Thread] = []
    pool.putconn(conn)
    wait_until(lambda: bool(executed))
    assert executed != [threading.current_thread()]


def test_notifications_that_were_not_read_are_gone(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, reset="session", kwargs={"autocommit": True})
    with pool.connection() as conn:
        conn.execute("LISTEN mine")
        conn.execute("NOTIFY mine, 'to me alone'")
    with pool.connection() as conn:
        assert list(conn.notifies(timeout=0.1)) == []
