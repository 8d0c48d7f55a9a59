"""The waits of callers. A pool's steps are written once, as coroutines; the waits in them block a thread or a task.

Every step of a pool that may wait is a coroutine function with a name that begins with ``a``: the gate, a checkout,
opening a connection, a unit of work. A pool for threads runs such a coroutine with *finish*. Its waits block the
thread, so the coroutine never suspends and ends at the first step. An AsyncPool awaits the same coroutine in a task,
and its waits yield to the event loop. The name without the ``a`` is the form for callers that cannot await.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar, cast

from bgpool.segment.reader import Reading

__all__ = ["BLOCKING", "Blocking", "Turns", "Waits", "finish", "settled"]

T = TypeVar("T")

#: The arguments of Python's error for a StopIteration that leaves a coroutine, which is its cause.
_STOPPED: Final = ("coroutine raised StopIteration",)


class Turns(Protocol):
    """A limited number of turns; each caller takes one."""

    async def acquire(self, seconds: float) -> bool:
        """Take a turn within *seconds*; return whether there was one."""
        ...

    def release(self) -> None:
        """Return the turn."""
        ...


class Waits(Protocol):
    """The waits of one kind of pool, and their clock.

    Attributes:
        awaits: True if callers await, and the driver's methods return awaitables.
    """

    awaits: bool

    def now_ns(self) -> int:
        """Return the time of the monotonic clock in nanoseconds."""
        ...

    def finish(self, steps: Coroutine[Any, Any, T], /) -> T:
        """Return the result of *steps*, whose waits are of this kind, for a caller that cannot await."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for *seconds*."""
        ...

    async def changed(self, reading: Reading, seconds: float, over: Callable[[], bool]) -> None:
        """Wait until another reading than *reading* is published, at most *seconds*; see Reading.wait_changed."""
        ...

    async def call(self, function: Callable[[], T]) -> T:
        """Return the result of *function*, which may block its thread."""
        ...

    def wake(self) -> None:
        """Make callers that wait for a change check again, as Reader.wake_waiters does for threads."""
        ...

    def turns(self, count: int) -> Turns:
        """Return *count* turns for callers of this kind."""
        ...

    def cancels(self) -> int:
        """Return how often the caller has been cancelled, less those taken back; 0 if it cannot be cancelled."""
        ...


def finish(steps: Coroutine[Any, Any, T], /) -> T:
    """Return the result of *steps*, none of whose waits yields to an event loop: they end at the first step."""
    try:
        steps.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    except RuntimeError as error:
        stop = error.__cause__
        if error.args != _STOPPED or not isinstance(stop, StopIteration):
            raise
    else:
        steps.close()
        raise RuntimeError(f"{steps!r} waits for an event loop: await it")
    try:
        # A function of the application has raised it, so it is the caller's error.
        raise stop
    finally:
        # Otherwise its own traceback would keep it alive.
        del stop


async def settled(step: T | Awaitable[T]) -> T:
    """Return a driver's method's result, awaited if it is a coroutine: its pools and connections come in two forms."""
    if not hasattr(step, "__await__"):  # the check of inspect.isawaitable, at a tenth of its cost
        return step
    return await cast(Awaitable[T], step)


class Blocking:
    """Waits that block the calling thread, or green thread."""

    awaits = False
    now_ns = staticmethod(time.monotonic_ns)
    finish = staticmethod(finish)

    async def sleep(self, seconds: float) -> None:
        """See Waits."""
        time.sleep(seconds)

    async def changed(self, reading: Reading, seconds: float, over: Callable[[], bool]) -> None:
        """See Waits."""
        reading.wait_changed(seconds, over, in_line=True)

    async def call(self, function: Callable[[], T]) -> T:
        """See Waits."""
        return function()

    def wake(self) -> None:
        """Do nothing: the kernel wakes threads."""

    def turns(self, count: int) -> Turns:
        """See Waits."""
        return _BlockingTurns(count)

    def cancels(self) -> int:
        """See Waits."""
        return 0


class _BlockingTurns:
    def __init__(self, count: int) -> None:
        self._turns: Final = threading.BoundedSemaphore(count)

    async def acquire(self, seconds: float) -> bool:
        return self._turns.acquire(timeout=seconds)

    def release(self) -> None:
        self._turns.release()


#: It has no state: one is enough.
BLOCKING: Final = Blocking()
