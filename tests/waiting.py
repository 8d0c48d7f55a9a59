"""Waiting for what another thread, process or server does, however slow the machine is; and what that costs at best."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

__all__ = ["PATIENCE_S", "quickest", "until", "wait_until"]

#: The limit for events that should be immediate, on a machine that is busy. Only a failing test waits that long.
PATIENCE_S: Final = 30.0


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait for *condition*; an assertion fails when the time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


async def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """The same in an event loop, which is not blocked."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.005)


def quickest(attempt: Callable[[], float], bound: float, tries: int = 5) -> float:
    """The least that *attempt* returned, which is called until it is below *bound*, *tries* times at most.

    For a promise of some milliseconds. Whatever else the machine does adds to one attempt or another; what the code
    itself waits for is in all of them.
    """
    least = attempt()
    for _ in range(tries - 1):
        if least < bound:
            break
        least = min(least, attempt())
    return least
