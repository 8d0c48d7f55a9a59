"""DNS, apart from the status queries: a thread that may be stalled by a resolver without anybody waiting for it."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Final

from bgpool.core.events import Event, Resolved
from bgpool.core.limits import RESOLVE_INTERVAL_S
from bgpool.monitor.probe import now
from bgpool.resolver import Resolver

__all__ = ["Lookup"]

_logger: Final = logging.getLogger("bgpool.monitor")


class Lookup(threading.Thread):
    """Resolves the names it is assigned in every interval and tells the main loop what it found."""

    def __init__(self, resolver: Resolver, events: queue.Queue[Event]) -> None:
        super().__init__(name="bgpool-lookup", daemon=True)
        self._resolver: Final = resolver
        self._events: Final = events
        self._nudged: Final = threading.Event()
        self._names: tuple[str, ...] = ()
        self._interval_s = 1.0

    def assign(self, names: tuple[str, ...], *, interval_ms: int) -> None:
        """Look *names* up from now on; a change counts at once."""
        interval_s = max(interval_ms / 1000, RESOLVE_INTERVAL_S)
        sooner = names != self._names or interval_s < self._interval_s
        self._names, self._interval_s = names, interval_s
        if sooner:
            self._nudged.set()

    def run(self) -> None:
        """Look up for ever."""
        while True:
            self._nudged.clear()
            found: dict[str, tuple[str, ...]] = {}
            for name in self._names:
                try:
                    found[name] = self._resolver.resolve(name)
                except OSError as error:
                    _logger.debug("%s cannot be resolved: %s", name, error)
            if found:
                self._events.put(Resolved(now(), found))
            self._nudged.wait(self._interval_s)
