"""psycopg_pool's own ways to return a connection: close() with close_returns, and its putconn."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import bgpool
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from tests.engines import Kit

pytestmark = pytest.mark.lab

ON_ASYNC_POOL = ()

MakePool = Callable[..., Pool[Any]]


def test_a_usable_connection_is_returned(kit: Kit, returning: Pool[Any]) -> None:
    first = returning.getconn()
    session = kit.session(first)
    first.execute("CREATE TEMPORARY TABLE mine (n int)")
    first.close()
    second = returning.getconn()
    assert kit.session(second) == session
    # The connection is returned as by putconn: rolled back.
    with pytest.raises(psycopg.errors.UndefinedTable):
        second.execute("TABLE mine")
    returning.putconn(second)
    assert returning.usage().in_use == 0


def test_a_returned_connection_stays_closed_for_its_last_user(kit: Kit, returning: Pool[Any]) -> None:
    first = returning.getconn()
    cursor = first.execute("SELECT 1")
    first.close()
    second = returning.getconn()
    assert first.closed
    assert not second.closed
    # A second close does not return the next user's connection.
    first.close()
    returning.putconn(first)
    with pytest.raises(bgpool.PoolTimeout):
        returning.getconn(timeout=0.05)
    for late in (lambda: first.execute("SELECT 1"), lambda: cursor.execute("SELECT 1"), first.commit, first.cursor):
        with pytest.raises(psycopg.OperationalError, match="closed"):
            late()
    assert cursor.fetchall() == [(1,)]
    with second.transaction():
        assert kit.execute(second, "SELECT 1") == [(1,)]
    returning.putconn(second)


@pytest.mark.threads
def test_of_two_concurrent_closes_the_second_has_no_effect(
    returning: Pool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = returning.getconn()
    passing_on = type(conn).bgpool_pass_on

    def meanwhile(self: Any) -> Any:
        conn.close()  # by another thread at the same moment
        return passing_on(self)

    monkeypatch.setattr(type(conn), "bgpool_pass_on", meanwhile)
    conn.close()
    with returning.connection(timeout=30) as after:
        assert after.execute("SELECT 1").fetchall() == [(1,)]
        assert returning.stats().size == 1


def test_notices_and_prepared_statements_still_work(returning: Pool[Any]) -> None:
    first = returning.getconn()
    for _ in range(8):
        first.execute("SELECT %s::int", (1,))
    first.commit()
    first.close()
    second = returning.getconn()
    notices: list[str | None] = []
    second.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary))
    second.execute("DO $$ BEGIN RAISE NOTICE 'heard'; END $$")
    assert notices == ["heard"]
    assert second.execute("SELECT %s::int", (1,)).fetchall() == [(1,)]
    assert second.execute("SELECT count(*) FROM pg_prepared_statements").fetchall() == [(1,)]
    returning.putconn(second)


@pytest.mark.parametrize("what", ["cut", "a transaction's block", "a pipeline"])
def test_an_unusable_connection_is_closed(kit: Kit, pair: Pair, returning: Pool[Any], what: str) -> None:
    conn = returning.getconn()
    session = kit.session(conn)
    with contextlib.ExitStack() as stack:
        if what == "cut":
            kit.kill(pair, session)
            with pytest.raises(kit.error):
                conn.execute("SELECT 1")
        elif what == "a pipeline":
            stack.enter_context(contextlib.suppress(psycopg.OperationalError))
            stack.enter_context(conn.pipeline())
        else:
            stack.enter_context(conn.transaction())
        conn.close()
        assert conn.closed
    with returning.connection() as after:
        assert kit.session(after) != session
        assert kit.execute(after, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("way", ["pool.putconn", "close", "the driver's putconn"])
@pytest.mark.parametrize("close_returns", [False, True])
def test_a_connection_that_was_refused_as_read_only_is_not_used_again(
    kit: Kit, pair: Pair, make_pool: MakePool, way: str, close_returns: bool
) -> None:
    pool = make_pool(max_size=1, close_returns=close_returns)
    conn = pool.getconn()
    session = kit.session(conn)
    pair.blue.set_read_only(True)
    try:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            kit.write(conn)
    finally:
        pair.blue.set_read_only(False)
    {"pool.putconn": pool.putconn, "close": lambda c: c.close(), "the driver's putconn": conn._pool.putconn}[way](conn)
    with pool.connection() as after:
        assert kit.session(after) != session


def test_the_drivers_own_putconn_returns(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    for _ in range(2):
        conn = pool.getconn()
        inner = conn._pool
        inner.putconn(conn)
        with pytest.raises(ValueError, match="not checked out"):
            inner.putconn(object())
        with pytest.raises(ValueError, match="returned before"):
            pool.putconn(conn)


def test_an_unfinished_generator_blocks_no_close(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, close_returns=True, kwargs={"autocommit": True})
    conn = pool.getconn()
    conn.execute("LISTEN mine")
    conn.execute("NOTIFY mine")
    notifications = conn.notifies()
    assert next(notifications).channel == "mine"
    # The generator holds the connection's lock.
    conn.close()
    answers: list[Any] = []

    def use() -> None:
        with pool.connection() as after:
            answers.extend(after.execute("SELECT 1").fetchall())

    caller = threading.Thread(target=use, daemon=True)
    caller.start()
    caller.join(30)
    assert answers == [(1,)]
    with pytest.raises(psycopg.OperationalError):
        next(notifications)


class Own(psycopg.Connection[Any]):
    """A user's class that reads its session's pid, has a slot and a dictionary, and listens to its notices."""

    __slots__ = ("label",)
    label: str

    def __init__(self, pgconn: Any, *args: Any) -> None:
        super().__init__(pgconn, *args)
        self.session = pgconn.backend_pid
        self.heard = ""
        self.add_notice_handler(self.hear)

    def hear(self, notice: psycopg.errors.Diagnostic) -> None:
        self.heard = notice.message_primary or ""


@pytest.mark.threads
def test_a_users_connection_class_keeps_its_state(make_pool: MakePool) -> None:
    def configure(conn: Any) -> None:
        conn.label = "configured"

    pool = make_pool(max_size=1, close_returns=True, connection_class=Own, configure=configure)
    first: Any = pool.getconn()
    first.close()
    second: Any = pool.getconn()
    assert (second.session, second.label) == (first.session, "configured")
    second.execute("DO $$ BEGIN RAISE NOTICE 'to the second'; END $$")
    assert (first.heard, second.heard) == ("", "to the second")
    pool.putconn(second)
