"""A monitor's subscriber to its fleet: a thread that reads the bus and passes authentic messages to the main loop."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from bgpool.core.fleet import BusFailed, FleetOrder, MessageHeard, Report, ReportsRead
from bgpool.core.limits import (
    FLEET_BLOCK_S,
    FLEET_BLOCK_SWITCHING_S,
    FLEET_CLOCK_ERROR_S,
    FLEET_FRESH_S,
    FLEET_HOSTS,
    FLEET_PAUSE_MAX_S,
    FLEET_PAUSE_S,
    FLEET_SILENCE_S,
    FLEET_SILENCE_SWITCHING_S,
)
from bgpool.fleet.bus import Bus, BusError, Entry, ReportEntry
from bgpool.fleet.messages import BadMessage, unseal, unseal_report
from bgpool.fleet.roster import Roster, RosterCounts
from bgpool.logs import log_fields
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.keys import Keys
from bgpool.monitor.probe import now
from bgpool.monitor.stoppable import StoppableThread

__all__ = ["Subscriber"]

_logger: Final = logging.getLogger("bgpool.monitor")

_BEGINNING: Final = (0, 0)

#: Log texts for kinds of ignored messages; other kinds are logged by name.
_MEANINGS: Final = {"forged": "signed with none of this host's keys", "future": "in the format of a newer bgpool"}


class Subscriber(StoppableThread):
    """Reads the leaders' stream and, if its host leads, the hosts' reports.

    Attributes:
        refused: The numbers of entries that were not authentic, by kind.
    """

    def __init__(
        self,
        bus: Callable[[], Bus],
        keys: Keys,
        bg_id: str,
        member: str,
        events: Inbox,
    ) -> None:
        """Create it. *bus* is called in its own thread, because it may import a library and resolve a name."""
        super().__init__("bgpool-ear", bg_id)
        self._make_bus: Final = bus
        self._keys: Final = keys
        self._member: Final = member
        self._events: Final = events
        self._leads = self._hurries = False
        self.refused: Final[Counter[str]] = Counter()
        # Used only by this thread. The cursor is the position of the next read; it is not a fence, and may go back. The
        # end is the end of the stream when it was last checked.
        self._cursor = self._end = _BEGINNING
        self._heard_at = 0.0
        self._roll: Roster | None = None
        self._counted: RosterCounts | None = None
        self._counted_at = 0.0
        self._is_behind = False
        # Empty while reports are not read.
        self._report_cursor = ""
        self._reports_from = 0.0
        # The position up to which reports were refused: whenever this host starts to lead, they are read from the
        # beginning.
        self._refused_to = _BEGINNING
        self._error = ""
        self._unforeseen: Final[set[type[Exception]]] = set()

    def assign(self, *, leads: bool, hurries: bool) -> None:
        """Set whether to read the hosts' reports, and whether there is a switchover."""
        self._leads, self._hurries = leads, hurries

    def run(self) -> None:
        """Read until stopped."""
        bus: Bus | None = None
        pause_s = FLEET_PAUSE_S
        while not self.over.is_set():
            try:
                bus = bus if bus is not None else self._make_bus()
                self._listen(bus)
                pause_s = FLEET_PAUSE_S
                self._tell_error("")
            except Exception as error:
                # Any error of a client library: a failing bus counts as silent, and must not end the monitor.
                if not isinstance(error, BusError) and type(error) not in self._unforeseen:
                    # Log it once, because it may recur with every message.
                    self._unforeseen.add(type(error))
                    extra = log_fields("fleet_bus_error", bg_id=self.bg_id)
                    _logger.exception("the fleet's bus cannot be read", extra=extra)
                self._tell_error(str(error) if isinstance(error, BusError) else type(error).__name__)
                if bus is not None:
                    bus.close()
                # The next server may be another one that lacks the newest entries of this one.
                self._heard_at = 0.0
                # Perhaps only the reports cannot be read: a leader can work without them, but not without its own
                # messages.
                self._report_cursor, self._reports_from = "", time.monotonic() + FLEET_PAUSE_MAX_S
                self.over.wait(pause_s)
                pause_s = min(2 * pause_s, FLEET_PAUSE_MAX_S)
        if bus is not None:
            bus.close()

    def _listen(self, bus: Bus) -> None:
        if not self._leads:
            self._roll, self._report_cursor = None, ""
        elif not self._report_cursor and time.monotonic() > self._reports_from:
            self._begin_roll(bus)
        if self._is_silent():
            self._take_cursor_anew(bus)
        block_s = FLEET_BLOCK_SWITCHING_S if self._hurries or self._is_behind else FLEET_BLOCK_S
        self._is_behind = False
        heard = bus.read(self._cursor, block_s, self._report_cursor or None)
        for entry in heard.entries:
            self._cursor = (entry.term, entry.seq)
            self._heard_at = time.monotonic()
            self._hear(entry)
        if self._report_cursor:
            self._call(heard.reports)

    def _is_silent(self) -> bool:
        limit_s = FLEET_SILENCE_SWITCHING_S if self._hurries else FLEET_SILENCE_S
        return time.monotonic() - self._heard_at > limit_s

    def _take_cursor_anew(self, bus: Bus) -> None:
        """Read from the beginning if the stream's end is before the cursor: it is another stream.

        With a cursor that is too high nothing would be received: the server does not report that the key was deleted,
        or that a failover has lost the end.
        """
        top = bus.top()
        if top is None or (top.term, top.seq) < self._cursor:
            self._cursor = _BEGINNING
        self._end = (top.term, top.seq) if top is not None else _BEGINNING
        self._heard_at = time.monotonic()

    def _hear(self, entry: Entry) -> None:
        try:
            message = unseal(entry, self.bg_id, self._keys())
        except BadMessage as error:
            self._refuse(error.kind)
            return
        self._events.put(MessageHeard(now(), message, is_past=self._cursor <= self._end))

    def _begin_roll(self, bus: Bus) -> None:
        """Read the reports from before this host led, or from while the bus failed."""
        known = bus.reports(FLEET_HOSTS)
        if self._roll is None:
            self._roll, self._counted = Roster(self._member), None
        for entry in reversed(known):
            self._note(entry)
        self._report_cursor = known[0].id if known else "0"

    def _call(self, reports: list[ReportEntry]) -> None:
        """Add *reports* to the roster, and pass on changes that result from them or from the time."""
        nudged = False
        for entry in reports:
            self._report_cursor = entry.id
            nudged |= self._note(entry)
        if self._roll is None:
            return
        # A thousand hosts report two hundred times a second; they are counted less often.
        at_s = time.monotonic()
        self._is_behind = not nudged and at_s - self._counted_at < FLEET_BLOCK_SWITCHING_S
        if self._is_behind:
            return
        self._counted_at = at_s
        count = self._roll.count()
        if nudged or count != self._counted:
            self._counted = count
            told = ReportsRead(now(), count.hosts, count.order, nudged, count.switching, count.strangers)
            self._events.put(told)

    def _note(self, entry: ReportEntry) -> bool:
        """Add *entry* to the roster; return whether it is a nudge."""
        try:
            told = unseal_report(entry.payload, self.bg_id, self._keys())
            at_ms = int(entry.id.partition("-")[0])
        except BadMessage as error:
            self._refuse_report(entry.id, error.kind)
            return False
        except ValueError:
            self._refuse("damaged")
            return False
        is_news = self._roll is not None and self._roll.add(at_ms, told)
        return is_news and not isinstance(told, FleetOrder) and told.nudged and _is_fresh(told)

    def _refuse_report(self, entry_id: str, kind: str) -> None:
        try:
            at_ms, number = map(int, entry_id.split("-"))
        except ValueError:
            self._refuse(kind)
            return
        if (at_ms, number) > self._refused_to:
            self._refused_to = (at_ms, number)
            self._refuse(kind)

    def _refuse(self, kind: str) -> None:
        self.refused[kind] += 1
        if self.refused[kind] == 1:
            what = _MEANINGS.get(kind, kind)
            why = "; bg_fleet_key must be the same on all hosts" if kind == "forged" else ""
            text = "a message on the fleet's bus is ignored, because it is %s%s; bgpool fleet status has their number"
            _logger.warning(text, what, why, extra=log_fields("fleet_message_refused", bg_id=self.bg_id))

    def _tell_error(self, error: str) -> None:
        if error != self._error:
            self._error = error
            self._events.put(BusFailed(now(), error))


def _is_fresh(told: Report) -> bool:
    """Return whether *told* is not a copy of an old report."""
    age_s = time.time() - told.issued_ns / 1e9
    return -FLEET_CLOCK_ERROR_S <= age_s <= FLEET_FRESH_S + FLEET_CLOCK_ERROR_S
