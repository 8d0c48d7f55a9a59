"""The roll of a fleet: which hosts have reported lately, and what they have said, for the leader."""

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
    """What the roll comes to.

    Attributes:
        hosts: Hosts that have reported lately and not left.
        switching: One of them is in a switchover.
        strangers: Those whose clocks differ from this host's by more than they may.
        order: The newest operator's order; None where none is kept.
    """

    hosts: int = 0
    switching: bool = False
    strangers: int = 0
    order: FleetOrder | None = None


class Roster:
    """Hosts by their places, by the bus's own clock: what was read late is no younger for it."""

    def __init__(self, member: str) -> None:
        """A roll that *member* calls."""
        self._member: Final = member
        # The newest report of each host, and when the bus took it, in ms since 1970. A monitor that was killed says no
        # farewell, and the host's next one is there already.
        self._reports: Final[dict[str, tuple[int, Report]]] = {}
        self._order: FleetOrder | None = None
        self._newest_ms = 0

    def add(self, at_ms: int, told: Report | FleetOrder) -> bool:
        """What the bus took at *at_ms*, by its own clock.

        Returns:
            Whether it is news: somebody without a key, who may write to the bus, may repeat what a host has told.
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
        """Who is there."""
        self._forget()
        there = [
            (report, report.issued_ns // 1_000_000 - at_ms)
            for at_ms, report in self._reports.values()
            if not report.leaves
        ]
        mine_ms = next((off_ms for report, off_ms in there if report.member == self._member), None)
        # A report of a host that is long gone, repeated by somebody, would have the others wait longer for their turns.
        counting = [report for report, off_ms in there if off_ms >= (mine_ms or 0) - _LIFE_MS]
        strangers = 0
        if mine_ms is not None:
            strangers = sum(abs(off_ms - mine_ms) > _ERROR_MS for _, off_ms in there)
        if 2 * strangers <= len(there):
            # They are the fewer, though some of them may not count as hosts.
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
