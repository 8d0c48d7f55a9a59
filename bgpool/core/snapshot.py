"""The snapshot: the whole state of a deployment as the monitor knows it, and as every worker reads it.

There is no state beside it. A monitor that takes over goes on from the snapshot it finds; a reader that wonders
whether the timer has run out steps the same snapshot with its own clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bgpool.core.fleet import FleetView
from bgpool.core.observations import Observation
from bgpool.core.phase import Phase, Role

__all__ = ["EPOCH_OF_DECISION", "EPOCH_OF_TIMER", "Host", "Notice", "Snapshot", "TimelineEntry"]

#: How far the epoch rises at a decision, and where time alone has callers go by name, by anybody's clock.
EPOCH_OF_DECISION: Final = 2
EPOCH_OF_TIMER: Final = 1


@dataclass(frozen=True, slots=True)
class Host:
    """One endpoint of the deployment, as inventoried before the switchover.

    Attributes:
        addresses: IP addresses recorded before the switchover; empty while not resolved.
    """

    name: str
    port: int
    role: Role
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """Something that happened in a switchover; the rows of the summary table.

    Attributes:
        evidence: What told of it, for a phase that several things can tell of; else empty.
    """

    mono_ns: int
    wall_ns: int
    event: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A log line for the application's own logs; the monitor is a process of its own, with logs nobody reads.

    Attributes:
        number: Counts from 1 and never falls, so that a line is relayed once.
        level: A level of the logging module.
        event: What kind of line it is; see bgpool.logs.
    """

    number: int
    level: int
    logger: str
    text: str
    event: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A deployment at one moment.

    Attributes:
        phase: Where the deployment stands.
        epoch: Rises with the decisions that make older connections unfit: at IN_PROGRESS (drain) and at the release.
            A connection carries the epoch that it was about to be opened under; never falls.
        ready: Inventory, addresses and the blue → green map are complete.
        rolled_back: The last switchover went back to blue.
        pinned: Blue endpoints lead to green's recorded addresses, because DNS has not followed yet.
        blue_moved: Every blue endpoint resolves to a new address.
        green_gone: The green names no longer resolve.
        renamed: The green hosts have taken blue's names.
        certified: Green hosts that let the monitor in under the names they have after the switchover.
        source_reading, target_reading: The last status that each role reported; a reading is news when it differs.
        source_read_only, target_read_only: Whether each role takes no writes; None while it does not answer.
        green_was_replica: Green was a physical replica before it was promoted, so that it has blue's transaction ids.
        green_was_read_only: Green took no writes before the switchover, so that its taking some tells something; None
            while it was not seen before.
        blue_role_read_only: Blue takes no writes from the application's role, by a setting of that role or of its
            database, before the switchover: then such settings tell nothing. None while it was not seen.
        target_subscribes: Green follows another server's changes, by a subscription that is enabled.
        target_max_connections: How many clients green takes; 0 while it was not seen.
        hosts: Every endpoint of both roles. Frozen from PREPARATION until the switchover has ended.
        twins: Blue name → green name, for every blue endpoint that has a counterpart.
        deadline_ns: When the switchover counts as over, on the monotonic clock; 0 while none is under way.
        suspected_until_ns: Until when callers are held because blue has cut a connection in PREPARATION, and the
            switchover may have begun unread; on the monotonic clock, 0 for no such suspicion.
        told_until_ns: Until when callers are held although the metadata say that green was promoted, because green
            itself answers that it takes no writes; on the monotonic clock, 0 for no such wait. Only in IN_PROGRESS.
        subscribed_until_ns: The same although green takes writes, because it still follows blue.
        hold_until_ns: Until when an operator has every checkout wait, on the monotonic clock; 0 for no such order.
            Never during a switchover.
        release_until_ns: Until when an operator lets blue's callers go on where the switchover would hold them; on the
            monotonic clock, 0 for no such order. Only during a switchover.
        observations: What monitors' parameters have let them see; the last one is that of the monitor at hand.
        fleet: The host's place in its fleet, as its monitor has said last; None without bg_fleet.
    """

    bg_id: str
    phase: Phase = Phase.NOT_CREATED
    epoch: int = 1
    ready: bool = False
    rolled_back: bool = False
    pinned: bool = False
    blue_moved: bool = False
    green_gone: bool = False
    renamed: bool = False
    certified: tuple[str, ...] = ()
    source_reading: Phase | None = None
    target_reading: Phase | None = None
    source_read_only: bool | None = None
    target_read_only: bool | None = None
    green_was_read_only: bool | None = None
    green_was_replica: bool = False
    blue_role_read_only: bool | None = None
    target_subscribes: bool = False
    target_max_connections: int = 0
    hosts: tuple[Host, ...] = ()
    twins: tuple[tuple[str, str], ...] = ()
    deadline_ns: int = 0
    suspected_until_ns: int = 0
    told_until_ns: int = 0
    subscribed_until_ns: int = 0
    hold_until_ns: int = 0
    release_until_ns: int = 0
    timeline: tuple[TimelineEntry, ...] = ()
    notices: tuple[Notice, ...] = ()
    observations: tuple[Observation, ...] = ()
    fleet: FleetView | None = None

    def host(self, name: str) -> Host | None:
        """The host called *name*; None if it takes no part."""
        return next((host for host in self.hosts if host.name == name), None)

    def hosts_of(self, role: Role) -> tuple[Host, ...]:
        """The endpoints of one side."""
        return tuple(host for host in self.hosts if host.role is role)

    def twin(self, blue: str) -> Host | None:
        """The green host that corresponds to the blue endpoint *blue*; None if there is none."""
        return next((self.host(green) for name, green in self.twins if name == blue), None)

    @property
    def timers(self) -> tuple[int, ...]:
        """When time alone changes it, on the monotonic clock; those that have run out already may be among them."""
        ends = (
            self.deadline_ns,
            self.suspected_until_ns,
            self.told_until_ns,
            self.subscribed_until_ns,
            self.hold_until_ns,
            self.release_until_ns,
        )
        return tuple(end for end in ends if end)

    @property
    def all_certified(self) -> bool:
        """Whether every green host lets the monitor in under the name that it has after the switchover."""
        return all(host.name in self.certified for host in self.hosts_of(Role.TARGET))

    @property
    def is_overdue(self) -> bool:
        """Whether the timer ended a switchover of which nothing has shown yet that green took over."""
        return self.phase is Phase.COMPLETED and self.ready and not self.pinned and not self.blue_moved

    def reading(self, role: Role) -> Phase | None:
        """The last status that *role* reported."""
        return self.source_reading if role is Role.SOURCE else self.target_reading
