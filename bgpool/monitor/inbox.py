"""What the monitor's threads tell its main loop, without what that has heard already and can do nothing with."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from bgpool.core.fleet import AnyEvent

__all__ = ["Inbox", "EventBatch"]

T = TypeVar("T")


class EventBatch(NamedTuple):
    """Events that came together.

    Attributes:
        who, what: Of what may be repeated: who says it, and what that is. None for what is news whenever it comes.
    """

    events: tuple[AnyEvent, ...]
    who: object = None
    what: object = None


class Inbox:
    """A queue with many writers and one reader, the main loop.

    A server says the same for weeks, and to wake the main loop for that would cost more than all else that a monitor
    does. So the main loop notes what has changed nothing, and until something changes the snapshot, nobody tells it
    the same again.
    """

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._filled: Final = threading.Condition(self._lock)
        self._letters: Final[deque[EventBatch]] = deque()
        self._settled: Final[dict[object, object]] = {}
        # Whether the reader waits. While it does not, what it has just taken may change the snapshot.
        self._is_awaited = False

    def put(self, event: AnyEvent) -> None:
        """Tell something that is news."""
        with self._lock:
            self._add(EventBatch((event,)))

    def tell(self, who: object, what: T, events: Callable[[T], tuple[AnyEvent, ...]]) -> None:
        """Tell what *events* makes of *what*, unless the reader knows that *who* says so, and that it changes nothing.

        The reader knows no less than if it had been told: nothing that came before is still to be taken.
        """
        with self._lock:
            known = self._settled.get(who) if self._is_awaited and not self._letters else None
            if known is not None and (known is what or known == what):
                return
            self._add(EventBatch(events(what), who, what))

    def get(self, timeout_s: float) -> EventBatch | None:
        """The oldest letter; None if there is none for *timeout_s* seconds. For the one reader."""
        with self._lock:
            if not self._letters:
                self._is_awaited = True
                self._filled.wait(timeout_s)
                self._is_awaited = False
            return self._letters.popleft() if self._letters else None

    def settle(self, letter: EventBatch) -> None:
        """Be told no more of what *letter* says, if it may be repeated. For the one reader."""
        if letter.who is not None:
            self._settled[letter.who] = letter.what

    def unsettle(self) -> None:
        """Be told everything once more, because the snapshot has changed. For the one reader."""
        self._settled.clear()

    def _add(self, letter: EventBatch) -> None:
        self._letters.append(letter)
        self._filled.notify()
