"""What each phase does to a pool, on a real server: held, routed, drained, cut, refused, and plain again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import bgpool
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.postgres.pool import PostgresPool
from tests.pools.conftest import Hand

pytestmark = pytest.mark.lab

MakePool = Callable[..., PostgresPool]


def where(conn: psycopg.Connection[Any]) -> str:
    return str(conn.info.hostaddr)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


class Caller(threading.Thread):
    """Runs a function in a thread and keeps what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._function()
        except Exception as error:
            self.result = error

    def wait(self) -> Any:
        self.join(15.0)
        assert not self.is_alive(), "the caller never came back"
        return self.result


@pytest.mark.usefixtures("hand")
def test_passes_by_name_while_created(pair: Pair, make_pool: MakePool) -> None:
    pool = make_pool()
    with pool.connection() as conn:
        assert where(conn) == pair.blue.address
        assert conn.info.host == pair.names.blue.primary


def test_held_in_progress_and_released_to_green(pair: Pair, hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool()
    with pool.connection():
        pass
    hand.publish(Phase.IN_PROGRESS)

    def checkout() -> str:
        with pool.connection() as conn:
            return where(conn)

    callers = [Caller(checkout) for _ in range(2)]
    wait_until(lambda: pool.stats().held == 2)
    hand.publish(Phase.POST, pinned=True)
    # Green is a standby that takes reads: enough to see where the connection went.
    assert [caller.wait() for caller in callers] == [pair.green.address] * 2
    assert pool.stats().held == 0


def test_a_process_that_starts_in_progress_is_held_too(pair: Pair, hand: Hand, make_pool: MakePool) -> None:
    hand.publish(Phase.IN_PROGRESS)
    pool = make_pool()
    caller = Caller(lambda: pool.getconn())
    wait_until(lambda: pool.stats().held == 1)
    hand.publish(Phase.POST, pinned=True)
    conn = caller.wait()
    assert where(conn) == pair.green.address
    pool.putconn(conn)


def test_rollback_lets_blue_go_on(pair: Pair, hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool()
    with pool.connection():
        pass
    hand.publish(Phase.IN_PROGRESS)
    caller = Caller(lambda: pool.getconn())
    wait_until(lambda: pool.stats().held == 1)
    hand.publish(Phase.CREATED, rolled_back=True)
    conn = caller.wait()
    assert where(conn) == pair.blue.address
    pool.putconn(conn)


def test_hold_ends_with_bg_connect_timeout(hand: Hand, make_pool: MakePool) -> None:
    hand.publish(Phase.IN_PROGRESS)
    pool = make_pool(bg_connect_timeout_ms=100)
    with pytest.raises(bgpool.SwitchoverHoldTimeout, match=r"bg_id: '1'.*held for 0\.[1-9].*IN_PROGRESS") as caught:
        pool.getconn()
    assert isinstance(caught.value, psycopg.OperationalError)


def test_hold_ends_with_the_callers_own_timeout(hand: Hand, make_pool: MakePool) -> None:
    hand.publish(Phase.IN_PROGRESS)
    pool = make_pool()
    with pytest.raises(bgpool.SwitchoverHoldTimeout):
        pool.getconn(timeout=0.05)


def test_hold_ends_with_the_switchover_timer_though_no_monitor_lives(
    pair: Pair, hand: Hand, make_pool: MakePool
) -> None:
    hand.publish(Phase.IN_PROGRESS, deadline_ns=time.monotonic_ns() + 200_000_000)
    pool = make_pool()
    conn = pool.getconn()
    assert where(conn) == pair.blue.address
    pool.putconn(conn)


def test_green_is_rejected_after_the_switchover(pair: Pair, hand: Hand, make_pool: MakePool) -> None:
    green = pair.dsn.replace(pair.names.blue.primary, pair.names.green.primary)
    pool = make_pool(green)
    with pool.connection() as conn:
        assert where(conn) == pair.green.address
    hand.publish(Phase.POST, pinned=True)
    with pytest.raises(bgpool.GreenHostRejected, match="green host"):
        pool.getconn()
    hand.publish(Phase.COMPLETED)
    with pytest.raises(bgpool.GreenHostRejected):
        pool.getconn()


def test_a_host_that_takes_no_part_passes_in_every_phase(pair: Pair, hand: Hand, make_pool: MakePool) -> None:
    pair.hosts.set("elsewhere.example.com", pair.blue.address)
    pool = make_pool(pair.dsn.replace(pair.names.blue.primary, "elsewhere.example.com"), max_size=1)
    with pool.connection() as conn:
        first = conn.info.backend_pid
    for phase in (Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST, Phase.COMPLETED):
        hand.publish(phase)
        time.sleep(0.05)
        with pool.connection() as conn:
            assert conn.info.backend_pid == first


def test_idle_connections_are_closed_at_in_progress(pair: Pair, hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(min_size=2, kwargs={"application_name": "drain-me"})
    with pool.connection():
        pass
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'drain-me'"
    wait_until(lambda: pair.blue.execute(count)[0][0] == 2)
    hand.publish(Phase.IN_PROGRESS)
    wait_until(lambda: pair.blue.execute(count)[0][0] == 0)


def test_a_transaction_in_use_may_end_within_the_grace(hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(bg_drain_timeout_ms=5000)
    with pool.connection() as conn:
        conn.execute("SELECT 1")
        hand.publish(Phase.IN_PROGRESS)
        time.sleep(0.3)
        assert conn.execute("SELECT 2").fetchone() == (2,)


def test_a_connection_in_use_is_cut_after_the_grace(hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(bg_drain_timeout_ms=100)
    with pytest.raises(bgpool.SwitchoverInterrupted, match="did not commit"), pool.connection() as conn:
        conn.execute("SELECT 1")
        hand.publish(Phase.IN_PROGRESS)
        conn.execute("SELECT pg_sleep(10)")


def test_a_cut_is_noticed_at_commit_and_said_to_be_unknown(hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(bg_drain_timeout_ms=0)
    with pytest.raises(bgpool.CommitOutcomeUnknown, match="COMMIT"), pool.connection() as conn:
        conn.execute("SELECT 1")
        hand.publish(Phase.IN_PROGRESS)
        wait_until(lambda: pool.stats().size == 0)
        time.sleep(0.6)


def test_autocommit_is_unknown_too(hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(bg_drain_timeout_ms=100, kwargs={"autocommit": True})
    conn = pool.getconn()
    sleeper = Caller(lambda: conn.execute("SELECT pg_sleep(10)"))
    time.sleep(0.2)
    hand.publish(Phase.IN_PROGRESS)
    assert isinstance(sleeper.wait(), bgpool.CommitOutcomeUnknown)
    pool.putconn(conn)


def test_in_use_is_never_cut_where_the_user_says_so(hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(bg_drain_timeout_ms=0, bg_drop_blue_connections=False)
    with pool.connection() as conn:
        conn.execute("SELECT 1")
        hand.publish(Phase.IN_PROGRESS)
        time.sleep(0.8)
        assert conn.execute("SELECT 2").fetchone() == (2,)


def test_a_new_transaction_on_a_drained_connection_is_held(hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(bg_drop_blue_connections=False)
    conn = pool.getconn()
    conn.execute("SELECT 1")
    hand.publish(Phase.IN_PROGRESS)
    wait_until(lambda: pool.stats().size == 0)
    conn.commit()
    caller = Caller(lambda: conn.execute("SELECT 2"))
    wait_until(lambda: pool.stats().held == 1)
    hand.publish(Phase.POST, pinned=True)
    error = caller.wait()
    assert isinstance(error, bgpool.SwitchoverInterrupted)
    assert "nothing was sent" in str(error)
    pool.putconn(conn)


def test_a_held_transaction_goes_on_after_a_rollback(hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(bg_drop_blue_connections=False)
    with pool.connection() as conn:
        hand.publish(Phase.IN_PROGRESS)
        wait_until(lambda: pool.stats().size == 0)
        caller = Caller(lambda: conn.execute("SELECT 2").fetchone())
        wait_until(lambda: pool.stats().held == 1)
        hand.publish(Phase.CREATED, rolled_back=True)
        assert caller.wait() == (2,)


def test_a_write_refused_as_read_only_is_interrupted_and_the_connection_not_used_again(
    hand: Hand, make_pool: MakePool
) -> None:
    pool = make_pool(max_size=1)
    hand.publish(Phase.PREPARATION)
    with pytest.raises(bgpool.SwitchoverInterrupted) as caught, pool.connection() as conn:
        conn.execute("SET TRANSACTION READ ONLY")
        conn.execute("CREATE TABLE refused (n int)")
    assert caught.value.sqlstate == "25006"
    assert conn.closed


def test_finished_autocommit_work_is_not_held_at_the_end_of_its_block(hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(kwargs={"autocommit": True}, bg_drop_blue_connections=False)
    with pool.connection() as conn:
        conn.execute("SELECT 1")
        hand.publish(Phase.IN_PROGRESS)
        wait_until(lambda: pool.stats().size == 0)


def test_old_connections_are_never_handed_out_after_the_release(pair: Pair, hand: Hand, make_pool: MakePool) -> None:
    pool = make_pool(bg_drop_blue_connections=False)
    old = pool.getconn()
    hand.publish(Phase.IN_PROGRESS)
    hand.publish(Phase.POST, pinned=True)
    pool.putconn(old)
    wait_until(lambda: old.closed)
    with pool.connection() as conn:
        assert where(conn) == pair.green.address


@pytest.mark.usefixtures("hand")
def test_a_broken_connection_outside_of_a_switchover_is_the_drivers_affair(pair: Pair, make_pool: MakePool) -> None:
    pool = make_pool()
    with pytest.raises(psycopg.errors.AdminShutdown), pool.connection() as conn:
        pair.blue.execute(f"SELECT pg_terminate_backend({conn.info.backend_pid})")
        conn.execute("SELECT 1")


@pytest.mark.usefixtures("hand")
def test_drain_replaces_connections_and_disturbs_nobody(make_pool: MakePool) -> None:
    pool = make_pool()
    conn = pool.getconn()
    before = conn.info.backend_pid
    pool.drain()
    assert conn.execute("SELECT 1").fetchone() == (1,)
    pool.putconn(conn)
    with pool.connection() as conn:
        assert conn.info.backend_pid != before


def test_putconn_of_a_stranger_is_refused(pair: Pair, make_pool: MakePool) -> None:
    pool = make_pool()
    with psycopg.connect(pair.direct_dsn(pair.blue)) as stranger, pytest.raises(ValueError, match="not checked out"):
        pool.putconn(stranger)


def test_closed_pool_refuses(make_pool: MakePool) -> None:
    pool = make_pool()
    with pool.connection():
        pass
    pool.close()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        pool.getconn()
