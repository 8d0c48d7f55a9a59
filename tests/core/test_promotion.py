"""The conditions for green's promotion: the metadata, and green's own answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from bgpool.core.events import Answered, Event, Instant, ProbeFailed, Resolved, StatusRead, Tick
from bgpool.core.limits import GREEN_WAIT_S
from bgpool.core.machine import Rules, step
from bgpool.core.phase import Phase, Role
from bgpool.core.plan import Intervals, plan
from bgpool.core.routing import Action, Purpose, decide
from bgpool.core.snapshot import EPOCH_OF_DECISION, Snapshot
from tests.core.test_machine import RULES, SECOND, at, ready, rows
from tests.core.test_transcripts import BLUE, GREEN

POST, DONE = "SWITCHOVER_IN_POST_PROCESSING", "SWITCHOVER_COMPLETED"


def answered(seconds: float, role: Role = Role.TARGET, *, read_only: bool = True, **more: bool) -> Answered:
    return Answered(at(seconds), role, read_only, **more)


def read(seconds: float, status: str, role: Role = Role.TARGET) -> StatusRead:
    return StatusRead(at(seconds), role, rows(status))


def after(snapshot: Snapshot, *events: Event, rules: Rules = RULES) -> Snapshot:
    for event in events:
        snapshot = step(snapshot, event, rules)
    return snapshot


def begun(**changes: object) -> Snapshot:
    """IN_PROGRESS of a logical green that was read-only, and is; blue does not answer."""
    known: dict[str, object] = {"green_was_read_only": True, "target_read_only": True, "blue_role_read_only": False}
    return ready(Phase.IN_PROGRESS, **(known | changes))


def told(snapshot: Snapshot) -> tuple[Phase, str]:
    """Its phase, and what told of that."""
    entries = [entry.evidence for entry in snapshot.timeline if entry.event == snapshot.phase.name]
    return snapshot.phase, entries[-1] if entries else ""


# -- metadata that are ahead of green --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [POST, DONE])
def test_metadata_do_not_release_while_green_is_read_only(status: str) -> None:
    waiting = after(begun(), read(10, status), read(10.1, status, Role.SOURCE), answered(10.2), Tick(at(11.9)))
    assert waiting.phase is Phase.IN_PROGRESS
    assert decide(waiting, BLUE, Purpose.CHECKOUT).action is Action.HOLD
    assert told(after(waiting, answered(11.9, read_only=False))) == (Phase.POST, "green promoted")


def test_metadata_are_waited_for_no_longer_than_the_limit_by_every_clock() -> None:
    waiting = after(begun(), read(10, POST), answered(10.5))
    end_ns = at(10 + GREEN_WAIT_S).mono_ns
    assert end_ns in waiting.timers
    assert step(waiting, Tick(Instant(end_ns - 1, 0)), RULES) is waiting
    # A reader's own clock, a monitor's heartbeat, and green's next answer lead to the same.
    for event in (Tick(Instant(end_ns, 0)), answered(10 + GREEN_WAIT_S)):
        released = after(waiting, event)
        assert told(released) == (Phase.POST, "metadata")
        assert released.epoch == waiting.epoch + EPOCH_OF_DECISION, "every decision leads to green"
        assert end_ns not in released.timers
    assert any(notice.event == "green_still_read_only" for notice in released.notices)


@pytest.mark.parametrize(
    "event",
    [ProbeFailed(at(10.3), Role.TARGET, "silent"), answered(10.3, read_only=False)],
    ids=["no answer", "takes writes"],
)
def test_metadata_release_at_once_where_green_does_not_say_that_it_takes_none(event: Event) -> None:
    """Here blue takes writes, or green did before: nothing but the metadata tells that green was promoted."""
    waiting = after(begun(green_was_read_only=None), read(10, POST))
    assert waiting.phase is Phase.IN_PROGRESS
    assert told(after(waiting, event)) == (Phase.POST, "metadata")


def test_metadata_release_at_once_where_green_was_never_heard() -> None:
    assert told(after(begun(target_read_only=None), read(10, POST))) == (Phase.POST, "metadata")


@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.PREPARATION])
def test_a_switchover_that_is_first_seen_by_its_end_holds_until_green_is_ready(phase: Phase) -> None:
    before = replace(begun(), phase=phase, deadline_ns=0 if phase is Phase.CREATED else 180 * SECOND)
    waiting = after(before, read(10, POST))
    assert waiting.phase is Phase.IN_PROGRESS
    assert waiting.deadline_ns > 0
    assert told(after(waiting, answered(10.1, read_only=False))) == (Phase.POST, "green promoted")


def test_a_rollback_while_green_is_waited_for_is_none_of_a_release() -> None:
    waiting = after(begun(target_reading=Phase.IN_PROGRESS), read(10, POST))
    back = after(waiting, read(10.5, "AVAILABLE"))
    assert (back.phase, back.rolled_back) == (Phase.CREATED, True)
    assert after(back, Tick(at(20))).phase is Phase.CREATED


def test_the_switchover_timer_ends_no_switchover_that_the_metadata_have_told_of() -> None:
    late = after(begun(deadline_ns=11 * SECOND), read(10, POST))
    ended = after(late, Tick(at(11)))
    assert ended.phase is Phase.COMPLETED
    assert ended.pinned, "it was released first"


@pytest.mark.parametrize("news", [read(10, POST), answered(10, read_only=False, subscribes=True)])
def test_a_worker_that_missed_the_wait_connects_by_name_in_another_epoch(news: Event) -> None:
    """Its timer runs out while what it has read is a moment old; what it opened by name then must not count as fit."""
    before = begun(deadline_ns=11 * SECOND)
    by_name, released = after(before, Tick(at(11))), after(before, news, Tick(at(11)))
    assert (by_name.pinned, released.pinned) == (False, True)
    assert before.epoch < by_name.epoch < released.epoch


def test_an_incomplete_inventory_ends_by_name_as_ever() -> None:
    nowhere = tuple(replace(host, addresses=()) for host in begun().hosts)
    waiting = after(begun(ready=False, hosts=nowhere), read(10, DONE))
    assert waiting.phase is Phase.IN_PROGRESS
    released = after(waiting, Tick(at(13)))
    assert (released.phase, released.epoch) == (Phase.COMPLETED, waiting.epoch + 1)


def test_the_wait_does_not_affect_the_next_switchover() -> None:
    released = after(begun(), read(10, POST), Tick(at(13)), Tick(at(190)))
    assert released.told_until_ns == 0


# -- a green that takes writes and still follows blue ----------------------------------------------------------------


def test_a_green_that_still_follows_blue_is_not_promoted() -> None:
    writes = answered(10, read_only=False, subscribes=True)
    waiting = after(begun(), writes, replace(writes, at=at(11.9)))
    assert waiting.phase is Phase.IN_PROGRESS
    assert told(after(waiting, answered(11.95, read_only=False))) == (Phase.POST, "green promoted")
    assert told(after(waiting, Tick(at(12)))) == (Phase.POST, "green promoted"), "no longer than the limit"


def test_metadata_and_a_green_that_takes_writes_are_enough() -> None:
    waiting = after(begun(), answered(10, read_only=False, subscribes=True))
    assert told(after(waiting, read(10.1, POST))) == (Phase.POST, "metadata")


def test_a_physical_green_may_have_subscriptions_of_its_own() -> None:
    released = after(begun(green_was_replica=True), answered(10, read_only=False, subscribes=True))
    assert told(released) == (Phase.POST, "green promoted")


def test_a_green_that_takes_no_writes_again_is_not_released_by_the_clock() -> None:
    waiting = after(begun(), answered(10, read_only=False, subscribes=True), answered(10.5), Tick(at(15)))
    assert waiting.phase is Phase.IN_PROGRESS
    assert not waiting.subscribed_until_ns
    assert step(waiting, Tick(at(15)), RULES) is waiting


# -- read-only by the role's or the database's setting ---------------------------------------------------------------


def prepared(blue_by_role: bool | None, *, green_by_role: bool = True) -> Snapshot:
    """CREATED as a monitor sees it whose own session may write, and IN_PROGRESS after it."""
    events: list[Event] = []
    if blue_by_role is not None:
        events.append(answered(1, Role.SOURCE, read_only=False, role_read_only=blue_by_role))
    events += [answered(2, read_only=False, role_read_only=green_by_role), read(3, "SWITCHOVER_IN_PROGRESS")]
    return after(ready(), *events, ProbeFailed(at(4), Role.SOURCE, "cut"))


def test_a_green_that_is_read_only_for_the_applications_role_gives_evidence() -> None:
    before = prepared(blue_by_role=False)
    assert (before.green_was_read_only, before.target_read_only) == (True, True)
    released = after(before, answered(10, read_only=False))
    assert told(released) == (Phase.POST, "green promoted")


@pytest.mark.parametrize("blue_by_role", [True, None])
def test_a_role_that_is_read_only_on_blue_as_well_tells_nothing(blue_by_role: bool | None) -> None:
    """For example a reporting role. The setting also means nothing while blue was not queried."""
    before = prepared(blue_by_role)
    assert (before.green_was_read_only, before.target_read_only) == (False, False)
    assert after(before, answered(10, read_only=False)).phase is Phase.IN_PROGRESS


def test_a_reporting_role_takes_no_evidence_away() -> None:
    """Recovery and the server's own setting tell as much as they do for any role."""
    events: list[Event] = [
        answered(1, Role.SOURCE, read_only=False, role_read_only=True),
        answered(2, replica=True, role_read_only=True),
        read(3, "SWITCHOVER_IN_PROGRESS"),
        answered(4, Role.SOURCE, read_only=False, role_read_only=True),
        answered(5, read_only=False, role_read_only=True),
    ]
    waiting = after(ready(), *events)
    assert waiting.phase is Phase.IN_PROGRESS, "blue takes writes, whatever that role may do"
    released = after(waiting, answered(6, Role.SOURCE, role_read_only=True))
    assert told(released) == (Phase.POST, "green promoted")
    assert after(released, read(7, POST)).phase is Phase.POST


