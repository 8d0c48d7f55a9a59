"""A survey of a fleet from outside: the hosts' recent reports, and the leader. For operators and pipelines."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final, NamedTuple

from bgpool.core.fleet import FleetOrder, Message, Report
from bgpool.core.limits import FLEET_GONE_S, FLEET_HOSTS, FLEET_REPORT_LIFE_S
from bgpool.fleet.bus import Bus, ReportEntry
from bgpool.fleet.messages import BadMessage, unseal, unseal_report

__all__ = ["SurveyedHost", "Survey"]

_NS: Final = 1_000_000_000
_MS: Final = 1_000_000


class SurveyedHost(NamedTuple):
    """A host.

    Attributes:
        report: The host's newest report.
        at_ns: The time at which the bus accepted it, by the bus's own clock.
    """

    report: Report
    at_ns: int


class Survey:
    """Reads a fleet's two streams. It writes nothing, and no host notices it.

    Attributes:
        leader: The leader's newest message since the survey began; None before the first, and after its leader has
            resigned.
        order: The newest known operator's order; None if there is none.
        refused: The numbers of entries that are not authentic, by kind, see `BadMessage`.
    """

    def __init__(self, bus: Bus, bg_id: str, keys: tuple[bytes, ...]) -> None:
        """Read the kept entries.

        Raises:
            BusError: The bus cannot be used.
        """
        self._bus: Final = bus
        self._bg_id: Final = bg_id
        self._keys: Final = keys
        self._hosts: Final[dict[str, SurveyedHost]] = {}
        self._newest_ns = 0
        # The difference of the fleet's clock and this host's; None while unknown.
        self._ahead_ns: int | None = None
        self.leader: Message | None = None
        self.order: FleetOrder | None = None
        self.refused: Final[Counter[str]] = Counter()
        top = bus.top()
        # The kept messages may be years old: only new ones show that there is a leader.
        self._cursor = (top.term, top.seq) if top is not None else (0, 0)
        # Each host reports within FLEET_REPORT_S plus a fifth. All kept reports together may exceed the limit of one
        # answer.
        kept = bus.reports(2 * FLEET_HOSTS)
        self._reports_after = kept[0].id if kept else "0"
        for entry in reversed(kept):
            self._note(entry)

    @property
    def now_ns(self) -> int:
        """The time of the fleet's clocks, in ns since 1970, because this host's clock may be wrong."""
        here_ns = time.time_ns()
        if self._ahead_ns is not None:
            return here_ns + self._ahead_ns
        return max(here_ns, self._newest_ns)

    @property
    def hosts(self) -> list[SurveyedHost]:
        """The hosts that have reported recently and not left, by name."""
        return self._those_of(0, FLEET_REPORT_LIFE_S)

    @property
    def gone(self) -> list[SurveyedHost]:
        """The hosts that stopped reporting without leaving."""
        return self._those_of(FLEET_REPORT_LIFE_S, FLEET_GONE_S)

    @property
    def left(self) -> set[str]:
        """The place ids of hosts whose last report said that they leave."""
        return {place for place, seen in self._hosts.items() if seen.report.leaves}

    def age_s(self, seen: SurveyedHost) -> float:
        """Return the age of a report in seconds."""
        return max(0.0, (self.now_ns - seen.at_ns) / _NS)

    def listen(self, timeout_s: float) -> None:
        """Read new entries, and wait for them for *timeout_s* seconds, or FLEET_BLOCK_S if that is shorter.

        Raises:
            BusError: The bus cannot be used.
        """
        heard = self._bus.read(self._cursor, timeout_s, self._reports_after)
        for entry in heard.reports:
            self._reports_after = entry.id
            self._note(entry)
            # The newest report has just been accepted.
            self._ahead_ns = self._newest_ns - time.time_ns()
        for message_entry in heard.entries:
            self._cursor = (message_entry.term, message_entry.seq)
            try:
                message = unseal(message_entry, self._bg_id, self._keys)
            except BadMessage as error:
                self.refused[error.kind] += 1
                continue
            self.leader = None if message.resigns else message
            self._ahead_ns = message.issued_ns - time.time_ns()
            if message.order is not None:
                self._note_order(message.order)

    def listen_for_leader(self, timeout_s: float) -> None:
        """Wait for a message of a leader, for *timeout_s* seconds at most.

        Raises:
            BusError: The bus cannot be used.
        """
        deadline = time.monotonic() + timeout_s
        while self.leader is None and (left_s := deadline - time.monotonic()) > 0:
            self.listen(left_s)

    def _note(self, entry: ReportEntry) -> None:
        try:
            told = unseal_report(entry.payload, self._bg_id, self._keys)
            at_ns = int(entry.id.partition("-")[0]) * _MS
        except BadMessage as error:
            self.refused[error.kind] += 1
            return
        self._newest_ns = max(self._newest_ns, at_ns)
        if isinstance(told, FleetOrder):
            self._note_order(told)
        elif not told.nudged and self._is_news(told):
            self._hosts[told.place] = SurveyedHost(told, at_ns)

    def _is_news(self, report: Report) -> bool:
        """Return whether the report is newer than the known one: a client that may write can repeat signed reports."""
        before = self._hosts.get(report.place)
        return before is None or report.issued_ns > before.report.issued_ns

    def _note_order(self, order: FleetOrder) -> None:
        if self.order is None or order.number > self.order.number:
            self.order = order

    def _those_of(self, least_s: float, most_s: float) -> list[SurveyedHost]:
        now_ns = self.now_ns
        there = (seen for seen in self._hosts.values() if not seen.report.leaves)
        found = (seen for seen in there if least_s <= max(0.0, (now_ns - seen.at_ns) / _NS) < most_s)
        return sorted(found, key=lambda seen: (seen.report.host, seen.report.place))
