"""A clock that jumps from event to event, and tasks that wait on it.

Tasks are generators that yield a time or a promise, or coroutines that await a Pause or a Promise.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

__all__ = ["MS", "SECOND", "Clock", "Pause", "Promise", "Task"]

MS: Final = 1_000_000
SECOND: Final = 1_000_000_000

Task = Generator["int | Promise", Any, Any]


class Pause:
    """An awaitable that takes *delay_ns*."""

    __slots__ = ("_delay_ns",)

    def __init__(self, delay_ns: int) -> None:
        self._delay_ns = delay_ns

    def __await__(self) -> Generator[int, Any, None]:
        yield self._delay_ns


class Promise:
    """A value that will be known later: set once, and delivered to all waiting tasks."""

    __slots__ = ("_waiting", "kept", "value")

    def __init__(self) -> None:
        self.kept = False
        self.value: Any = None
        self._waiting: list[Callable[[Any], None]] = []

    def __await__(self) -> Generator[Promise, Any, Any]:
        return (yield self)

    def keep(self, value: Any = None) -> None:
        """Set the value and wake all waiting tasks; a second time has no effect."""
        if self.kept:
            return
        self.kept, self.value = True, value
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell(value)

    def then(self, tell: Callable[[Any], None]) -> None:
        """Call *tell* with the value."""
        if self.kept:
            tell(self.value)
        else:
            self._waiting.append(tell)


class Clock:
    """A clock in integer nanoseconds, with a queue of calls. Ties keep their order: a run depends only on its seed."""

    def __init__(self) -> None:
        self.now = 0
        self._due: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._asked = 0

    def after(self, delay_ns: int, call: Callable[..., object], *args: Any) -> None:
        """Call *call* in *delay_ns*."""
        self._asked += 1
        heapq.heappush(self._due, (self.now + max(0, delay_ns), self._asked, call, args))

    def at(self, moment_ns: int, call: Callable[..., object], *args: Any) -> None:
        """Call *call* at *moment_ns*, or at once if that has passed."""
        self.after(moment_ns - self.now, call, *args)

    def run(self, until_ns: int) -> None:
        """Run everything that is due until *until_ns*."""
        due = self._due
        while due and due[0][0] <= until_ns:
            self.now, _, call, args = heapq.heappop(due)
            call(*args)
        self.now = until_ns

    def start(self, task: Task | Coroutine[Any, Any, Any]) -> None:
        """Run *task* until it waits, and resume it whenever its awaited value arrives."""
        self._go_on(task, None)

    def within(self, promise: Promise, limit_ns: int, otherwise: Any = None) -> Promise:
        """Return a promise that is kept when *promise* is, or with *otherwise* after *limit_ns*."""
        bounded = Promise()
        promise.then(bounded.keep)
        self.after(limit_ns, bounded.keep, otherwise)
        return bounded

    def _go_on(self, task: Task | Coroutine[Any, Any, Any], value: Any) -> None:
        try:
            wanted = task.send(value)
        except StopIteration:
            return
        if isinstance(wanted, Promise):
            # Never within the call that kept the promise.
            wanted.then(lambda found: self.after(0, self._go_on, task, found))
        else:
            self.after(wanted, self._go_on, task, None)
