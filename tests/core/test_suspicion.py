"""A nudge causes only a bounded hold, which the first reading ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgpool.core.events import Answered, Event, Instant, MetadataFailed, Nudged, StatusRead, StatusRow, Tick
from bgpool.core.limits import SUSPICION_S
from bgpool.core.machine import Rules, step
from bgpool.core.phase import Phase, Role
from bgpool.core.routing import Action, Purpose, decide
from bgpool.core.snapshot import Host, Snapshot

BLUE = "db.abc.eu-west-1.rds.amazonaws.com"
GREEN = "db-green-1a2b3c.abc.eu-west-1.rds.amazonaws.com"
RULES = Rules()
MS = 1_000_000


def at(ms: int) -> Instant:
    return Instant(ms * MS, ms * MS)


def in_phase(phase: Phase) -> Snapshot:
    """A deployment that was ready; blue answered last at 0 ms."""
    return Snapshot(
        "1",
        phase,
        epoch=3,
        ready=True,
        source_reading=phase,
        target_reading=phase,
        source_read_only=False,
        target_read_only=True,
        green_was_read_only=True,
        hosts=(Host(BLUE, 5432, Role.SOURCE, ("10.0.0.1",)), Host(GREEN, 5432, Role.TARGET, ("10.0.0.2",))),
        twins=((BLUE, GREEN),),
        deadline_ns=180_000 * MS,
    )


def status(role: Role, status: str, ms: int) -> StatusRead:
    rows = tuple(StatusRow(name, 5432, row.value, status) for name, row in ((BLUE, Role.SOURCE), (GREEN, Role.TARGET)))
    return StatusRead(at(ms), role, rows)


def action(snapshot: Snapshot, purpose: Purpose = Purpose.CHECKOUT, host: str = BLUE) -> Action:
    return decide(snapshot, host, purpose).action


@pytest.fixture
def suspected() -> Snapshot:
    """Nudged at 10 ms."""
    return step(in_phase(Phase.PREPARATION), Nudged(at(10)), RULES)


def test_a_nudge_in_preparation_holds_callers_and_connections_to_blue(suspected: Snapshot) -> None:
    assert action(in_phase(Phase.PREPARATION)) is Action.PASS
    assert action(suspected) is Action.HOLD
    assert action(suspected, Purpose.CONNECT) is Action.HOLD
    assert (suspected.phase, suspected.epoch) == (Phase.PREPARATION, 3)
    assert action(suspected, host="elsewhere.example") is Action.PASS


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.PREPARATION])
def test_a_nudge_in_any_other_phase_changes_nothing(phase: Phase) -> None:
    snapshot = replace(in_phase(phase), timeline=step(Snapshot("1"), Tick(at(0)), RULES).timeline)
    assert step(snapshot, Nudged(at(10)), RULES) is snapshot


def test_further_nudges_do_not_prolong_it(suspected: Snapshot) -> None:
    assert step(suspected, Nudged(at(500)), RULES) is suspected


def test_it_ends_by_itself_on_anybodys_clock(suspected: Snapshot) -> None:
    end_ms = 10 + int(SUSPICION_S * 1000)
    assert step(suspected, Tick(at(end_ms - 1)), RULES) is suspected
    assert action(step(suspected, Tick(at(end_ms)), RULES)) is Action.PASS


@pytest.mark.parametrize(
    "event",
    [status(Role.SOURCE, "SWITCHOVER_INITIATED", 12), MetadataFailed(at(12), Role.SOURCE, "no grant")],
    ids=["status", "metadata failed"],
)
def test_a_blue_that_answers_and_takes_writes_ends_it(suspected: Snapshot, event: Event) -> None:
    answered = step(suspected, Answered(at(12), Role.SOURCE, read_only=False), RULES)
    assert action(answered) is Action.HOLD, "what blue says of the switchover is read first"
    assert action(step(answered, event, RULES)) is Action.PASS


def test_an_answer_from_before_the_cut_does_not(suspected: Snapshot) -> None:
    assert action(step(suspected, status(Role.SOURCE, "SWITCHOVER_INITIATED", 9), RULES)) is Action.HOLD


def test_nor_does_a_blue_that_takes_no_writes(suspected: Snapshot) -> None:
    answered = step(suspected, Answered(at(12), Role.SOURCE, read_only=True), RULES)
    assert action(step(answered, status(Role.SOURCE, "SWITCHOVER_INITIATED", 12), RULES)) is Action.HOLD


def test_nor_does_green(suspected: Snapshot) -> None:
    assert action(step(suspected, status(Role.TARGET, "SWITCHOVER_INITIATED", 12), RULES)) is Action.HOLD


def test_in_progress_takes_over_and_a_rollback_ends_the_hold(suspected: Snapshot) -> None:
    begun = step(suspected, status(Role.TARGET, "SWITCHOVER_IN_PROGRESS", 12), RULES)
    assert (begun.phase, begun.suspected_until_ns) == (Phase.IN_PROGRESS, 0)
    assert action(begun) is Action.HOLD
    back = step(suspected, status(Role.TARGET, "AVAILABLE", 12), RULES)
    assert action(back) is Action.PASS
