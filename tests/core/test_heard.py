"""A switchover's timeline says once that a phase came from the fleet, and is otherwise unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgpool.core.events import Answered, Event, Resolved, StatusRead
from bgpool.core.fleet import FleetRole, FleetView
from bgpool.core.machine import Rules, step
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.records import note_heard
from bgpool.core.snapshot import Snapshot
from bgpool.core.timeline import HEARD, summary_table, zero_ns
from tests.core.test_machine import at, ready, rows
from tests.core.test_transcripts import BLUE, GREEN

RULES = Rules()

#: A switchover to its end, and the deployment that comes after it.
STORY: tuple[Event, ...] = (
    StatusRead(at(10), Role.SOURCE, rows("SWITCHOVER_INITIATED")),
    StatusRead(at(12), Role.SOURCE, rows("SWITCHOVER_IN_PROGRESS")),
    StatusRead(at(12.1), Role.TARGET, rows("SWITCHOVER_IN_PROGRESS")),
    StatusRead(at(14), Role.TARGET, rows("SWITCHOVER_IN_POST_PROCESSING")),
    Resolved(at(20), {BLUE: ("10.0.0.2",), GREEN: ("10.0.0.2",)}),
    Resolved(at(30), {BLUE: ("10.0.0.2",), GREEN: ()}),
)
AGAIN = (
    StatusRead(at(50), Role.SOURCE, rows("AVAILABLE")),
    StatusRead(at(60), Role.SOURCE, rows("SWITCHOVER_INITIATED")),
)


def play(*told: Event, heard: bool) -> Snapshot:
    snapshot = ready()
    for event in told:
        after = step(snapshot, event, RULES)
        snapshot = note_heard(snapshot, after, event.at) if heard else after
    return snapshot


def names(snapshot: Snapshot) -> list[str]:
    return [entry.event for entry in snapshot.timeline]


def test_the_row_is_added_once_and_nothing_else_changes() -> None:
    own, heard = play(*STORY, heard=False), play(*STORY, heard=True)
    assert heard.phase is own.phase is Phase.COMPLETED
    assert names(heard).count(HEARD) == 1
    assert names(heard).index(HEARD) == names(heard).index("PREPARATION") + 1
    without = tuple(entry for entry in heard.timeline if entry.event != HEARD)
    assert replace(heard, timeline=without, notices=()) == replace(own, notices=())
    assert zero_ns(heard.timeline) == zero_ns(own.timeline)
    assert HEARD in summary_table(heard.timeline)
    assert names(heard)[-1] == "COMPLETED"


def test_the_next_switchover_has_a_row_of_its_own() -> None:
    again = play(*STORY, *AGAIN, heard=True)
    assert again.phase is Phase.PREPARATION
    assert names(again) == ["CREATED", "PREPARATION", HEARD]


def test_a_switchover_after_a_rollback_has_a_row_of_its_own() -> None:
    back = play(
        STORY[0],
        StatusRead(at(11), Role.TARGET, rows("SWITCHOVER_INITIATED")),
        StatusRead(at(12), Role.TARGET, rows("AVAILABLE")),
        heard=True,
    )
    assert back.rolled_back
    assert names(back) == ["PREPARATION", HEARD, "CREATED (rollback)"]
    event = StatusRead(at(20), Role.TARGET, rows("SWITCHOVER_INITIATED"))
    assert names(note_heard(back, step(back, event, RULES), event.at)) == ["PREPARATION", HEARD]


@pytest.mark.parametrize("phase", sorted(SWITCHING))
def test_the_row_does_not_move_time_zero(phase: Phase) -> None:
    status = {
        Phase.PREPARATION: "SWITCHOVER_INITIATED",
        Phase.IN_PROGRESS: "SWITCHOVER_IN_PROGRESS",
        Phase.POST: "SWITCHOVER_IN_POST_PROCESSING",
    }[phase]
    heard = play(StatusRead(at(10), Role.SOURCE, rows(status)), heard=True)
    assert names(heard) == [phase.name, HEARD]
    assert zero_ns(heard.timeline) == at(10).mono_ns == heard.timeline[1].mono_ns


@pytest.mark.parametrize(
    "event",
    [
        Answered(at(1), Role.SOURCE, read_only=False),
        StatusRead(at(1), Role.SOURCE, rows("AVAILABLE")),
        StatusRead(at(1), Role.SOURCE, ()),
    ],
    ids=repr,
)
def test_a_reading_that_begins_no_phase_of_a_switchover_gets_none(event: Event) -> None:
    before = ready()
    after = step(before, event, RULES)
    assert note_heard(before, after, event.at) is after


@pytest.mark.parametrize("status", ["AVAILABLE", "SWITCHOVER_COMPLETED"])
def test_the_end_of_a_switchover_gets_no_row(status: str) -> None:
    before = ready(Phase.PREPARATION, ready=False, target_reading=Phase.PREPARATION)
    event = StatusRead(at(1), Role.TARGET, rows(status))
    after = step(before, event, RULES)
    assert after.phase not in SWITCHING
    assert note_heard(before, after, event.at) is after


def test_a_hosts_place_in_its_fleet_outlives_deployments() -> None:
    view = FleetView(FleetRole.FOLLOWER, "web-2", 30, 1)
    snapshot, phases = ready(fleet=view), set()
    gone = StatusRead(at(70), Role.SOURCE, ())
    for event in (*STORY, AGAIN[0], gone):
        snapshot = step(snapshot, event, RULES)
        phases.add(snapshot.phase)
        assert snapshot.fleet is view
    assert phases == set(Phase)
