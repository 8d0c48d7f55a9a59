"""Connections that come back in another way than by putconn: closed by their user, or collected."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.pools import generation
from bgpool.pools.pool import Pool
from tests.engines import Kit
from tests.pools.callers import wait_until

pytestmark = pytest.mark.lab

ENGINES = (Engine.POSTGRESQL, Engine.MYSQL)
ON_ASYNC_POOL = ()

MakePool = Callable[..., Pool[Any]]


# -- close() closes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [False, True])
def test_a_closed_connection_frees_its_slot(kit: Kit, pair: Pair, make_pool: MakePool, cut: bool) -> None:
    pool = make_pool(max_size=1)
    sessions = set()
    for _ in range(3):
        conn = pool.getconn()
        sessions.add(kit.session(conn))
        if cut:
            kit.kill(pair, kit.session(conn))
            with pytest.raises(kit.error):
                kit.execute(conn, "SELECT 1")
        conn.close()
        assert conn.closed
        conn.close()
        pool.putconn(conn)
    assert len(sessions) == 3


def test_a_connection_closed_in_a_block_frees_its_slot(kit: Kit, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    for _ in range(2):
        with pool.connection() as conn:
            conn.close()
    with pool.connection() as conn:
        assert kit.execute(conn, "SELECT 1") == [(1,)]


def test_returning_a_connection_twice_is_refused(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    conn = pool.getconn()
    pool.putconn(conn)
    with pytest.raises(ValueError, match="returned before"):
        pool.putconn(conn)


# -- forgotten connections ---------------------------------------------------------------------------------------


def forget(held: list[Any]) -> None:
    """Drop all references, including those of errors."""
    held.clear()
    gc.collect()


@pytest.mark.parametrize("cut", [False, True])
def test_a_forgotten_connection_frees_its_slot_and_warns(kit: Kit, pair: Pair, make_pool: MakePool, cut: bool) -> None:
    pool = make_pool(max_size=1)
    for _ in range(2):
        held = [pool.getconn()]
        session = kit.session(held[0])
        if cut:
            kit.kill(pair, session)
            with contextlib.suppress(kit.error):
                kit.execute(held[0], "SELECT 1")
        with pytest.warns(ResourceWarning, match="without being returned"):
            forget(held)
        with pool.connection() as after:
            assert kit.session(after) != session
        del after
    wait_until(lambda: pool.stats().size == 1)


@pytest.mark.threads
def test_the_collector_may_run_at_any_moment(kit: Kit, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    conn: Any = pool.getconn()
    inner: Any = conn.bgpool_generation.inner
    lock = inner._tasks.mutex if kit.engine is Engine.POSTGRESQL else inner._lock
    with lock, pytest.warns(ResourceWarning):
        del conn
    with pool.connection() as after:
        assert kit.execute(after, "SELECT 1") == [(1,)]


@pytest.mark.threads
def test_the_warning_is_safe_from_concurrent_closes(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Observed: psycopg's repr() raised in a destructor, when another thread closed the connection at that moment."""
    pool = make_pool(max_size=1)
    held: list[Any] = [pool.getconn()]
    told: list[str] = []

    def begin(call: Callable[[Any], None], args: tuple[Any]) -> None:
        told.append("closed")
        call(*args)

    def describe(_: object) -> str:
        told.append("described")
        return "a connection"

    monkeypatch.setattr(generation, "_thread", SimpleNamespace(start_new_thread=begin))
    monkeypatch.setattr(type(held[0]), "__repr__", describe)
    with pytest.warns(ResourceWarning, match="a connection was collected"):
        forget(held)
    assert told == ["described", "closed"]


def test_returned_and_closed_connections_cause_no_warning(
    make_pool: MakePool, recwarn: pytest.WarningsRecorder
) -> None:
    pool = make_pool(max_size=1)
    conn: Any = pool.getconn()
    pool.putconn(conn)
    conn = pool.getconn()
    conn.close()
    del conn
    pool.close()
    gc.collect()
    assert list(recwarn) == []


@pytest.mark.threads
def test_an_interrupt_between_the_drivers_pool_and_the_caller_loses_no_slot(
    kit: Kit, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    pool = make_pool(max_size=1)
    with pool.connection() as conn:
        inner: Any = conn.bgpool_generation.inner
    del conn
    taking = type(inner).getconn
    interrupts = iter([KeyboardInterrupt])

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        connection = taking(self, timeout)
        for interrupt in interrupts:
            raise interrupt
        return connection

    pool.drain()  # otherwise the quick way bypasses the patched function
    monkeypatch.setattr(type(inner), "getconn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.getconn()
    gc.collect()
    with pool.connection(timeout=30) as after:
        assert kit.execute(after, "SELECT 1") == [(1,)]
    assert list(recwarn) == []
