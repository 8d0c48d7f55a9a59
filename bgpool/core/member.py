"""A host as a member of its fleet: its role, the election of the leader, and the use of the leader's messages.

``take(member, snapshot, event)`` returns the member after an event, and the events for the deployment's state machine.
It is a pure function, like ``step``: the time is part of the event, and randomness comes from the member's id. The
resulting actions are the member's duty: see core/duty.py.

Source: behaviour.md §11.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeVar

from bgpool.core.events import (
    Answered,
    Event,
    Instant,
    MetadataAbsent,
    MetadataFailed,
    Nudged,
    Ordered,
    ProbeFailed,
    StatusRead,
)
from bgpool.core.fleet import (
    NEVER,
    PLACES,
    AnyEvent,
    BusFailed,
    Claimed,
    Fact,
    FleetOrder,
    FleetRole,
    FleetView,
    Message,
    MessageHeard,
    PublishRefused,
    Reading,
    ReportsRead,
    StreamLost,
)
from bgpool.core.limits import (
    FLEET_BARRED_S,
    FLEET_BUDGET_PER_S,
    FLEET_CLAIM_PAUSE_S,
    FLEET_CLOCK_ERROR_S,
    FLEET_FRESH_S,
    FLEET_REPORT_LIFE_S,
    FLEET_SILENCE_S,
    FLEET_SILENCE_SWITCHING_S,
    FLEET_SUCCESSION_S,
    FLEET_SUCCESSION_SWITCHING_S,
    FLEET_TERM_AHEAD_S,
    FLEET_VACANT_S,
)
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.readings import is_same, mark_of, meaning, named, rank
from bgpool.core.snapshot import Snapshot

__all__ = [
    "Doubt",
    "RoleState",
    "Member",
    "LastPublished",
    "alone_at_ns",
    "give_up",
    "silence_ns",
    "silent_at_ns",
    "stands",
    "take",
    "view_of",
]

_NS: Final = 1_000_000_000
_ERROR_NS: Final = int(FLEET_CLOCK_ERROR_S * _NS)
_FRESH_NS: Final = int(FLEET_FRESH_S * _NS)

_SWITCHING: Final = frozenset(phase.name for phase in SWITCHING)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RoleState:
    """The reading that this host uses for one role.

    Attributes:
        author: The member that made the query.
        before: For a reading without an answer: the time of the newest answer before it, on its author's wall clock,
            and that author.
    """

    reading: Reading
    author: str
    before: tuple[int, str] = (0, "")

    @property
    def answered(self) -> tuple[int, str]:
        """The time of the newest answer, on its author's wall clock, and its author."""
        return (self.reading.read_ns, self.author) if self.reading.is_answer else self.before


@dataclass(frozen=True, slots=True)
class Doubt:
    """A doubt about the leader's reading of a role: this host queries that server itself.

    Attributes:
        since_ns: A reading of the leader from before this time does not end the doubt, on the wall clock; 0 if the
            leader's reading contradicts this host's, so that they need only agree.
        ask_at_ns: The time from which this host queries, on the monotonic clock. It is spread over the hosts.
    """

    since_ns: int
    ask_at_ns: int


@dataclass(frozen=True, slots=True)
class LastPublished:
    """The last messages of a leader.

    Attributes:
        seq, at_ns: The seq of the last message, and its time on the monotonic clock.
        whole, whole_at_ns: The same for the last full message.
        known: The content of the last full message.
        order: The operator's order in the last message.
    """

    seq: int
    at_ns: int
    whole: int
    whole_at_ns: int
    known: tuple[RoleState | None, ...]
    order: FleetOrder | None


