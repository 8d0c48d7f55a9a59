"""The plan of a fleet's switchover: the number of hosts, with or without a fleet, and a fault with its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab.director import Schedule

__all__ = ["BUS_FAULTS", "FLEET", "PHASES", "STOPPED_S", "BusFault", "Fault", "Plan"]

BusFault = Literal["kill", "stop", "flush", "del", "failover"]
"""The bus is killed, and stays away; stopped, and continues after `STOPPED_S`; loses everything; loses the leaders'
stream; or its primary disappears and its replica is promoted."""

BUS_FAULTS: Final[tuple[BusFault, ...]] = get_args(BusFault)

PHASES: Final = (Phase.CREATED, Phase.PREPARATION, Phase.IN_PROGRESS, Phase.POST, Phase.COMPLETED)
"""The phases in which a fault can happen to a fleet."""

STOPPED_S: Final = 10.0

FLEET: Final = Schedule(
    initiated_s=-3.0,
    writes_stopped_s=0.4,
    connections_dropped_s=0.6,
    caught_up_s=0.7,
    green_promoted_s=3.0,
    old_blue_open_s=3.3,
    names_changed_s=4.5,
    blue_dns_moved_s=5.0,
    green_dns_gone_s=6.5,
    completed_s=7.0,
)
"""Every phase takes three seconds at least: long enough to count queries in it."""

CALM_S: Final = 5.0
"""Long enough for a few queries of a host that queries once a second."""

_WHEN: Final[Mapping[Phase, float]] = {
    # A silent leader is detected after 1.5 s, and in a switchover after 0.4 s. A fault occurs shortly before the next
    # phase, which no host may learn too late. In POST and COMPLETED, which announce nothing, it occurs early.
    Phase.CREATED: FLEET.initiated_s - 0.3,
    Phase.PREPARATION: FLEET.in_progress_s - 0.3,
    Phase.IN_PROGRESS: FLEET.green_promoted_s - 0.3,
    Phase.POST: FLEET.green_promoted_s + 0.5,
    Phase.COMPLETED: FLEET.completed_s + 0.5,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault.

    Attributes:
        what: ``kill leader`` (SIGKILL), ``stop leader`` (SIGSTOP for `STOPPED_S`), or ``bus`` and a `BusFault`.
        phase: The phase of the fault, one of `PHASES`: shortly before the next one, or early in POST and COMPLETED.
    """

    what: str
    phase: Phase

    @property
    def at_s(self) -> float:
        """The time, in seconds from SWITCHOVER_IN_PROGRESS."""
        return _WHEN[self.phase]

    @property
    def bus(self) -> str:
        """The fault of the bus; empty for a fault of the leader."""
        return self.what.removeprefix("bus ") if self.what.startswith("bus ") else ""

    def __str__(self) -> str:
        return f"{self.what} in {self.phase.name}"


@dataclass(frozen=True)
class Plan:
    """One switchover of a fleet.

    Attributes:
        hosts: The number of hosts, with one monitor each.
        fleet: True if they follow one leader; False for hosts that are independent of each other.
        fault: The fault of the leader or the bus; None for none.
        calm_s: The time for which CREATED, after all hosts have joined, and COMPLETED are observed, in seconds.
        pair_options: More keywords for Pair, of PostgreSQL and without a major upgrade.
        pool_options: More keywords for get_pool.
    """

    hosts: int = 30
    fleet: bool = True
    fault: Fault | None = None
    calm_s: float = CALM_S
    pair_options: Mapping[str, Any] = field(default_factory=dict)
    pool_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hosts < 1:
            raise ValueError(f"hosts must be 1 or more, not {self.hosts}")
        if self.fault is not None and not self.fleet:
            raise ValueError("without a fleet there is no leader and no bus for a fault")
        if self.pair_options.get("engine", Engine.POSTGRESQL) is not Engine.POSTGRESQL:
            raise ValueError("a fleet runs on PostgreSQL, whose log identifies the hosts of queries")

    @property
    def end_s(self) -> float:
        """The time of the end, in seconds from SWITCHOVER_IN_PROGRESS."""
        end_s = FLEET.completed_s + self.calm_s
        if self.fault is not None and "stop" in self.fault.what:
            # A stopped monitor continues, and is observed for a while.
            end_s = max(end_s, self.fault.at_s + STOPPED_S + self.calm_s)
        return end_s
