"""The bell that workers ring when the server cuts a connection, and operators: the monitor hears it within a ms."""

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
    """Listens, and tells the main loop; however often it is rung, not more often than NUDGE_INTERVAL_S.

    It sleeps in the kernel for longer than a nudge may take. What wakes nobody, another table in the place of this one
    or a bell that a sandbox keeps from waking, the main loop finds in passing, see look().
    """

    def __init__(self, files: RunFiles, events: Inbox) -> None:
        super().__init__("bgpool-bell")
        self._files: Final = files
        self._events: Final = events
        self._table: Table | None = None
        self._seen_ns = 0
        self._stirred = False

    def look(self) -> None:
        """Have the bell look whether there is news, if there is; for the main loop, at every sign of life."""
        table = self._table
        if table is not None and (table.doorbell[0] != self._seen_ns or not table.is_in_place(self._files)):
            self._stir(table)

    def stop(self) -> None:
        """End; at the end of the sleep, should it begin just now."""
        super().stop()
        if self._table is not None:
            self._stir(self._table)

    def run(self) -> None:
        """Listen until stopped."""
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
            # Before the nudge that comes with it, and at the beginning: the monitor before may not have heard of it.
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
        """Pass an order on, unless it is so old that whoever gave it waits no more."""
        at, given = now(), unpack(word)
        if given is not None and 0 <= at.mono_ns - given.at_ns <= ORDER_WAIT_S * 1e9:
            self._events.put(Ordered(at, given.order, given.until_ns))

    def _open(self) -> Table | None:
        try:
            return Table(self._files)
        except SegmentError:
            # Workers say what is wrong with it; until it is put right nobody can ring.
            return None
