"""The operator's orders: held and released callers in every phase, and the end of an order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgpool.core.events import Answered, Event, MetadataAbsent, Order, Ordered, Resolved, Tick
from bgpool.core.limits import ORDER_S
from bgpool.core.machine import Rules, step
from bgpool.core.orders import refusal
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.routing import Action, Decision, Purpose, decide
from bgpool.core.snapshot import EPOCH_OF_DECISION, EPOCH_OF_TIMER, Snapshot
from bgpool.core.timeline import HELD_BY_HAND, HOLD_OVER, RELEASED_BY_HAND, summary_table
from tests.core.test_suspicion import BLUE, GREEN, MS, at, in_phase, status

RULES = Rules()
ELSEWHERE = "elsewhere.example"
BY_HAND = (HELD_BY_HAND, HOLD_OVER, RELEASED_BY_HAND)
QUIET = [phase for phase in Phase if phase not in SWITCHING]


def order(kind: Order, ms: int = 10, for_s: float = 60.0) -> Ordered:
    return Ordered(at(ms), kind, int((ms + 1000 * for_s) * MS))


def hold(snapshot: Snapshot, ms: int = 10, for_s: float = 60.0) -> Snapshot:
    return step(snapshot, order(Order.HOLD, ms, for_s), RULES)


def release(snapshot: Snapshot, ms: int = 20) -> Snapshot:
    return step(snapshot, order(Order.RELEASE, ms), RULES)


def action(snapshot: Snapshot, purpose: Purpose = Purpose.CHECKOUT, host: str = BLUE) -> Action:
    return decide(snapshot, host, purpose).action


def events(snapshot: Snapshot) -> list[str]:
    return [f"{entry.event} ({entry.evidence})" for entry in snapshot.timeline if entry.event in BY_HAND]


def said(snapshot: Snapshot) -> list[str]:
    return [notice.event for notice in snapshot.notices if "hand" in notice.text]


# -- hold --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", QUIET)
@pytest.mark.parametrize("host", [BLUE, GREEN, ELSEWHERE])
def test_a_hold_has_every_checkout_wait_and_changes_nothing_else(phase: Phase, host: str) -> None:
    before = replace(in_phase(phase), deadline_ns=0)
    held = hold(before)
    refused = action(before, host=host) is Action.REJECT
    assert action(held, host=host) is (Action.REJECT if refused else Action.HOLD)
    # The pools go on to keep their connections as they would.
    assert decide(held, host, Purpose.CONNECT) == decide(before, host, Purpose.CONNECT)
    assert (held.phase, held.epoch) == (before.phase, before.epoch)
    assert replace(held, hold_until_ns=0, notices=before.notices, timeline=before.timeline) == before


def test_a_hold_needs_no_deployment() -> None:
    assert action(hold(step(Snapshot("1"), Tick(at(0)), RULES)), host=ELSEWHERE) is Action.HOLD


@pytest.mark.parametrize("phase", sorted(SWITCHING))
def test_a_hold_is_refused_in_a_switchover(phase: Phase) -> None:
    before = in_phase(phase)
    assert phase.name in refusal(before, Order.HOLD)
    assert hold(before) is before


def test_a_hold_ends_by_itself_on_anybodys_clock() -> None:
    held = hold(in_phase(Phase.CREATED), ms=10, for_s=60)
    assert step(held, Tick(at(60_009)), RULES) is held
    over = step(held, Tick(at(60_010)), RULES)
    assert (action(over), over.epoch) == (Action.PASS, held.epoch)
    assert events(over) == ["Held by hand (60 s)", "Hold over (time is up)"]
    assert said(over) == ["held_by_hand", "hold_by_hand_ended"]


def test_a_release_ends_a_hold_and_the_same_connections_are_used_on() -> None:
    held = hold(in_phase(Phase.CREATED))
    over = release(held)
    assert (action(over), over.epoch, over.release_until_ns) == (Action.PASS, held.epoch, 0)
    assert events(over)[-1] == "Hold over (bgpool release)"


def test_another_hold_takes_the_place_of_the_one_before() -> None:
    held = hold(hold(in_phase(Phase.CREATED), for_s=60), ms=5000, for_s=1)
    assert held.hold_until_ns == 6000 * MS
    # Of a hold every night for a year the next switchover's summary has the last.
    assert events(held) == ["Held by hand (1 s)"]


def test_a_repeated_order_counts_once() -> None:
    held = hold(in_phase(Phase.CREATED))
    assert step(held, Ordered(at(15), Order.HOLD, held.hold_until_ns), RULES) is held


@pytest.mark.parametrize("for_s", [0.0, -5.0])
def test_an_order_that_is_over_is_none(for_s: float) -> None:
    before = in_phase(Phase.CREATED)
    assert hold(before, for_s=for_s) is before


def test_no_order_outlasts_the_bound() -> None:
    assert hold(in_phase(Phase.CREATED), for_s=100 * ORDER_S).hold_until_ns == at(10).mono_ns + ORDER_S * 10**9
    released = step(in_phase(Phase.IN_PROGRESS), order(Order.RELEASE, for_s=100 * ORDER_S), RULES)
    assert released.release_until_ns == at(10).mono_ns + ORDER_S * 10**9


@pytest.mark.parametrize("name", ["SWITCHOVER_INITIATED", "SWITCHOVER_IN_PROGRESS", "SWITCHOVER_IN_POST_PROCESSING"])
def test_a_switchover_that_begins_wins(name: str) -> None:
    begun = step(hold(in_phase(Phase.CREATED)), status(Role.TARGET, name, 12), RULES)
    assert begun.phase in SWITCHING
    assert begun.hold_until_ns == 0
    assert events(begun)[-1] == "Hold over (a switchover begins)"
    assert decide(begun, BLUE, Purpose.CHECKOUT) == decide(replace(begun, hold_until_ns=0), BLUE, Purpose.CHECKOUT)


@pytest.mark.parametrize("event", [MetadataAbsent(at(12), Role.SOURCE, ""), status(Role.TARGET, "AVAILABLE", 12)])
@pytest.mark.parametrize("phase", QUIET)
def test_a_hold_outlasts_a_deployment(phase: Phase, event: Event) -> None:
    """One that is deleted, and one that is created."""
    held = hold(replace(in_phase(phase), deadline_ns=0, source_reading=None, target_reading=None))
    assert action(step(held, event, RULES), host=ELSEWHERE) is Action.HOLD


# -- release -----------------------------------------------------------------------------------------------------


def suspected() -> Snapshot:
    return replace(in_phase(Phase.PREPARATION), suspected_until_ns=3000 * MS)


def without_green(phase: Phase) -> Snapshot:
    """Green was promoted, and its addresses are not known."""
    blue, green = in_phase(phase).hosts
    return replace(in_phase(phase), pinned=True, hosts=(blue, replace(green, addresses=())))


@pytest.mark.parametrize(
    "before", [suspected(), in_phase(Phase.IN_PROGRESS), without_green(Phase.POST)], ids=lambda one: one.phase.name
)
def test_a_release_makes_callers_of_blue_connect_by_name(before: Snapshot) -> None:
    assert action(before) is Action.HOLD
    after = release(before)
    assert after.phase is before.phase
    # Nothing that was opened before is handed out after.
    assert after.epoch == before.epoch + EPOCH_OF_DECISION
    for purpose in Purpose:
        assert decide(after, BLUE, purpose, suspend_new=True) == Decision(Action.PASS, after.epoch)
    assert events(after) == ["Released by hand (an operator)"]
    assert said(after) == ["released_by_hand"]


@pytest.mark.parametrize("phase", sorted(Phase))
@pytest.mark.parametrize("purpose", list(Purpose))
@pytest.mark.parametrize("host", [GREEN, ELSEWHERE])
def test_a_release_changes_nothing_for_green(phase: Phase, purpose: Purpose, host: str) -> None:
    before = in_phase(phase)
    after = replace(before, release_until_ns=3600_000 * MS)
    assert decide(after, host, purpose) == decide(before, host, purpose)


def test_a_release_still_routes_to_a_known_green() -> None:
    released = release(in_phase(Phase.IN_PROGRESS))
    waiting = step(released, status(Role.TARGET, "SWITCHOVER_IN_POST_PROCESSING", 30), RULES)
    assert action(waiting) is Action.PASS, "by name, while green answers that it takes no writes"
    promoted = step(waiting, Answered(at(31), Role.TARGET, read_only=False), RULES)
    assert decide(promoted, BLUE, Purpose.CONNECT).addresses == ("10.0.0.2",)
    assert promoted.epoch == released.epoch + EPOCH_OF_DECISION, "connections opened by name in between are drained"


@pytest.mark.parametrize("phase", sorted(Phase))
def test_a_release_without_held_callers_changes_nothing(phase: Phase) -> None:
    before = in_phase(phase)
    if phase is not Phase.IN_PROGRESS:
        assert refusal(before, Order.RELEASE) == f"no caller is held ({phase.name})"
        assert release(before).release_until_ns == 0
        assert release(before).epoch == before.epoch


@pytest.mark.parametrize("found", ["green's address", "blue's new one"])
def test_connections_by_name_in_post_are_drained_once_green_is_known(found: str) -> None:
    released = release(without_green(Phase.POST))
    names = {BLUE: ("10.0.0.1",), GREEN: ("10.0.0.2",)} if "green" in found else {BLUE: ("10.0.0.2",), GREEN: ()}
    known = step(replace(released, ready=False), Resolved(at(30), names), RULES)
    assert known.phase is Phase.POST or known.blue_moved
    assert known.epoch > released.epoch, "the name led to old blue before"
    assert step(known, Resolved(at(40), names), RULES).epoch == known.epoch


def test_connections_by_name_are_drained_when_the_name_has_moved() -> None:
    """Also where that is no evidence of a promotion, by the parameters."""
    released = release(in_phase(Phase.IN_PROGRESS))
    moved = Resolved(at(30), {BLUE: ("10.0.0.2",), GREEN: ("10.0.0.2",)})
    after = step(released, moved, Rules(release_on_blue_dns_update=False))
    assert (after.phase, after.epoch) == (Phase.IN_PROGRESS, released.epoch + EPOCH_OF_DECISION)


@pytest.mark.parametrize("end", ["the timer", "a rollback"])
def test_connections_by_name_are_not_used_after_the_switchover(end: str) -> None:
    if end == "the timer":
        released = release(without_green(Phase.POST))
        # And by another step than what a monitor may publish in the same moment.
        assert step(released, Tick(at(180_000)), RULES).epoch == released.epoch + EPOCH_OF_TIMER
    else:
        released = release(in_phase(Phase.IN_PROGRESS))
        assert step(released, status(Role.TARGET, "AVAILABLE", 30), RULES).epoch > released.epoch


def test_a_second_release_is_none() -> None:
    released = release(in_phase(Phase.IN_PROGRESS))
    assert release(released, 30) is released
    assert "released by hand already" in refusal(released, Order.RELEASE)


def test_a_release_holds_no_suspicion_against_callers() -> None:
    released = release(suspected())
    begun = step(released, status(Role.TARGET, "SWITCHOVER_IN_PROGRESS", 30), RULES)
    assert (begun.phase, action(begun)) == (Phase.IN_PROGRESS, Action.PASS)


def test_a_release_ends_by_itself() -> None:
    released = replace(release(in_phase(Phase.IN_PROGRESS)), deadline_ns=10**18)
    until_ms = released.release_until_ns // MS
    assert step(released, Tick(at(until_ms - 1)), RULES) is released
    over = step(released, Tick(at(until_ms)), RULES)
    assert action(over) is Action.HOLD
    assert said(over)[-1] == "release_by_hand_ended"


def test_the_next_switchover_is_not_affected_by_a_release() -> None:
    snapshot = release(in_phase(Phase.IN_PROGRESS))
    back = step(snapshot, status(Role.TARGET, "AVAILABLE", 30), RULES)
    assert (back.rolled_back, back.release_until_ns) == (True, 0)
    over = step(snapshot, Tick(at(180_000)), RULES)
    assert (over.phase, over.release_until_ns) == (Phase.COMPLETED, 0)
    again = step(back, status(Role.TARGET, "SWITCHOVER_IN_PROGRESS", 60), RULES)
    assert action(again) is Action.HOLD


def test_the_summary_of_a_rollback_counts_from_preparation_whatever_is_ordered_after_it() -> None:
    story = step(in_phase(Phase.CREATED), status(Role.TARGET, "SWITCHOVER_INITIATED", 100), RULES)
    story = step(story, status(Role.TARGET, "SWITCHOVER_IN_PROGRESS", 200), RULES)
    story = step(story, status(Role.TARGET, "AVAILABLE", 300), RULES)
    held = hold(story, ms=400)
    assert events(held) == ["Held by hand (60 s)"]
    assert summary_table(held.timeline).splitlines()[3:6] == summary_table(story.timeline).splitlines()[3:6]


@pytest.mark.parametrize("event", [Answered(at(30), Role.SOURCE, read_only=True), Resolved(at(30), {})])
def test_an_order_outlasts_what_is_no_news(event: Event) -> None:
    assert step(hold(in_phase(Phase.CREATED)), event, RULES).hold_until_ns
    assert step(release(in_phase(Phase.IN_PROGRESS)), event, RULES).release_until_ns


def test_what_is_ordered_fits_the_summary() -> None:
    """Every row as wide as the ruler."""
    story = release(step(hold(in_phase(Phase.CREATED)), status(Role.TARGET, "SWITCHOVER_IN_PROGRESS", 12), RULES))
    again = release(hold(in_phase(Phase.CREATED)))
    for snapshot in (story, again, step(hold(in_phase(Phase.CREATED)), Tick(at(60_010)), RULES)):
        table = summary_table(snapshot.timeline).splitlines()
        assert {len(line) for line in table} == {len(table[0])}
