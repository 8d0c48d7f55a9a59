"""The queue from the monitor's threads to its main loop, without repetitions that would change nothing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from bgpool.core.fleet import AnyEvent

__all__ = ["Inbox", "EventBatch"]

T = TypeVar("T")


class EventBatch(NamedTuple):
    """Events that belong together.

    Attributes:
        who, what: The source and the content of events that may be repeated. None for events that always count.
    """

    events: tuple[AnyEvent, ...]
    who: object = None
    what: object = None


class Inbox:
    """A queue with many writers and one reader, the main loop.

    A server may give the same answer for weeks, and waking the main loop for each would cost more than the rest of the
    monitor. So the main loop marks answers that have changed nothing, and until the snapshot changes they are not
    queued again.
    """

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._filled: Final = threading.Condition(self._lock)
        self._letters: Final[deque[EventBatch]] = deque()
        self._settled: Final[dict[object, object]] = {}
        # True if the reader waits. Otherwise the batch that it has just taken may still change the snapshot.
        self._is_awaited = False

    def put(self, event: AnyEvent) -> None:
        """Add an event that always counts."""
        with self._lock:
            self._add(EventBatch((event,)))

    def tell(self, who: object, what: T, events: Callable[[T], tuple[AnyEvent, ...]]) -> None:
        """Add the events from *what*, unless the reader knows that *who* reports it, and that it changes nothing.

        The reader misses no information: no earlier batch is still queued.
        """
        with self._lock:
            known = self._settled.get(who) if self._is_awaited and not self._letters else None
            if known is not None and (known is what or known == what):
                return
            self._add(EventBatch(events(what), who, what))

    def get(self, timeout_s: float) -> EventBatch | None:
        """Return the oldest batch; None if there is none for *timeout_s* seconds. Only for the reader."""
        with self._lock:
            if not self._letters:
                self._is_awaited = True
                self._filled.wait(timeout_s)
                self._is_awaited = False
            return self._letters.popleft() if self._letters else None

    def settle(self, letter: EventBatch) -> None:
        """Stop queueing repetitions of *letter*, if it may be repeated. Only for the reader."""
        if letter.who is not None:
            self._settled[letter.who] = letter.what

    def unsettle(self) -> None:
        """Queue every answer once more, because the snapshot has changed. Only for the reader."""
        self._settled.clear()

    def _add(self, letter: EventBatch) -> None:
        self._letters.append(letter)
        self._filled.notify()
