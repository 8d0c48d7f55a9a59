"""The doorbell, which wakes the monitor within 1 ms. Workers ring it for a cut connection, operators for an order."""

from __future__ import annotations

from typing import Final

from bgpool.core.events import Nudged, Ordered
from bgpool.core.limits import BELL_SLEEP_S, NUDGE_INTERVAL_S, ORDER_WAIT_S, WATCH_INTERVAL_S
from bgpool.errors import SegmentError
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.probe import now
from bgpool.monitor.stoppable import StoppableThread
from bgpool.segment.orders import unpack
from bgpool.segment.paths import RunFiles
from bgpool.segment.table import Table

__all__ = ["Doorbell"]


class Doorbell(StoppableThread):
    """Waits for the doorbell, and notifies the main loop, at most once in NUDGE_INTERVAL_S.

    It sleeps in the kernel for longer than a nudge may take. Some changes wake no thread: a new table in place of this
    one, or a ring from a sandbox that refuses futex. The main loop detects these, see look().
    """

    def __init__(self, files: RunFiles, events: Inbox) -> None:
        super().__init__("bgpool-bell")
        self._files: Final = files
        self._events: Final = events
        self._table: Table | None = None
        self._seen_ns = 0
        self._stirred = False

    def look(self) -> None:
        """Check for changes that woke no thread; called by the main loop at every heartbeat."""
        table = self._table
        if table is not None and (table.doorbell[0] != self._seen_ns or not table.is_in_place(self._files)):
            self._stir(table)

    def stop(self) -> None:
        """End; at the latest at the end of a sleep that has just begun."""
        super().stop()
        if self._table is not None:
            self._stir(self._table)

    def run(self) -> None:
        """Wait for rings until stopped."""
        order = 0
        while not self.over.is_set():
            self._stirred = False
            table = self._table
            if table is None or not table.is_in_place(self._files):
                self._table = table = self._open()
                self._seen_ns = table.doorbell[0] if table is not None else 0
                order = 0
            if table is None:
                self.over.wait(WATCH_INTERVAL_S)
                continue
            # Read the order before the nudge that accompanies it. Also read it at the beginning, because the last
            # monitor may have missed it.
            if table.order[0] != order:
                order = table.order[0]
                self._tell(order)
            if table.wait_rung(self._seen_ns, BELL_SLEEP_S, lambda: self._stirred or self.over.is_set()):
                self._seen_ns = table.doorbell[0]
                self._events.put(Nudged(now()))
                self.over.wait(NUDGE_INTERVAL_S)

    def _stir(self, table: Table) -> None:
        self._stirred = True
        table.stir()

    def _tell(self, word: int) -> None:
        """Pass on an order, unless it is so old that its sender has stopped waiting."""
        at, given = now(), unpack(word)
        if given is not None and 0 <= at.mono_ns - given.at_ns <= ORDER_WAIT_S * 1e9:
            self._events.put(Ordered(at, given.order, given.until_ns))

    def _open(self) -> Table | None:
        try:
            return Table(self._files)
        except SegmentError:
            # Workers report the problem of the table; until it is fixed, no process can ring.
            return None
