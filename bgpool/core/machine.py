"""The state machine of a switchover: ``step(snapshot, event) → snapshot``, a function and a table.

Facts arrive as events, each with its time. The phase changes only along TRANSITIONS. A fact that does not fit the phase
is recorded if it matters later, and changes nothing else. The monitor's next actions (poll interval, servers, names to
resolve) are not effects of a step; they follow from the snapshot: see core/plan.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from bgpool.core import inventory, observations, promotion, topology
from bgpool.core.endpoints import parse_endpoint
from bgpool.core.events import (
    Answered,
    CertificateRenewed,
    Event,
    Instant,
    MetadataAbsent,
    MetadataFailed,
    Nudged,
    Ordered,
    ProbeFailed,
    Resolved,
    StatusRead,
    Tick,
)
from bgpool.core.limits import ENDPOINTS, GREEN_WAIT_S
from bgpool.core.orders import drain_released, expire, obey
from bgpool.core.phase import PHASE_OF_STATUS, SWITCHING, Phase, Role
from bgpool.core.records import add_entry, add_notice
from bgpool.core.snapshot import EPOCH_OF_DECISION, EPOCH_OF_TIMER, Snapshot
from bgpool.core.suspicion import allay, suspect
from bgpool.core.timeline import CREATED_AGAIN, DNS, METADATA, TIMER, summary_table
from bgpool.core.timeouts import timer_misfit

__all__ = ["TRANSITIONS", "Rules", "Signal", "is_settled", "leave_blind", "step"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The parameters that a step depends on.

    Attributes:
        switchover_timeout_ms: The time from PREPARATION after which a switchover counts as over. Positive.
        release_on_blue_dns_update: True if moved DNS alone ends IN_PROGRESS.
        await_certificates: True if clients verify host names by TLS, so that blue's names cannot be used before green
            has certificates for them.
    """

    switchover_timeout_ms: int = 180_000
    release_on_blue_dns_update: bool = True
    await_certificates: bool = False


class Signal(Enum):
    """The meaning of a fact for the phase."""

    AVAILABLE = "a role reads AVAILABLE"
    INITIATED = "a role reads SWITCHOVER_INITIATED"
    STARTED = "a role reads SWITCHOVER_IN_PROGRESS"
    PROMOTED = "a role reads SWITCHOVER_IN_POST_PROCESSING"
    FINISHED = "a role reads SWITCHOVER_COMPLETED, and no inventory says otherwise"
    REVERTED = "green reads AVAILABLE again"
    WITHDRAWN = "blue answers and has no deployment to tell of"
    TOOK_OVER = "green, which was read-only, takes writes, and blue does not"
    BLUE_MOVED = "every blue endpoint resolves to a new address"
    SETTLED = "blue's names have moved and green's are gone"
    TIMED_OUT = "the switchover timer has run out"


_REPORTED: Final = {
    Phase.CREATED: Signal.AVAILABLE,
    Phase.PREPARATION: Signal.INITIATED,
    Phase.IN_PROGRESS: Signal.STARTED,
}

#: The evidence that the timeline names, for phases that more than one signal can start.
_EVIDENCE: Final[Mapping[Signal, str]] = {
    Signal.PROMOTED: METADATA,
    Signal.FINISHED: METADATA,
    Signal.TOOK_OVER: "green promoted",
    Signal.BLUE_MOVED: "blue DNS updated",
    Signal.SETTLED: DNS,
    Signal.TIMED_OUT: TIMER,
}

