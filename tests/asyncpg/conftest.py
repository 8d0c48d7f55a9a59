"""Fixtures for asyncpg pools on real servers, in the event loops that applications use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bgpool.integrations import asyncpg as bg
from bgpool.lab import Pair
from tests.engines import KITS, Kit
from tests.pools.proxy import CommitCutter
from tests.waiting import until

Opened = Callable[..., contextlib.AbstractAsyncContextManager[bg.Pool]]
Run = Callable[[Awaitable[Any]], Any]


@pytest.fixture
def kit() -> Kit:
    """Return PostgreSQL's kit."""
    return KITS[next(iter(KITS))]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Return a function that runs a coroutine to its end in a new loop, for each kind of loop."""
    if request.param == "asyncio":
        return asyncio.run  # type: ignore[return-value]  # of coroutines alone
    return pytest.importorskip("uvloop").run  # type: ignore[no-any-return]  # it has no types


@pytest.fixture
def opened(pair: Pair, tmp_path: Path) -> Opened:
    """Open a pool that follows *deployment*; check at its end that every place in it is free and no caller is held."""

    @contextlib.asynccontextmanager
    async def make(dsn: str | None = None, **options: Any) -> AsyncIterator[bg.Pool]:
        usual = {"bg_resolver": pair.resolver, "bg_run_dir": str(tmp_path / "run"), "min_size": 0, "max_size": 2}
        pool = bg.create_pool(dsn or pair.dsn, **{**usual, **options})
        await pool
        try:
            yield pool
            # Every place is free again. A task that was just released may still have to give its place back.
            await until(lambda: all(holder._in_use is None for holder in pool._holders))
            await until(lambda: pool._queue.qsize() == pool.get_max_size())
            await until(lambda: pool.connector.stats().held == 0)
            await pool.close()
        finally:
            # Closing a pool waits for its users, including those that a failed test has left.
            pool.terminate()
            pool.connector.stop()

    return make


@pytest.fixture
def cutter(pair: Pair) -> Any:
    """Return a proxy at the address of blue's name that cuts at asyncpg's COMMIT."""
    address = pair.blue.address.rsplit(".", 1)[0] + ".99"
    backend = (pair.blue.address, pair.port)
    with CommitCutter(address, pair.port, backend, lambda data: b"COMMIT;\0" in data) as cutter:
        yield cutter
