"""The state machine: every pair of the table, and properties under random events."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgpool.core.events import (
    Answered,
    CertificateRenewed,
    Event,
    Instant,
    MetadataAbsent,
    MetadataFailed,
    ProbeFailed,
    Resolved,
    StatusRead,
    StatusRow,
    Tick,
)
from bgpool.core.fleet import FleetRole, FleetView
from bgpool.core.machine import TRANSITIONS, Rules, Signal, step
from bgpool.core.phase import PHASE_OF_STATUS, SWITCHING, Phase, Role
from bgpool.core.routing import Action, Purpose, decide
from bgpool.core.snapshot import Host, Snapshot, TimelineEntry
from bgpool.core.timeline import summary_table
from tests.core.test_transcripts import BLUE, GREEN, OLD

RULES = Rules(switchover_timeout_ms=180_000)
SECOND = 1_000_000_000


def at(seconds: float) -> Instant:
    return Instant(int(seconds * SECOND), int(seconds * SECOND))


def rows(status: str, version: str = "1.0") -> tuple[StatusRow, ...]:
    return (
        StatusRow(BLUE, 5432, Role.SOURCE.value, status, version),
        StatusRow(GREEN, 5432, Role.TARGET.value, status, version),
    )


def ready(phase: Phase = Phase.CREATED, **changes: object) -> Snapshot:
    snapshot = Snapshot(
        "1",
        phase,
        ready=True,
        source_reading=Phase.CREATED,
        target_reading=Phase.CREATED,
        hosts=(Host(BLUE, 5432, Role.SOURCE, ("10.0.0.1",)), Host(GREEN, 5432, Role.TARGET, ("10.0.0.2",))),
        twins=((BLUE, GREEN),),
        deadline_ns=180 * SECOND if phase in SWITCHING else 0,
    )
    return replace(snapshot, **changes)  # type: ignore[arg-type]  # any field of a snapshot


STATUS_SIGNALS = {
    Signal.AVAILABLE: "AVAILABLE",
    Signal.INITIATED: "SWITCHOVER_INITIATED",
    Signal.STARTED: "SWITCHOVER_IN_PROGRESS",
    Signal.PROMOTED: "SWITCHOVER_IN_POST_PROCESSING",
}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("signal", STATUS_SIGNALS)
def test_every_status_in_every_phase(phase: Phase, signal: Signal) -> None:
    before = ready(phase, source_reading=None, target_reading=None)
    after = step(before, StatusRead(at(1), Role.SOURCE, rows(STATUS_SIGNALS[signal])), RULES)
    assert after.phase is TRANSITIONS.get((phase, signal), phase)


@pytest.mark.parametrize("phase", sorted(SWITCHING))
@pytest.mark.parametrize(
    "event",
    [
        StatusRead(at(1), Role.SOURCE, ()),
        StatusRead(at(1), Role.TARGET, ()),
        MetadataAbsent(at(1), Role.SOURCE, "gone"),
        MetadataAbsent(at(1), Role.TARGET, "gone"),
        ProbeFailed(at(1), Role.SOURCE, "refused"),
        ProbeFailed(at(1), Role.TARGET, "refused"),
        StatusRead(at(1), Role.TARGET, rows("SOMETHING_NEW")),
        Resolved(at(1), {}),
    ],
    ids=repr,
)
def test_no_news_never_moves_a_switchover(phase: Phase, event: Event) -> None:
    before = ready(phase, pinned=phase is Phase.POST)
    after = step(before, event, RULES)
    assert replace(after, notices=()) == before


def test_an_unknown_status_and_a_new_version_are_said_once() -> None:
    snapshot = ready()
    for second in range(3):
        snapshot = step(snapshot, StatusRead(at(second), Role.SOURCE, rows("ODD", "2.0")), RULES)
    texts = [notice.text for notice in snapshot.notices]
    assert len(texts) == 2
    assert "'2.0'" in texts[0]
    assert "'ODD'" in texts[1]


def test_only_a_green_that_left_available_rolls_back() -> None:
    snapshot = ready(Phase.IN_PROGRESS, source_reading=Phase.IN_PROGRESS, target_reading=None)
    first = step(snapshot, StatusRead(at(1), Role.TARGET, rows("AVAILABLE")), RULES)
    assert first.phase is Phase.IN_PROGRESS
    again = step(first, StatusRead(at(2), Role.SOURCE, rows("AVAILABLE")), RULES)
    assert again.phase is Phase.CREATED
    assert again.rolled_back


@pytest.mark.parametrize("status", ["SWITCHOVER_INITIATED", "SWITCHOVER_IN_PROGRESS", "SWITCHOVER_IN_POST_PROCESSING"])
def test_a_switchover_after_a_rollback_begins_a_story_of_its_own(status: str) -> None:
    """Wherever it is first seen."""
    story = (TimelineEntry(1, 1, "PREPARATION"), TimelineEntry(2, 2, "CREATED (rollback)"))
    taken_back = replace(ready(), rolled_back=True, timeline=story)
    begun = step(taken_back, StatusRead(at(1), Role.TARGET, rows(status)), RULES)
    assert not begun.rolled_back
    assert len(begun.timeline) == 1
    assert begun.deadline_ns > 0


@pytest.mark.parametrize("phase", sorted(SWITCHING))
def test_time_alone_ends_every_phase_of_a_switchover(phase: Phase) -> None:
    snapshot = ready(phase, pinned=phase is Phase.POST)
    assert step(snapshot, Tick(at(179.9)), RULES) is snapshot
    after = step(snapshot, Tick(at(180)), RULES)
    assert after.phase is Phase.COMPLETED
    # With evidence that green was promoted, traffic goes on to green's address until DNS has followed.
    decision = decide(after, BLUE, Purpose.CONNECT)
    assert decision.addresses == (("10.0.0.2",) if phase is Phase.POST else ())


def test_inventory_is_frozen_once_complete() -> None:
    snapshot = ready(Phase.PREPARATION)
    moved = step(snapshot, Resolved(at(1), {BLUE: ("10.9.9.9",), GREEN: ("10.9.9.8",)}), RULES)
    assert moved.hosts == snapshot.hosts


def test_a_green_that_has_taken_blues_name_is_not_inventoried_as_green() -> None:
    late = (
        StatusRow(OLD, 5432, Role.SOURCE.value, "AVAILABLE"),
        StatusRow(BLUE, 5432, Role.TARGET.value, "AVAILABLE"),
    )
    snapshot = step(Snapshot("1"), StatusRead(at(1), Role.SOURCE, late), RULES)
    assert snapshot.hosts == ()
    assert step(ready(), StatusRead(at(1), Role.TARGET, late), RULES).hosts == ready().hosts


@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.COMPLETED])
def test_only_blue_can_withdraw_a_deployment(phase: Phase) -> None:
    for event in (StatusRead(at(1), Role.TARGET, ()), MetadataAbsent(at(1), Role.TARGET, "gone")):
        assert step(ready(phase), event, RULES).phase is phase
    for event in (StatusRead(at(1), Role.SOURCE, ()), MetadataAbsent(at(1), Role.SOURCE, "gone")):
        after = step(ready(phase, blue_moved=phase is Phase.COMPLETED), event, RULES)
        assert (after.phase, after.hosts, after.ready) == (Phase.NOT_CREATED, (), False)


def test_the_epoch_rises_at_the_drain_and_at_the_release_and_nowhere_else() -> None:
    snapshot, epochs = ready(), []
    for second, status in enumerate(PHASE_OF_STATUS):
        snapshot = step(snapshot, StatusRead(at(second), Role.SOURCE, rows(status)), RULES)
        epochs.append(snapshot.epoch)
    assert epochs == [1, 1, 3, 5, 5]
    missed = step(ready(), StatusRead(at(1), Role.SOURCE, rows("SWITCHOVER_IN_POST_PROCESSING")), RULES)
    assert missed.epoch == 3
    rolled_back = step(
        ready(Phase.IN_PROGRESS, epoch=2, target_reading=Phase.IN_PROGRESS),
        StatusRead(at(1), Role.TARGET, rows("AVAILABLE")),
        RULES,
    )
    assert (rolled_back.phase, rolled_back.epoch) == (Phase.CREATED, 2)


@pytest.mark.parametrize("phase", [Phase.PREPARATION, Phase.IN_PROGRESS])
def test_a_timer_and_a_decision_in_the_same_moment_lead_to_different_epochs(phase: Phase) -> None:
    """A worker's clock runs out while the monitor publishes; what it opened by name then must not count as fit."""
    before = ready(phase, epoch=7)
    by_the_worker = step(before, Tick(at(180)), RULES)
    assert by_the_worker.phase is Phase.COMPLETED
    for status in ("SWITCHOVER_IN_PROGRESS", "SWITCHOVER_IN_POST_PROCESSING"):
        by_the_monitor = step(before, StatusRead(at(179.9), Role.SOURCE, rows(status)), RULES)
        if by_the_monitor.phase is not phase:
            assert by_the_worker.epoch < by_the_monitor.epoch


