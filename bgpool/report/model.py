"""The status of a deployment. docs/status.md explains it to operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bgpool.core.phase import Phase
from bgpool.core.snapshot import TimelineEntry
from bgpool.core.timeline import TIMER

__all__ = [
    "ByHand",
    "Endpoint",
    "Event",
    "Fleet",
    "LastSwitchover",
    "Monitor",
    "Status",
    "Totals",
    "Worker",
    "over_by_timer",
]


@dataclass(frozen=True, slots=True)
class Monitor:
    """The process that watches the deployment.

    Attributes:
        state: ``alive``; ``silent``, without a heartbeat for HEARTBEAT_STALE_S; ``none``, if there never was one or it
            has exited.
        pid: Its own process id; None for state ``none``, like *term*.
        term: The number of the monitor: counts the monitors of this host.
        age_s: Seconds since its last heartbeat; None if there was none since the host was started.
        parameters: The parameters that it watches with, as ``user@host:port/database``; empty if not reported.
        visibility: The information that these give it access to; empty if that is a deployment, or if it is not known
            yet.
    """

    state: str
    pid: int | None = None
    term: int | None = None
    age_s: float | None = None
    parameters: str = ""
    visibility: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A blue endpoint, and its green counterpart.

    Attributes:
        green: The green endpoint; empty while it is not known, and then *green_addresses* are empty, too.
        blue_addresses, green_addresses: The addresses recorded before the switchover; empty while not resolved.
    """

    blue: str
    port: int
    blue_addresses: tuple[str, ...]
    green: str
    green_addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that uses the bg_id.

    Attributes:
        pid: Its own process id. It has no meaning outside of its container.
        behind: The number of snapshots since the one that all its pools have applied; 0 if it is up to date.
        held: Callers that wait for the end of the switchover.
        in_use, idle: The numbers of connections.
        waiting: Callers that wait for a connection.
        drained: Connections that switchovers made unfit, since the process started.
        cut: Drained connections that were still in use after the drain timeout.
        failed: Checkouts that ended with an error, since the process started.
        longest_hold_ms: The longest hold of a caller since the process started, including one in progress.
        max_size: The maximum of connections of its pools, without the pools outside of the deployment.
        taking_part: Pools whose endpoint is blue's or green's. This and the next are counted only once the deployment's
            inventory is complete.
        outside: Pools whose endpoint is neither, so that a switchover does not affect them.
        age_s: Seconds since the process wrote these values.
        lacks: The kernel features that it cannot use; *notes* of the status explain the consequences.
        stale: True if the values are older than ROW_STALE_S: the process is stopped, or its server lets no threads run.
        stuck_passwords: Pools whose password callable has not returned for PASSWORD_TIMEOUT_S.
        behind_proxy: Pools that connect to another port than their endpoint's, so that a switchover does not affect
            them.
        locked_out: Pools whose login green refuses, before a switchover.
        no_receipts: Pools whose receipts table cannot be used.
    """

    pid: int
    behind: int
    held: int
    in_use: int
    idle: int
    waiting: int
    drained: int
    cut: int
    failed: int
    longest_hold_ms: int
    max_size: int
    taking_part: int
    outside: int
    age_s: float
    stale: bool
    stuck_passwords: int = 0
    behind_proxy: int = 0
    locked_out: int = 0
    no_receipts: int = 0
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over all workers of the host; see Worker. *behind* counts the workers that are not up to date.

    *longest_hold_ms* is the maximum.
    """

    workers: int
    behind: int
    held: int
    in_use: int
    idle: int
    waiting: int
    drained: int
    cut: int
    failed: int
    longest_hold_ms: int
    max_size: int
    taking_part: int
    outside: int


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the summary table.

    Attributes:
        at: UTC, ISO 8601 with milliseconds.
        offset_ms: The offset from IN_PROGRESS; before it, and in a rollback, from PREPARATION.
        evidence: The evidence for a phase that more than one signal can start; otherwise empty.
    """

    at: str
    offset_ms: int
    event: str
    evidence: str


@dataclass(frozen=True, slots=True)
class ByHand:
    """The operator's order in force, see docs/status.md.

    Attributes:
        order: ``hold`` or ``release``.
        until: The time at which it expires, UTC, ISO 8601.
        left_ms: The time until then.
    """

    order: str
    until: str
    left_ms: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """The host's role in its fleet, as last reported by its monitor.

    Attributes:
        standing: ``leader``, which queries the database; ``follower``, which receives the leader's readings;
            ``direct``, which queries itself although it has a bus.
        leader: The id of the last known leader, as in ``bgpool fleet status``; empty if none.
        age_s: Seconds since the last valid message; None if there was none.
        hosts: The number of hosts, as counted by the leader; None while unknown.
        fallbacks: The number of times at which the host fell back to querying the database, since its monitor started.
        reason: The reason for ``direct``; otherwise empty.
    """

    standing: str
    leader: str
    age_s: float | None
    hosts: int | None
    fallbacks: int
    reason: str


@dataclass(frozen=True, slots=True)
class LastSwitchover:
    """The last switchover that has ended.

    Attributes:
        at: The time at which it began, UTC, ISO 8601.
        outcome: ``completed`` or ``rolled back``.
        duration_ms: The time from its first to its last phase.
        released_ms: The time of the release, from IN_PROGRESS, or from *at* if that was not read; None after a
            rollback.
        evidence: The evidence that caused the release; "timer" if there was none.
    """

    at: str
    outcome: str
    duration_ms: int
    released_ms: int | None
    evidence: str


@dataclass(frozen=True, slots=True)
class Status:
    """The status of a deployment on this host.

    Attributes:
        host: This host's name.
        phase: The phase; None if there is no readable snapshot.
        sequence: The sequence number of the newest snapshot; 0 if there is none.
        missing: The obstacles to a switchover of this host, as texts; empty if it may begin.
        timer_ms: The time until the switchover in progress counts as over, negative afterwards; None without a
            switchover.
        offset_ms: The current time as an offset like in *events*; None without a switchover in progress.
        green_max_connections: Green's max_connections; None while unknown.
        events: The events of the switchover in progress, or of the last one.
        disabled: True if ``$BGPOOL_DISABLE`` is set in the environment of the calling process.
        notes: Problems that do not prevent a switchover but may make it worse, with advice: time limits that do not fit
            together, features that a kernel or sandbox refuses, an unusable bus, and a history that is damaged or
            cannot be trusted.
        blind: Parameters of other pools with which a monitor has seen no deployment, each with the reason.
        by_hand: The operator's order in force; None if there is none.
        fleet: The host's role in its fleet; None without bg_fleet.
    """

    bg_id: str
    host: str
    run_dir: str
    phase: Phase | None
    sequence: int
    missing: tuple[str, ...]
    monitor: Monitor
    timer_ms: int | None
    offset_ms: int | None
    endpoints: tuple[Endpoint, ...]
    green_max_connections: int | None
    workers: tuple[Worker, ...]
    events: tuple[Event, ...]
    last_switchover: LastSwitchover | None
    disabled: bool = False
    blind: tuple[str, ...] = ()
    by_hand: ByHand | None = None
    notes: tuple[str, ...] = ()
    fleet: Fleet | None = None

    @property
    def ready(self) -> bool:
        """True if this host may be switched over."""
        return not self.missing

    @property
    def by_timer(self) -> bool:
        """True if the switchover counts as over only because of its timer: only AWS knows its outcome."""
        return self.phase is Phase.COMPLETED and over_by_timer(self.events)

    @property
    def totals(self) -> Totals:
        """The sums over the workers."""
        figures = {
            f.name: sum(getattr(worker, f.name) for worker in self.workers)
            for f in dataclasses.fields(Totals)
            if f.name not in ("workers", "behind", "longest_hold_ms")
        }
        figures["longest_hold_ms"] = max((worker.longest_hold_ms for worker in self.workers), default=0)
        return Totals(len(self.workers), sum(worker.behind > 0 for worker in self.workers), **figures)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``bgpool status --json``: every field, and *ready* and *totals*."""
        phase = self.phase.name if self.phase is not None else None
        added = {"ready": self.ready, "totals": dataclasses.asdict(self.totals)}
        return {**dataclasses.asdict(self), "phase": phase, **added}


def over_by_timer(events: Iterable[Event | TimelineEntry]) -> bool:
    """Return whether a switchover with *events* was ended by its timer, without an earlier release."""
    told = {event.event: event.evidence for event in events}
    return told.get(Phase.COMPLETED.name) == TIMER and Phase.POST.name not in told