#: The next phase for each phase and signal. A pair that is not listed changes nothing: silence, an error or an old
#: reading never undoes a switchover. Only green's own reading can show a rollback, and only before POST.
TRANSITIONS: Final[Mapping[tuple[Phase, Signal], Phase]] = {
    (Phase.NOT_CREATED, Signal.AVAILABLE): Phase.CREATED,
    (Phase.NOT_CREATED, Signal.INITIATED): Phase.PREPARATION,
    (Phase.NOT_CREATED, Signal.STARTED): Phase.IN_PROGRESS,
    (Phase.NOT_CREATED, Signal.PROMOTED): Phase.POST,
    (Phase.NOT_CREATED, Signal.FINISHED): Phase.COMPLETED,
    (Phase.CREATED, Signal.INITIATED): Phase.PREPARATION,
    (Phase.CREATED, Signal.STARTED): Phase.IN_PROGRESS,
    (Phase.CREATED, Signal.PROMOTED): Phase.POST,
    (Phase.CREATED, Signal.FINISHED): Phase.COMPLETED,
    (Phase.CREATED, Signal.WITHDRAWN): Phase.NOT_CREATED,
    (Phase.PREPARATION, Signal.STARTED): Phase.IN_PROGRESS,
    (Phase.PREPARATION, Signal.PROMOTED): Phase.POST,
    (Phase.PREPARATION, Signal.TOOK_OVER): Phase.POST,
    (Phase.PREPARATION, Signal.BLUE_MOVED): Phase.POST,
    (Phase.PREPARATION, Signal.FINISHED): Phase.COMPLETED,
    (Phase.PREPARATION, Signal.REVERTED): Phase.CREATED,
    (Phase.PREPARATION, Signal.TIMED_OUT): Phase.COMPLETED,
    (Phase.IN_PROGRESS, Signal.PROMOTED): Phase.POST,
    (Phase.IN_PROGRESS, Signal.TOOK_OVER): Phase.POST,
    (Phase.IN_PROGRESS, Signal.BLUE_MOVED): Phase.POST,
    (Phase.IN_PROGRESS, Signal.FINISHED): Phase.COMPLETED,
    (Phase.IN_PROGRESS, Signal.REVERTED): Phase.CREATED,
    (Phase.IN_PROGRESS, Signal.TIMED_OUT): Phase.COMPLETED,
    (Phase.POST, Signal.SETTLED): Phase.COMPLETED,
    (Phase.POST, Signal.FINISHED): Phase.COMPLETED,
    (Phase.POST, Signal.TIMED_OUT): Phase.COMPLETED,
    (Phase.COMPLETED, Signal.AVAILABLE): Phase.CREATED,
    (Phase.COMPLETED, Signal.INITIATED): Phase.PREPARATION,
    (Phase.COMPLETED, Signal.PROMOTED): Phase.POST,
    (Phase.COMPLETED, Signal.TOOK_OVER): Phase.POST,
    (Phase.COMPLETED, Signal.BLUE_MOVED): Phase.POST,
    (Phase.COMPLETED, Signal.WITHDRAWN): Phase.NOT_CREATED,
}


def step(snapshot: Snapshot, event: Event, rules: Rules) -> Snapshot:
    """Return the snapshot after *event*: the same object if nothing has changed."""
    snapshot = _check_timers(_begin_to_watch(snapshot, event.at), event.at, rules)
    after = drain_released(snapshot, _take(snapshot, event, rules))
    return expire(allay(observations.note(after, event), event), event.at)


def is_settled(before: Snapshot, after: Snapshot) -> bool:
    """Return whether repetitions of the answer that led from *before* to *after* would change nothing.

    A step depends on the content of an answer, never on the number or time of its repetitions. Only a suspicion waits
    for an answer that is given after it. A failure is different: its duration matters.
    """
    return after is before and not after.suspected_until_ns


def leave_blind(snapshot: Snapshot, at: Instant) -> Snapshot:
    """Return the snapshot of a monitor that exits because its parameters show no deployment; others are tried next."""
    mine = snapshot.observations[-1]
    text = (
        f"monitor stops: it sees no deployment with the parameters {mine.parameters} ({mine.visibility.text}); the "
        "next monitor uses the parameters of another pool"
    )
    return add_notice(observations.leave(snapshot, at), logging.INFO, "monitor", "monitor_stopped", text)


def _take(snapshot: Snapshot, event: Event, rules: Rules) -> Snapshot:
    match event:
        case Tick():
            return snapshot
        case Answered():
            return _answered(snapshot, event, rules)
        case StatusRead():
            return _status_read(snapshot, event, rules)
        case MetadataAbsent():
            return _metadata_absent(snapshot, event, rules)
        case MetadataFailed():
            return _metadata_failed(snapshot, event)
        case ProbeFailed():
            return _probe_failed(snapshot, event, rules)
        case CertificateRenewed():
            return _certificate_renewed(snapshot, event, rules)
        case Resolved():
            return _resolved(snapshot, event, rules)
        case Nudged():
            return suspect(snapshot, event)
        case Ordered():
            return obey(snapshot, event)


# -- facts -------------------------------------------------------------------------------------------------------


def _begin_to_watch(snapshot: Snapshot, at: Instant) -> Snapshot:
    """Add the first row of the summary: the time at which the monitor saw no deployment."""
    if snapshot.phase is not Phase.NOT_CREATED or snapshot.timeline:
        return snapshot
    return add_entry(snapshot, at, Phase.NOT_CREATED.name)