def test_a_release_after_the_timer_makes_what_was_opened_by_name_unfit() -> None:
    overdue = ready(Phase.COMPLETED, epoch=3, green_was_read_only=True)
    assert overdue.is_overdue
    released = step(overdue, Answered(at(1), Role.TARGET, read_only=False), RULES)
    assert (released.phase, released.epoch, released.pinned) == (Phase.POST, 5, True)
    assert released.deadline_ns > 0


def test_summary_counts_from_in_progress() -> None:
    snapshot = step(ready(), StatusRead(at(10), Role.SOURCE, rows("SWITCHOVER_INITIATED")), RULES)
    snapshot = step(snapshot, StatusRead(at(12), Role.SOURCE, rows("SWITCHOVER_IN_PROGRESS")), RULES)
    snapshot = step(snapshot, StatusRead(at(14.5), Role.SOURCE, rows("SWITCHOVER_IN_POST_PROCESSING")), RULES)
    table = [line.split() for line in summary_table(snapshot.timeline).splitlines()]
    assert [(line[2], line[4]) for line in table if len(line) == 5 and line[3] == "ms"] == [
        ("-2000", "PREPARATION"),
        ("0", "IN_PROGRESS"),
        ("2500", "POST"),
    ]


statuses = st.sampled_from([*PHASE_OF_STATUS, "ODD"])
roles = st.sampled_from(list(Role))
addresses = st.sampled_from([(), ("10.0.0.1",), ("10.0.0.2",)])


