"""Time limits that do not fit each other, with the numbers and what to change."""

from __future__ import annotations

import pytest

from bgpool.core.events import Answered, Instant, Resolved, StatusRead, StatusRow
from bgpool.core.machine import Rules, step
from bgpool.core.phase import Role
from bgpool.core.snapshot import Snapshot
from bgpool.core.timeouts import hold_misfit, timer_misfit


@pytest.mark.parametrize(
    ("switchover_ms", "words"),
    [
        (180_000, ("180 s", "300 s", "--switchover-timeout 180", "bg_switchover_timeout_ms=300000")),
        (299_999, ("--switchover-timeout 299",)),
        (5_000, ("5 s", "bg_switchover_timeout_ms=300000")),
        (300_000, None),
        (0, None),
    ],
)
def test_the_timer_against_what_aws_allows(switchover_ms: int, words: tuple[str, ...] | None) -> None:
    text = timer_misfit(switchover_ms)
    assert bool(text) is (words is not None)
    assert all(word in text for word in words or ())
    # AWS takes no less than 30 s.
    assert ("--switchover-timeout" in text) is (30_000 <= switchover_ms < 300_000)


@pytest.mark.parametrize(
    ("hold_ms", "busy_ms", "words"),
    [
        (30_000, 30_000, ("up to 30 s", "busy for 30 s", "35 s or more", "bg_connect_timeout_ms=25000 or less")),
        (30_000, 34_999, ("busy for 34.999 s",)),
        (30_000, 4_000, ("busy for 4 s", "35 s or more")),
        (30_000, 35_000, None),
        (30_000, 0, None),
        (0, 30_000, None),
    ],
)
def test_the_hold_against_the_server(hold_ms: int, busy_ms: int, words: tuple[str, ...] | None) -> None:
    text = hold_misfit(hold_ms, busy_ms)
    assert bool(text) is (words is not None)
    assert all(word in text for word in words or ())


@pytest.mark.parametrize(("timeout_ms", "fits"), [(180_000, False), (300_000, True)])
def test_the_line_at_readiness_has_both_numbers(timeout_ms: int, fits: bool) -> None:
    blue, green = "a.c0.eu-west-1.rds.amazonaws.com", "a-green-x1y2z3.c0.eu-west-1.rds.amazonaws.com"
    rows = (
        StatusRow(blue, 5432, "BLUE_GREEN_DEPLOYMENT_SOURCE", "AVAILABLE"),
        StatusRow(green, 5432, "BLUE_GREEN_DEPLOYMENT_TARGET", "AVAILABLE"),
    )
    at, snapshot = Instant(1, 1), Snapshot("1")
    for event in (
        Answered(at, Role.SOURCE, read_only=False),
        StatusRead(at, Role.SOURCE, rows),
        StatusRead(at, Role.TARGET, rows),
        Resolved(at, {blue: ("10.0.0.1",), green: ("10.0.0.2",)}),
    ):
        snapshot = step(snapshot, event, Rules(timeout_ms))
    text = snapshot.notices[-1].text
    assert text.startswith("ready for a switchover: ")
    assert ("bg_switchover_timeout_ms is 180 s, and AWS allows a switchover 300 s" in text) is not fits
