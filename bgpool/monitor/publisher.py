"""The publisher of a monitor to its fleet: a thread that writes to the bus, so that no other thread waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from bgpool.core.duty import Publication
from bgpool.core.events import Tick
from bgpool.core.fleet import BusFailed, Claimed, Message, MessageHeard, PublishRefused, Report, StreamLost
from bgpool.core.limits import (
    FLEET_LOOK_S,
    FLEET_PAUSE_S,
    FLEET_REPORT_S,
    FLEET_TERM_AHEAD_S,
)
from bgpool.fleet.bus import Bus, BusError, Entry, KeyMissing, Refused
from bgpool.fleet.messages import BadMessage, seal, seal_report, unseal
from bgpool.logs import log_fields
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.keys import Keys
from bgpool.monitor.probe import now
from bgpool.monitor.stoppable import StoppableThread

__all__ = ["Publisher"]

_logger: Final = logging.getLogger("bgpool.monitor")


class Publisher(StoppableThread):
    """Publishes the leader's messages, claims the leadership, and sends the host's reports."""

    def __init__(
        self,
        bus: Callable[[], Bus],
        keys: Keys,
        bg_id: str,
        describe: Callable[[], Report],
        events: Inbox,
    ) -> None:
        """Create it. *describe* returns the report and is called in its thread; *bus* is made there, too."""
        super().__init__("bgpool-voice", bg_id)
        self._make_bus: Final = bus
        self._keys: Final = keys
        self._describe: Final = describe
        self._events: Final = events
        self._wanted: Final = threading.Event()
        self._publication: tuple[Publication, tuple[int, int]] | None = None
        self._nudges = False
        # The time of the next check for changes to report.
        self._look_at = 0.0
        # Used only by this thread.
        self._bus: Bus | None = None
        self._reported: Report | None = None
        self._reported_at = 0.0
        self._unforeseen: Final[set[type[Exception]]] = set()

    @property
    def is_busy(self) -> bool:
        """True if the last publication is not written yet. The next one must wait, and will be newer."""
        return self._publication is not None

    def publish(self, publication: Publication, fence: tuple[int, int]) -> None:
        """Write *publication*; *fence* is the last known (term, seq). Returns immediately."""
        self._publication = (publication, fence)
        self._wanted.set()

    def nudge(self) -> None:
        """Make the leader query immediately."""
        self._nudges = True
        self._wanted.set()

    def look(self, after_s: float) -> None:
        """Report changes in *after_s* seconds: the hosts stagger reports of the same change."""
        self._look_at = time.monotonic() + after_s
        self._wanted.set()

    def leave(self, timeout_s: float) -> None:
        """Write the remaining messages and the last report; waits *timeout_s* seconds at most."""
        self.stop()
        if self.is_alive():
            self.join(timeout_s)

    def stop(self) -> None:
        """Like leave(), without waiting."""
        super().stop()
        self._wanted.set()

    def run(self) -> None:
        """Write until stopped."""
        while True:
            self._wanted.wait(max(0.0, self._look_at - time.monotonic()))
            self._wanted.clear()
            leaves = self.over.is_set()
            try:
                self._publish()
                self._report(leaves)
            except Exception as error:
                # The same reason as in the subscriber.
                if not isinstance(error, BusError) and type(error) not in self._unforeseen:
                    # Log it once, because it may recur with every message.
                    self._unforeseen.add(type(error))
                    extra = log_fields("fleet_bus_error", bg_id=self.bg_id)
                    _logger.exception("the fleet's bus cannot be written", extra=extra)
                if self._bus is not None:
                    self._bus.close()
                self._events.put(BusFailed(now(), str(error) if isinstance(error, BusError) else type(error).__name__))
                self._look_at = time.monotonic() + FLEET_LOOK_S
                if not leaves:
                    # An immediate failure may recur immediately, and a leader always has something to write.
                    self.over.wait(FLEET_PAUSE_S)
            if leaves:
                break
        if self._bus is not None:
            self._bus.close()

    def _open(self) -> Bus:
        if self._bus is None:
            self._bus = self._make_bus()
        return self._bus

    def _publish(self) -> None:
        if self._publication is None:
            return
        publication, fence = self._publication
        message = publication.message
        try:
            if publication.is_claim:
                self._claim(message, fence)
            else:
                self._open().publish(message.term, message.seq, seal(message, self.bg_id, self._keys()))
        except KeyMissing:
            self._events.put(StreamLost(now()))
        except Refused:
            self._events.put(PublishRefused(now(), message.term))
        finally:
            self._publication = None
            # The main loop makes a newer publication than any that could be kept here.
            self._events.put(Tick(now()))

    def _claim(self, message: Message, fence: tuple[int, int]) -> None:
        bus = self._open()
        top = bus.top()
        seconds = time.time_ns() // 1_000_000_000
        if top is None:
            # The order of ids was lost with the key, if there was one: continue above the clock's seconds.
            term = max(message.term, seconds)
        else:
            if self._is_led(top, fence):
                return
            term = max(message.term, top.term + 1)
        if term > seconds + FLEET_TERM_AHEAD_S:
            raise BusError(
                f"no host can lead: the newest id in the stream bgpool:{{{self.bg_id}}} is far ahead of the clock "
                f"(term {term - 1}); delete that key (DEL)"
            )
        message = replace(message, term=term, issued_ns=time.time_ns())
        try:
            bus.publish(term, 0, seal(message, self.bg_id, self._keys()))
        except Refused:
            self._events.put(PublishRefused(now(), term))
            return
        self._events.put(Claimed(now(), term))

    def _is_led(self, top: Entry, fence: tuple[int, int]) -> bool:
        """Return whether another host leads that this host has not noticed yet; then pass its message on."""
        if (top.term, top.seq) <= fence:
            return False
        try:
            message = unseal(top, self.bg_id, self._keys())
        except BadMessage:
            return False
        if message.resigns:
            return False
        # Independent of its apparent age, which may be due to this host's clock. A leader that is gone stays silent
        # from now on.
        self._events.put(MessageHeard(now(), message, is_past=True))
        return True

    def _report(self, leaves: bool) -> None:
        """Report at changes, and every FLEET_REPORT_S; a nudge immediately."""
        if self._nudges:
            self._nudges = False
            self._say(replace(self._describe(), nudged=True))
        at = time.monotonic()
        if not leaves and at < self._look_at:
            return
        self._look_at = at + FLEET_LOOK_S
        report = replace(self._describe(), leaves=leaves)
        before = self._reported
        if before is not None and _news(before) == _news(report) and at - self._reported_at < FLEET_REPORT_S:
            return
        self._reported, self._reported_at = report, at
        self._say(report)

    def _say(self, report: Report) -> None:
        self._open().report(seal_report(report, self.bg_id, self._keys()))


def _news(report: Report) -> Report:
    """Return the part of a report whose changes are sent immediately: without figures that change constantly."""
    return replace(report, issued_ns=0, clock_off_ms=None, held=min(report.held, 1), refused=0)
