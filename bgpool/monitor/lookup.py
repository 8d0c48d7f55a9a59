"""DNS, apart from the status queries: threads that may be stalled by a resolver without anybody waiting for them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Final

from bgpool.core.events import Event, Resolved
from bgpool.core.limits import RESOLVE_INTERVAL_S, RESOLVE_THREADS, RESOLVE_TIMEOUT_S
from bgpool.logs import log_fields
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.probe import now
from bgpool.monitor.stoppable import Stoppable
from bgpool.resolver import Resolver

__all__ = ["Lookup"]

_logger: Final = logging.getLogger("bgpool.monitor")
_Found = tuple[str, tuple[str, ...] | None]
#: Wakes who waits for an answer.
_NOTHING: Final[_Found] = ("", None)


class Lookup(Stoppable):
    """Resolves the names it is assigned in every interval, side by side, and tells the main loop what it found."""

    def __init__(self, resolver: Resolver, inbox: Inbox) -> None:
        super().__init__("bgpool-lookup")
        self._resolver: Final = resolver
        self._inbox: Final = inbox
        self._nudged: Final = threading.Event()
        self._names: tuple[str, ...] = ()
        self._interval_s = 1.0
        # Owned by this thread: what is being looked up, by helpers that a stalled resolver may keep for minutes.
        self._asked: Final[queue.SimpleQueue[str | None]] = queue.SimpleQueue()
        self._found: Final[queue.SimpleQueue[_Found]] = queue.SimpleQueue()
        self._pending: Final[set[str]] = set()
        self._known: Final[dict[str, tuple[float, tuple[str, ...]]]] = {}
        self._helpers = 0

    def assign(self, names: tuple[str, ...], *, interval_ms: int) -> None:
        """Look *names* up from now on; a change counts at once."""
        interval_s = max(interval_ms / 1000, RESOLVE_INTERVAL_S)
        sooner = names != self._names or interval_s < self._interval_s
        self._names, self._interval_s = names, interval_s
        if sooner:
            self._nudged.set()

    def run(self) -> None:
        """Look up until stopped."""
        try:
            self._run()
        finally:
            for _ in range(self._helpers):
                self._asked.put(None)

    def _run(self) -> None:
        while True:
            self._nudged.clear()
            # In this order, or what stop() sets would be lost.
            if self.over.is_set():
                return
            found = self._look_up(self._names)
            if found:
                self._inbox.tell(self, found, _event)
            self._nudged.wait(self._interval_s)

    def stop(self) -> None:
        """End; a helper that a resolver holds ends when it lets go."""
        super().stop()
        self._found.put(_NOTHING)
        self._nudged.set()

    def _look_up(self, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """What is known of *names* after one interval; a name that was not found for RESOLVE_TIMEOUT_S is left out.

        Nothing waits for a name that takes longer: its answer counts when it comes.
        """
        for name in names:
            if name not in self._pending:
                self._pending.add(name)
                self._asked.put(name)
        while self._helpers < min(len(names), RESOLVE_THREADS):
            self._helpers += 1
            _Helper(f"bgpool-lookup-{self._helpers}", self._resolver, self._asked, self._found).start()
        deadline = time.monotonic() + min(self._interval_s, RESOLVE_TIMEOUT_S)
        while self._pending.intersection(names) and not self.over.is_set():
            try:
                name, addresses = self._found.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            self._pending.discard(name)
            if addresses is None:
                self._known.pop(name, None)
            else:
                self._known[name] = (time.monotonic(), addresses)
        fresh = time.monotonic() - RESOLVE_TIMEOUT_S
        return {name: self._known[name][1] for name in names if name in self._known and self._known[name][0] >= fresh}


class _Helper(Stoppable):
    """Looks up what is asked, until it is asked for None."""

    def __init__(
        self,
        name: str,
        resolver: Resolver,
        asked: queue.SimpleQueue[str | None],
        found: queue.SimpleQueue[_Found],
    ) -> None:
        super().__init__(name)
        self._resolver: Final = resolver
        self._asked: Final = asked
        self._found: Final = found

    def run(self) -> None:
        while (name := self._asked.get()) is not None:
            addresses = None
            try:
                addresses = self._resolver.resolve(name)
            except Exception as error:
                _logger.debug("%s cannot be resolved: %s", name, error, extra=log_fields("not_resolved", host=name))
            self._found.put((name, addresses))


def _event(found: dict[str, tuple[str, ...]]) -> tuple[Event, ...]:
    return (Resolved(now(), found),)
