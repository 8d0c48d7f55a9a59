"""The monitor's next actions follow from the snapshot alone."""

from __future__ import annotations

import pytest

from bgpool.core.limits import SWITCHING_TIMEOUT_S
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.plan import Intervals, Target, plan
from bgpool.core.snapshot import Snapshot
from tests.core.test_machine import ready
from tests.core.test_transcripts import BLUE, GREEN

INTERVALS = Intervals(baseline_ms=60_000, increased_ms=1_000, high_ms=100)
#: The state after a switchover whose DNS has moved.
SETTLED = {"blue_moved": True, "green_gone": True}


def test_without_a_deployment_only_the_entrance_is_watched() -> None:
    found = plan(Snapshot("1"), INTERVALS)
    assert (found.interval_ms, found.retry_ms) == (60_000, 1_000)
    assert (found.source, found.target, found.names, found.renewals) == (None, None, (), ())


def test_a_deployment_is_watched_by_name() -> None:
    found = plan(ready(Phase.CREATED), INTERVALS)
    assert (found.interval_ms, found.retry_ms, found.resolve_ms) == (1_000, 100, 1_000)
    assert (found.source, found.target) == (Target(BLUE, 5432), Target(GREEN, 5432))
    assert found.names == (BLUE, GREEN)


@pytest.mark.parametrize("phase", sorted(SWITCHING))
def test_a_switchover_is_watched_closely_and_by_address(phase: Phase) -> None:
    found = plan(ready(phase), INTERVALS)
    assert (found.interval_ms, found.retry_ms, found.resolve_ms) == (100, 100, 100)
    assert found.source == Target(BLUE, 5432, ("10.0.0.1",), (BLUE,), SWITCHING_TIMEOUT_S)
    # Green may be renamed before it accepts logins again.
    assert found.target == Target(GREEN, 5432, ("10.0.0.2",), (GREEN, BLUE), SWITCHING_TIMEOUT_S)


@pytest.mark.parametrize(("high_ms", "evidence_ms"), [(500, 100), (100, 20), (50, 10), (20, 10), (5, 5)])
def test_green_is_queried_more_often_while_callers_wait_for_it(high_ms: int, evidence_ms: int) -> None:
    intervals = Intervals(high_ms=high_ms)
    waiting = plan(ready(Phase.IN_PROGRESS), intervals)
    assert waiting.pace_ms(Role.TARGET) == (evidence_ms, evidence_ms)
    assert waiting.pace_ms(Role.SOURCE) == (high_ms, high_ms)
    for phase in (Phase.PREPARATION, Phase.POST):
        assert plan(ready(phase), intervals).pace_ms(Role.TARGET) == (high_ms, high_ms)


def test_an_overdue_switchover_is_still_watched_by_address() -> None:
    found = plan(ready(Phase.COMPLETED), INTERVALS)
    assert (found.interval_ms, found.resolve_ms) == (1_000, 1_000)
    assert found.source is not None
    assert found.source.addresses == ("10.0.0.1",)
    assert found.target is not None


def test_afterwards_dns_is_watched_until_it_has_followed() -> None:
    pinned = plan(ready(Phase.COMPLETED, pinned=True), INTERVALS)
    assert (pinned.interval_ms, pinned.resolve_ms, pinned.names) == (60_000, 1_000, (BLUE, GREEN))
    settled = plan(ready(Phase.COMPLETED, **SETTLED), INTERVALS)
    assert (settled.source, settled.target, settled.names) == (None, None, ())


def test_green_is_tried_under_its_new_name_until_it_can_prove_it() -> None:
    waiting = plan(ready(Phase.POST, pinned=True), INTERVALS)
    assert waiting.renewals == (Target(GREEN, 5432, ("10.0.0.2",), (BLUE,), SWITCHING_TIMEOUT_S),)
    assert plan(ready(Phase.POST, pinned=True, certified=(GREEN,)), INTERVALS).renewals == ()
    assert plan(ready(Phase.POST), INTERVALS).renewals == ()