def _check_timers(snapshot: Snapshot, at: Instant, rules: Rules) -> Snapshot:
    # A wait for green ends no later than the timer. End it first, so that the reported promotion is not lost.
    snapshot = _end_waits(snapshot, at, rules)
    if snapshot.phase not in SWITCHING or at.mono_ns < snapshot.deadline_ns:
        return snapshot
    late = f"the switchover is still {snapshot.phase.name} after bg_switchover_timeout_ms={rules.switchover_timeout_ms}"
    if snapshot.phase is Phase.POST:
        # Only DNS or certificates are late. No caller is held, and none is affected.
        text = f"{late}: it counts as completed from now on; green was promoted, and callers connect to it"
        snapshot = add_notice(snapshot, logging.INFO, "switchover", "post_timed_out", text)
    else:
        text = (
            f"{late}: it counts as completed from now on, and callers are no longer held; check in AWS which side is "
            "production"
        )
        snapshot = add_notice(snapshot, logging.WARNING, "switchover", "switchover_timed_out", text)
    return _signal(snapshot, Signal.TIMED_OUT, at, rules)


def _answered(snapshot: Snapshot, event: Answered, rules: Rules) -> Snapshot:
    return _look_at_green(promotion.note_answer(snapshot, event), event.at, rules)


def _status_read(snapshot: Snapshot, event: StatusRead, rules: Rules) -> Snapshot:
    if not event.rows:
        return _withdrawn(snapshot, event.role, event.at, rules)
    target = topology.counting_row(event.rows, Role.TARGET)
    # Both roles' rows have the same status. Once blue is renamed to old blue, its own server has only green's row.
    row = topology.counting_row(event.rows, event.role) or target
    if row is None:
        return snapshot
    if row.version != "1.0":
        text = f"metadata version {row.version!r} is unknown and is read as 1.0; check for a newer version of bgpool"
        snapshot = add_notice(snapshot, logging.WARNING, "monitor", "unknown_metadata_version", text)
    reading = PHASE_OF_STATUS.get(row.status.strip().upper())
    if reading is None:
        text = f"status {row.status!r} is unknown and changes nothing; known are {', '.join(PHASE_OF_STATUS)}"
        return add_notice(snapshot, logging.WARNING, "monitor", "unknown_metadata_status", text)
    # The phase first: a deployment's first reading clears what an earlier deployment left.
    before = snapshot.reading(event.role)
    snapshot = _with_reading(snapshot, event.role, reading)
    if reading is not before:
        snapshot = _news(snapshot, event.role, before, reading, event.at, rules)
    snapshot = _check_ready(inventory.record_hosts(snapshot, event), rules)
    return _green_renamed(snapshot, event.at, target.endpoint) if target is not None else snapshot


def _news(snapshot: Snapshot, role: Role, before: Phase | None, reading: Phase, at: Instant, rules: Rules) -> Snapshot:
    """Handle a reading of *role* that differs from the last one. A repeated reading (frozen metadata) has no effect."""
    if reading is Phase.COMPLETED:
        return _told(snapshot, at, rules)
    if reading is Phase.CREATED and snapshot.phase in SWITCHING:
        # "Again": green itself must have left AVAILABLE, or both sides must agree on it.
        again = before is not None if role is Role.TARGET else snapshot.target_reading is Phase.CREATED
        return _signal(snapshot, Signal.REVERTED, at, rules) if again else snapshot
    if reading is Phase.POST:
        return _told(snapshot, at, rules)
    return _signal(snapshot, _REPORTED[reading], at, rules)


def _metadata_absent(snapshot: Snapshot, event: MetadataAbsent, rules: Rules) -> Snapshot:
    if snapshot.phase is Phase.NOT_CREATED:
        snapshot = add_notice(snapshot, logging.INFO, "monitor", "no_metadata", event.remedy)
    return _withdrawn(snapshot, event.role, event.at, rules)


def _metadata_failed(snapshot: Snapshot, event: MetadataFailed) -> Snapshot:
    """Log a failed metadata query of a server that answers. The phase does not change."""
    text = f"the monitor cannot read the metadata of {event.role.colour}: {event.error}"
    return add_notice(snapshot, logging.WARNING, "monitor", "metadata_failed", text)


