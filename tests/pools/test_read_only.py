"""Writes refused as read-only: by the server, whose older connections are replaced, or by the caller's settings."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pymysql
import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.events import Answered, ProbeFailed
from bgpool.core.limits import GREEN_WAIT_S
from bgpool.core.phase import Phase, Role
from bgpool.lab import Pair
from bgpool.monitor.probe import now
from bgpool.pools import gate
from bgpool.pools import generations as generations_module
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import Caller, wait_until

ENGINES = tuple(Engine)
ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., Pool[Any]]

#: The statements that make a session's transactions read-only.
SESSION = {
    Engine.POSTGRESQL: "SET default_transaction_read_only = on",
    Engine.MYSQL: "SET SESSION TRANSACTION READ ONLY",
}


@contextlib.contextmanager
def read_only(pair: Pair) -> Iterator[None]:
    """Make blue refuse writes within the block."""
    pair.blue.set_read_only(True)
    try:
        yield
    finally:
        pair.blue.set_read_only(False)


def refused(kit: Kit, pool: Pool[Any]) -> int:
    """Return the session on which a write was refused, with the driver's own error."""
    with pytest.raises((psycopg.Error, pymysql.err.MySQLError)) as caught, pool.connection() as conn:
        session = kit.session(conn)
        kit.write(conn)
    assert kit.refused_as_read_only(caught.value)
    return session


def session_of(kit: Kit, pool: Pool[Any]) -> int:
    with pool.connection() as conn:
        return kit.session(conn)


# -- by the caller's settings --------------------------------------------------------------------------------------


def assert_own(kit: Kit, pool: Pool[Any], nudged: list[int], prepare: Callable[[Any], object]) -> None:
    """Check that a unit with refused writes is called once, gets the driver's error, and costs no connection."""
    sessions: list[int] = []

    def write(conn: Any) -> None:
        sessions.append(kit.session(conn))
        prepare(conn)
        kit.write(conn)

    with pytest.raises((psycopg.Error, pymysql.err.MySQLError)) as caught:
        pool.run(write, timeout=10)
    assert kit.refused_as_read_only(caught.value)
    assert not isinstance(caught.value, bgpool.Error)
    assert [session_of(kit, pool)] == sessions
    assert nudged == []


PHASES = pytest.mark.parametrize("phase", [Phase.CREATED, Phase.PREPARATION])


@pytest.mark.lab
@PHASES
def test_a_read_only_session_of_the_caller_costs_no_connection(
    kit: Kit, deployment: Deployment, make_pool: MakePool, nudges: Any, phase: Phase
) -> None:
    def configure(conn: Any) -> None:
        kit.execute(conn, SESSION[kit.engine])
        conn.commit()

    deployment.phase(phase)
    pool = make_pool(max_size=1, configure=configure)
    assert_own(kit, pool, nudges(pool), lambda _conn: None)


# -- by the server -------------------------------------------------------------------------------------------------


@pytest.mark.lab
@PHASES
def test_a_refusal_of_the_servers_is_noticed_and_all_connections_are_replaced(
    kit: Kit, deployment: Deployment, make_pool: MakePool, pair: Pair, nudges: Any, phase: Phase
) -> None:
    deployment.phase(phase)
    pool = make_pool(max_size=3)
    nudged = nudges(pool)
    with pool.connection() as one, pool.connection() as two, pool.connection() as three:
        old = {kit.session(conn) for conn in (one, two, three)}
    driver_errors = (psycopg.Error, pymysql.err.MySQLError)
    with read_only(pair), pytest.raises(driver_errors) as caught, pool.connection() as conn:
        kit.write(conn)
    assert kit.refused_as_read_only(caught.value)
    assert isinstance(caught.value, bgpool.SwitchoverInterrupted) is (phase is Phase.PREPARATION)
    assert len(nudged) == 1
    with pool.connection() as one, pool.connection() as two, pool.connection() as three:
        assert not old & {kit.session(conn) for conn in (one, two, three)}


