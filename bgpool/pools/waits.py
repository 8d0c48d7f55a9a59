"""How callers wait. What a pool decides is written once, as coroutines; what these await blocks a thread or a task.

Everything that may wait on the way through a pool is a coroutine function, and its name begins with ``a``: the gate,
a checkout, opening a connection, a unit of work. A pool for threads runs such a coroutine with *finish*: its waits
block the thread, so the coroutine never yields and ends at the first step. An AsyncPool awaits the same coroutine in a
task, and its waits give way to the event loop. The name without the ``a`` is the form for callers that cannot await.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar, cast

from bgpool.segment.reader import Reading

__all__ = ["BLOCKING", "Blocking", "Turns", "Waits", "finish", "settled"]

T = TypeVar("T")

#: What Python makes of a StopIteration that leaves a coroutine, as its cause.
_STOPPED: Final = ("coroutine raised StopIteration",)


class Turns(Protocol):
    """A number of turns, of which each caller takes one."""

    async def acquire(self, seconds: float) -> bool:
        """Take a turn, within *seconds*; whether there was one."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


class Waits(Protocol):
    """The waits of one kind of pool, and the clock that they are measured by.

    Attributes:
        awaits: Whether callers await, and a driver's methods return what is to be awaited.
    """

    awaits: bool

    def now_ns(self) -> int:
        """The monotonic clock, in nanoseconds."""
        ...

    def finish(self, steps: Coroutine[Any, Any, T], /) -> T:
        """The result of *steps*, whose waits are of this kind, for a caller that cannot await."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for *seconds*."""
        ...

    async def changed(self, reading: Reading, seconds: float, over: Callable[[], bool]) -> None:
        """Wait until something else than *reading* is published, at most *seconds*; see Reading.wait_changed."""
        ...

    async def call(self, function: Callable[[], T]) -> T:
        """What *function* returns, which may block its thread."""
        ...

    def wake(self) -> None:
        """Have those look again who wait for a change, as Reader.wake_waiters has threads."""
        ...

    def turns(self, count: int) -> Turns:
        """*count* turns, to be taken by this kind of callers."""
        ...

    def cancels(self) -> int:
        """How often the caller has been told to end, and has not been called off; 0 where nobody can do that."""
        ...


def finish(steps: Coroutine[Any, Any, T], /) -> T:
    """The result of *steps*, none of whose waits gives way to an event loop: they end at the first step."""
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
        # Raised by a function of the application's, whose error is its own.
        raise stop
    finally:
        # Or it would be kept by its own traceback.
        del stop


async def settled(step: T | Awaitable[T]) -> T:
    """What a driver's method returned, awaited where it is a coroutine: its pools and connections come in two forms."""
    if not hasattr(step, "__await__"):  # what inspect.isawaitable asks, at a tenth of its cost
        return step
    return await cast(Awaitable[T], step)


class Blocking:
    """Waits that block the calling thread, or green thread."""

    awaits = False
    now_ns = staticmethod(time.monotonic_ns)
    finish = staticmethod(finish)

    async def sleep(self, seconds: float) -> None:
        """As Waits says."""
        time.sleep(seconds)

    async def changed(self, reading: Reading, seconds: float, over: Callable[[], bool]) -> None:
        """As Waits says."""
        reading.wait_changed(seconds, over, in_line=True)

    async def call(self, function: Callable[[], T]) -> T:
        """As Waits says."""
        return function()

    def wake(self) -> None:
        """Nothing: the kernel wakes threads."""

    def turns(self, count: int) -> Turns:
        """As Waits says."""
        return _BlockingTurns(count)

    def cancels(self) -> int:
        """As Waits says."""
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