@st.composite
def events(draw: st.DrawFn, moment: Instant) -> Event:
    role = draw(roles)
    kind = draw(st.integers(0, 8))
    if kind <= 1:
        names = draw(st.sampled_from([(BLUE, GREEN), (OLD, BLUE)]))
        status = draw(statuses)
        both = tuple(StatusRow(name, 5432, side.value, status) for name, side in zip(names, Role, strict=True))
        return StatusRead(moment, role, draw(st.sampled_from([both, both[:1], both[1:], ()])))
    if kind == 2:
        return Resolved(moment, {BLUE: draw(addresses), GREEN: draw(addresses)})
    if kind == 3:
        return MetadataAbsent(moment, role, "gone")
    if kind == 6:
        return Answered(
            moment, role, draw(st.booleans()), role_read_only=draw(st.booleans()), subscribes=draw(st.booleans())
        )
    if kind == 7:
        return CertificateRenewed(moment, GREEN)
    if kind == 8:
        return MetadataFailed(moment, role, "invalid input")
    return Tick(moment) if kind == 4 else ProbeFailed(moment, role, "refused")


@st.composite
def answers(draw: st.DrawFn, moment: Instant) -> tuple[Event, ...]:
    """Return the events of one answer of a server or a resolver."""
    telling = (Resolved, StatusRead, MetadataAbsent, MetadataFailed)
    event = draw(events(moment).filter(lambda event: isinstance(event, telling)))
    if not isinstance(event, (StatusRead, MetadataAbsent, MetadataFailed)):
        return (event,)
    flags = [draw(st.booleans()) for _ in range(4)]
    answered = Answered(moment, event.role, flags[0], flags[1], role_read_only=flags[2], subscribes=flags[3])
    return (answered, event)


