"""What psycopg_pool would do alone: repeat itself in the log, and end a thread with a hook of the user's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

import bgpool
from bgpool.lab import Pair
from bgpool.pools.postgres.pool import PostgresPool

pytestmark = pytest.mark.lab

MakePool = Callable[..., PostgresPool]


def test_the_log_names_the_dsn_and_repeats_nothing(
    make_pool: MakePool, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = pair.direct_dsn(pair.blue).replace(f":{pair.port}", ":1")
    with caplog.at_level(logging.WARNING, logger="psycopg.pool"):
        with pytest.raises(bgpool.PoolTimeout):
            make_pool(nowhere, min_size=4, max_size=4).getconn(0.8)
        with pytest.raises(bgpool.PoolTimeout):
            make_pool(nowhere, name="mine").getconn(0.1)
    lines = [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"]
    assert [line.partition(": connection failed")[0] for line in lines] == [
        f"error connecting in '{pair.blue.address}:1/app'",
        "error connecting in 'mine'",
    ]
    assert pair.app_password not in caplog.text


def test_a_hook_that_ends_its_thread_ends_not_the_pool(make_pool: MakePool) -> None:
    exits = threading.Semaphore(5)

    def leave(_connection: object) -> None:
        if exits.acquire(blocking=False):
            raise SystemExit

    pool = make_pool(min_size=1, max_size=1, num_workers=1, configure=leave, reset=leave)
    for _ in range(4):
        with pool.connection() as conn:
            conn.execute("SELECT 1")
    assert not exits.acquire(blocking=False)


def test_a_callback_that_ends_its_thread_ends_it_not(make_pool: MakePool, pair: Pair) -> None:
    called = threading.Event()

    def leave(_pool: object) -> None:
        called.set()
        raise SystemExit

    nowhere = pair.direct_dsn(pair.blue).replace(f":{pair.port}", ":1")
    options = {"reconnect_timeout": 0.01, "num_workers": 1, "name": "given-up"}
    with make_pool(nowhere, reconnect_failed=leave, **options) as pool:
        with pytest.raises(bgpool.PoolTimeout):
            pool.getconn(0.6)
        assert called.is_set()
        assert any(thread.name == "given-up-worker-0" for thread in threading.enumerate())
