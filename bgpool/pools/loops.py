"""The waits of asyncio's tasks. They use no threads, and a loop in which no task waits is never woken.

The process's watch thread sleeps until a snapshot is published, as it does for threads. It wakes each loop with a
waiting task once.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

from bgpool.core.limits import LOOP_CALLS, POLL_INTERVAL_S, WAKE_BATCH, WATCH_INTERVAL_S
from bgpool.errors import ConfigurationError
from bgpool.pools.waits import Turns, finish
from bgpool.segment.reader import Reading
from bgpool.signals import refusing

__all__ = ["LoopTurns", "LoopWaits", "apart", "begin", "cancels", "is_ours", "running_loop", "whole"]

T = TypeVar("T")

#: Tasks without another reference; asyncio itself would let the collector take them.
_tasks: Final[set[asyncio.Task[Any]]] = set()


class LoopWaits:
    """The waits of the tasks of all loops of a process, for one deployment."""

    awaits = True
    now_ns = staticmethod(time.monotonic_ns)
    finish = staticmethod(finish)

    def __init__(self, is_watched: Callable[[], bool]) -> None:
        """Create waits that a thread ends with ``wake`` at a publication, while *is_watched* is true."""
        self._is_watched: Final = is_watched
        self.reset()

    def reset(self) -> None:
        """Start without waiting tasks, in the child after a fork."""
        # The waiting tasks of each loop, the longest wait first.
        self._waiting: dict[asyncio.AbstractEventLoop, dict[asyncio.Future[None], None]] = {}
        self._calls: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopTurns] = WeakKeyDictionary()

    def wake(self) -> None:
        """Make all waiting tasks check again; from any thread."""
        for loop in list(self._waiting):
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(self._wake_here, loop)

    def _wake_here(self, loop: asyncio.AbstractEventLoop) -> None:
        _wake_some(loop, list(self._waiting.pop(loop, ())))

    async def sleep(self, seconds: float) -> None:
        """See Waits."""
        await asyncio.sleep(seconds)

    async def changed(self, reading: Reading, seconds: float, over: Callable[[], bool]) -> None:
        """See Waits."""
        if reading.mapped is None:
            # No thread wakes this task when a segment appears, so it must check again in time.
            seconds = min(seconds, WATCH_INTERVAL_S)
        if not self._is_watched():
            seconds = min(seconds, POLL_INTERVAL_S)
        loop = running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(loop, {})[future] = None
        timer = loop.call_later(seconds, _settle, future)
        try:
            # Checked only now, so that every later publication wakes this task.
            if (reading.mapped is None or reading.is_current) and not over():
                await future
        finally:
            timer.cancel()
            waiting = self._waiting.get(loop)
            if waiting is not None:
                waiting.pop(future, None)
                if not waiting:
                    del self._waiting[loop]

    async def call(self, function: Callable[[], T]) -> T:
        """See Waits. The call runs in a thread of its own; each loop has at most LOOP_CALLS of them.

        It does not use the loop's default executor, which the application may keep busy. If the caller is cancelled,
        the thread runs to its end.
        """
        loop = running_loop()
        turns = self._calls.setdefault(loop, LoopTurns(LOOP_CALLS))
        await turns.acquire(None)
        done: asyncio.Future[None] = loop.create_future()
        # The future's own result will not do, because it does not accept StopIteration.
        outcome: list[tuple[T | None, BaseException | None]] = []

        def run() -> None:
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(end)

        def end() -> None:
            turns.release()
            _settle(done)

        try:
            threading.Thread(target=refusing(run), name="bgpool-call", daemon=True).start()
        except BaseException:
            turns.release()
            raise
        await done
        made, error = outcome.pop()
        if error is None:
            return cast(T, made)
        try:
            raise error
        finally:
            # Otherwise its own traceback would keep it alive.
            del error

    def turns(self, count: int) -> Turns:
        """See Waits."""
        return LoopTurns(count)

    def cancels(self) -> int:
        """See Waits; Python 3.10 does not count."""
        return cancels(asyncio.current_task(running_loop()))


class LoopTurns:
    """Turns for the tasks of one loop, given in the order of the requests."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._queue: Final[deque[asyncio.Future[bool]]] = deque()

    async def acquire(self, seconds: float | None) -> bool:
        """See Turns; None for no limit."""
        if self._free > 0:
            self._free -= 1
            return True
        loop = running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._queue.append(future)
        timer = loop.call_later(seconds, _settle, future, False) if seconds is not None else None
        try:
            return await future
        except BaseException:
            if future.done() and not future.cancelled() and future.result():
                # The task was cancelled just after it got the turn.
                self.release()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self) -> None:
        """See Turns."""
        while self._queue:
            future = self._queue.popleft()
            if not future.done():
                future.set_result(True)
                return
        self._free += 1


async def whole(steps: Coroutine[Any, Any, T]) -> T:
    """Await *steps*, which continue to their end even if the caller is cancelled, however often."""
    return await asyncio.shield(begin(steps))


async def apart(steps: Coroutine[Any, Any, T], discard: Callable[[T], object]) -> T:
    """Await *steps* in a task of their own, which ends with the caller's; *discard* gets a result that is too late.

    A cancelled caller may be part of a cycle of frames, as SQLAlchemy's are. Then a connection that *steps* had opened
    would stay open until the garbage collector runs.
    """

    def drop(done: asyncio.Task[T]) -> None:
        if not done.cancelled() and done.exception() is None:
            discard(done.result())

    task = begin(steps)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        task.add_done_callback(drop)
        # This frame may live as long as those of the caller.
        del task
        raise


def begin(steps: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
    """Run *steps* as a task of the running loop, and keep a reference until it ends."""
    loop = running_loop()
    counts = sys.version_info >= (3, 11)
    task = loop.create_task(steps, name=name) if counts else _Counting(steps, loop=loop, name=name)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


class _Counting(asyncio.Task[Any]):
    """A task that counts its cancellations, as those of Python 3.11 do."""

    _cancels = 0

    def cancel(self, msg: Any = None) -> bool:
        """Like asyncio's."""
        self._cancels += 1
        return bool(super().cancel(msg))

    def cancelling(self) -> int:
        """Like asyncio's."""
        return self._cancels


def cancels(task: Any) -> int:
    """Return the number of cancellations of *task*, or of None; on Python 3.10, of tasks started by begin()."""
    return int(task.cancelling()) if hasattr(task, "cancelling") else 0


def is_ours(task: asyncio.Task[Any]) -> bool:
    """Return whether *task* was started by begin()."""
    return task in _tasks


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of the calling task.

    Raises:
        ConfigurationError: There is none, or it is another library's.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "an async pool or engine must be used inside of a running event loop of asyncio, uvloop included; there is "
            "none here, and a loop of another library, such as trio, does not count"
        ) from None


def _wake_some(loop: asyncio.AbstractEventLoop, waiting: list[asyncio.Future[None]]) -> None:
    """Wake *waiting*, one batch in each turn of the loop, so that other tasks do not wait for a thousand of them."""
    for future in waiting[:WAKE_BATCH]:
        _settle(future)
    if len(waiting) > WAKE_BATCH:
        loop.call_soon(_wake_some, loop, waiting[WAKE_BATCH:])


def _settle(future: asyncio.Future[Any], result: object = None) -> None:
    if not future.done():
        future.set_result(result)
