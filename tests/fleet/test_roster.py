"""The roll of a fleet: who counts as a host, and what a copy of a report is worth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgpool.core.events import Order
from bgpool.core.fleet import FleetOrder, FleetRole, Report
from bgpool.core.phase import Phase
from bgpool.fleet.roster import Roster

NOW_MS = 1_800_000_000_000
LEADER = "aa" * 8


def report(place: int, *, at_ms: int = NOW_MS, member: str = "", **facts: object) -> Report:
    told = Report(
        member or f"{place:016x}",
        f"host{place}",
        f"{place:016x}",
        "1.0",
        at_ms * 1_000_000,
        "app",
        Phase.CREATED,
        (),
        1,
        0,
        FleetRole.FOLLOWER,
    )
    return replace(told, **facts)  # type: ignore[arg-type]  # facts of a report


@pytest.fixture
def roll() -> Roster:
    made = Roster(LEADER)
    made.add(NOW_MS, report(0, member=LEADER))
    return made


def test_a_host_counts_until_it_leaves_or_falls_silent(roll: Roster) -> None:
    for place in (1, 2, 3):
        assert roll.add(NOW_MS, report(place))
    assert roll.count().hosts == 4
    roll.add(NOW_MS + 100, report(1, at_ms=NOW_MS + 100, leaves=True))
    assert roll.count().hosts == 3
    roll.add(NOW_MS + 17_000, report(0, member=LEADER, at_ms=NOW_MS + 17_000))
    assert roll.count().hosts == 1


def test_the_next_monitor_of_a_host_is_no_other_host(roll: Roster) -> None:
    roll.add(NOW_MS, report(1))
    roll.add(NOW_MS + 10, report(1, member="bb" * 8, at_ms=NOW_MS + 10))
    assert roll.count().hosts == 2


def test_a_copy_of_a_report_changes_nothing(roll: Roster) -> None:
    early = report(1, phase=Phase.IN_PROGRESS)
    late = report(1, at_ms=NOW_MS + 5_000, leaves=True)
    assert roll.add(NOW_MS, early)
    assert roll.add(NOW_MS + 5_000, late)
    before = roll.count()
    for copy in (early, late, report(0, member=LEADER)):
        assert not roll.add(NOW_MS + 6_000, copy)
    assert roll.count() == before


def test_copies_of_the_reports_of_hosts_that_are_long_gone_are_no_hosts(roll: Roster) -> None:
    for place in range(1, 5):
        roll.add(NOW_MS, report(place))
    for place in range(100, 104):
        roll.add(NOW_MS, report(place, at_ms=NOW_MS - 600_000, phase=Phase.IN_PROGRESS))
    count = roll.count()
    assert (count.hosts, count.switching) == (5, False)
    # They are not the most: the leader need not think that its clock is wrong.
    assert 2 * count.strangers <= count.hosts


@pytest.mark.parametrize("off_ms", [-60_000, -5_000, 5_000, 60_000])
def test_a_leader_learns_that_its_clock_differs_from_most(roll: Roster, off_ms: int) -> None:
    for place in range(1, 5):
        roll.add(NOW_MS, report(place, at_ms=NOW_MS + off_ms))
    count = roll.count()
    assert count.strangers == 4
    assert 2 * count.strangers > count.hosts


def test_the_newest_order_stands(roll: Roster) -> None:
    hold = FleetOrder("2", Order.HOLD, 0)
    assert roll.add(NOW_MS, hold)
    assert not roll.add(NOW_MS, FleetOrder("1", Order.RELEASE, 0))
    assert not roll.add(NOW_MS, hold)
    assert roll.count().order is hold
