"""The roll of a fleet: which hosts have reported lately, and what they have said, for the leader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bgpool.core.fleet import FleetOrder, Report
from bgpool.core.limits import FLEET_CLOCK_ERROR_S, FLEET_HOSTS, FLEET_REPORT_LIFE_S
from bgpool.core.phase import SWITCHING

__all__ = ["Count", "Roll"]

_LIFE_MS: Final = int(FLEET_REPORT_LIFE_S * 1000)
_ERROR_MS: Final = int(FLEET_CLOCK_ERROR_S * 1000)


@dataclass(frozen=True, slots=True)
class Count:
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


class Roll:
    """Hosts by their places, by the bus's own clock: what was read late is no younger for it."""

    def __init__(self, member: str) -> None:
        """A roll that *member* calls."""
        self._member: Final = member
        # The newest report of each host, and when the bus took it, in ms since 1970. A monitor that was killed says no
        # farewell, and the host's next one is there already.
        self._reports: Final[dict[str, tuple[int, Report]]] = {}
        self._order: FleetOrder | None = None
        self._newest_ms = 0

    def add(self, at_ms: int, told: Report | FleetOrder) -> None:
        """What the bus took at *at_ms*, by its own clock."""
        self._newest_ms = max(self._newest_ms, at_ms)
        if isinstance(told, FleetOrder):
            if self._order is None or told.number > self._order.number:
                self._order = told
            return
        if told.nudged:
            return
        self._reports[told.place] = (at_ms, told)
        if len(self._reports) > 2 * FLEET_HOSTS:
            self._forget()

    def count(self) -> Count:
        """Who is there."""
        self._forget()
        there = [(at_ms, report) for at_ms, report in self._reports.values() if not report.leaves]
        off_ms = {report.member: report.issued_ns // 1_000_000 - at_ms for at_ms, report in there}
        mine = off_ms.get(self._member)
        return Count(
            hosts=len(there),
            switching=any(report.phase in SWITCHING for _, report in there),
            strangers=sum(abs(off - mine) > _ERROR_MS for off in off_ms.values()) if mine is not None else 0,
            order=self._order,
        )

    def _forget(self) -> None:
        for place, (at_ms, _) in list(self._reports.items()):
            if at_ms < self._newest_ms - _LIFE_MS:
                del self._reports[place]