@dataclass(frozen=True, slots=True)
class Member:
    """One monitor's tenure as a member of its fleet.

    Attributes:
        id: 16 random hex digits; never reused.
        application: The same as in Message.
        began_ns: The start of its tenure, on the wall clock; 0 before its first event.
        standing: Its role in the fleet.
        since_ns: The time since which it has this role, on the monotonic clock.
        reason: The reason for which it queries the database itself; empty if it does not.
        term: The term that it leads in; 0 if it does not lead.
        fence: The highest authentic (term, seq) received.
        leader: The id of the current or last leader; empty if none.
        heard_ns: The time of the last valid message, on the monotonic clock; 0 if none.
        stirred_ns: The time of the last authentic message: there is a leader, although this host may be unable to
            follow it.
        clock_off_ns: The apparent age of the last message, by this host's wall clock; None before the first.
        hosts: The number of hosts; 0 while unknown.
        whole: The leader's last full message.
        known: The reading that this host uses for each role.
        named: The hosts, with their ports, that each role's own server has named to this host.
        answers: The answer of each role's server, while the result of its metadata query is pending.
        asked_ns: The time of this host's last own query of each role with a known result, on the monotonic clock; 0 if
            none.
        unheard_ns: The time since which each role does not answer the leader, on the monotonic clock; 0 while it does.
        doubts: The roles that this host queries although it is a follower.
        alone_since_ns: The time since which there is no leader, on the monotonic clock. A host that claims must have a
            newer answer.
        vacant: The reason for the lack of a leader, while the followers elect a new one; otherwise empty.
        tried: The highest refused term.
        beaten: The number of times at which another host took the leadership from it without any authentic message of
            that host since.
        claim_at_ns: The time from which it may claim again, on the monotonic clock.
        barred_ns: The time until which it does not claim because its own clock is wrong, on the monotonic clock.
        claimed: The readings in its last claim.
        sent: Its last messages as the leader.
        strangers: The number of hosts whose clocks differ from the leader's by more than the limit.
        others_switch: True if a host has reported that it is in a switchover.
        order: The last operator's order that it has accepted.
        is_foreign: True if the last message was about another deployment.
        bus_error: The error of the bus; empty if it works.
        fallbacks: The number of times at which there was no leader and it fell back to querying the database itself.
        refused: The number of messages with impossible terms.
    """

    id: str
    application: str
    standing: FleetRole = FleetRole.DIRECT
    began_ns: int = 0
    since_ns: int = 0
    reason: str = "no other host has been heard yet"
    term: int = 0
    fence: tuple[int, int] = (0, 0)
    leader: str = ""
    heard_ns: int = 0
    stirred_ns: int = 0
    clock_off_ns: int | None = None
    hosts: int = 0
    whole: Message | None = None
    known: tuple[RoleState | None, ...] = (None, None)
    named: tuple[frozenset[tuple[str, int]], ...] = (frozenset(), frozenset())
    answers: tuple[Answered | None, ...] = (None, None)
    asked_ns: tuple[int, ...] = (0, 0)
    unheard_ns: tuple[int, ...] = (0, 0)
    doubts: tuple[Doubt | None, ...] = (None, None)
    alone_since_ns: int = 0
    vacant: str = ""
    tried: int = 0
    beaten: int = 0
    claim_at_ns: int = 0
    barred_ns: int = 0
    claimed: tuple[RoleState | None, ...] = ()
    sent: LastPublished | None = None
    strangers: int = 0
    others_switch: bool = False
    order: FleetOrder | None = None
    is_foreign: bool = False
    bus_error: str = ""
    fallbacks: int = 0
    refused: int = 0

    @property
    def jitter(self) -> float:
        """This host's position among hosts that spread their actions, from 0 to 1; derived from its random id."""
        return int(self.id[:8], 16) / 2**32

    @property
    def pace_ns(self) -> int:
        """The pause of each host between two queries with which all hosts together keep to the budget."""
        return self.hosts * _NS // FLEET_BUDGET_PER_S


# -- events -------------------------------------------------------------------------------------------------------


def take(member: Member, snapshot: Snapshot, event: AnyEvent) -> tuple[Member, tuple[Event, ...]]:
    """Return *member* after *event*, and the events for the deployment's state machine.

    Args:
        member: The member before the event.
        snapshot: The deployment as this host knows it.
        event: An event from the bus, the result of one of this host's own queries, a nudge or a tick.
    """
    if not member.began_ns:
        member = replace(member, began_ns=event.at.wall_ns)
    member = _note_silence(member, snapshot, event.at)
    match event:
        case MessageHeard():
            return _heard(member, snapshot, event)
        case Claimed():
            return _claimed(member, event), ()
        case PublishRefused():
            return _beaten(member, event), ()
        case StreamLost():
            return _key_gone(member, event.at), ()
        case BusFailed():
            # The last publication may have been lost, so the next message must be a full one.
            sent = replace(member.sent, known=()) if member.sent is not None and event.error else member.sent
            return replace(member, bus_error=event.error, sent=sent), ()
        case ReportsRead():
            return _reports_read(member, snapshot, event)
        case Nudged():
            return _nudged(member, event.at), ()
        case Answered():
            return replace(member, answers=_put(member.answers, event.role, event)), ()
        case StatusRead() | MetadataAbsent() | MetadataFailed() | ProbeFailed():
            return _asked(member, event), ()
        case _:
            return member, ()