def _probe_failed(snapshot: Snapshot, event: ProbeFailed, rules: Rules) -> Snapshot:
    """Log a server that does not answer, except in a switchover, which cuts every connection."""
    snapshot = _look_at_green(promotion.note_silence(snapshot, event.role), event.at, rules)
    if snapshot.phase in SWITCHING:
        return snapshot
    text = f"{event.role.colour} does not answer the monitor: {event.error}"
    return add_notice(snapshot, logging.WARNING, "monitor", "server_not_answering", text)


def _certificate_renewed(snapshot: Snapshot, event: CertificateRenewed, rules: Rules) -> Snapshot:
    if event.host in snapshot.certified or snapshot.phase < Phase.POST:
        return snapshot
    snapshot = replace(snapshot, certified=(*snapshot.certified, event.host)[-ENDPOINTS:])
    if snapshot.all_certified:
        snapshot = add_entry(snapshot, event.at, "Green host certificates changed")
    return _unpin(snapshot, event.at, rules)


def _withdrawn(snapshot: Snapshot, role: Role, at: Instant, rules: Rules) -> Snapshot:
    """Handle a deployment that is gone. Only blue's answer counts, and never while traffic uses the recorded addresses.

    After the timer has run out, the answer counts only if blue accepts writes: then it was not replaced.
    """
    unsettled = snapshot.is_overdue and snapshot.source_read_only is not False
    if role is Role.TARGET or snapshot.pinned or unsettled:
        return snapshot
    return _signal(snapshot, Signal.WITHDRAWN, at, rules)


def _resolved(snapshot: Snapshot, event: Resolved, rules: Rules) -> Snapshot:
    if snapshot.phase is Phase.CREATED or (snapshot.phase in SWITCHING and not snapshot.ready):
        snapshot = _check_ready(inventory.record_addresses(snapshot, event), rules)
    if snapshot.phase < Phase.PREPARATION:
        return snapshot
    if not snapshot.blue_moved and _is_evidence(snapshot, event):
        if rules.release_on_blue_dns_update:
            # Signal before recording: a switchover is overdue only while no evidence is recorded.
            snapshot = _signal(snapshot, Signal.BLUE_MOVED, event.at, rules)
        snapshot = add_entry(replace(snapshot, blue_moved=True), event.at, "Blue DNS updated")
    green = [host.name for host in snapshot.hosts_of(Role.TARGET)]
    gone = bool(green) and all(event.addresses.get(name) == () for name in green)
    if gone and not snapshot.green_gone and snapshot.phase >= Phase.POST:
        snapshot = add_entry(replace(snapshot, green_gone=True), event.at, "Green DNS removed")
    return _unpin(snapshot, event.at, rules)


def _is_evidence(snapshot: Snapshot, event: Resolved) -> bool:
    """Return whether blue's names have moved because of the switchover.

    A new address may belong to blue's own standby, but green's recorded address belongs only to green. Any other
    address counts if the servers are silent in IN_PROGRESS, because green may have moved as well, and after green's
    promotion.
    """
    if not inventory.has_moved(snapshot, event):
        return False
    if inventory.leads_to_green(snapshot, event) or snapshot.phase is Phase.POST:
        return True
    denied = snapshot.target_read_only is True or snapshot.source_read_only is False
    return snapshot.phase is Phase.IN_PROGRESS and snapshot.ready and not denied


# -- from facts to signals ---------------------------------------------------------------------------------------


_GREEN_WAIT_NS: Final = int(GREEN_WAIT_S * 1e9)


def _told(snapshot: Snapshot, at: Instant, rules: Rules) -> Snapshot:
    """Handle metadata that report green's promotion. If green answers that it is read-only, wait for it at first."""
    if snapshot.target_read_only is not True or not Phase.CREATED <= snapshot.phase <= Phase.IN_PROGRESS:
        return _signal(snapshot, _told_signal(snapshot), at, rules)
    # Blue accepts no writes either: this is IN_PROGRESS, whatever the last reading of blue was.
    snapshot = _signal(snapshot, Signal.STARTED, at, rules)
    if snapshot.told_until_ns:
        return snapshot
    return replace(snapshot, told_until_ns=_end_of_wait(snapshot, at))


def _end_of_wait(snapshot: Snapshot, at: Instant) -> int:
    """Return the end of a wait for green that begins at *at*: no later than the timer."""
    end_ns = at.mono_ns + _GREEN_WAIT_NS
    return min(end_ns, snapshot.deadline_ns) if snapshot.deadline_ns else end_ns


