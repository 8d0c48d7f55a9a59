"""The roster of a fleet, kept by its leader: the hosts that have reported recently, and their reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bgpool.core.fleet import FleetOrder, Report
from bgpool.core.limits import FLEET_CLOCK_ERROR_S, FLEET_HOSTS, FLEET_REPORT_LIFE_S
from bgpool.core.phase import SWITCHING

__all__ = ["RosterCounts", "Roster"]

_LIFE_MS: Final = int(FLEET_REPORT_LIFE_S * 1000)
_ERROR_MS: Final = int(FLEET_CLOCK_ERROR_S * 1000)


@dataclass(frozen=True, slots=True)
class RosterCounts:
    """The counts from the roster.

    Attributes:
        hosts: Hosts that have reported recently and not left.
        switching: True if one of them is in a switchover.
        strangers: Hosts whose clocks differ from this host's by more than the limit.
        order: The newest operator's order; None if none is kept.
    """

    hosts: int = 0
    switching: bool = False
    strangers: int = 0
    order: FleetOrder | None = None


class Roster:
    """Hosts by their place ids. Ages are judged by the bus's clock: a late read does not make a report younger."""

    def __init__(self, member: str) -> None:
        """Create the roster of *member*."""
        self._member: Final = member
        # The newest report of each host, and the time at which the bus accepted it, in ms since 1970. A killed monitor
        # sends no last report, and the host's next monitor replaces it.
        self._reports: Final[dict[str, tuple[int, Report]]] = {}
        self._order: FleetOrder | None = None
        self._newest_ms = 0

    def add(self, at_ms: int, told: Report | FleetOrder) -> bool:
        """Add a report that the bus accepted at *at_ms*, by its own clock.

        Returns:
            True if it is new: a client without a key that may write to the bus can repeat old reports.
        """
        self._newest_ms = max(self._newest_ms, at_ms)
        if isinstance(told, FleetOrder):
            is_news = self._order is None or told.number > self._order.number
            if is_news:
                self._order = told
            return is_news
        before = self._reports.get(told.place)
        if before is not None and told.issued_ns <= before[1].issued_ns:
            return False
        self._reports[told.place] = (at_ms, told)
        if len(self._reports) > 2 * FLEET_HOSTS:
            self._forget()
        return True

    def count(self) -> RosterCounts:
        """Return the current counts."""
        self._forget()
        there = [
            (report, report.issued_ns // 1_000_000 - at_ms)
            for at_ms, report in self._reports.values()
            if not report.leaves
        ]
        mine_ms = next((off_ms for report, off_ms in there if report.member == self._member), None)
        # A repeated report of a host that left long ago would make the others wait longer for their turns.
        counting = [report for report, off_ms in there if off_ms >= (mine_ms or 0) - _LIFE_MS]
        strangers = 0
        if mine_ms is not None:
            strangers = sum(abs(off_ms - mine_ms) > _ERROR_MS for _, off_ms in there)
        if 2 * strangers <= len(there):
            # They must remain the minority, even if some of them do not count as hosts.
            strangers = min(strangers, len(counting) // 2)
        return RosterCounts(
            hosts=len(counting),
            switching=any(report.phase in SWITCHING for report in counting),
            strangers=strangers,
            order=self._order,
        )

    def _forget(self) -> None:
        for place, (at_ms, _) in list(self._reports.items()):
            if at_ms < self._newest_ms - _LIFE_MS:
                del self._reports[place]