def _heard(member: Member, snapshot: Snapshot, event: MessageHeard) -> tuple[Member, tuple[Event, ...]]:
    message, at = event.message, event.at
    place = (message.term, message.seq)
    if message.term > at.wall_ns // _NS + FLEET_TERM_AHEAD_S:
        return replace(member, refused=member.refused + 1), ()
    if message.leader == member.id:
        # This host's own message was read back, so the bus works.
        if member.standing is FleetRole.LEADER and message.term == member.term:
            member = replace(member, heard_ns=at.mono_ns, bus_error="")
        return replace(member, fence=max(member.fence, place)), ()
    if member.standing is FleetRole.LEADER and message.term == member.term:
        # A failover of the bus has lost a claim, so that two hosts have won the same term.
        member = give_up(replace(member, tried=max(member.tried, member.term)), "another host leads as well", at)
    if place <= member.fence:
        return member, ()
    age_ns = at.wall_ns - message.issued_ns
    member = replace(member, fence=place, stirred_ns=at.mono_ns, beaten=0, bus_error="")
    if not event.is_past:
        # Count the hosts even if the leader's clock differs: a host that queries itself must keep to the budget, too.
        member = replace(member, clock_off_ns=age_ns, hosts=message.hosts)
    mine = mark_of(snapshot)
    member = replace(member, is_foreign=bool(mine and message.deployment) and message.deployment != mine)
    if member.is_foreign:
        # Two deployments share a bg_id and a bus. Readings of the other one may name no host, so check this first.
        return member, ()
    if message.readings:
        member = replace(member, whole=message)
    fresh = -_ERROR_NS <= age_ns <= _FRESH_NS + _ERROR_NS
    whole = member.whole
    # Compare the author as well: a failover that loses a claim lets two hosts win one term.
    rests_on = (message.leader, message.term, message.whole)
    if not fresh or whole is None or (whole.leader, whole.term, whole.seq) != rests_on:
        # Ignore a delayed message, and a heartbeat whose full message was not received.
        return member, ()
    member = replace(member, leader=message.leader, heard_ns=at.mono_ns, hosts=message.hosts)
    if message.resigns:
        if member.standing is FleetRole.FOLLOWER:
            switching = snapshot.phase in SWITCHING
            within_ns = int((FLEET_SUCCESSION_SWITCHING_S if switching else FLEET_SUCCESSION_S) * _NS)
            member = replace(member, stirred_ns=0)
            member = _vacate(member, at, "the leader has resigned", max(within_ns, member.pace_ns))
        return member, ()
    if member.standing is not FleetRole.FOLLOWER:
        member = replace(member, standing=FleetRole.FOLLOWER, since_ns=at.mono_ns, reason="", term=0, sent=None)
    if member.vacant:
        member = replace(member, vacant="", doubts=(None, None))
    member, told = _take_order(member, snapshot, message.order, at)
    events: list[Event] = [*told]
    for role in Role:
        reading = whole.readings[PLACES[role]]
        if reading is None:
            # The leader has not queried this server yet, or its reading is in a format that this version does not know.
            member = _doubting(member, role, at, after_ns=int(FLEET_VACANT_S * _NS))
        else:
            reading = replace(reading, read_ns=message.read_ns[PLACES[role]])
            since_ns = 0 if reading.is_answer else member.unheard_ns[PLACES[role]] or at.mono_ns
            if since_ns != member.unheard_ns[PLACES[role]]:
                member = replace(member, unheard_ns=_put(member.unheard_ns, role, since_ns))
            member, facts = _weigh(member, snapshot, message, role, reading, at)
            events += facts
    return member, tuple(events)