def _told_signal(snapshot: Snapshot) -> Signal:
    """Return the signal of metadata that report more than IN_PROGRESS.

    With an inventory, DNS decides when the switchover is completed: until then COMPLETED is treated like POST.
    """
    finished = Phase.COMPLETED in (snapshot.source_reading, snapshot.target_reading)
    return Signal.FINISHED if finished and not snapshot.ready else Signal.PROMOTED


def _look_at_green(snapshot: Snapshot, at: Instant, rules: Rules) -> Snapshot:
    """Evaluate the servers' own answers: detect green's promotion, and end a wait for green that has become moot."""
    took_over = promotion.green_took_over(snapshot)
    if took_over and not promotion.follows_blue(snapshot):
        snapshot = _signal(snapshot, Signal.TOOK_OVER, at, rules)
    if snapshot.told_until_ns and snapshot.target_read_only is not True:
        snapshot = _signal(snapshot, _told_signal(snapshot), at, rules)
    if not took_over or _leads_to(snapshot, Signal.TOOK_OVER) is None:
        return replace(snapshot, subscribed_until_ns=0) if snapshot.subscribed_until_ns else snapshot
    if snapshot.subscribed_until_ns:
        return snapshot
    return replace(snapshot, subscribed_until_ns=_end_of_wait(snapshot, at))


def _end_waits(snapshot: Snapshot, at: Instant, rules: Rules) -> Snapshot:
    """End waits for green that have run out."""
    if 0 < snapshot.told_until_ns <= at.mono_ns:
        text = (
            "the metadata report that green was promoted, but green still takes no writes: callers were held for it "
            f"for {GREEN_WAIT_S:g} s and are released now"
        )
        snapshot = add_notice(snapshot, logging.WARNING, "switchover", "green_still_read_only", text)
        snapshot = _signal(snapshot, _told_signal(snapshot), at, rules)
    if 0 < snapshot.subscribed_until_ns <= at.mono_ns:
        snapshot = _signal(snapshot, Signal.TOOK_OVER, at, rules)
    return snapshot


def _signal(snapshot: Snapshot, signal: Signal, at: Instant, rules: Rules) -> Snapshot:
    phase = _leads_to(snapshot, signal)
    return snapshot if phase is None else _enter(snapshot, phase, signal, at, rules)


def _leads_to(snapshot: Snapshot, signal: Signal) -> Phase | None:
    """Return the phase that begins with *signal*; None if it changes nothing."""
    phase = TRANSITIONS.get((snapshot.phase, signal))
    late = phase is Phase.POST and snapshot.phase is Phase.COMPLETED
    return None if late and not snapshot.is_overdue else phase


def _enter(snapshot: Snapshot, phase: Phase, signal: Signal, at: Instant, rules: Rules) -> Snapshot:
    before = snapshot.phase
    if phase is Phase.NOT_CREATED:
        fresh = Snapshot(
            snapshot.bg_id,
            epoch=snapshot.epoch,
            hold_until_ns=snapshot.hold_until_ns,
            notices=snapshot.notices,
            observations=snapshot.observations,
            fleet=snapshot.fleet,
        )
        return _begin_to_watch(fresh, at)
    epoch = snapshot.epoch + _makes_unfit(snapshot, phase, by_clock=_is_by_clock(snapshot, signal, at))
    snapshot = replace(snapshot, phase=phase, epoch=epoch, told_until_ns=0, subscribed_until_ns=0)
    if signal is Signal.REVERTED:
        snapshot = replace(snapshot, rolled_back=True, deadline_ns=0, pinned=False, blue_moved=False)
        return _summarise(add_entry(snapshot, at, CREATED_AGAIN))
    if before is Phase.CREATED or phase in (Phase.CREATED, Phase.PREPARATION):
        # A new switchover, in whichever phase it is first seen; a late release of the last one is not a new one.
        snapshot = _begin_anew(snapshot, before)
    if phase in SWITCHING and snapshot.deadline_ns == 0:
        snapshot = replace(snapshot, deadline_ns=at.mono_ns + rules.switchover_timeout_ms * 1_000_000)
    if phase is Phase.POST:
        snapshot = replace(snapshot, pinned=True)
    if phase is Phase.COMPLETED:
        # Without evidence of a promotion (the timer, a cold start) there is no address to pin to.
        pinned = snapshot.pinned and not snapshot.blue_moved
        snapshot = replace(snapshot, pinned=pinned, deadline_ns=0)
    evidence = _EVIDENCE.get(signal, "") if phase >= Phase.POST else ""
    snapshot = add_entry(snapshot, at, phase.name, evidence)
    return _summarise(snapshot) if phase is Phase.COMPLETED and before in SWITCHING else snapshot


