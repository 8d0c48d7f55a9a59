"""Log lines about a host's role: each lasting change is logged once, and a flapping role does not fill the log."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from bgpool.core.events import Instant
from bgpool.core.fleet import FleetRole
from bgpool.core.fleet_lines import LoggedState, tell
from bgpool.core.limits import FLEET_WORKS_S, LOG_REPEAT_S
from bgpool.core.member import Member
from bgpool.core.snapshot import Snapshot

SECOND = 1_000_000_000
ALONE = Member("aaaaaaaaaaaaaaaa", "app")
FOLLOWS = replace(ALONE, standing=FleetRole.FOLLOWER, reason="", leader="2f7c1b90a4d85e63", hosts=30)
LEADS = replace(ALONE, standing=FleetRole.LEADER, reason="", leader=ALONE.id, hosts=1)


def fallen(times: int, reason: str = "no message for 1.5 s") -> Member:
    return replace(FOLLOWS, standing=FleetRole.DIRECT, reason=reason, fallbacks=times)


class Log:
    """The lines, event by event."""

    def __init__(self) -> None:
        self.said, self.snapshot = LoggedState(), Snapshot("1")

    def see(self, at_s: float, member: Member) -> list[tuple[str, int, str]]:
        """The lines that *member* makes at *at_s* seconds."""
        before = self.snapshot
        self.said, self.snapshot = tell(self.said, before, member, Instant(int(at_s * SECOND), 0))
        last = before.notices[-1].number if before.notices else 0
        new = [notice for notice in self.snapshot.notices if notice.number > last]
        assert all(notice.logger == "bgpool.monitor" for notice in new)
        return [(notice.event, notice.level, notice.text) for notice in new]


@pytest.fixture
def log() -> Log:
    return Log()


def test_who_begins_says_nothing(log: Log) -> None:
    assert log.see(1, ALONE) == []
    assert log.snapshot == Snapshot("1")


def test_each_role_is_logged_once(log: Log) -> None:
    follows = "this host follows 2f7c1b90a4d85e63 in its fleet"
    assert log.see(1, FOLLOWS) == [("fleet_joined", logging.INFO, follows)]
    # Another leader, and another count, are no change of this host's place.
    assert log.see(2, replace(FOLLOWS, leader="90b3cc41de07a152", hosts=29)) == []
    fell = "this host queries the database itself: no message for 1.5 s"
    assert log.see(3, fallen(1)) == [("fleet_fallback", logging.WARNING, fell)]
    assert log.see(4, fallen(1, "another reason")) == []
    leads = replace(LEADS, fallbacks=1)
    assert log.see(5, leads) == [("fleet_joined", logging.INFO, "this host leads its fleet")]
    assert log.see(6, leads) == []


def test_a_later_silence_with_the_same_reason_is_logged_again(log: Log) -> None:
    """However few other lines there were in between."""
    for number in (1, 2, 3):
        at_s = number * (2 * LOG_REPEAT_S)
        assert [event for event, _, _ in log.see(at_s, replace(FOLLOWS, fallbacks=number - 1))] == ["fleet_joined"]
        assert [event for event, _, _ in log.see(at_s + LOG_REPEAT_S, fallen(number))] == ["fleet_fallback"]


def test_a_leader_that_steps_down_for_a_moment_has_not_fallen_back(log: Log) -> None:
    assert len(log.see(1, LEADS)) == 1
    stepped_down = replace(LEADS, standing=FleetRole.DIRECT, reason="the fleet's stream was deleted")
    assert log.see(2, stepped_down) == []
    assert log.see(2.1, LEADS) == []


def test_no_storm(log: Log) -> None:
    """A host that falls back and follows again every two seconds, for an hour."""
    told = []
    for number in range(1800):
        told += log.see(2 * number, replace(FOLLOWS, fallbacks=number))
        told += log.see(2 * number + 1, fallen(number + 1))
    assert 60 <= len(told) <= 2 * 3600 / LOG_REPEAT_S + 2
    # And the last word is right, once it stays.
    last = told + log.see(3601 + LOG_REPEAT_S, replace(FOLLOWS, fallbacks=1800))
    assert last[-1][0] == "fleet_joined"
    assert log.see(3700 + LOG_REPEAT_S, replace(FOLLOWS, fallbacks=1800)) == []


def test_a_lasting_fallback_is_logged_late_rather_than_never(log: Log) -> None:
    log.see(1, FOLLOWS)
    assert len(log.see(2, fallen(1))) == 1
    assert len(log.see(3, replace(FOLLOWS, fallbacks=1))) == 0, "follows within a minute of the first time"
    assert log.see(4, fallen(2)) == []
    assert log.see(30, fallen(2)) == []
    assert [event for event, _, _ in log.see(2 + LOG_REPEAT_S, fallen(2))] == ["fleet_fallback"]


def test_a_failing_bus_is_logged_once_until_it_works_again(log: Log) -> None:
    log.see(1, FOLLOWS)
    refused, stopped = replace(FOLLOWS, bus_error="refused"), replace(FOLLOWS, bus_error="no answer in 1 s")
    assert log.see(2, refused) == [("fleet_bus_failed", logging.WARNING, "the fleet's bus fails: refused")]
    for second in range(3, 200):
        assert log.see(second, stopped if second % 2 else refused) == []
    assert log.see(200, FOLLOWS) == []
    works = ("fleet_bus_recovered", logging.INFO, "the fleet's bus works again")
    assert log.see(200 + FLEET_WORKS_S, FOLLOWS) == [works]
    assert log.see(300, FOLLOWS) == []
    assert len(log.see(400, refused)) == 1


def test_a_user_without_write_permission_is_logged_once(log: Log) -> None:
    """Each report fails; what is read in between says that the bus works."""
    log.see(1, FOLLOWS)
    told = []
    for second in range(2, 600):
        told += log.see(second, replace(FOLLOWS, bus_error="NOPERM" if second % 6 == 0 else ""))
    assert [event for event, _, _ in told] == ["fleet_bus_failed"]


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (replace(FOLLOWS, clock_off_ns=-2 * SECOND), "messages of the fleet's leader are dated 2.0 s in the future"),
        (replace(FOLLOWS, clock_off_ns=5 * SECOND), "messages of the fleet's leader are 5.0 s old"),
        (replace(LEADS, strangers=1), "the clocks of 1 host differ from that of this host, which leads the fleet"),
        (replace(LEADS, strangers=4), "the clocks of 4 hosts differ from that of this host, which leads the fleet"),
    ],
)
def test_clocks(log: Log, member: Member, text: str) -> None:
    right = replace(member, clock_off_ns=None, strangers=0)
    log.see(1, right)
    ((event, level, told),) = log.see(2, member)
    assert (event, level) == ("fleet_clocks_differ", logging.WARNING)
    assert told.startswith(text)
    assert log.see(100, member) == [], "until it is right again"
    assert log.see(101, right) == []
    assert len(log.see(102, member)) == 1


@pytest.mark.parametrize("off_s", [-0.9, 0, 2.9])
def test_clocks_that_differ_a_little(log: Log, off_s: float) -> None:
    log.see(1, FOLLOWS)
    assert log.see(2, replace(FOLLOWS, clock_off_ns=int(off_s * SECOND))) == []