def _weigh(
    member: Member, snapshot: Snapshot, message: Message, role: Role, reading: Reading, at: Instant
) -> tuple[Member, tuple[Event, ...]]:
    """Use the leader's *reading* of *role*, or, if it may be wrong, have this host query the server itself."""
    known, doubt = member.known[PLACES[role]], member.doubts[PLACES[role]]
    reading = _for_us(member, message, known, reading)
    same = known is not None and is_same(known.reading, reading)
    if known is not None and same:
        if known.author == member.id and doubt is not None and known.reading.read_ns >= doubt.since_ns:
            # This host has queried since, with the same result.
            return _without_doubt(member, role), ()
        if reading.read_ns <= known.reading.read_ns:
            return member, ()
        if doubt is not None and reading.read_ns <= doubt.since_ns + _ERROR_NS:
            # An answer to the leader from before the doubt cannot end it.
            return member, ()
    elif snapshot.phase is Phase.NOT_CREATED or not _may_be_used(member, snapshot, message, known, reading, doubt):
        return _doubting(member, role, at), ()
    if snapshot.phase is Phase.NOT_CREATED:
        # Every host must discover a deployment at the database itself.
        return member, ()
    member = replace(member, known=_put(member.known, role, _known(known, reading, message.leader)))
    return _without_doubt(member, role), reading.events(at)


def _may_be_used(
    member: Member, snapshot: Snapshot, message: Message, known: RoleState | None, reading: Reading, doubt: Doubt | None
) -> bool:
    """Return whether a reading that differs from *known* may replace it."""
    if not _is_about_ours(member, snapshot, message, reading):
        return False
    if message.application != member.application and reading.is_answer:
        # The write permission of the leader's application says nothing about that of this host's application.
        return False
    if known is None or (reading.is_answer and not known.reading.is_answer):
        # A failure on this host does not contradict another host's answer, unless this host has a newer answer. The
        # observations of the last monitor are in the snapshot, and may be as new as its end.
        answered_ns, author = known.answered if known is not None else (0, "")
        since_ns = max(member.began_ns, doubt.since_ns if doubt is not None else 0)
        if author == message.leader:
            return reading.read_ns > max(since_ns + _ERROR_NS, answered_ns)
        return reading.read_ns > max(since_ns, answered_ns) + _ERROR_NS
    if rank(reading) < rank(known.reading) and isinstance(reading.facts[-1], MetadataAbsent):
        # The leader's login may have other privileges than this host's.
        return False
    return known.author == message.leader or reading.read_ns > known.reading.read_ns + _ERROR_NS


def _known(before: RoleState | None, reading: Reading, author: str) -> RoleState:
    """Return the new state of a role after *before*."""
    return RoleState(reading, author, before.answered if before is not None else (0, ""))


def _is_about_ours(member: Member, snapshot: Snapshot, message: Message, reading: Reading) -> bool:
    """Return whether the database itself has named every host in the reading to this host.

    For a reading without hosts, return whether it comes from the servers that this host knows.
    """
    names = named(reading)
    if not names:
        # A leader without an inventory may belong to another deployment.
        return message.deployment == mark_of(snapshot) or not snapshot.hosts
    return names <= {(host.name, host.port) for host in snapshot.hosts}.union(*member.named)


def _for_us(member: Member, message: Message, known: RoleState | None, reading: Reading) -> Reading:
    """Return *reading* with this host's own finding about its application's role, if the leader's role differs."""
    first = reading.facts[0]
    if message.application == member.application or not isinstance(first, Answered) or known is None:
        return reading
    mine = known.reading.facts[0]
    if not isinstance(mine, Answered) or mine.role_read_only is first.role_read_only:
        return reading
    return replace(reading, facts=(replace(first, role_read_only=mine.role_read_only), *reading.facts[1:]))


def _asked(member: Member, event: StatusRead | MetadataAbsent | MetadataFailed | ProbeFailed) -> Member:
    """Record the result of one of this host's own queries."""
    role, at = event.role, event.at
    answered = member.answers[PLACES[role]]
    facts: tuple[Fact, ...] = (replace(event, at=NEVER),)
    if not isinstance(event, ProbeFailed):
        if answered is None:
            return member
        facts = (replace(answered, at=NEVER), *facts)
    reading = Reading(facts, at.wall_ns)
    member = replace(
        member,
        known=_put(member.known, role, _known(member.known[PLACES[role]], reading, member.id)),
        named=_put(member.named, role, named(reading)),
        asked_ns=_put(member.asked_ns, role, at.mono_ns),
        answers=_put(member.answers, role, None),
    )
    said = member.whole.readings[PLACES[role]] if member.whole is not None else None
    if said is None or meaning(said) == meaning(reading):
        return _without_doubt(member, role)
    return member