def _is_by_clock(snapshot: Snapshot, signal: Signal, at: Instant) -> bool:
    """Return whether *signal* is due to time alone: a timer has run out."""
    waits = (snapshot.told_until_ns, snapshot.subscribed_until_ns)
    return signal is Signal.TIMED_OUT or any(0 < end <= at.mono_ns for end in waits)


def _makes_unfit(snapshot: Snapshot, phase: Phase, *, by_clock: bool) -> int:
    """Return the increment of the epoch at *phase*: above 0 if connections opened before must not be used afterwards.

    A timer runs out in every process by that process's own clock. A connection that a worker opens by name at that time
    must not be mistaken for one opened after a release that the monitor publishes at the same time. So the two must
    never lead to the same epoch. A wait for green may end at the same time, too, and then the worker enters POST once
    it has read about the wait. So POST has the epoch of a decision even if time alone leads to it.
    """
    drained = phase is Phase.IN_PROGRESS
    released = phase is Phase.POST or (phase is Phase.COMPLETED and snapshot.phase < Phase.POST)
    if not (drained or released or snapshot.release_until_ns):
        return 0
    return EPOCH_OF_TIMER if by_clock and phase is Phase.COMPLETED else EPOCH_OF_DECISION


def _begin_anew(snapshot: Snapshot, before: Phase) -> Snapshot:
    """Discard the last switchover's timeline and, after a completed switchover, its inventory as well."""
    if before is Phase.COMPLETED:
        return Snapshot(
            snapshot.bg_id,
            snapshot.phase,
            snapshot.epoch,
            source_reading=snapshot.source_reading,
            target_reading=snapshot.target_reading,
            source_read_only=snapshot.source_read_only,
            hold_until_ns=snapshot.hold_until_ns,
            notices=snapshot.notices,
            observations=snapshot.observations,
            fleet=snapshot.fleet,
        )
    if snapshot.rolled_back:
        return replace(snapshot, rolled_back=False, timeline=(), deadline_ns=0)
    return snapshot


def _check_ready(snapshot: Snapshot, rules: Rules) -> Snapshot:
    ready = inventory.is_complete(snapshot)
    if ready is snapshot.ready:
        return snapshot
    snapshot = replace(snapshot, ready=ready)
    if not ready:
        return snapshot
    pairs = "; ".join(
        f"{name} ({', '.join(inventory.addresses(snapshot, name))}) -> "
        f"{twin} ({', '.join(inventory.addresses(snapshot, twin))})"
        for name, twin in snapshot.twins
    )
    misfit = timer_misfit(rules.switchover_timeout_ms)
    text = f"ready for a switchover: {pairs}{f'; but {misfit}' if misfit else ''}"
    return add_notice(snapshot, logging.INFO, "switchover", "ready", text)


def _green_renamed(snapshot: Snapshot, at: Instant, endpoint: str) -> Snapshot:
    name = parse_endpoint(endpoint)
    if snapshot.renamed or snapshot.phase < Phase.POST or name is None or name.is_green:
        return snapshot
    return add_entry(replace(snapshot, renamed=True), at, "Green topology changed")


def _unpin(snapshot: Snapshot, at: Instant, rules: Rules) -> Snapshot:
    """Return to names once blue's resolve to green and green has taken them; complete once green's names are gone.

    If names are verified by TLS, wait for green's new certificates as well; the timer ends that wait, too.
    """
    if rules.await_certificates and not snapshot.all_certified and snapshot.phase is not Phase.COMPLETED:
        return snapshot
    if snapshot.pinned and snapshot.blue_moved and (snapshot.renamed or snapshot.green_gone):
        snapshot = replace(snapshot, pinned=False)
    if snapshot.blue_moved and snapshot.green_gone:
        snapshot = _signal(snapshot, Signal.SETTLED, at, rules)
    return snapshot


# -- records -----------------------------------------------------------------------------------------------------


def _with_reading(snapshot: Snapshot, role: Role, reading: Phase) -> Snapshot:
    if snapshot.reading(role) is reading:
        return snapshot
    if role is Role.SOURCE:
        return replace(snapshot, source_reading=reading)
    return replace(snapshot, target_reading=reading)


def _summarise(snapshot: Snapshot) -> Snapshot:
    table = summary_table(snapshot.timeline)
    return add_notice(snapshot, logging.INFO, "switchover", "summary", "\n" + table, once=False)
