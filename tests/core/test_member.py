"""A member of a fleet: who leads, what of a message is used, and when a host asks for itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgpool.core.duty import Duty, duty, farewell, published
from bgpool.core.events import (
    Answered,
    Event,
    Instant,
    MetadataAbsent,
    Nudged,
    Order,
    Ordered,
    ProbeFailed,
    Resolved,
    StatusRead,
    StatusRow,
    Tick,
)
from bgpool.core.fleet import (
    BusFailed,
    Claimed,
    FleetEvent,
    FleetOrder,
    FleetRole,
    Message,
    MessageHeard,
    PublishRefused,
    ReportsRead,
    StreamLost,
)
from bgpool.core.limits import FLEET_TURN_S
from bgpool.core.machine import Rules, step
from bgpool.core.member import Member, take
from bgpool.core.phase import Phase, Role
from bgpool.core.readings import mark_of
from bgpool.core.snapshot import Snapshot

S = 1_000_000_000
MS = 1_000_000
#: The wall clock at the monotonic clock's 0.
WALL = 1_800_000_000 * S
BLUE, GREEN = "ledger.c0abc.eu-west-1.rds.amazonaws.com", "ledger-green-a1b2c3.c0abc.eu-west-1.rds.amazonaws.com"


def rows(status: str, *, green: str = GREEN) -> tuple[StatusRow, ...]:
    return (
        StatusRow(BLUE, 5432, Role.SOURCE.value, status),
        StatusRow(green, 5432, Role.TARGET.value, status),
    )


class Host:
    """A monitor without threads: its member, its snapshot, and what it would publish."""

    def __init__(self, name: str, *, at: float = 0.0, off: float = 0.0, application: str = "app") -> None:
        self.member = Member(name.ljust(16, "0"), application)
        self.snapshot = Snapshot("ledger")
        self.now, self.off = at, off
        self.asked: list[Event] = []

    @property
    def at(self) -> Instant:
        return Instant(int(self.now * S), WALL + int((self.now + self.off) * S))

    def take(self, event: Event | FleetEvent) -> tuple[Event, ...]:
        self.member, told = take(self.member, self.snapshot, event)
        own = () if isinstance(event, FleetEvent) else (event,)
        for one in (*own, *told):
            self.snapshot = step(self.snapshot, one, Rules())
        return told

    def reads(self, status: str, role: Role | None = None, *, read_only: bool = True) -> None:
        """Its own questions are answered."""
        for one in Role if role is None else (role,):
            self.take(Answered(self.at, one, read_only if one is Role.TARGET else False, replica=one is Role.TARGET))
            self.take(StatusRead(self.at, one, rows(status)))
        if self.snapshot.phase is Phase.CREATED:
            self.take(Resolved(self.at, {BLUE: ("10.0.0.1",), GREEN: ("10.0.0.2",)}))

    def fails(self, role: Role) -> None:
        self.take(ProbeFailed(self.at, role, "connection refused"))

    def hears(self, *messages: Message) -> tuple[Event, ...]:
        return tuple(event for message in messages for event in self.take(MessageHeard(self.at, message)))

    def does(self) -> Duty:
        return duty(self.member, self.snapshot, self.at)

    def speaks(self, term: int = 0) -> Message:
        """Publish what is due; a claim is won, in *term*."""
        publication = self.does().publication
        assert publication is not None
        self.member = published(self.member, publication, self.at)
        message = publication.message
        if publication.is_claim:
            message = replace(message, term=max(term, message.term, 1))
            self.take(Claimed(self.at, message.term))
        return message

    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.take(Tick(self.at))

    @property
    def asks(self) -> tuple[bool, ...]:
        return tuple(one is not None for one in self.does().asks)

    def stands(self) -> FleetRole:
        return self.member.standing

    def phase(self) -> Phase:
        return self.snapshot.phase


def created(name: str, **options: float) -> Host:
    host = Host(name, **options)  # type: ignore[arg-type]  # at and off
    host.reads("AVAILABLE", Role.SOURCE)
    host.reads("AVAILABLE")
    assert host.phase() is Phase.CREATED
    assert host.snapshot.ready
    return host


def pair(*, hosts: int = 30) -> tuple[Host, Host]:
    """A leader and a follower in CREATED."""
    leader, follower = created("aaaa"), created("bbbb")
    first = leader.speaks(term=WALL // S)
    leader.take(ReportsRead(leader.at, hosts))
    follower.hears(first)
    assert (leader.stands(), follower.stands()) == (FleetRole.LEADER, FleetRole.FOLLOWER)
    later(leader, follower, 2.0)
    return leader, follower


def later(leader: Host, follower: Host, seconds: float) -> None:
    """Time in which nothing happens but heartbeats."""
    for _ in range(round(seconds * 10)):
        leader.now += 0.1
        follower.now += 0.1
        if leader.does().publication is not None:
            message = leader.speaks()
            follower.hears(message)
            leader.hears(message)
        follower.take(Tick(follower.at))


# -- following ----------------------------------------------------------------------------------------------------


def test_a_host_asks_for_itself_until_it_knows_the_deployment_and_follows_then() -> None:
    leader, follower = pair()
    assert leader.asks == (True, True)
    assert follower.asks == (False, False)


def test_a_follower_takes_the_readings_of_its_leader_as_events_of_its_own() -> None:
    leader, follower = pair()
    leader.reads("SWITCHOVER_INITIATED")
    follower.hears(leader.speaks())
    assert follower.phase() is Phase.PREPARATION
    leader.reads("SWITCHOVER_IN_PROGRESS")
    told = follower.hears(leader.speaks())
    assert follower.phase() is Phase.IN_PROGRESS
    assert {event.at for event in told} == {follower.at}
    leader.reads("SWITCHOVER_IN_PROGRESS", Role.TARGET, read_only=False)
    leader.fails(Role.SOURCE)
    follower.hears(leader.speaks())
    assert follower.phase() is Phase.POST
    assert follower.asks == (False, False)


def test_a_deployment_is_discovered_only_at_the_database() -> None:
    leader = created("aaaa")
    joiner = Host("bbbb")
    told = joiner.hears(leader.speaks())
    assert told == ()
    assert joiner.phase() is Phase.NOT_CREATED
    assert joiner.asks == (True, True)
    # At once: what the leader says is a reason to look.
    assert joiner.does().asks[0] == joiner.at.mono_ns
    joiner.reads("AVAILABLE", Role.SOURCE)
    assert joiner.phase() is Phase.CREATED


def test_a_row_that_names_a_foreign_host_is_not_used() -> None:
    leader, follower = pair()
    evil = "evil-green-a1b2c3.c0abc.eu-west-1.rds.amazonaws.com"
    leader.take(Answered(leader.at, Role.TARGET, read_only=True, replica=True))
    leader.take(StatusRead(leader.at, Role.TARGET, rows("AVAILABLE", green=evil)))
    assert follower.hears(leader.speaks()) == follower.hears()
    assert evil not in str(follower.snapshot)
    assert follower.asks == (False, True)
    follower.reads("AVAILABLE", Role.TARGET)
    assert evil not in str(follower.snapshot)


def test_another_deployment_with_the_same_bg_id_is_not_followed() -> None:
    """Its readings may name no host, such as those of deleted metadata, and of its green that accepts writes."""
    leader, follower = pair()
    later(leader, follower, 0.5)
    follower.reads("SWITCHOVER_IN_PROGRESS")
    stray = created("eeee", at=follower.now)
    stray.snapshot = replace(
        stray.snapshot,
        hosts=tuple(replace(host, name=host.name.replace("ledger", "other")) for host in stray.snapshot.hosts),
    )
    stray.take(Answered(stray.at, Role.TARGET, read_only=False))
    stray.take(MetadataAbsent(stray.at, Role.TARGET, ""))
    message = stray.speaks(term=leader.member.term + 1)
    assert message.deployment not in ("", mark_of(follower.snapshot))
    assert follower.hears(message) == ()
    assert follower.phase() is Phase.IN_PROGRESS
    for _ in range(30):
        follower.waits(0.1)
        stray.now += 0.1
        stray.member = replace(stray.member, heard_ns=stray.at.mono_ns)
        if stray.does().publication is not None:
            follower.hears(stray.speaks())
    assert follower.stands() is FleetRole.DIRECT
    assert "another deployment" in follower.member.reason
    assert follower.does().publication is None
    # Nor is one that has no inventory, and so does not say whose readings it has.
    follower.hears(replace(message, seq=10**6, whole=10**6, deployment="", issued_ns=follower.at.wall_ns))
    assert follower.phase() is Phase.IN_PROGRESS


def test_another_port_is_another_host() -> None:
    leader, follower = pair()
    leader.take(Answered(leader.at, Role.SOURCE, read_only=False))
    leader.take(StatusRead(leader.at, Role.SOURCE, tuple(replace(row, port=6666) for row in rows("AVAILABLE"))))
    follower.hears(leader.speaks())
    assert {host.port for host in follower.snapshot.hosts} == {5432}


def test_what_a_host_has_read_itself_is_not_undone_by_what_may_be_older() -> None:
    leader, follower = pair()
    leader.reads("AVAILABLE")
    stale = leader.speaks() if leader.does().publication else None
    follower.take(Nudged(follower.at))
    follower.reads("SWITCHOVER_IN_PROGRESS")
    assert follower.phase() is Phase.IN_PROGRESS
    assert stale is None
    later(leader, follower, 0.3)
    assert follower.phase() is Phase.IN_PROGRESS
    assert follower.asks == (True, True)
    # Once the leader has read the same, it is followed again.
    leader.reads("SWITCHOVER_IN_PROGRESS")
    follower.hears(leader.speaks())
    assert follower.asks == (False, False)


def test_a_nudge_is_not_answered_by_what_the_leader_heard_before() -> None:
    leader, follower = pair()
    leader.reads("SWITCHOVER_INITIATED")
    follower.hears(leader.speaks())
    follower.take(Nudged(follower.at))
    assert follower.snapshot.suspected_until_ns
    leader.now += 0.1
    follower.now += 0.1
    leader.reads("SWITCHOVER_INITIATED")
    follower.hears(leader.speaks())
    assert follower.snapshot.suspected_until_ns
    assert follower.asks == (True, True)
    follower.reads("SWITCHOVER_INITIATED")
    assert not follower.snapshot.suspected_until_ns
    assert follower.asks == (False, False)


def test_a_host_that_is_cut_off_from_the_database_goes_on_with_what_its_leader_reads() -> None:
    leader, follower = pair()
    follower.take(Nudged(follower.at))
    for _ in range(12):
        follower.fails(Role.SOURCE)
        follower.fails(Role.TARGET)
        later(leader, follower, 0.1)
    leader.reads("SWITCHOVER_IN_PROGRESS")
    follower.hears(leader.speaks())
    assert follower.phase() is Phase.IN_PROGRESS
    assert follower.asks == (False, False)


def test_a_new_monitor_ignores_readings_from_before_its_start() -> None:
    """The next monitor of a host goes on from a snapshot that may be newer than what the stream begins with."""
    leader, follower = pair()
    leader.now += 0.5
    leader.reads("AVAILABLE")
    # After that its next message is a whole one.
    leader.take(BusFailed(leader.at, "it has hung up"))
    before = leader.speaks()
    assert before.readings
    leader.now += 0.5
    leader.reads("SWITCHOVER_INITIATED")
    after = leader.speaks()
    follower.now = leader.now
    follower.hears(before, after)
    assert follower.phase() is Phase.PREPARATION
    following = Host("cccc", at=follower.now + 0.3)
    following.snapshot = follower.snapshot
    following.hears(before)
    assert following.phase() is Phase.PREPARATION
    assert not following.snapshot.rolled_back
    following.hears(after)
    # The current state it must read itself, or receive from a host that has read it since.
    assert following.asks == (True, True)
    for role in Role:
        following.fails(role)
    for _ in range(12):
        leader.now = following.now = following.now + 0.1
        leader.reads("SWITCHOVER_IN_PROGRESS")
        if leader.does().publication is not None:
            message = leader.speaks()
            leader.hears(message)
            following.hears(message)
    assert following.phase() is Phase.IN_PROGRESS
    assert following.asks == (False, False)


def test_a_backlog_does_not_override_an_answer_from_before_the_silence() -> None:
    """Cut off from the bus it has read the switchover itself; no server answers any more, and the bus has old words."""
    leader, follower = pair()
    leader.reads("AVAILABLE")
    leader.now += 5
    old = leader.speaks()
    follower.now = leader.now
    follower.waits(1.6)
    follower.waits(1.6)
    assert follower.stands() is FleetRole.DIRECT
    follower.reads("SWITCHOVER_INITIATED")
    for role in Role:
        follower.fails(role)
    old = replace(old, issued_ns=old.issued_ns + 2 * S, read_ns=(old.read_ns[0] + 2 * S, old.read_ns[1] + 2 * S))
    follower.hears(old)
    assert follower.stands() is FleetRole.FOLLOWER
    assert follower.phase() is Phase.PREPARATION


def test_a_host_without_answers_ignores_write_permissions_of_another_application() -> None:
    leader, follower = pair()
    follower.member = replace(follower.member, application="other")
    leader.reads("SWITCHOVER_IN_PROGRESS")
    follower.reads("SWITCHOVER_IN_PROGRESS")
    follower.fails(Role.TARGET)
    leader.reads("SWITCHOVER_IN_PROGRESS", Role.TARGET, read_only=False)
    leader.take(Answered(leader.at, Role.SOURCE, True))
    leader.take(StatusRead(leader.at, Role.SOURCE, rows("SWITCHOVER_IN_PROGRESS")))
    follower.hears(leader.speaks())
    assert leader.phase() is Phase.POST
    assert follower.phase() is Phase.IN_PROGRESS
    assert follower.asks == (True, True)


def test_a_role_of_another_application_is_asked_by_the_host_itself() -> None:
    leader, follower = pair()
    follower.member = replace(follower.member, application="other")
    leader.reads("SWITCHOVER_IN_PROGRESS")
    follower.hears(leader.speaks())
    assert follower.asks == (True, True)
    assert follower.phase() is Phase.CREATED
    follower.reads("SWITCHOVER_IN_PROGRESS")
    assert follower.phase() is Phase.IN_PROGRESS
    assert follower.asks == (False, False)


def test_a_leader_without_a_grant_takes_no_deployment_away() -> None:
    leader, follower = pair()
    leader.take(Answered(leader.at, Role.SOURCE, read_only=False))
    leader.take(MetadataAbsent(leader.at, Role.SOURCE, "GRANT it"))
    assert leader.phase() is Phase.NOT_CREATED
    follower.hears(leader.speaks())
    assert follower.phase() is Phase.CREATED
    assert follower.asks == (True, False)
    follower.reads("AVAILABLE", Role.SOURCE)
    # It sees more, and leads.
    claim = follower.does().publication
    assert claim is not None
    assert claim.is_claim


# -- silence ------------------------------------------------------------------------------------------------------


def test_silence_makes_a_host_ask_within_the_fleets_budget() -> None:
    leader, follower = pair(hosts=1000)
    later(leader, follower, 0.6)
    assert follower.member.hosts == 1000
    follower.waits(1.4)
    assert not follower.member.vacant
    follower.waits(0.2)
    assert follower.member.vacant
    assert follower.does().pace_ms == 5000
    first = follower.does()
    assert first.asks == (None, None)
    assert follower.now * S < first.due_ns <= (follower.now + 5) * S
    follower.now = first.due_ns / S + 0.001
    assert follower.asks == (True, True)
    # Another host may soon lead; then nothing has happened.
    assert follower.member.fallbacks == 0
    follower.waits(1.0)
    assert follower.stands() is FleetRole.DIRECT
    assert follower.member.fallbacks == 1
    assert follower.asks == (True, True)
    assert follower.does().pace_ms == 5000


@pytest.mark.parametrize(("status", "limit"), [("AVAILABLE", 1.5), ("SWITCHOVER_INITIATED", 0.4)])
def test_silence_is_shorter_in_a_switchover(status: str, limit: float) -> None:
    leader, follower = pair()
    leader.reads(status)
    if leader.does().publication is None:
        leader.now += 0.5
        follower.now += 0.5
    follower.hears(leader.speaks())
    follower.waits(limit - 0.05)
    assert not follower.member.vacant
    follower.waits(0.1)
    assert follower.member.vacant
    follower.waits(0.15)
    assert follower.asks == (True, True)


def test_a_switchover_that_is_found_to_be_under_way_after_all_is_no_silence() -> None:
    """The timer had ended it; then green takes over. Until then the leader spoke as seldom as it does in peace."""
    leader, _ = pair()
    leader.reads("SWITCHOVER_IN_PROGRESS")
    leader.hears(leader.speaks())
    leader.now += 181
    leader.take(Tick(leader.at))
    assert leader.phase() is Phase.COMPLETED
    leader.member = replace(leader.member, standing=FleetRole.LEADER, term=7, heard_ns=leader.at.mono_ns)
    leader.now += 0.45
    leader.take(Answered(leader.at, Role.SOURCE, True))
    leader.take(Answered(leader.at, Role.TARGET, False))
    assert leader.phase() is Phase.POST
    leader.now += 0.01
    leader.take(Tick(leader.at))
    assert leader.stands() is FleetRole.LEADER


def test_a_succession_is_no_fallback() -> None:
    leader, follower = pair()
    third = created("cccc", at=leader.now)
    third.member = replace(follower.member, id=third.member.id)
    for host in (follower, third):
        host.waits(1.6)
        host.waits(0.2)
    follower.reads("AVAILABLE", Role.SOURCE)
    third.hears(follower.speaks())
    assert third.stands() is FleetRole.FOLLOWER
    assert third.asks == (False, False)
    third.waits(1.2)
    assert (third.member.vacant, third.member.fallbacks) == ("", 0)


def test_a_host_with_an_answer_leads_after_a_silence() -> None:
    leader, follower = pair()
    follower.waits(1.6)
    assert follower.does().publication is None
    follower.waits(0.2)
    follower.reads("AVAILABLE", Role.SOURCE)
    claim = follower.speaks()
    assert claim.seq == 0
    assert claim.term == leader.member.term + 1
    leader.now = follower.now
    leader.hears(claim)
    assert leader.stands() is FleetRole.FOLLOWER
    assert leader.asks == (False, False)


@pytest.mark.parametrize("off", [-5.0, 5.0])
def test_a_clock_that_is_wrong_means_asking_directly_and_no_claim(off: float) -> None:
    leader, other = pair()
    stray = created("cccc", at=leader.now, off=off)
    for _ in range(40):
        leader.now += 0.1
        stray.now += 0.1
        if leader.does().publication is not None:
            message = leader.speaks()
            leader.hears(message)
            stray.hears(message)
        assert stray.stands() is FleetRole.DIRECT
        if stray.does().publication is not None:
            assert leader.now < 2.2
            break
        stray.reads("AVAILABLE")
    assert stray.asks == (True, True)
    assert stray.member.clock_off_ns == pytest.approx(off * S, abs=S)
    assert other.stands() is FleetRole.FOLLOWER


def test_a_leader_whose_clock_is_wrong_for_most_leaves_the_place_to_others() -> None:
    leader, _ = pair()
    leader.take(ReportsRead(leader.at, 30, strangers=16))
    message = leader.speaks()
    assert message.resigns
    leader.reads("AVAILABLE")
    assert leader.does().publication is None


def test_leaders_with_equally_wrong_clocks_do_not_alternate() -> None:
    leader, follower = pair()
    leader.take(ReportsRead(leader.at, 30, strangers=16))
    follower.hears(leader.speaks())
    follower.waits(0.3)
    leader.now = follower.now
    follower.reads("AVAILABLE")
    leader.hears(follower.speaks())
    assert leader.stands() is FleetRole.FOLLOWER
    follower.take(ReportsRead(follower.at, 30, strangers=16))
    leader.hears(follower.speaks())
    leader.waits(0.3)
    leader.reads("AVAILABLE")
    assert leader.does().publication is None
    leader.waits(61)
    leader.reads("AVAILABLE")
    assert leader.does().publication is not None


def test_a_message_that_was_delayed_is_no_evidence() -> None:
    leader, follower = pair()
    leader.reads("SWITCHOVER_INITIATED")
    message = leader.speaks()
    follower.now += 3.1
    assert follower.hears(message) == ()
    assert follower.phase() is Phase.CREATED


def test_a_replayed_message_is_no_evidence() -> None:
    leader, follower = pair()
    leader.reads("SWITCHOVER_INITIATED")
    first = leader.speaks()
    follower.hears(first)
    leader.reads("AVAILABLE")
    follower.hears(leader.speaks())
    assert follower.phase() is Phase.CREATED
    assert follower.hears(first) == ()
    assert follower.phase() is Phase.CREATED


def test_a_heartbeat_whose_readings_were_not_heard_is_no_evidence() -> None:
    leader, _ = pair()
    late = created("cccc", at=leader.now)
    leader.now += 0.5
    late.now += 0.5
    message = leader.speaks()
    assert not message.readings
    late.hears(message)
    assert late.stands() is FleetRole.DIRECT
    # Nor does it depose a leader that others hear.
    assert late.does().publication is None


def test_a_heartbeat_does_not_stand_on_the_readings_of_another_leader_of_its_term() -> None:
    """A failover that loses a claim lets two hosts win one term; whole messages of both may have one seq, too."""
    leader, _ = pair()
    term = leader.member.term + 1
    twins = [created(name, at=leader.now) for name in ("cccc", "dddd")]
    claims = [twin.speaks(term=term) for twin in twins]
    joiner = created("eeee", at=leader.now)
    joiner.hears(claims[0])
    assert joiner.stands() is FleetRole.FOLLOWER
    twins[1].now += 0.5
    joiner.now += 0.5
    heard_ns = joiner.member.heard_ns
    joiner.hears(twins[1].speaks())
    assert joiner.member.leader == twins[0].member.id
    assert joiner.member.heard_ns == heard_ns


def test_a_term_that_is_far_ahead_is_foreign() -> None:
    leader, follower = pair()
    leader.reads("SWITCHOVER_INITIATED")
    message = replace(leader.speaks(), term=(WALL // S) + 90_000)
    assert follower.hears(message) == ()
    assert follower.member.fence[0] < message.term


# -- leading ------------------------------------------------------------------------------------------------------


def test_a_server_that_does_not_answer_the_leader_is_asked_by_the_others_in_turn() -> None:
    leader, follower = pair(hosts=30)
    later(leader, follower, 0.6)
    leader.reads("SWITCHOVER_IN_PROGRESS")
    follower.hears(leader.speaks())
    leader.fails(Role.TARGET)
    leader.fails(Role.SOURCE)
    follower.hears(leader.speaks())
    # Old blue is expected to be silent, which is no information.
    assert follower.asks == (False, False)
    turn = 30 * FLEET_TURN_S
    first = follower.member.jitter * turn
    later(leader, follower, round(first - 0.2, 1))
    assert follower.asks == (False, False)
    later(leader, follower, 0.4)
    assert follower.asks == (False, True)
    follower.fails(Role.TARGET)
    assert follower.asks == (False, False)
    assert follower.does().publication is None
    later(leader, follower, turn - 0.5)
    assert follower.asks == (False, False)
    later(leader, follower, 0.8)
    assert follower.asks == (False, True)
    # It answers this host: who is heard leads.
    follower.reads("SWITCHOVER_IN_PROGRESS", Role.TARGET, read_only=False)
    claim = follower.speaks()
    assert claim.term == leader.member.term + 1
    assert follower.stands() is FleetRole.LEADER
    leader.hears(claim)
    assert leader.stands() is FleetRole.FOLLOWER
    assert leader.phase() is Phase.POST


def test_a_silent_old_blue_is_not_queried_in_turn_after_the_release() -> None:
    leader, follower = pair(hosts=30)
    leader.reads("SWITCHOVER_IN_PROGRESS")
    follower.hears(leader.speaks())
    leader.reads("SWITCHOVER_IN_PROGRESS", Role.TARGET, read_only=False)
    leader.fails(Role.SOURCE)
    follower.hears(leader.speaks())
    assert follower.phase() is Phase.POST
    for _ in range(70):
        later(leader, follower, 0.1)
        assert follower.asks == (False, False)


def test_one_host_queries_for_all_if_no_server_answers() -> None:
    leader, follower = pair()
    follower.waits(1.6)
    follower.waits(0.2)
    follower.fails(Role.SOURCE)
    follower.fails(Role.TARGET)
    assert follower.does().publication is None
    follower.waits(0.31)
    claim = follower.speaks()
    assert claim.term > leader.member.term
    assert follower.stands() is FleetRole.LEADER


def test_a_leader_that_leaves_is_succeeded_without_a_fallback() -> None:
    leader, follower = pair()
    later(leader, follower, 0.5)
    message = farewell(leader.member, leader.snapshot, leader.at).message
    assert message.resigns
    follower.hears(message)
    follower.waits(0.31)
    assert follower.asks == (True, True)
    follower.reads("AVAILABLE")
    claim = follower.speaks()
    assert claim.term > message.term
    assert (follower.stands(), follower.member.fallbacks) == (FleetRole.LEADER, 0)


def test_a_new_leader_says_of_each_role_what_it_has_read_itself_as_soon_as_it_has() -> None:
    """Its claim is based on one role's answer; the last leader's reading of the other role is still news."""
    leader, follower = pair()
    leader.reads("AVAILABLE")
    later(leader, follower, 0.5)
    follower.now += 1.6
    follower.take(Tick(follower.at))
    follower.now += 0.2
    follower.reads("AVAILABLE", Role.SOURCE)
    claim = follower.speaks()
    assert [reading is not None for reading in claim.readings] == [True, False]
    follower.reads("AVAILABLE", Role.TARGET)
    message = follower.speaks()
    assert all(message.readings)


def test_two_leaders_of_one_term_both_step_down() -> None:
    leader, _ = pair()
    twin = created("dddd", at=leader.now)
    twin.speaks(term=leader.member.term)
    twin.now += 0.5
    message = twin.speaks()
    leader.hears(message)
    assert leader.stands() is FleetRole.DIRECT
    assert leader.member.tried == message.term


def test_a_leader_steps_down_when_it_is_refused_or_its_stream_is_gone() -> None:
    leader, _ = pair()
    other = replace(leader.member)
    leader.take(PublishRefused(leader.at, leader.member.term))
    assert leader.stands() is FleetRole.DIRECT
    leader.member = other
    leader.take(StreamLost(leader.at))
    claim = leader.does().publication
    assert claim is not None
    assert claim.is_claim
    assert claim.message.term == other.term + 1


def test_a_host_without_followers_claims_less_and_less_often() -> None:
    host = created("aaaa")
    waits = []
    for _ in range(9):
        claim = host.speaks(term=host.member.tried + 1)
        host.take(PublishRefused(host.at, claim.term))
        host.reads("AVAILABLE")
        began = host.now
        while host.does().publication is None:
            host.now += 0.25
            host.reads("AVAILABLE")
        waits.append(host.now - began)
    assert waits[0] < 2
    assert waits[-1] > 30
    # A word that it can believe ends that.
    leader = created("bbbb", at=host.now)
    host.hears(leader.speaks(term=host.member.tried + 1))
    assert host.member.beaten == 0


def test_a_leader_that_cannot_read_its_messages_steps_down() -> None:
    leader, _ = pair()
    leader.waits(1.6)
    assert leader.stands() is FleetRole.DIRECT
    assert leader.asks == (True, True) or leader.does().due_ns <= (leader.now + 0.2) * S


def test_a_leader_beats_faster_while_any_host_is_in_a_switchover() -> None:
    leader, follower = pair()
    follower.take(Tick(follower.at))
    quiet = leader.does().due_ns - leader.at.mono_ns
    leader.take(ReportsRead(leader.at, 30, switching=True))
    assert leader.does().due_ns - leader.at.mono_ns <= quiet - 0.3 * S or leader.does().publication is not None


def test_a_new_leader_keeps_the_number_of_hosts_until_all_have_reported() -> None:
    leader, _ = pair(hosts=300)
    leader.take(ReportsRead(leader.at, 2))
    assert leader.member.hosts == 300
    leader.take(ReportsRead(leader.at, 310))
    assert leader.member.hosts == 310
    leader.now += 17
    leader.member = replace(leader.member, heard_ns=leader.at.mono_ns)
    leader.take(ReportsRead(leader.at, 2))
    assert leader.member.hosts == 2


# -- orders -------------------------------------------------------------------------------------------------------


def test_an_order_reaches_every_host_once_and_the_newest_counts() -> None:
    leader, follower = pair()
    hold = FleetOrder(f"{leader.at.wall_ns:020d}-1", Order.HOLD, leader.at.wall_ns + 60 * S)
    told = leader.take(ReportsRead(leader.at, 30, hold))
    assert told == (Ordered(leader.at, Order.HOLD, leader.at.mono_ns + 60 * S),)
    message = leader.speaks()
    assert follower.hears(message) == (Ordered(follower.at, Order.HOLD, follower.at.mono_ns + 60 * S),)
    later(leader, follower, 1.0)
    assert follower.snapshot.hold_until_ns
    release = FleetOrder(f"{leader.at.wall_ns:020d}-2", Order.RELEASE, leader.at.wall_ns + 60 * S)
    leader.take(ReportsRead(leader.at, 30, release))
    follower.hears(leader.speaks())
    leader.take(ReportsRead(leader.at, 30, hold))
    later(leader, follower, 1.0)
    assert not follower.snapshot.hold_until_ns
    assert not leader.snapshot.hold_until_ns


# -- clocks -------------------------------------------------------------------------------------------------------


def test_old_messages_are_no_evidence_about_clocks() -> None:
    leader, _ = pair()
    leader.now += 0.5
    message = leader.speaks()
    joiner = created("cccc", at=leader.now + 3600)
    joiner.take(MessageHeard(joiner.at, message, is_past=True))
    assert joiner.member.fence == (message.term, message.seq)
    assert joiner.member.clock_off_ns is None


def test_a_host_whose_clock_is_wrong_keeps_the_budget() -> None:
    leader, _ = pair(hosts=1000)
    stray = created("cccc", at=leader.now, off=5.0)
    later(leader, stray, 0.6)
    assert stray.stands() is FleetRole.DIRECT
    assert stray.does().pace_ms == 5000


def test_a_clock_that_was_set_back_does_not_keep_a_host_from_leading() -> None:
    _, follower = pair()
    follower.waits(1.6)
    follower.waits(1.3)
    follower.off = -600.0
    follower.reads("AVAILABLE", Role.SOURCE)
    claim = follower.does().publication
    assert claim is not None
    assert claim.is_claim


def test_a_leader_that_cannot_read_lets_other_hosts_claim() -> None:
    leader, follower = pair()
    for _ in range(17):
        leader.waits(0.1)
        follower.now = leader.now
        if leader.does().publication is not None:
            follower.hears(leader.speaks())
    assert leader.stands() is FleetRole.DIRECT
    follower.waits(1.6)
    follower.waits(0.2)
    follower.reads("AVAILABLE", Role.SOURCE)
    assert follower.does().publication is not None
    leader.now = follower.now
    leader.reads("AVAILABLE")
    assert leader.does().publication is None
    leader.waits(1.5)
    leader.reads("AVAILABLE")
    assert leader.does().publication is not None


# -- orders and switchovers ---------------------------------------------------------------------------------------


def ordered(host: Host, order: Order, count: int) -> FleetOrder:
    return FleetOrder(f"{host.at.wall_ns:020d}-{count}", order, host.at.wall_ns + 300 * S)


def test_a_hold_ended_by_a_switchover_does_not_apply_to_later_hosts() -> None:
    leader, follower = pair()
    hold = ordered(leader, Order.HOLD, 1)
    leader.take(ReportsRead(leader.at, 30, hold))
    message = leader.speaks()
    assert message.order == hold
    follower.hears(message)
    assert follower.snapshot.hold_until_ns
    leader.now += 2.0
    leader.member = replace(leader.member, heard_ns=leader.at.mono_ns)
    leader.reads("SWITCHOVER_IN_PROGRESS")
    assert leader.speaks().order is None
    assert not leader.snapshot.hold_until_ns
    # The next monitor of a host goes on from the host's snapshot, and may become the leader.
    following = Host("eeee", at=leader.now)
    following.snapshot = leader.snapshot
    following.member = replace(leader.member, id="e" * 16, order=None)
    assert following.take(ReportsRead(following.at, 30, hold)) == ()
    assert following.member.order == hold


def test_a_release_from_before_a_switchover_has_no_effect_in_it() -> None:
    leader, _ = pair()
    release = ordered(leader, Order.RELEASE, 1)
    leader.take(ReportsRead(leader.at, 30, release))
    leader.now += 2.0
    leader.member = replace(leader.member, heard_ns=leader.at.mono_ns)
    leader.reads("SWITCHOVER_IN_PROGRESS")
    newcomer = Host("eeee", at=leader.now)
    newcomer.reads("SWITCHOVER_IN_PROGRESS")
    newcomer.hears(leader.speaks())
    assert newcomer.stands() is FleetRole.FOLLOWER
    assert not newcomer.snapshot.release_until_ns
    # A current release applies to all hosts, late or not.
    again = ordered(leader, Order.RELEASE, 2)
    leader.take(ReportsRead(leader.at, 30, again))
    newcomer.hears(leader.speaks())
    assert newcomer.snapshot.release_until_ns