def _nudged(member: Member, at: Instant) -> Member:
    if member.standing is not FleetRole.FOLLOWER:
        return member
    for role in Role:
        member = replace(member, doubts=_put(member.doubts, role, None))
        member = _doubting(member, role, at, since_ns=at.wall_ns)
    return member


def _doubting(
    member: Member, role: Role, at: Instant, *, since_ns: int = 0, within_ns: int | None = None, after_ns: int = 0
) -> Member:
    """Return *member* with a doubt about *role*. It queries immediately if the budget allows all hosts to do so."""
    if member.doubts[PLACES[role]] is not None:
        return member
    if within_ns is None:
        within_ns = member.pace_ns if member.hosts > FLEET_BUDGET_PER_S else 0
    doubt = Doubt(since_ns, at.mono_ns + after_ns + int(member.jitter * within_ns))
    return replace(member, doubts=_put(member.doubts, role, doubt))


def _without_doubt(member: Member, role: Role) -> Member:
    if member.doubts[PLACES[role]] is None or member.vacant:
        return member
    return replace(member, doubts=_put(member.doubts, role, None))


# -- leadership ---------------------------------------------------------------------------------------------------


def _note_silence(member: Member, snapshot: Snapshot, at: Instant) -> Member:
    """Make a member that receives no messages rely on its own queries."""
    if member.standing is FleetRole.DIRECT or at.mono_ns <= silent_at_ns(member, snapshot):
        return member
    if member.standing is FleetRole.FOLLOWER and not member.vacant:
        return _vacate(member, at, _why_silent(member, snapshot), member.pace_ns)
    if at.mono_ns <= alone_at_ns(member):
        return member
    reason = member.vacant or _why_silent(member, snapshot)
    alone = replace(give_up(member, reason, at), fallbacks=member.fallbacks + 1)
    if member.vacant:
        # Its last answer is its own already, and recent enough.
        return replace(alone, alone_since_ns=member.alone_since_ns)
    # A leader that does not read back its own messages may be the only host with that problem: let the others claim
    # first.
    return replace(alone, claim_at_ns=at.mono_ns + 2 * silence_ns(snapshot))


def _why_silent(member: Member, snapshot: Snapshot) -> str:
    off_ns = member.clock_off_ns or 0
    if member.bus_error:
        return member.bus_error
    if member.is_foreign:
        return "another deployment has the same bg_id on this bus: give each one of its own"
    if not -_ERROR_NS <= off_ns <= _FRESH_NS + _ERROR_NS:
        return f"messages seem to be {off_ns / _NS:.1f} s old: the hosts' clocks differ, or the bus stalls"
    return f"no message for {silence_ns(snapshot) / _NS} s"


def silence_ns(snapshot: Snapshot) -> int:
    """Return the longest silence of a leader, in ns."""
    return int((FLEET_SILENCE_SWITCHING_S if snapshot.phase in SWITCHING else FLEET_SILENCE_S) * _NS)


def silent_at_ns(member: Member, snapshot: Snapshot) -> int:
    """Return the time after which *member* relies on its own queries if it receives nothing, on the monotonic clock.

    The leader's heartbeat is faster only from the time on at which it knows about a switchover.
    """
    begun_ns = 0
    for entry in snapshot.timeline:
        if entry.event == Phase.COMPLETED.name:
            # The timer may have ended it before green took over.
            begun_ns = 0
        elif entry.event in _SWITCHING and not begun_ns:
            begun_ns = entry.mono_ns
    return max(member.heard_ns, begun_ns) + silence_ns(snapshot)


def alone_at_ns(member: Member) -> int:
    """Return the time after which no new leader is expected any longer, on the monotonic clock."""
    if not member.vacant:
        return 0
    last = max(doubt.ask_at_ns for doubt in member.doubts if doubt is not None)
    return last + int(FLEET_VACANT_S * _NS)


