"""An operator's hold and release, on real servers: the callers that wait or continue, and their connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.events import Order, Ordered
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.monitor.probe import now
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import Caller, wait_until

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ON_ASYNC_POOL = ()

MakePool = Callable[..., Pool[Any]]


def give(deployment: Deployment, order: Order, for_s: float = 60.0) -> None:
    at = now()
    deployment.tell(Ordered(at, order, at.mono_ns + int(for_s * 1e9)))


def session(kit: Kit, pool: Pool[Any]) -> int:
    with pool.connection() as conn:
        return kit.session(conn)


@pytest.mark.parametrize("ends", ["by itself", "by a release"])
def test_a_hold_keeps_every_connection(ends: str, kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=2)
    conn = pool.getconn()
    kit.write(conn)
    before = pool.stats()
    give(deployment, Order.HOLD, 1.0 if ends == "by itself" else 60.0)
    wait_until(lambda: not conn.bgpool_generation.live[0])
    # The current transaction continues to its end; only the next one waits.
    kit.write(conn)
    conn.commit()
    callers = [Caller(lambda: kit.execute(conn, "SELECT 1")), Caller(lambda: session(kit, pool))]
    wait_until(lambda: pool.stats().held == 2)
    if ends == "by a release":
        give(deployment, Order.RELEASE)
    # The hold ends by itself; no process publishes its end.
    assert [list(row) for row in callers[0].wait()] == [[1]]
    assert isinstance(callers[1].wait(), int)
    conn.rollback()
    used = kit.session(conn)
    pool.putconn(conn)
    assert pool.stats().epoch == before.epoch
    assert (pool.usage().drained, pool.usage().cut) == (0, 0)
    assert used in {session(kit, pool), session(kit, pool)}


def test_a_hold_is_bounded_for_each_caller(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(bg_connect_timeout_ms=100)
    conn = pool.getconn()
    give(deployment, Order.HOLD)
    wait_until(lambda: not conn.bgpool_generation.live[0])
    for attempt in (pool.getconn, lambda: kit.read(conn)):
        with pytest.raises(bgpool.SwitchoverHoldTimeout, match=r"held for 0\.\d s by an operator's order") as caught:
            attempt()
        assert isinstance(caught.value, kit.error)
    give(deployment, Order.RELEASE)
    kit.read(conn)
    conn.rollback()
    pool.putconn(conn)


def test_a_hold_works_without_a_deployment(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    first = session(kit, pool)
    deployment.phase(Phase.NOT_CREATED)
    give(deployment, Order.HOLD)
    caller = Caller(lambda: session(kit, pool))
    wait_until(lambda: pool.stats().held == 1)
    give(deployment, Order.RELEASE)
    assert caller.wait() == first


def test_the_pools_own_statements_are_not_held(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    """A held reset would block the pool's threads, and end with the connection closed."""
    done: list[str] = []

    def look(what: str) -> Callable[[Any], None]:
        def call(conn: Any) -> None:
            kit.execute(conn, "SELECT 1")
            conn.rollback()
            done.append(what)

        return call

    pool = make_pool(max_size=1, reset=look("reset"))
    conn = pool.getconn()
    used = kit.session(conn)
    give(deployment, Order.HOLD)
    wait_until(lambda: not conn.bgpool_generation.live[0])
    pool.putconn(conn)
    wait_until(lambda: done == ["reset"])
    wait_until(lambda: pool.stats().idle == 1)
    give(deployment, Order.RELEASE)
    assert session(kit, pool) == used


def test_a_switchover_that_begins_in_a_hold_replaces_it(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool()
    conn = pool.getconn()
    give(deployment, Order.HOLD)
    wait_until(lambda: not conn.bgpool_generation.live[0])
    caller, checkout = Caller(lambda: kit.read(conn)), Caller(pool.getconn)
    wait_until(lambda: pool.stats().held == 2)
    deployment.phase(Phase.IN_PROGRESS)
    assert deployment.snapshot.hold_until_ns == 0
    deployment.release()
    assert isinstance(caller.wait(), bgpool.SwitchoverInterrupted), "the statement was never sent"
    assert kit.where(checkout.wait()) == pair.green.address
    pool.putconn(conn)
    pool.putconn(checkout.wait())


def test_a_release_in_a_switchover_leads_to_blue_by_name(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool(bg_drop_blue_connections=False)
    old = pool.getconn()
    kit.write(old)
    deployment.phase(Phase.IN_PROGRESS)
    old.rollback()
    wait_until(lambda: not old.bgpool_generation.live[0])
    caller, before = Caller(pool.getconn), Caller(lambda: kit.read(old))
    wait_until(lambda: pool.stats().held == 2)
    give(deployment, Order.RELEASE)
    # The name still resolves to blue, because DNS has not moved.
    conn = caller.wait()
    assert kit.where(conn) == pair.blue.address
    assert isinstance(before.wait(), bgpool.SwitchoverInterrupted)
    pool.putconn(old)
    assert old.closed
    pool.putconn(conn)
    # When green turns out to be promoted, all callers connect to green.
    deployment.release()
    wait_until(lambda: pool.stats().epoch is None)
    with pool.connection() as conn:
        assert kit.where(conn) == pair.green.address


def test_a_release_admits_no_caller_to_green(pair: Pair, deployment: Deployment, make_pool: MakePool) -> None:
    green = make_pool(
        pair.dsn.replace(pair.names.blue.primary, pair.names.green.primary), bg_connect_timeout_ms=100, min_size=0
    )
    deployment.phase(Phase.IN_PROGRESS)
    give(deployment, Order.RELEASE)
    assert deployment.snapshot.release_until_ns
    with pytest.raises(bgpool.SwitchoverHoldTimeout, match="the switchover has not passed"):
        green.getconn()
    deployment._publish(replace(deployment.snapshot, phase=Phase.POST))
    with pytest.raises(bgpool.GreenHostRejected):
        green.getconn()


def test_close_during_a_hold_works_as_usual(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, close_returns=True)
    conn = pool.getconn()
    used = kit.session(conn)
    give(deployment, Order.HOLD)
    wait_until(lambda: not conn.bgpool_generation.live[0])
    conn.close()
    give(deployment, Order.RELEASE)
    assert session(kit, pool) == used