def test_blue_made_read_only_for_the_applications_role_takes_no_writes() -> None:
    before = prepared(blue_by_role=False)
    cut = after(before, answered(5, Role.SOURCE, read_only=False, role_read_only=True))
    assert cut.source_read_only is True
    assert told(after(cut, answered(6, read_only=False))) == (Phase.POST, "green promoted")


def test_what_blues_role_may_do_is_learnt_before_the_switchover_and_again_for_the_next() -> None:
    seen = after(ready(), answered(1, Role.SOURCE, read_only=False, role_read_only=True))
    assert seen.blue_role_read_only is True
    later = after(begun(), answered(5, Role.SOURCE, read_only=False, role_read_only=True))
    assert later.blue_role_read_only is False
    over = ready(Phase.COMPLETED, blue_moved=True, source_reading=Phase.COMPLETED, blue_role_read_only=True)
    assert after(over, read(9, "AVAILABLE", Role.SOURCE)).blue_role_read_only is None


# -- what is asked, and how often ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pace_ms"),
    [({"target_read_only": True}, 20), ({"target_read_only": False}, 100), ({"target_read_only": None}, 100)],
)
def test_a_green_that_was_released_too_early_is_asked_as_often_as_before(
    changes: dict[str, object], pace_ms: int
) -> None:
    todo = plan(ready(Phase.POST, pinned=True, **changes), Intervals(high_ms=100))
    assert todo.pace_ms(Role.TARGET) == (pace_ms, pace_ms)


def test_dns_is_evidence_as_ever() -> None:
    """AWS moves names after everything else."""
    moved: Iterable[Event] = [Resolved(at(10), {BLUE: ("10.0.0.2",), GREEN: ("10.0.0.2",)})]
    assert told(after(begun(), *moved)) == (Phase.POST, "blue DNS updated")