def give_up(member: Member, reason: str, at: Instant) -> Member:
    """Return *member* in the role DIRECT, independent of its current role."""
    return replace(
        member,
        standing=FleetRole.DIRECT,
        since_ns=at.mono_ns,
        reason=reason,
        term=0,
        sent=None,
        doubts=(None, None),
        vacant="",
        alone_since_ns=at.mono_ns,
    )


def _vacate(member: Member, at: Instant, reason: str, within_ns: int) -> Member:
    """Handle the loss of the leader: the hosts query one after the other, until one has an answer and leads."""
    member = replace(member, vacant=reason, alone_since_ns=at.mono_ns, doubts=(None, None), claim_at_ns=0)
    for role in Role:
        member = _doubting(member, role, at, within_ns=within_ns)
    return member


def _claimed(member: Member, event: Claimed) -> Member:
    if event.term < member.fence[0] or member.standing is FleetRole.LEADER:
        return member
    at_ns = event.at.mono_ns
    return replace(
        member,
        standing=FleetRole.LEADER,
        since_ns=at_ns,
        reason="",
        term=event.term,
        fence=max(member.fence, (event.term, 0)),
        leader=member.id,
        heard_ns=at_ns,
        hosts=max(1, member.hosts),
        doubts=(None, None),
        vacant="",
        sent=LastPublished(0, at_ns, 0, at_ns, member.claimed, member.order),
        bus_error="",
    )


def _beaten(member: Member, event: PublishRefused) -> Member:
    member = replace(member, tried=max(member.tried, event.term))
    if member.standing is not FleetRole.LEADER or member.term != event.term:
        return member
    # The winner may be a host whose messages this host cannot authenticate, and vice versa, for example because their
    # keys differ. So that they do not take the stream from each other forever, the wait doubles each time.
    member = replace(give_up(member, "another host is ahead", event.at), beaten=member.beaten + 1)
    wait_s = min(FLEET_CLAIM_PAUSE_S * 2**member.beaten, FLEET_BARRED_S)
    return replace(member, claim_at_ns=event.at.mono_ns + int(wait_s * (0.5 + member.jitter) * _NS))


def _key_gone(member: Member, at: Instant) -> Member:
    """Handle the loss of the stream and of the order of its ids: claim again, with the known readings."""
    since_ns = member.alone_since_ns
    return replace(give_up(member, "the fleet's stream was deleted", at), alone_since_ns=since_ns, stirred_ns=0)


def _reports_read(member: Member, snapshot: Snapshot, event: ReportsRead) -> tuple[Member, tuple[Event, ...]]:
    if member.standing is not FleetRole.LEADER:
        return member, ()
    # A roster that has just begun, or whose stream was deleted, does not contain all hosts yet.
    is_new = event.at.mono_ns - member.since_ns < FLEET_REPORT_LIFE_S * _NS
    hosts = max(event.hosts, member.hosts if is_new else 1)
    member = replace(member, hosts=hosts, others_switch=event.switching, strangers=event.strangers)
    return _take_order(member, snapshot, event.order, event.at)


def _take_order(
    member: Member, snapshot: Snapshot, order: FleetOrder | None, at: Instant
) -> tuple[Member, tuple[Event, ...]]:
    """Apply an operator's order to all hosts, once. The newest order counts."""
    if order is None or (member.order is not None and order.number <= member.order.number):
        return member, ()
    member = replace(member, order=order)
    if not stands(order, snapshot, at):
        return member, ()
    return member, (Ordered(at, order.order, at.mono_ns + order.until_ns - at.wall_ns),)


def stands(order: FleetOrder, snapshot: Snapshot, at: Instant) -> bool:
    """Return whether *order* is still in force. A switchover that has begun since has ended it for all hosts."""
    begun_ns = next((entry.wall_ns for entry in snapshot.timeline if entry.event in _SWITCHING), 0)
    return order.until_ns > at.wall_ns and begun_ns <= order.given_ns + _ERROR_NS


def view_of(member: Member) -> FleetView:
    """Return *member*'s role as shown in a snapshot."""
    reason = member.bus_error or member.reason if member.standing is FleetRole.DIRECT else ""
    return FleetView(member.standing, member.leader, member.hosts, member.since_ns, reason, member.fallbacks)


def _put(items: tuple[T, ...], role: Role, item: T) -> tuple[T, ...]:
    place = PLACES[role]
    return (*items[:place], item, *items[place + 1 :])