@pytest.mark.once
@settings(max_examples=300, print_blob=True)
@given(st.data())
def test_whatever_happens(data: st.DataObject) -> None:
    view = FleetView(FleetRole.FOLLOWER)
    snapshot = Snapshot("1", fleet=view)
    seconds = 1.0
    for _ in range(data.draw(st.integers(1, 40))):
        seconds += data.draw(st.sampled_from([0.1, 1.0, 100.0]))
        event = data.draw(events(at(seconds)))
        after = step(snapshot, event, RULES)
        assert after.epoch >= snapshot.epoch
        assert after.fleet is view
        assert step(after, Tick(at(seconds)), RULES) is after
        # Between two timers, time changes nothing: what a snapshot means has to be worked out once.
        now_ns = at(seconds).mono_ns
        next_ns = min((end for end in after.timers if end > now_ns), default=now_ns + 10**6 * SECOND)
        assert step(after, Tick(Instant(next_ns - 1, 0)), RULES) is after
        if after.phase in SWITCHING:
            assert after.deadline_ns > 0
            assert step(after, Tick(Instant(after.deadline_ns, 0)), RULES).phase is Phase.COMPLETED
        # One switchover, that is, not the next one after the timer ended it within this very step.
        same = after.phase in SWITCHING and after.deadline_ns == snapshot.deadline_ns
        if snapshot.ready and snapshot.phase in SWITCHING and same:
            assert after.hosts == snapshot.hosts
        if after.phase in (Phase.IN_PROGRESS, Phase.POST):
            for host in after.hosts_of(Role.TARGET):
                assert decide(after, host.name, Purpose.CHECKOUT).action in (Action.HOLD, Action.REJECT)
        if after.phase is Phase.IN_PROGRESS:
            for host in after.hosts_of(Role.SOURCE):
                assert decide(after, host.name, Purpose.CHECKOUT).action is Action.HOLD
        if after.phase is Phase.NOT_CREATED:
            assert not after.hosts
        assert after.timeline or after.phase is Phase.NOT_CREATED
        snapshot = after


def test_blues_name_is_not_gone_back_to_before_green_can_prove_it() -> None:
    rules = Rules(await_certificates=True)
    snapshot = ready(Phase.POST, pinned=True, deadline_ns=180 * SECOND)
    settled = Resolved(at(1), {BLUE: ("10.0.0.2",), GREEN: ()})
    assert step(snapshot, settled, RULES).phase is Phase.COMPLETED
    waiting = step(snapshot, settled, rules)
    assert (waiting.phase, waiting.pinned) == (Phase.POST, True)
    assert decide(waiting, BLUE, Purpose.CONNECT).names == (GREEN, BLUE)
    renewed = step(waiting, CertificateRenewed(at(2), GREEN), rules)
    assert (renewed.phase, renewed.pinned) == (Phase.COMPLETED, False)
    assert [entry.event for entry in renewed.timeline][-2:] == ["Green host certificates changed", "COMPLETED"]
    still = step(replace(snapshot, certified=(GREEN,)), Tick(at(1)), rules)
    assert decide(still, BLUE, Purpose.CONNECT).names == (BLUE, GREEN)


def test_the_timer_ends_the_wait_for_certificates_too() -> None:
    """Also if DNS follows later; otherwise the wait for a lost host of green would never end."""
    rules = Rules(await_certificates=True)
    overdue = step(ready(Phase.POST, pinned=True, deadline_ns=180 * SECOND), Tick(at(181)), rules)
    assert (overdue.phase, overdue.pinned) == (Phase.COMPLETED, True)
    settled = step(overdue, Resolved(at(190), {BLUE: ("10.0.0.2",), GREEN: ()}), rules)
    assert not settled.pinned


@pytest.mark.parametrize(
    ("phase", "level", "event"),
    [
        (Phase.PREPARATION, logging.WARNING, "switchover_timed_out"),
        (Phase.IN_PROGRESS, logging.WARNING, "switchover_timed_out"),
        (Phase.POST, logging.INFO, "post_timed_out"),
    ],
)
def test_the_timer_warns_unless_green_was_promoted(phase: Phase, level: int, event: str) -> None:
    overdue = step(ready(phase, deadline_ns=180 * SECOND), Tick(at(181)), Rules())
    found = next(notice for notice in overdue.notices if notice.event.endswith("timed_out"))
    assert (overdue.phase, found.level, found.event) == (Phase.COMPLETED, level, event)
