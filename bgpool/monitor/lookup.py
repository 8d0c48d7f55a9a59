"""DNS look-ups, separate from the status queries: a stalled resolver blocks only threads of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from bgpool.core.events import Event, Resolved
from bgpool.core.limits import RESOLVE_HURRY_S, RESOLVE_INTERVAL_S, RESOLVE_THREADS, RESOLVE_TIMEOUT_S
from bgpool.logs import log_fields
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.probe import now
from bgpool.monitor.stoppable import StoppableThread
from bgpool.resolver import Resolver

__all__ = ["Lookup"]

_logger: Final = logging.getLogger("bgpool.monitor")


class Lookup(StoppableThread):
    """Resolves the assigned names in every interval, and passes the results to the main loop.

    The helper that finds the last name of a round passes them on. No round waits for a name that takes longer than an
    interval: the other names are passed on, and its result is used when it arrives. Names are resolved concurrently in
    a switchover, and otherwise after the first round that takes longer than an interval.
    """

    def __init__(self, resolver: Resolver, inbox: Inbox) -> None:
        super().__init__("bgpool-lookup")
        self._resolver: Final = resolver
        self._inbox: Final = inbox
        self._nudged: Final = threading.Event()
        self._names: tuple[str, ...] = ()
        self._interval_s = 1.0
        # The names to resolve, by helpers that a stalled resolver may block for minutes; and the results.
        self._asked: Final[queue.SimpleQueue[str | None]] = queue.SimpleQueue()
        self._lock: Final = threading.Lock()
        self._pending: Final[set[str]] = set()
        self._known: Final[dict[str, tuple[float, tuple[str, ...]]]] = {}
        self._helpers = 0

    def assign(self, names: tuple[str, ...], *, interval_ms: int) -> None:
        """Resolve *names* from now on; a change takes effect immediately."""
        interval_s = max(interval_ms / 1000, RESOLVE_INTERVAL_S)
        sooner = names != self._names or interval_s < self._interval_s
        self._names, self._interval_s = names, interval_s
        if sooner:
            self._nudged.set()

    def run(self) -> None:
        """Resolve until stopped."""
        try:
            self._run()
        finally:
            for _ in range(self._helpers):
                self._asked.put(None)

    def _run(self) -> None:
        while True:
            self._nudged.clear()
            # Check after clearing the event, so that stop() is not missed.
            if self.over.is_set():
                return
            self._begin(self._names)
            pause_s, patience_s = self._interval_s, RESOLVE_TIMEOUT_S / 2
            # Well before the other results become too old: a cached name is found immediately.
            if pause_s > patience_s and not self._nudged.wait(patience_s):
                self._tell_late(self._names)
                pause_s -= patience_s
            self._nudged.wait(pause_s)

    def stop(self) -> None:
        """End; a helper that a resolver blocks ends when the call returns."""
        super().stop()
        self._nudged.set()

    def note(self, name: str, addresses: tuple[str, ...] | None) -> None:
        """Record that *name* has *addresses*, none if the name does not exist; None if the look-up failed."""
        with self._lock:
            self._pending.discard(name)
            if addresses is None:
                self._known.pop(name, None)
            else:
                self._known[name] = (time.monotonic(), addresses)
            names = self._names
            if not self._pending.intersection(names):
                self._tell(names)

    def _begin(self, names: tuple[str, ...]) -> None:
        """Start a round for all *names* whose look-ups are not still in progress."""
        # One helper is enough while there is time and the resolver answers.
        hurries = self._tell_late(names) or not RESOLVE_HURRY_S <= self._interval_s <= RESOLVE_TIMEOUT_S
        with self._lock:
            due = [name for name in names if name not in self._pending]
            self._pending.update(due)
        for name in due:
            self._asked.put(name)
        while self._helpers < min(len(names), RESOLVE_THREADS if hurries else 1):
            self._helpers += 1
            _Helper(f"bgpool-lookup-{self._helpers}", self._resolver, self._asked, self.note).start()

    def _tell_late(self, names: tuple[str, ...]) -> bool:
        """Pass on the known results for *names* if one of them is still in progress; return whether one is."""
        with self._lock:
            is_late = bool(self._pending.intersection(names))
            if is_late:
                self._tell(names)
            return is_late

    def _tell(self, names: tuple[str, ...]) -> None:
        """Pass on the known results for *names*; omit names that were not found for RESOLVE_TIMEOUT_S."""
        fresh = time.monotonic() - RESOLVE_TIMEOUT_S
        known = ((name, self._known.get(name)) for name in names)
        found = {name: one[1] for name, one in known if one is not None and one[0] >= fresh}
        if found:
            self._inbox.tell(self, found, _event)


class _Helper(StoppableThread):
    """Resolves the names of a queue until it reads None."""

    def __init__(
        self,
        name: str,
        resolver: Resolver,
        asked: queue.SimpleQueue[str | None],
        note: Callable[[str, tuple[str, ...] | None], object],
    ) -> None:
        super().__init__(name)
        self._resolver: Final = resolver
        self._asked: Final = asked
        self._note: Final = note

    def run(self) -> None:
        while (name := self._asked.get()) is not None:
            addresses = None
            try:
                addresses = self._resolver.resolve(name)
            except Exception as error:
                extra = log_fields("name_not_resolved", host=name)
                _logger.debug("%s cannot be resolved: %s", name, error, extra=extra)
            self._note(name, addresses)


def _event(found: dict[str, tuple[str, ...]]) -> tuple[Event, ...]:
    return (Resolved(now(), found),)
