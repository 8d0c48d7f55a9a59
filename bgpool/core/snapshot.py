"""The snapshot: the complete state of a deployment, written by the monitor and read by every worker.

There is no other state. A monitor that takes over continues from the last snapshot. A reader detects that the timer has
run out by applying a step to the same snapshot with its own clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bgpool.core.fleet import FleetView
from bgpool.core.observations import Observation
from bgpool.core.phase import Phase, Role

__all__ = ["EPOCH_OF_DECISION", "EPOCH_OF_TIMER", "Host", "Notice", "Snapshot", "TimelineEntry"]

#: The increment of the epoch at a decision, and where a timer alone makes callers connect by name, on any clock.
EPOCH_OF_DECISION: Final = 2
EPOCH_OF_TIMER: Final = 1


@dataclass(frozen=True, slots=True)
class Host:
    """One endpoint of the deployment, as recorded before the switchover.

    Attributes:
        addresses: The IP addresses recorded before the switchover; empty until resolved.
    """

    name: str
    port: int
    role: Role
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """An event of a switchover: a row of the summary table.

    Attributes:
        evidence: The evidence for a phase that more than one signal can start; otherwise empty.
    """

    mono_ns: int
    wall_ns: int
    event: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A log line for the application's own log. The monitor is a separate process, whose log is rarely read.

    Attributes:
        number: Counts from 1 and never decreases, so that a line is relayed once.
        level: A level of the logging module.
        event: The kind of line; see bgpool.logs.
    """

    number: int
    level: int
    logger: str
    text: str
    event: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a deployment at one time.

    Attributes:
        phase: The phase of the deployment.
        epoch: Increases with the decisions that make older connections unfit: at IN_PROGRESS (drain) and at the
            release. Never decreases. A connection carries the epoch that was current before it was opened.
        ready: True if inventory, addresses and the blue → green map are complete.
        rolled_back: True if the last switchover went back to blue.
        pinned: True if blue endpoints are routed to green's recorded addresses, because DNS has not followed yet.
        blue_moved: True if every blue endpoint resolves to a new address.
        green_gone: True if the green names no longer resolve.
        renamed: True if the green hosts have taken blue's names.
        certified: The green hosts that accept the monitor's login under the names that they have after the switchover.
        source_reading, target_reading: The last status that each role reported. Only a changed reading has an effect.
        source_read_only, target_read_only: True if the role accepts no writes; None while it does not answer.
        green_was_replica: True if green was a physical replica before its promotion, so that it has blue's transaction
            ids.
        green_was_read_only: True if green accepted no writes before the switchover, so that accepting them later is
            evidence; None if it was not seen before.
        blue_role_read_only: True if blue accepted no writes from the application's role before the switchover, because
            of a setting of that role or of its database: then such settings are no evidence. None if it was not seen.
        target_subscribes: True if green follows another server's changes, by an enabled subscription.
        target_max_connections: Green's max_connections; 0 until it was seen.
        hosts: Every endpoint of both roles. Frozen from PREPARATION until the switchover has ended.
        twins: Blue name → green name, for every blue endpoint that has a counterpart.
        deadline_ns: The time after which the switchover counts as over, on the monotonic clock; 0 if there is none.
        suspected_until_ns: The end of the hold that a suspicion causes: blue has cut a connection in PREPARATION, and
            the switchover may have begun before the monitor read it. On the monotonic clock, 0 for no suspicion.
        told_until_ns: The end of the wait for green after the metadata reported its promotion while green itself
            answers that it accepts no writes; on the monotonic clock, 0 for no such wait. Only in IN_PROGRESS.
        subscribed_until_ns: The end of the wait for a green that accepts writes but still follows blue.
        hold_until_ns: The end of the operator's hold of every checkout, on the monotonic clock; 0 if there is none.
            Never during a switchover.
        release_until_ns: The end of the operator's release of blue's callers that the switchover would hold; on the
            monotonic clock, 0 if there is none. Only during a switchover.
        observations: The visibility that monitors had with their parameters; the last one belongs to the current
            monitor.
        fleet: The host's role in its fleet, as last reported by its monitor; None without bg_fleet.
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
        """Return the host called *name*; None if it is not part of the deployment."""
        return next((host for host in self.hosts if host.name == name), None)

    def hosts_of(self, role: Role) -> tuple[Host, ...]:
        """Return the endpoints of one side."""
        return tuple(host for host in self.hosts if host.role is role)

    def twin(self, blue: str) -> Host | None:
        """Return the green host that corresponds to the blue endpoint *blue*; None if there is none."""
        return next((self.host(green) for name, green in self.twins if name == blue), None)

    @property
    def timers(self) -> tuple[int, ...]:
        """The times at which time alone changes the snapshot, on the monotonic clock; some may have passed."""
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
        """True if every green host accepts the monitor's login under the name that it has after the switchover."""
        return all(host.name in self.certified for host in self.hosts_of(Role.TARGET))

    @property
    def is_overdue(self) -> bool:
        """True if the timer ended the switchover and there is still no evidence that green took over."""
        return self.phase is Phase.COMPLETED and self.ready and not self.pinned and not self.blue_moved

    def reading(self, role: Role) -> Phase | None:
        """Return the last status that *role* reported."""
        return self.source_reading if role is Role.SOURCE else self.target_reading
