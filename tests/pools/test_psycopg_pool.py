"""Behavior of psycopg_pool that bgpool avoids: repeated log lines, and threads that end by an error of a hook."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row
from psycopg_pool import PoolClosed

import bgpool
from bgpool.lab import Pair
from bgpool.pools.postgres import inner
from bgpool.pools.postgres.async_inner import AsyncInnerPool
from bgpool.pools.postgres.inner import InnerPool
from bgpool.pools.postgres.pool import PostgresPool
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.lab

ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., PostgresPool]


def test_the_log_names_the_dsn_and_repeats_nothing(
    make_pool: MakePool, pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pool of the other kind has just logged the same lines.
    monkeypatch.setattr(inner, "_said", {})
    nowhere = pair.direct_dsn(pair.blue).replace(f":{pair.port}", ":1")

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"]

    with caplog.at_level(logging.WARNING, logger="psycopg.pool"):
        with pytest.raises(bgpool.PoolTimeout):
            make_pool(nowhere, min_size=4, max_size=4).getconn(0.8)
        wait_until(lambda: len(said()) == 1)
        with pytest.raises(bgpool.PoolTimeout):
            make_pool(nowhere, name="mine").getconn(0.5)
        wait_until(lambda: len(said()) == 2)
    lines = said()
    assert [line.partition(": connection failed")[0] for line in lines] == [
        f"error connecting in '{pair.blue.address}:1/app'",
        "error connecting in 'mine'",
    ]
    assert pair.app_password not in caplog.text


def test_closing_an_async_pool_logs_no_failure_to_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BGPOOL_DISABLE", "1")

    async def begin_and_end(dsn: str) -> None:
        async with bgpool.get_async_pool(dsn, bg_id="ends", bg_run_dir=str(tmp_path), min_size=1):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)

    with caplog.at_level(logging.WARNING, logger="psycopg.pool"), socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(begin_and_end(f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app"))
    assert [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"] == []


def test_a_hook_that_ends_its_thread_does_not_end_the_pool(make_pool: MakePool) -> None:
    exits = threading.Semaphore(5)

    def leave(_connection: object) -> None:
        if exits.acquire(blocking=False):
            raise SystemExit

    pool = make_pool(min_size=1, max_size=1, num_workers=1, configure=leave, reset=leave)
    for _ in range(4):
        with pool.connection() as conn:
            conn.execute("SELECT 1")
    assert not exits.acquire(blocking=False)


@pytest.mark.threads
def test_a_callback_that_ends_its_thread_does_not_end_the_pool(make_pool: MakePool, pair: Pair) -> None:
    called = threading.Event()

    def leave(_pool: object) -> None:
        called.set()
        raise SystemExit

    nowhere = pair.direct_dsn(pair.blue).replace(f":{pair.port}", ":1")
    options = {"reconnect_timeout": 0.01, "num_workers": 1, "name": "given-up"}
    with make_pool(nowhere, reconnect_failed=leave, **options) as pool:
        with pytest.raises(bgpool.PoolTimeout):
            pool.getconn(0.6)
        assert called.wait(PATIENCE_S)
        assert any(thread.name == "given-up-worker-0" for thread in threading.enumerate())


@pytest.mark.threads
def test_a_caller_does_not_join_the_queue_of_a_closed_pool(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(min_size=1, max_size=1, timeout=30.0)
    with pool.connection() as conn:
        session = conn.info.backend_pid
    entering = InnerPool._getconn_unchecked

    def meanwhile(self: InnerPool, timeout: float) -> Any:
        # Simulate another thread that drains the pool between psycopg_pool's check and its lock.
        monkeypatch.setattr(InnerPool, "_getconn_unchecked", entering)
        pool.drain()
        return entering(self, timeout)

    monkeypatch.setattr(InnerPool, "_getconn_unchecked", meanwhile)
    with pool.connection(timeout=PATIENCE_S) as conn:
        assert conn.info.backend_pid != session


def test_a_caller_does_not_join_the_queue_of_an_async_pool_being_closed() -> None:
    class Silent:
        retired = False

        async def aconnect(self, _conninfo: str = "", **_: Any) -> Any:
            await asyncio.sleep(60)

    async def end() -> list[Any]:
        inner = AsyncInnerPool(Silent(), {"min_size": 1, "max_size": 1, "timeout": 30.0, "name": "closed"})
        inner.open()
        waiting = [asyncio.ensure_future(inner.getconn()) for _ in range(3)]
        await asyncio.sleep(0.01)
        lock = inner._pool._lock
        await lock.acquire()
        waiting.append(asyncio.ensure_future(inner.getconn()))
        await asyncio.sleep(0.01)
        lock.release()
        inner.close()
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENCE_S)

    assert [type(each) for each in asyncio.run(end())] == [PoolClosed] * 4


@pytest.mark.threads
def test_an_interrupt_while_a_connection_is_returned_loses_no_slot(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(min_size=1, max_size=1)
    conn = pool.getconn()
    conn.execute("SELECT 1")

    def interrupted(_connection: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "rollback", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.putconn(conn)
    # The connection is in no pool any longer: once it is collected, another one replaces it.
    del conn
    gc.collect()
    with pool.connection(timeout=PATIENCE_S) as conn:
        assert conn.execute("SELECT 1").fetchall() == [(1,)]


@pytest.mark.threads
def test_close_of_a_users_class_is_called(make_pool: MakePool) -> None:
    class Own(psycopg.Connection[Any]):
        closed_by = 0

        def close(self) -> None:
            Own.closed_by += 1
            super().close()
            raise RuntimeError("it fails, too")

    pool = make_pool(min_size=1, max_size=1, connection_class=Own)
    for count in (1, 2):
        conn = pool.getconn()
        with pytest.raises(RuntimeError):
            conn.close()
        assert conn.closed
        assert Own.closed_by == count


@pytest.mark.threads
def test_the_row_factory_of_the_class_is_used(make_pool: MakePool) -> None:
    pool = make_pool(
        min_size=1, max_size=1, connection_class=psycopg.Connection[DictRow], kwargs={"row_factory": dict_row}
    )
    with pool.connection() as conn:
        assert conn.execute("SELECT 1 AS one").fetchall() == [{"one": 1}]


@pytest.mark.threads
def test_a_pool_that_is_replaced_waits_for_none_of_its_threads(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread may be connecting to a host that is gone, which must not delay callers at a release or the watcher."""
    inside, go = threading.Event(), threading.Event()

    def configure(_: object) -> None:
        inside.set()
        go.wait(20)

    caplog.set_level(logging.WARNING, "psycopg.pool")
    pool = make_pool(configure=configure)
    pool.open()
    try:
        assert inside.wait(20)
        pool.drain()
        # psycopg_pool logs this for each thread that did not end in time.
        assert "couldn't stop thread" not in caplog.text
    finally:
        go.set()
