"""Outside of asyncio (in a thread without a loop, or in trio) an async pool raises a clear error."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import bgpool
from bgpool import ConfigurationError
from bgpool.pools.postgres.async_pool import AsyncPool


async def fn(_conn: object) -> None:
    """Never called."""


@pytest.mark.parametrize(
    "call",
    [
        lambda pool: pool.open(),
        lambda pool: pool.getconn(),
        lambda pool: pool.connection().__aenter__(),
        lambda pool: pool.run(fn),
        lambda pool: bgpool.transactional(pool)(fn)(),
        lambda pool: pool.close(),
    ],
    ids=["open", "getconn", "connection", "run", "transactional", "close"],
)
def test_every_call_is_refused(call: Callable[[AsyncPool], Coroutine[Any, Any, Any]]) -> None:
    pool = bgpool.get_async_pool("postgresql://app@127.0.0.1:9/app", bg_id="no-loop")
    # Like trio: the coroutine is run without asyncio.run.
    with pytest.raises(ConfigurationError, match="inside of a running event loop of asyncio"):
        call(pool).send(None)
    assert not pool.closed