@pytest.mark.lab
def test_many_concurrent_refusals_cause_one_replacement(
    kit: Kit, make_pool: MakePool, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no deployment, and so no monitor: an ordinary failover."""
    # Longer than the test takes on a loaded machine.
    monkeypatch.setattr(generations_module, "DISTRUST_INTERVAL_S", 30.0)
    pool = make_pool(max_size=4)
    generations = set()

    def write() -> None:
        with contextlib.suppress(psycopg.Error, pymysql.err.MySQLError), pool.connection() as conn:
            barrier.wait()
            generations.add(id(conn.bgpool_generation))
            kit.write(conn)

    barrier = threading.Barrier(4, timeout=30)
    with read_only(pair):
        for _ in range(2):
            for caller in [Caller(write) for _ in range(4)]:
                caller.wait()
        with pool.connection() as conn:
            generations.add(id(conn.bgpool_generation))
            assert conn.bgpool_generation is pool._generations.current
    assert len(generations) == 2


def plain_blocks(kit: Kit, pool: Pool[Any], over: threading.Event) -> list[str]:
    """Write one row after the other in blocks until *over*; return their outcomes."""
    came_to: list[str] = []
    while not over.is_set():
        try:
            with pool.connection() as conn:
                kit.write(conn)
            came_to.append("written")
        except (psycopg.Error, pymysql.err.MySQLError) as error:
            came_to.append(type(error).__mro__[1].__name__ if isinstance(error, bgpool.Error) else "refused")
    return came_to


@pytest.mark.lab
@pytest.mark.parametrize("known", [True, None], ids=["green is read-only", "green does not answer"])
def test_blocks_refused_by_green_wait_for_it(
    kit: Kit, deployment: Deployment, make_pool: MakePool, known: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, the release came too early: the metadata preceded green's promotion by more than the limit."""
    # Longer than the test takes on a loaded machine.
    monkeypatch.setattr(gate, "GREEN_WAIT_S", 60.0)
    deployment.phase(Phase.IN_PROGRESS)
    deployment.release()
    silent = ProbeFailed(now(), Role.TARGET, "silent")
    deployment.tell(Answered(now(), Role.TARGET, read_only=True) if known else silent)
    pool, over = make_pool(max_size=4, timeout=60.0), threading.Event()
    began = time.monotonic()
    callers = [Caller(lambda: plain_blocks(kit, pool, over)) for _ in range(4)]
    # If green is not observed, there may be moments between two waits without a held caller.
    wait_until(lambda: pool.stats().held >= (4 if known else 1))
    time.sleep(0.5)
    over.set()
    deployment.tell(Answered(now(), Role.TARGET, read_only=False))
    errors = [len(caller.wait()) for caller in callers]
    # One error each before and after the wait; if green is not observed, also after 0.1 s, 0.2 s, 0.4 s and so on.
    waits = math.log2((time.monotonic() - began) / 0.1 + 1)
    assert max(errors) <= (2 if known else 3 + waits), errors
    assert pool.stats().held == 0


@pytest.mark.lab
def test_the_wait_for_a_green_that_refuses_ends(
    kit: Kit, deployment: Deployment, make_pool: MakePool, pair: Pair
) -> None:
    deployment.phase(Phase.IN_PROGRESS)
    deployment.release()
    deployment.tell(Answered(now(), Role.TARGET, read_only=True))
    pool = make_pool(max_size=1, timeout=60.0)
    began = time.monotonic()
    refused(kit, pool)
    with pytest.raises(bgpool.SwitchoverHoldTimeout, match="takes no writes yet"), pool.connection(timeout=0.2):
        pass
    with pool.connection() as conn:
        assert kit.where(conn) == pair.green.address, "reads are possible there"
    assert GREEN_WAIT_S <= time.monotonic() - began < GREEN_WAIT_S + 20


@pytest.mark.lab
def test_a_server_that_stays_read_only_costs_few_connections(
    kit: Kit, make_pool: MakePool, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations_module, "DISTRUST_INTERVAL_S", 0.2)
    pool = make_pool(max_size=1)
    with read_only(pair):
        sessions: list[int] = []
        began, lasted_s = time.monotonic(), 0.0
        while lasted_s < 1.0 or (len(sessions) <= 2 * len(set(sessions)) and lasted_s < 30.0):
            sessions.append(refused(kit, pool))
            lasted_s = time.monotonic() - began
        # Connections are replaced at once, after 0.2 s, after 0.4 s more, and so on.
        assert len(sessions) > 2 * len(set(sessions))
        assert 3 <= len(set(sessions)) <= 2 + math.log2(lasted_s / 0.2 + 1)
        kept = sessions[-1]
    assert session_of(kit, pool) == kept
    with pool.connection() as conn:
        kit.write(conn)
