"""bgpool.testing: what a phase that a test sets does to a pool is what it does in production."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

import bgpool
import bgpool.testing
from bgpool.core.events import Instant, ProbeFailed
from bgpool.core.phase import Role
from bgpool.lab import Pair
from bgpool.monitor.election import claim
from bgpool.segment.paths import RunFiles
from bgpool.testing import Deployment

GetPool = Callable[..., bgpool.Pool[Any]]

PHASES = list(bgpool.Phase)
#: Without a listener. A test that uses it never connects.
NOWHERE = "postgresql://app@127.0.0.1:9/app"


def run(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """*function* in a thread, and what will come of it."""
    came: list[Any] = []

    def call() -> None:
        try:
            came.append(function())
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread, came


def what_came(caller: tuple[threading.Thread, list[Any]]) -> Any:
    thread, came = caller
    thread.join(30.0)
    assert not thread.is_alive(), "the caller never came back"
    return came[0]


def where(pool: bgpool.Pool[Any]) -> str:
    with pool.connection() as conn:
        return str(conn.info.hostaddr)


# -- without servers ---------------------------------------------------------------------------------------------


def test_a_hold_needs_no_server(tmp_path: Path) -> None:
    with bgpool.testing.deployment(tmp_path) as deployment:
        pool = bgpool.get_pool(NOWHERE, bg_run_dir=deployment.run_dir, bg_connect_timeout_ms=100)
        deployment.phase(bgpool.Phase.IN_PROGRESS)
        with pytest.raises(bgpool.SwitchoverHoldTimeout, match="IN_PROGRESS"):
            pool.getconn()
    assert pool.closed


def test_without_a_directory_one_in_memory_is_made_and_removed() -> None:
    with bgpool.testing.deployment(bg_id=" Ledger ") as deployment:
        run_dir = deployment.run_dir
        assert deployment.bg_id == "ledger"
        assert run_dir.stat().st_mode & 0o777 == 0o700
        assert bgpool.get_pool(NOWHERE, bg_id="ledger", bg_run_dir=run_dir).stats().phase is bgpool.Phase.CREATED
        # A pool that was not used yet is no worker.
        assert [reason[:10] for reason in bgpool.status("ledger", run_dir).missing] == ["no worker:"]
    assert not run_dir.exists()


def test_it_is_the_monitor_as_long_as_it_lasts(tmp_path: Path) -> None:
    files = RunFiles.of(tmp_path, "1")
    with bgpool.testing.deployment(tmp_path):
        assert claim(files) is None
        with pytest.raises(bgpool.Error, match="a monitor"), bgpool.testing.deployment(tmp_path):
            pass
    assert not files.segment.exists()
    with bgpool.testing.deployment(tmp_path) as deployment:
        assert deployment.snapshot.ready


@pytest.mark.slow
def test_no_pool_starts_a_monitor(tmp_path: Path) -> None:
    with bgpool.testing.deployment(tmp_path) as deployment:
        pool = bgpool.get_pool(NOWHERE, bg_run_dir=deployment.run_dir, timeout=0.1)
        deployment.phase(bgpool.Phase.IN_PROGRESS)
        with pytest.raises(bgpool.SwitchoverHoldTimeout):
            pool.getconn()
        time.sleep(2.0)
        # A monitor's first act is its log.
        assert not RunFiles.of(tmp_path, "1").log.exists()
        assert pool.stats().phase is bgpool.Phase.IN_PROGRESS


def test_a_caller_still_held_at_the_end_gets_an_error(tmp_path: Path) -> None:
    with bgpool.testing.deployment(tmp_path) as deployment:
        pool = bgpool.get_pool(NOWHERE, bg_run_dir=deployment.run_dir)
        deployment.phase(bgpool.Phase.IN_PROGRESS)
        caller = run(pool.getconn)
        deployment.wait_held()
    assert isinstance(what_came(caller), bgpool.PoolClosed)


def test_a_coroutine_still_held_at_the_end_gets_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with bgpool.testing.deployment(tmp_path) as deployment:
            pool = bgpool.get_async_pool(NOWHERE, bg_run_dir=deployment.run_dir)
            threads = bgpool.get_pool(NOWHERE, bg_run_dir=deployment.run_dir)
            deployment.phase(bgpool.Phase.IN_PROGRESS)
            caller = run(threads.getconn)
            tasks = [asyncio.create_task(pool.getconn()) for _ in range(2)]
            await deployment.await_held(3)
        assert all(
            isinstance(error, bgpool.PoolClosed) for error in await asyncio.gather(*tasks, return_exceptions=True)
        )
        assert isinstance(what_came(caller), bgpool.PoolClosed)
        # Nor does anything of the pool's own run on.
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_loop_goes_on_while_a_coroutine_waits_for_callers(tmp_path: Path) -> None:
    async def main() -> None:
        async with bgpool.testing.deployment(tmp_path) as deployment:
            with pytest.raises(TimeoutError, match=r"0 callers were held after 0\.05 s, not 2"):
                await deployment.await_held(2, timeout_s=0.05)
            waiting = asyncio.create_task(deployment.await_held(2, timeout_s=60.0))
            for _ in range(20):
                await asyncio.sleep(0.005)
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(main())


def test_waiting_for_callers_who_do_not_come_ends(tmp_path: Path) -> None:
    with (
        bgpool.testing.deployment(tmp_path) as deployment,
        pytest.raises(TimeoutError, match=r"0 callers were held after 0\.05 s, not 2"),
    ):
        deployment.wait_held(2, timeout_s=0.05)


#: From each phase, those that a switchover may go to; the table of production decides.
WAYS = {
    "NOT_CREATED": "CREATED PREPARATION IN_PROGRESS POST COMPLETED",
    "CREATED": "NOT_CREATED PREPARATION IN_PROGRESS POST COMPLETED",
    "PREPARATION": "CREATED IN_PROGRESS POST COMPLETED",
    "IN_PROGRESS": "CREATED POST COMPLETED",
    "POST": "COMPLETED",
    "COMPLETED": "NOT_CREATED CREATED PREPARATION",
}


@pytest.mark.parametrize("to", PHASES, ids=lambda phase: phase.name)
@pytest.mark.parametrize("begin", PHASES, ids=lambda phase: phase.name)
def test_only_what_a_switchover_does_can_be_set(begin: bgpool.Phase, to: bgpool.Phase, tmp_path: Path) -> None:
    with bgpool.testing.deployment(tmp_path) as deployment:
        deployment.phase(begin)
        sequence = deployment.snapshot
        if to is begin or to.name in WAYS[begin.name].split():
            deployment.phase(to)
            assert deployment.snapshot.phase is to
        else:
            with pytest.raises(ValueError, match=f"in {begin.name} does not go to {to.name}"):
                deployment.phase(to)
            assert deployment.snapshot is sequence


def test_one_deployment_after_the_other(tmp_path: Path) -> None:
    with bgpool.testing.deployment(tmp_path) as deployment:
        for _ in range(2):
            for phase in PHASES[1:]:
                deployment.phase(phase)
            assert [entry.event for entry in deployment.snapshot.timeline][-3:] == [
                "Blue DNS updated",
                "Green DNS removed",
                "COMPLETED",
            ]
            deployment.phase(bgpool.Phase.CREATED)
            assert deployment.snapshot.ready


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with bgpool.testing.deployment(tmp_path) as deployment:
        with pytest.raises(ValueError, match="nothing is rolled back from CREATED"):
            deployment.roll_back()
        with pytest.raises(ValueError, match="no timer runs in CREATED"):
            deployment.expire_timer()


def test_names_need_addresses(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 blue.test\n")
    with (
        pytest.raises(bgpool.ConfigurationError, match=r"green\.test=not found"),
        bgpool.testing.deployment(tmp_path / "run", blue="blue.test", green="green.test", bg_resolver=f"hosts:{hosts}"),
    ):
        pass
    with pytest.raises(bgpool.ConfigurationError, match="two hosts"), bgpool.testing.deployment(green="127.0.0.1"):
        pass


def test_any_other_event_can_be_applied(tmp_path: Path) -> None:
    with bgpool.testing.deployment(tmp_path) as deployment:
        deployment.tell(ProbeFailed(Instant(1, 1), Role.TARGET, "gone"))
        assert "green does not answer" in deployment.snapshot.notices[-1].text


# -- with servers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture
def deployment(pair: Pair, tmp_path: Path) -> Iterator[Deployment]:
    blue, green = pair.names.blue.primary, pair.names.green.primary
    with bgpool.testing.deployment(tmp_path, blue=blue, green=green, bg_resolver=pair.resolver) as deployment:
        yield deployment


@pytest.fixture
def get_pool(deployment: Deployment, pair: Pair) -> GetPool:
    return partial(bgpool.get_pool, bg_run_dir=deployment.run_dir, bg_resolver=pair.resolver, min_size=1, timeout=20.0)


@pytest.mark.lab
def test_held_and_released(
    deployment: Deployment, pair: Pair, get_pool: GetPool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = get_pool(pair.dsn)
    assert where(pool) == pair.blue.address
    deployment.phase(bgpool.Phase.IN_PROGRESS)
    callers = [run(partial(where, pool)) for _ in range(2)]
    deployment.wait_held(2)
    deployment.release()
    assert [what_came(caller) for caller in callers] == [pair.green.address] * 2
    with caplog.at_level(logging.INFO, logger="bgpool.switchover"):
        deployment.phase(bgpool.Phase.COMPLETED)
        deadline = time.monotonic() + 30.0
        while "IN_PROGRESS" not in caplog.text:
            assert time.monotonic() < deadline, "the summary was not logged"
            time.sleep(0.01)
    # By name again. The names of this pair have not moved.
    pool.drain()
    assert where(pool) == pair.blue.address


@pytest.mark.lab
def test_coroutines_are_held_and_released(pair: Pair, tmp_path: Path) -> None:
    async def where(conn: psycopg.AsyncConnection[Any]) -> str:
        return str(conn.info.hostaddr)

    async def main() -> None:
        blue, green = pair.names.blue.primary, pair.names.green.primary
        async with bgpool.testing.deployment(tmp_path, blue=blue, green=green, bg_resolver=pair.resolver) as deployment:
            pool = bgpool.get_async_pool(pair.dsn, bg_run_dir=tmp_path, bg_resolver=pair.resolver, min_size=1)
            assert await pool.run(where) == pair.blue.address
            deployment.phase(bgpool.Phase.IN_PROGRESS)
            callers = [asyncio.create_task(pool.run(where)) for _ in range(20)]
            await deployment.await_held(20)
            deployment.release()
            assert await asyncio.gather(*callers) == [pair.green.address] * 20
        assert pool.closed
        # What is cancelled takes some turns.
        for _ in range(10):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.lab
def test_rolled_back(deployment: Deployment, pair: Pair, get_pool: GetPool) -> None:
    pool = get_pool(pair.dsn)
    deployment.phase(bgpool.Phase.PREPARATION)
    deployment.phase(bgpool.Phase.IN_PROGRESS)
    caller = run(partial(where, pool))
    deployment.wait_held()
    deployment.roll_back()
    assert what_came(caller) == pair.blue.address


@pytest.mark.lab
def test_cut_in_a_transaction(deployment: Deployment, pair: Pair, get_pool: GetPool) -> None:
    pool = get_pool(pair.dsn, bg_drain_timeout_ms=0)
    with pytest.raises(psycopg.OperationalError) as caught, pool.connection() as conn:
        conn.execute("SELECT 1")
        deployment.phase(bgpool.Phase.IN_PROGRESS)
        conn.execute("SELECT pg_sleep(60)")
    assert isinstance(caught.value, bgpool.SwitchoverInterrupted)


@pytest.mark.lab
def test_green_is_rejected(deployment: Deployment, pair: Pair, get_pool: GetPool) -> None:
    pool = get_pool(pair.dsn_of(pair.names.green.primary))
    assert where(pool) == pair.green.address
    deployment.release()
    with pytest.raises(bgpool.GreenHostRejected):
        pool.getconn()


@pytest.mark.lab
def test_the_timer_ends_a_hold(deployment: Deployment, pair: Pair, get_pool: GetPool) -> None:
    pool = get_pool(pair.dsn)
    deployment.phase(bgpool.Phase.IN_PROGRESS)
    caller = run(partial(where, pool))
    deployment.wait_held()
    deployment.expire_timer()
    assert deployment.snapshot.phase is bgpool.Phase.COMPLETED
    # Nothing has shown that green took over: by name, wherever that leads.
    assert what_came(caller) == pair.blue.address
