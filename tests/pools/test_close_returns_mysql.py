"""close() of a MySQL connection with close_returns."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pymysql
import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import wait_until

pytestmark = pytest.mark.lab

ENGINES = (Engine.MYSQL,)

MakePool = Callable[..., Pool[Any]]


def test_a_usable_connection_is_returned_rolled_back(kit: Kit, returning: Pool[Any]) -> None:
    first = returning.getconn()
    session = kit.session(first)
    kit.execute(first, "INSERT INTO ledger (worker, thread, n) VALUES (78, 1, 1)")
    first.close()
    with returning.connection() as second:
        second.autocommit(True)
    with returning.connection() as second:
        assert kit.session(second) == session
        assert not second.get_autocommit()
        assert kit.execute(second, "SELECT count(*) FROM ledger WHERE worker = 78") == [(0,)]
        assert returning.stats().size == 1


def test_a_returned_connection_stays_closed_for_its_last_user(kit: Kit, returning: Pool[Any]) -> None:
    first = returning.getconn()
    cursor = first.cursor()
    cursor.execute("SELECT 1")
    first.close()
    assert cursor.fetchall() == ((1,),)
    second = returning.getconn()
    assert (first.closed, second.closed) == (True, False)
    # A second close does not return the next user's connection.
    first.close()
    returning.putconn(first)
    with pytest.raises(bgpool.PoolTimeout):
        returning.getconn(timeout=0.05)
    for late in (lambda: cursor.execute("SELECT 1"), first.commit, first.ping, first.begin):
        with pytest.raises(pymysql.err.Error):
            late()
    assert kit.execute(second, "SELECT 2") == [(2,)]
    del first
    gc.collect()
    assert kit.execute(second, "SELECT 3") == [(3,)]
    returning.putconn(second)
    assert returning.usage().in_use == 0


def test_a_connection_closed_in_its_block_is_returned(kit: Kit, returning: Pool[Any]) -> None:
    for _ in range(2):
        with returning.connection() as conn:
            session = kit.session(conn)
            conn.close()
    with returning.connection() as conn:
        assert kit.session(conn) == session


@pytest.mark.parametrize("what", ["cut", "a result left unread", "a unit of work", "drained"])
def test_an_unusable_connection_is_closed(
    kit: Kit, pair: Pair, deployment: Deployment, returning: Pool[Any], what: str
) -> None:
    conn = returning.getconn()
    session = kit.session(conn)
    if what == "cut":
        kit.kill(pair, session)
        with pytest.raises(kit.error):
            kit.execute(conn, "SELECT 1")
    elif what == "a result left unread":
        unread = conn.cursor(pymysql.cursors.SSCursor)
        unread.execute("SELECT 1 UNION SELECT 2")
    elif what == "a unit of work":
        returning.putconn(conn)
        with pytest.raises(pymysql.err.ProgrammingError, match="closed"):
            returning.run(lambda conn: conn.close())
    else:
        deployment.phase(Phase.PREPARATION)
        deployment.phase(Phase.IN_PROGRESS)
        wait_until(lambda: conn.bgpool_generation.drained)
    conn.close()
    assert conn.closed
    if what == "drained":
        deployment.release()
    with returning.connection() as after:
        assert (kit.session(after), kit.where(after)) != (session, pair.blue.address)
        assert kit.execute(after, "SELECT 1") == [(1,)]
        assert returning.stats().size == 1


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
        after.ping()
        assert returning.stats().size == 1


@pytest.mark.parametrize("close_returns", [False, True])
def test_an_interrupt_in_close_costs_no_slot(kit: Kit, make_pool: MakePool, close_returns: bool) -> None:
    """The interrupt comes when the connection is closed, or has a new object, and the store is not yet notified."""
    pool = make_pool(max_size=1, close_returns=close_returns)
    conn = pool.getconn()
    store = conn.bgpool_generation.inner
    lock, store._lock = store._lock, _Interrupting()
    with pytest.raises(KeyboardInterrupt):
        conn.close()
    store._lock = lock
    del conn
    gc.collect()
    for _ in range(2):
        with pool.connection(timeout=30) as after:
            assert kit.execute(after, "SELECT 1") == [(1,)]
    assert pool.stats().size == 1


class _Interrupting:
    """A lock that raises an interrupt instead of being acquired."""

    def __enter__(self) -> None:
        raise KeyboardInterrupt

    def __exit__(self, *exc_info: object) -> None:
        """Never called."""
