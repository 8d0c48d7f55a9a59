"""What is told of a deployment. docs/status.md explains the same to operators."""

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
        state: ``alive``; ``silent``, if it has given no sign of life for HEARTBEAT_STALE_S; ``none``, if there never
            was one or it has left.
        pid: As it sees itself; None for state ``none``, like *term*.
        term: Counts the monitors of this host.
        age_s: Seconds since its last sign of life; None where there was none since the host was started.
        parameters: Whose parameters it watches with, as ``user@host:port/database``; empty where it has not said so.
        visibility: What they let it see; empty where that is a deployment, or nothing is known yet.
    """

    state: str
    pid: int | None = None
    term: int | None = None
    age_s: float | None = None
    parameters: str = ""
    visibility: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A blue endpoint, and the green one that takes its place.

    Attributes:
        green: Empty while it is not known; then *green_addresses* are empty too.
        blue_addresses, green_addresses: As recorded before the switchover; empty while not resolved.
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
        pid: As it sees itself: in another container it means nothing.
        behind: Snapshots published since the one that all its pools have acted on; 0 for none.
        held: Callers that wait for the switchover to pass.
        in_use, idle: Connections.
        waiting: Callers that wait for a connection.
        drained: Connections that switchovers made unfit, since the process began.
        cut: Those of them that were still in use after the grace.
        failed: Checkouts that ended with an error, since the process began.
        longest_hold_ms: The longest hold of a caller since the process began; one that is under way counts.
        max_size: Connections that its pools may have, without the pools outside.
        taking_part: Pools whose endpoint is blue's or green's. Neither these nor the next are counted before the
            deployment's inventory is complete.
        outside: Pools whose endpoint is neither, so that a switchover passes them by.
        age_s: Seconds since it last said all this.
        lacks: What the kernel or a sandbox refuses to it; *notes* of the status say what follows.
        stale: That is longer ago than ROW_STALE_S: the process is stopped, or its server lets no threads run.
        stuck_passwords: Pools whose password callable has not returned for PASSWORD_TIMEOUT_S.
        behind_proxy: Pools that connect to another port than their endpoint has, so that a switchover passes them by.
        locked_out: Pools whose login green refuses, while a deployment waits for its switchover.
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
    """What all workers of the host add up to; see Worker. *behind* counts those that have not caught up.

    *longest_hold_ms* is the longest of all.
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
        offset_ms: From IN_PROGRESS; before it, and in a rollback, from PREPARATION.
        evidence: What told of it, for a phase that several things can tell of; else empty.
    """

    at: str
    offset_ms: int
    event: str
    evidence: str


@dataclass(frozen=True, slots=True)
class ByHand:
    """What an operator has ordered, see docs/status.md.

    Attributes:
        order: ``hold`` or ``release``.
        until: When it ends by itself, UTC, ISO 8601.
        left_ms: Until then.
    """

    order: str
    until: str
    left_ms: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """The host's place in its fleet, as its monitor has said last.

    Attributes:
        standing: ``leader``, which asks the database; ``follower``, which hears what the leader was told; ``direct``,
            which asks itself although it has a bus.
        leader: The id of the leader that was heard last, as ``bgpool fleet status`` names it; empty for none.
        age_s: Seconds since a message that counts was heard; None where there was none.
        hosts: By the leader's count; None while nobody has said.
        fallbacks: How often the host went back to asking the database itself, since its monitor began.
        reason: Why it is ``direct``; else empty.
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
        at: When it began, UTC, ISO 8601.
        outcome: ``completed`` or ``rolled back``.
        duration_ms: From its first to its last phase.
        released_ms: When callers were let go, from IN_PROGRESS, or from *at* where that was not read; None after a
            rollback.
        evidence: What told that they could be; "timer" if nothing did.
    """

    at: str
    outcome: str
    duration_ms: int
    released_ms: int | None
    evidence: str


@dataclass(frozen=True, slots=True)
class Status:
    """One deployment as this host knows it.

    Attributes:
        host: What this host calls itself.
        phase: None where no snapshot is to be had.
        sequence: The newest snapshot; 0 for none.
        missing: What stands between this host and a switchover, in words; empty if it may begin.
        timer_ms: Until a switchover that is under way counts as over, negative afterwards; None while none is.
        offset_ms: Now, as in *events*; None while no switchover is under way.
        green_max_connections: How many clients green takes (its max_connections); None while it is not known.
        events: What has happened in the switchover at hand, or the last one.
        disabled: ``$BGPOOL_DISABLE`` is set in the environment of the process that asks.
        notes: What does not keep the host from a switchover, but may make it worse, with what to do: time limits that
            do not fit each other, what a kernel or sandbox refuses, a bus that is of no use, and a history that is
            damaged or not to be trusted.
        blind: Parameters of other pools with which a monitor has seen no deployment, each with the reason.
        by_hand: The operator's order that stands; None for none.
        fleet: The host's place in its fleet; None without bg_fleet.
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
        """Whether this host may be switched over."""
        return not self.missing

    @property
    def by_timer(self) -> bool:
        """Whether the switchover counts as over by its timer alone: what became of it, only AWS can tell."""
        return self.phase is Phase.COMPLETED and over_by_timer(self.events)

    @property
    def totals(self) -> Totals:
        """The workers' sums."""
        figures = {
            f.name: sum(getattr(worker, f.name) for worker in self.workers)
            for f in dataclasses.fields(Totals)
            if f.name not in ("workers", "behind", "longest_hold_ms")
        }
        figures["longest_hold_ms"] = max((worker.longest_hold_ms for worker in self.workers), default=0)
        return Totals(len(self.workers), sum(worker.behind > 0 for worker in self.workers), **figures)

    def as_dict(self) -> dict[str, Any]:
        """What ``bgpool status --json`` prints: every field, and *ready* and *totals*."""
        phase = self.phase.name if self.phase is not None else None
        added = {"ready": self.ready, "totals": dataclasses.asdict(self.totals)}
        return {**dataclasses.asdict(self), "phase": phase, **added}


def over_by_timer(events: Iterable[Event | TimelineEntry]) -> bool:
    """Whether a switchover with *events* has ended by its timer, and was not released by anything before."""
    told = {event.event: event.evidence for event in events}
    return told.get(Phase.COMPLETED.name) == TIMER and Phase.POST.name not in told
