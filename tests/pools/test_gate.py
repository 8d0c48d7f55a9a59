"""The effects of each phase on a pool, on a real server: held, routed, drained, cut, refused, and plain again."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import Kit, sleepers
from tests.pools.callers import Caller, wait_until
from tests.waiting import PATIENCE_S, quickest

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)

MakePool = Callable[..., Pool[Any]]


@pytest.mark.usefixtures("deployment")
def test_passes_by_name_while_created(kit: Kit, pair: Pair, make_pool: MakePool) -> None:
    pool = make_pool()
    with pool.connection() as conn:
        assert kit.where(conn) == pair.blue.address


def test_held_in_progress_and_released_to_green(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool()
    with pool.connection():
        pass
    deployment.phase(Phase.IN_PROGRESS)

    def checkout() -> str:
        with pool.connection() as conn:
            return kit.where(conn)

    callers = [Caller(checkout) for _ in range(2)]
    wait_until(lambda: pool.stats().held == 2)
    deployment.release()
    # Green is a standby that accepts reads: enough to see which server the connection uses.
    assert [caller.wait() for caller in callers] == [pair.green.address] * 2
    assert pool.stats().held == 0


def test_a_process_that_starts_in_progress_is_held_too(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    deployment.phase(Phase.IN_PROGRESS)
    pool = make_pool()
    caller = Caller(lambda: pool.getconn())
    wait_until(lambda: pool.stats().held == 1)
    deployment.release()
    conn = caller.wait()
    assert kit.where(conn) == pair.green.address
    pool.putconn(conn)


def test_a_pool_behind_a_proxy_connects_by_name_in_every_phase(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    deployment.phase(Phase.PREPARATION)
    # The pool connects to the pair's port, which looks like a proxy if the deployment's hosts have another port.
    hosts = tuple(replace(host, port=pair.port + 1) for host in deployment.snapshot.hosts)
    deployment._publish(replace(deployment.snapshot, hosts=hosts))
    pool = make_pool()
    conn = pool.getconn()
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST, Phase.COMPLETED):
        deployment.phase(phase)
        with pool.connection(0.5) as other:
            assert kit.where(other) == pair.blue.address
        wait_until(lambda: pool.usage().behind_proxy == 1)
        assert (pool.usage().taking_part, pool.usage().outside) == (0, 0)
    kit.read(conn)
    pool.putconn(conn)
    assert pool.usage().cut == 0


def test_after_a_rollback_blue_is_used_again(kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool()
    with pool.connection():
        pass
    deployment.phase(Phase.IN_PROGRESS)
    caller = Caller(lambda: pool.getconn())
    wait_until(lambda: pool.stats().held == 1)
    deployment.roll_back()
    conn = caller.wait()
    assert kit.where(conn) == pair.blue.address
    pool.putconn(conn)


def test_hold_ends_with_bg_connect_timeout(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    deployment.phase(Phase.IN_PROGRESS)
    pool = make_pool(bg_connect_timeout_ms=100)
    with pytest.raises(bgpool.SwitchoverHoldTimeout, match=r"bg_id: '1'.*held for \d+\.\d.*IN_PROGRESS") as caught:
        pool.getconn()
    assert isinstance(caught.value, kit.error)


def test_hold_ends_with_the_callers_own_timeout(deployment: Deployment, make_pool: MakePool) -> None:
    deployment.phase(Phase.IN_PROGRESS)
    pool = make_pool()
    with pytest.raises(bgpool.SwitchoverHoldTimeout):
        pool.getconn(timeout=0.05)


@pytest.mark.parametrize("timer_ms", [200])
def test_hold_ends_with_the_switchover_timer_without_a_monitor(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    deployment.phase(Phase.IN_PROGRESS)
    pool = make_pool()
    conn = pool.getconn()
    assert kit.where(conn) == pair.blue.address
    pool.putconn(conn)


def test_green_is_rejected_after_the_switchover(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    green = pair.dsn.replace(pair.names.blue.primary, pair.names.green.primary)
    pool = make_pool(green)
    with pool.connection() as conn:
        assert kit.where(conn) == pair.green.address
    deployment.release()
    with pytest.raises(bgpool.GreenHostRejected, match="green host"):
        pool.getconn()
    deployment.expire_timer()
    assert deployment.snapshot.phase is Phase.COMPLETED
    with pytest.raises(bgpool.GreenHostRejected):
        pool.getconn()


def test_a_host_that_takes_no_part_passes_in_every_phase(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    pair.hosts.set("elsewhere.example.com", pair.blue.address)
    pool = make_pool(pair.dsn.replace(pair.names.blue.primary, "elsewhere.example.com"), max_size=1)
    with pool.connection() as conn:
        first = kit.session(conn)
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST, Phase.COMPLETED):
        deployment.phase(phase)
        time.sleep(0.05)
        with pool.connection() as conn:
            assert kit.session(conn) == first


def test_idle_connections_are_closed_at_in_progress(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool(min_size=2)
    wait_until(lambda: kit.count_sessions(pair) == 0)
    with pool.connection():
        pass
    wait_until(lambda: kit.count_sessions(pair) == 2)
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: kit.count_sessions(pair) == 0)


def test_a_transaction_in_use_may_end_within_the_grace(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(bg_drain_timeout_ms=60_000)
    with pool.connection() as conn:
        kit.read(conn)
        deployment.phase(Phase.IN_PROGRESS)
        time.sleep(0.3)
        assert kit.execute(conn, "SELECT 2") == [(2,)]


def test_a_connection_in_use_is_cut_after_the_grace(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(bg_drain_timeout_ms=100)
    with pytest.raises(bgpool.SwitchoverInterrupted, match="did not commit"), pool.connection() as conn:
        kit.read(conn)
        deployment.phase(Phase.IN_PROGRESS)
        kit.sleep(conn, 60)


def test_a_cut_before_the_commit_is_sent_is_certain(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(bg_drain_timeout_ms=0)
    with pytest.raises(bgpool.SwitchoverInterrupted, match="did not commit"), pool.connection() as conn:
        kit.write(conn)
        deployment.phase(Phase.IN_PROGRESS)
        wait_until(lambda: conn.bgpool_cut)
    assert conn.closed


def test_a_cut_autocommit_statement_is_in_doubt(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool(bg_drain_timeout_ms=100, kwargs={"autocommit": True})
    conn = pool.getconn()
    # On PostgreSQL a SELECT may call a function that writes.
    slow = {
        Engine.POSTGRESQL: "SELECT pg_sleep(60)",
        Engine.MYSQL: "INSERT INTO ledger (worker, thread, n) SELECT 77, 7, sleep(60)",
    }
    session = kit.session(conn)
    sleeper = Caller(lambda: kit.execute(conn, slow[kit.engine]))
    wait_until(lambda: session in sleepers(pair))
    deployment.phase(Phase.IN_PROGRESS)
    assert isinstance(sleeper.wait(), bgpool.CommitOutcomeUnknown)
    pool.putconn(conn)


def test_connections_in_use_are_not_cut_if_the_option_is_off(
    kit: Kit, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool(bg_drain_timeout_ms=0, bg_drop_blue_connections=False)
    with pool.connection() as conn:
        kit.read(conn)
        deployment.phase(Phase.IN_PROGRESS)
        time.sleep(0.8)
        assert kit.execute(conn, "SELECT 2") == [(2,)]


def test_a_new_transaction_on_a_drained_connection_is_held(
    kit: Kit, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool(bg_drop_blue_connections=False)
    conn = pool.getconn()
    kit.read(conn)
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: pool.stats().size == 0)
    conn.commit()
    caller = Caller(lambda: kit.execute(conn, "SELECT 2"))
    wait_until(lambda: pool.stats().held == 1)
    deployment.release()
    error = caller.wait()
    assert isinstance(error, bgpool.SwitchoverInterrupted)
    assert "nothing was sent" in str(error)
    pool.putconn(conn)


def test_a_held_transaction_goes_on_after_a_rollback(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(bg_drop_blue_connections=False)
    with pool.connection() as conn:
        deployment.phase(Phase.IN_PROGRESS)
        wait_until(lambda: pool.stats().size == 0)
        caller = Caller(lambda: kit.execute(conn, "SELECT 2"))
        wait_until(lambda: pool.stats().held == 1)
        deployment.roll_back()
        assert caller.wait() == [(2,)]


def test_a_lost_segment_cuts_no_connection(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    """A new segment begins with its own epoch, and blue is unchanged."""
    pool = make_pool(max_size=1, bg_drain_timeout_ms=0)
    with pool.connection() as conn:
        kit.read(conn)
        before = kit.session(conn)
        deployment._publish(replace(deployment.snapshot, epoch=deployment.snapshot.epoch + 1000))
        wait_until(lambda: pool.stats().size == 0)
        time.sleep(0.6)
        kit.write(conn)
        conn.rollback()
        assert kit.execute(conn, "SELECT 1") == [(1,)]
    with pool.connection() as conn:
        assert kit.session(conn) != before


def test_finished_autocommit_work_is_not_held_at_the_end_of_its_block(
    kit: Kit, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool(kwargs={"autocommit": True}, bg_drop_blue_connections=False)
    with pool.connection() as conn:
        kit.read(conn)
        deployment.phase(Phase.IN_PROGRESS)
        wait_until(lambda: pool.stats().size == 0)


def test_old_connections_are_never_handed_out_after_the_release(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool(bg_drop_blue_connections=False)
    old = pool.getconn()
    deployment.phase(Phase.IN_PROGRESS)
    deployment.release()
    pool.putconn(old)
    wait_until(lambda: old.closed)
    with pool.connection() as conn:
        assert kit.where(conn) == pair.green.address


@pytest.mark.usefixtures("deployment")
def test_a_broken_connection_without_a_switchover_raises_the_drivers_error(
    kit: Kit, pair: Pair, make_pool: MakePool
) -> None:
    pool = make_pool()
    with pytest.raises(kit.error) as caught, pool.connection() as conn:
        kit.kill(pair, kit.session(conn))
        kit.read(conn)
    assert not isinstance(caught.value, bgpool.Error)


@pytest.mark.usefixtures("deployment")
def test_drain_replaces_connections_without_disturbing_callers(kit: Kit, make_pool: MakePool) -> None:
    pool = make_pool()
    conn = pool.getconn()
    before = kit.session(conn)
    pool.drain()
    assert kit.execute(conn, "SELECT 1") == [(1,)]
    pool.putconn(conn)
    with pool.connection() as conn:
        assert kit.session(conn) != before


def test_putconn_of_another_pools_connection_is_refused(kit: Kit, pair: Pair, make_pool: MakePool) -> None:
    pool = make_pool()
    with contextlib.closing(kit.connect(pair)) as stranger, pytest.raises(ValueError, match="not checked out"):
        pool.putconn(stranger)


def test_closed_pool_refuses(kit: Kit, make_pool: MakePool) -> None:
    pool = make_pool()
    with pool.connection():
        pass
    pool.close()
    with pytest.raises(kit.error, match="closed"):
        pool.getconn()


@pytest.mark.parametrize("sleeps_in", ["kernel", "polls"])
def test_closing_refuses_held_callers(
    sleeps_in: str, deployment: Deployment, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sleeps_in == "polls":
        monkeypatch.setattr("bgpool.segment.wake._FUTEX", None)
    pool = make_pool(timeout=30.0)
    deployment.phase(Phase.IN_PROGRESS)
    callers = [Caller(pool.getconn) for _ in range(2)]
    wait_until(lambda: pool.stats().held == 2)
    pool.close()
    assert pool.stats().held == 0
    for caller in callers:
        sent = caller.wait()
        assert isinstance(sent, bgpool.PoolClosed)
        assert "the pool is closed" in str(sent)


def test_closing_refuses_callers_held_before_a_transaction(
    kit: Kit, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool()
    conn = pool.getconn()
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: not conn.bgpool_generation.live[0])
    caller = Caller(lambda: kit.execute(conn, "SELECT 1"))
    wait_until(lambda: pool.stats().held == 1)
    pool.close()
    assert isinstance(caller.wait(), bgpool.PoolClosed)
    pool.putconn(conn)
    assert conn.closed


def test_a_rollback_calls_off_the_cut(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(bg_drain_timeout_ms=2000)
    with pytest.raises(bgpool.SwitchoverInterrupted), pool.connection() as conn:
        kit.write(conn)
        deployment.phase(Phase.IN_PROGRESS)
        wait_until(lambda: not conn.bgpool_generation.live[0])
        deployment.roll_back()
        time.sleep(2.3)
        kit.write(conn)
        assert pool.usage().cut == 0
        # In the next switchover it is treated like any other connection to blue.
        deployment.phase(Phase.IN_PROGRESS)
        wait_until(lambda: pool.usage().cut == 1)
        kit.write(conn)
    assert deployment.snapshot.phase is Phase.IN_PROGRESS, "the hold ended before the rollback"


@pytest.mark.parametrize("replaced_by", ["drain", "a lost segment"])
def test_connections_replaced_earlier_are_drained_too(
    replaced_by: str, kit: Kit, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool()
    conn = pool.getconn()
    kit.read(conn)
    conn.rollback()
    if replaced_by == "drain":
        pool.drain()
    else:
        deployment._publish(replace(deployment.snapshot, epoch=deployment.snapshot.epoch + 1000))
        wait_until(lambda: pool.stats().epoch is None)
    deployment.phase(Phase.IN_PROGRESS)
    wait_until(lambda: not conn.bgpool_generation.live[0])
    assert pool.usage().in_use == 1
    caller = Caller(lambda: kit.read(conn))
    wait_until(lambda: pool.stats().held == 1)
    wait_until(lambda: pool.usage().cut == 1)
    deployment.release()
    assert isinstance(caller.wait(), bgpool.SwitchoverInterrupted)
    pool.putconn(conn)
    wait_until(lambda: pool.usage().in_use == 0)


def test_a_timeout_counts_once(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, bg_drop_blue_connections=False)

    def wait_and_be_held() -> float:
        conn = pool.getconn()
        kit.read(conn)
        began = time.monotonic()
        caller = Caller(lambda: pool.getconn(timeout=2.0))
        wait_until(lambda: pool.stats().waiting == 1)
        time.sleep(1.0)
        deployment.phase(Phase.IN_PROGRESS)
        error = caller.wait()
        took_s = time.monotonic() - began
        deployment.roll_back()
        conn.rollback()
        pool.putconn(conn)
        # A busy machine may leave no time for the hold.
        return took_s if isinstance(error, bgpool.SwitchoverHoldTimeout) else math.inf

    assert quickest(wait_and_be_held, 2.8) < 2.8


def test_a_pool_that_could_not_join_joins_at_the_next_checkout(
    kit: Kit, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("bgpool-watch"):
            begin(thread)
        else:
            raise RuntimeError("can't start new thread")

    pool = make_pool(timeout=2.0)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises((RuntimeError, kit.error)):
        pool.getconn()
    monkeypatch.undo()
    with pool.connection(PATIENCE_S) as conn:
        kit.read(conn)


def test_an_interrupted_checkout_leaves_joining_to_the_next(
    kit: Kit, deployment: Deployment, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TimeIsUp(BaseException):
        """Like a server's or gevent's timeout, which may come at any moment."""

    def interrupted(*_: object) -> None:
        raise TimeIsUp

    pool = make_pool()
    for where in ("bgpool.pools.watch.Watch.begin", "bgpool.pools.alias.Endpoint.read"):
        monkeypatch.setattr(where, interrupted)
        with pytest.raises(TimeIsUp):
            pool.getconn()
        monkeypatch.undo()
    with pytest.raises(bgpool.SwitchoverInterrupted), pool.connection() as conn:
        kit.read(conn)
        deployment.phase(Phase.IN_PROGRESS)
        wait_until(lambda: pool.usage().cut == 1)
        kit.read(conn)
