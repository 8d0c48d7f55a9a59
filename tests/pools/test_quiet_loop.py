"""bgpool never wakes an event loop without waiting callers, whatever the monitor publishes."""

from __future__ import annotations

import asyncio
import selectors
from dataclasses import replace
from typing import Any

import pytest

import bgpool
from bgpool.lab import Pair
from bgpool.testing import Deployment

pytestmark = pytest.mark.lab


class Counting(selectors.DefaultSelector):
    """Counts the sleeps of the loop."""

    sleeps = 0

    def select(self, timeout: float | None = None) -> Any:
        self.sleeps += timeout is None or timeout > 0
        return super().select(timeout)


def test_an_idle_loop_is_never_woken(pair: Pair, deployment: Deployment) -> None:
    selector = Counting()

    async def main() -> None:
        async with bgpool.get_async_pool(
            pair.dsn, min_size=2, bg_run_dir=deployment.run_dir, bg_resolver=pair.resolver
        ) as pool:
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
            while pool.stats().idle < 2:
                await asyncio.sleep(0.01)
            # On a busy machine, earlier work may be unfinished. A defect that wakes the loop shows in each attempt.
            for number in range(5):
                # Leave time for the work after the second connection was opened.
                await asyncio.sleep(0.1)
                asyncio.get_running_loop().call_later(0.2, publish, number)
                before = selector.sleeps
                await asyncio.sleep(1.2)
                if selector.sleeps - before == 2:
                    break
            # One sleep until publish(), and one from there on.
            assert selector.sleeps - before == 2

    def publish(number: int) -> None:
        # A change that affects no caller.
        deployment._publish(replace(deployment.snapshot, target_max_connections=7 + number))

    loop = asyncio.SelectorEventLoop(selector)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
