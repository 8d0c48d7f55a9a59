"""A host's place in its fleet: who asks the database, who leads, and what of a message is used.

``take(member, snapshot, event)`` says what is true after an event, and which events the deployment's state machine is
to be given. It is a function, as ``step`` is; time comes in as part of the event, and chance as the member's own id.
What follows from it is the member's duty: see core/duty.py.

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
    """What this host goes by for one role.

    Attributes:
        author: The member that asked.
        before: Of a reading that is no answer: when the newest answer before it was read, on its author's wall clock,
            and its author.
    """

    reading: Reading
    author: str
    before: tuple[int, str] = (0, "")

    @property
    def answered(self) -> tuple[int, str]:
        """When the newest answer was read, on its author's wall clock, and its author."""
        return (self.reading.read_ns, self.author) if self.reading.is_answer else self.before


@dataclass(frozen=True, slots=True)
class Doubt:
    """What the leader says of a role is not enough: this host asks itself.

    Attributes:
        since_ns: What the leader was told before does not settle it, on the wall clock; 0 where it is the leader's word
            against this host's, so that they need only agree.
        ask_at_ns: From when on, on the monotonic clock: many hosts do not ask in the same moment.
    """

    since_ns: int
    ask_at_ns: int


@dataclass(frozen=True, slots=True)
class LastPublished:
    """What a leader has published last.

    Attributes:
        seq, at_ns: Of the last message, and when, on the monotonic clock.
        whole, whole_at_ns: The same of the last whole one.
        known: What that one said.
        order: The order that the last message passed on.
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
        id: Random hex digits, 16; never used again.
        application: As in Message.
        began_ns: When its tenure began, on the wall clock; 0 before anything has happened to it.
        since_ns: Since when it has its standing, on the monotonic clock.
        reason: Why it asks the database itself; empty where it does not.
        term: The term that it leads in; 0 while it does not.
        fence: The highest authentic (term, seq) that was heard.
        leader: Who is followed, or was last; empty for nobody.
        heard_ns: When a message that counts was heard last, on the monotonic clock; 0 for never.
        stirred_ns: When any authentic message was heard last: somebody leads, though this host may be unable to follow.
        clock_off_ns: How old the last message seemed to be, by this host's wall clock; None where none was heard.
        hosts: How many hosts there are; 0 while nobody has said.
        whole: The leader's last whole message.
        known: What this host goes by for each role.
        named: The hosts, with their ports, that each role's own server has named to this host.
        answers: Of each role the server's answer, while what it says of the metadata is still to come.
        asked_ns: When this host has asked each role itself and knew the outcome, on the monotonic clock; 0 for never.
        unheard_ns: Since when each role does not answer the leader, on the monotonic clock; 0 while it does.
        doubts: The roles that this host asks although it follows.
        alone_since_ns: Since when nobody leads, on the monotonic clock: who claims has an answer that is newer.
        vacant: Why nobody leads, while the hosts that follow are about to find somebody who does; else empty.
        tried: The highest term that was refused.
        beaten: How often somebody has taken the leadership from it of whom it has heard nothing authentic since.
        claim_at_ns: When it may claim again, on the monotonic clock.
        barred_ns: Until when it does not claim because its own clock is wrong, on the monotonic clock.
        claimed: What it said in its last claim.
        sent: What it has published as the leader.
        strangers: Hosts whose clocks differ from the leader's by more than they may.
        others_switch: A host has reported that it is in a switchover.
        order: The last operator's order that it has taken.
        is_foreign: The last message was about another deployment.
        bus_error: What is wrong with the bus; empty where nothing is.
        fallbacks: How often nobody led, and it has asked the database itself for longer than a moment.
        refused: Messages of terms that cannot be.
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
        """Where this host stands among those that draw lots, from 0 to 1."""
        return int(self.id[:8], 16) / 2**32

    @property
    def pace_ns(self) -> int:
        """How long each host waits between two questions for all of them to keep the budget."""
        return self.hosts * _NS // FLEET_BUDGET_PER_S


# -- what happens -------------------------------------------------------------------------------------------------


def take(member: Member, snapshot: Snapshot, event: AnyEvent) -> tuple[Member, tuple[Event, ...]]:
    """What is true of *member* after *event*, and what it tells the deployment's state machine.

    Args:
        member: Before.
        snapshot: The deployment as this host knows it.
        event: From the bus; or what this host's own questions came to, a nudge or a tick.
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
            # What was about to be published may not have been: the next message is a whole one.
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
        # Read back: the bus carries what we write.
        if member.standing is FleetRole.LEADER and message.term == member.term:
            member = replace(member, heard_ns=at.mono_ns, bus_error="")
        return replace(member, fence=max(member.fence, place)), ()
    if member.standing is FleetRole.LEADER and message.term == member.term:
        # A failover has lost somebody's claim, and both of us have won the same term.
        member = give_up(replace(member, tried=max(member.tried, member.term)), "another host leads as well", at)
    if place <= member.fence:
        return member, ()
    age_ns = at.wall_ns - message.issued_ns
    member = replace(member, fence=place, stirred_ns=at.mono_ns, beaten=0, bus_error="")
    if not event.is_past:
        # Also of a leader whose clock differs: those who ask the database themselves are to keep the budget, too.
        member = replace(member, clock_off_ns=age_ns, hosts=message.hosts)
    mine = mark_of(snapshot)
    member = replace(member, is_foreign=bool(mine and message.deployment) and message.deployment != mine)
    if member.is_foreign:
        # Two deployments with one bg_id on one bus. The others' readings may name nobody: they are not for us.
        return member, ()
    if message.readings:
        member = replace(member, whole=message)
    fresh = -_ERROR_NS <= age_ns <= _FRESH_NS + _ERROR_NS
    whole = member.whole
    # By its author as well: a failover that loses a claim lets two of them win one term.
    rests_on = (message.leader, message.term, message.whole)
    if not fresh or whole is None or (whole.leader, whole.term, whole.seq) != rests_on:
        # A delayed message, or one that rests on another that was not heard: it is as if there had been none.
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
            # The leader has not asked there yet, or says it in words that this version does not know.
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
    """What of the leader's *reading* of *role* is used. What may be wrong makes this host ask for itself."""
    known, doubt = member.known[PLACES[role]], member.doubts[PLACES[role]]
    reading = _for_us(member, message, known, reading)
    same = known is not None and is_same(known.reading, reading)
    if known is not None and same:
        if known.author == member.id and doubt is not None and known.reading.read_ns >= doubt.since_ns:
            # We have asked since, and were told the same.
            return _without_doubt(member, role), ()
        if reading.read_ns <= known.reading.read_ns:
            return member, ()
        if doubt is not None and reading.read_ns <= doubt.since_ns + _ERROR_NS:
            # What the leader was told before says nothing against what we have seen since.
            return member, ()
    elif snapshot.phase is Phase.NOT_CREATED or not _may_be_used(member, snapshot, message, known, reading, doubt):
        return _doubting(member, role, at), ()
    if snapshot.phase is Phase.NOT_CREATED:
        # A deployment is met at the database and nowhere else.
        return member, ()
    member = replace(member, known=_put(member.known, role, _known(known, reading, message.leader)))
    return _without_doubt(member, role), reading.events(at)


def _may_be_used(
    member: Member, snapshot: Snapshot, message: Message, known: RoleState | None, reading: Reading, doubt: Doubt | None
) -> bool:
    """Whether a reading that says something else than *known* may take its place."""
    if not _is_about_ours(member, snapshot, message, reading):
        return False
    if message.application != member.application and reading.is_answer:
        # What its application may write says nothing of what ours may.
        return False
    if known is None or (reading.is_answer and not known.reading.is_answer):
        # That this host is not answered is no evidence against somebody who is, unless it has seen something since.
        # What the monitor before has seen is in the snapshot, and may be as new as its end.
        answered_ns, author = known.answered if known is not None else (0, "")
        since_ns = max(member.began_ns, doubt.since_ns if doubt is not None else 0)
        if author == message.leader:
            return reading.read_ns > max(since_ns + _ERROR_NS, answered_ns)
        return reading.read_ns > max(since_ns, answered_ns) + _ERROR_NS
    if rank(reading) < rank(known.reading) and isinstance(reading.facts[-1], MetadataAbsent):
        # Its login may have other rights than ours.
        return False
    return known.author == message.leader or reading.read_ns > known.reading.read_ns + _ERROR_NS


def _known(before: RoleState | None, reading: Reading, author: str) -> RoleState:
    """What is known of a role after *before*."""
    return RoleState(reading, author, before.answered if before is not None else (0, ""))


def _is_about_ours(member: Member, snapshot: Snapshot, message: Message, reading: Reading) -> bool:
    """Whether every host that a reading names is one that this host has heard of from the database itself.

    Where it names none: whether it was read of the servers that this host knows.
    """
    names = named(reading)
    if not names:
        # Whoever has no inventory may be anybody's.
        return message.deployment == mark_of(snapshot) or not snapshot.hosts
    return names <= {(host.name, host.port) for host in snapshot.hosts}.union(*member.named)


def _for_us(member: Member, message: Message, known: RoleState | None, reading: Reading) -> Reading:
    """*reading* with what this host knows itself of its own application's role, where the leader has another's."""
    first = reading.facts[0]
    if message.application == member.application or not isinstance(first, Answered) or known is None:
        return reading
    mine = known.reading.facts[0]
    if not isinstance(mine, Answered) or mine.role_read_only is first.role_read_only:
        return reading
    return replace(reading, facts=(replace(first, role_read_only=mine.role_read_only), *reading.facts[1:]))


def _asked(member: Member, event: StatusRead | MetadataAbsent | MetadataFailed | ProbeFailed) -> Member:
    """A question of this host's own has come to something; that is its own evidence."""
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
    """*member* asking *role* itself; at once where the hosts are so few that all may."""
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


# -- who leads ----------------------------------------------------------------------------------------------------


def _note_silence(member: Member, snapshot: Snapshot, at: Instant) -> Member:
    """A member that hears nothing goes by its own questions."""
    if member.standing is FleetRole.DIRECT or at.mono_ns <= silent_at_ns(member, snapshot):
        return member
    if member.standing is FleetRole.FOLLOWER and not member.vacant:
        return _vacate(member, at, _why_silent(member, snapshot), member.pace_ns)
    if at.mono_ns <= alone_at_ns(member):
        return member
    reason = member.vacant or _why_silent(member, snapshot)
    alone = replace(give_up(member, reason, at), fallbacks=member.fallbacks + 1)
    if member.vacant:
        # Its last answer is its own already, and as new as any.
        return replace(alone, alone_since_ns=member.alone_since_ns)
    # A leader that does not hear itself may be the only one that is deaf: those who heard it are to have their turn.
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
    """How long a leader may be silent, in ns."""
    return int((FLEET_SILENCE_SWITCHING_S if snapshot.phase in SWITCHING else FLEET_SILENCE_S) * _NS)


def silent_at_ns(member: Member, snapshot: Snapshot) -> int:
    """After which moment *member* goes by its own questions if it hears nothing, on the monotonic clock.

    A leader's signs of life come faster from the moment on in which it knows of a switchover, and no earlier.
    """
    begun_ns = 0
    for entry in snapshot.timeline:
        if entry.event == Phase.COMPLETED.name:
            # The timer may have ended it, and then green has taken over.
            begun_ns = 0
        elif entry.event in _SWITCHING and not begun_ns:
            begun_ns = entry.mono_ns
    return max(member.heard_ns, begun_ns) + silence_ns(snapshot)


def alone_at_ns(member: Member) -> int:
    """After which moment nobody is expected to lead any more, on the monotonic clock."""
    if not member.vacant:
        return 0
    last = max(doubt.ask_at_ns for doubt in member.doubts if doubt is not None)
    return last + int(FLEET_VACANT_S * _NS)


def give_up(member: Member, reason: str, at: Instant) -> Member:
    """*member* on its own, whatever it was."""
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
    """Nobody leads: the hosts ask one after the other, until one of them has an answer and leads."""
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
    # Who wins may be one whose words this host cannot believe, and who can believe none of ours: with another key, say.
    # They do not take the stream from each other for ever: whom nobody hears waits longer each time.
    member = replace(give_up(member, "another host is ahead", event.at), beaten=member.beaten + 1)
    wait_s = min(FLEET_CLAIM_PAUSE_S * 2**member.beaten, FLEET_BARRED_S)
    return replace(member, claim_at_ns=event.at.mono_ns + int(wait_s * (0.5 + member.jitter) * _NS))


def _key_gone(member: Member, at: Instant) -> Member:
    """The order of ids is gone with the stream, and with it who is ahead: we claim anew, with the readings we have."""
    since_ns = member.alone_since_ns
    return replace(give_up(member, "the fleet's stream was deleted", at), alone_since_ns=since_ns, stirred_ns=0)


def _reports_read(member: Member, snapshot: Snapshot, event: ReportsRead) -> tuple[Member, tuple[Event, ...]]:
    if member.standing is not FleetRole.LEADER:
        return member, ()
    # A roll that has just begun, or whose stream was deleted, does not know everybody yet.
    is_new = event.at.mono_ns - member.since_ns < FLEET_REPORT_LIFE_S * _NS
    hosts = max(event.hosts, member.hosts if is_new else 1)
    member = replace(member, hosts=hosts, others_switch=event.switching, strangers=event.strangers)
    return _take_order(member, snapshot, event.order, event.at)


def _take_order(
    member: Member, snapshot: Snapshot, order: FleetOrder | None, at: Instant
) -> tuple[Member, tuple[Event, ...]]:
    """An operator's order to all hosts, once; the newest counts."""
    if order is None or (member.order is not None and order.number <= member.order.number):
        return member, ()
    member = replace(member, order=order)
    if not stands(order, snapshot, at):
        return member, ()
    return member, (Ordered(at, order.order, at.mono_ns + order.until_ns - at.wall_ns),)


def stands(order: FleetOrder, snapshot: Snapshot, at: Instant) -> bool:
    """Whether a host that has not obeyed *order* yet is to: a switchover that has begun since has ended it for all."""
    begun_ns = next((entry.wall_ns for entry in snapshot.timeline if entry.event in _SWITCHING), 0)
    return order.until_ns > at.wall_ns and begun_ns <= order.given_ns + _ERROR_NS


def view_of(member: Member) -> FleetView:
    """*member*'s place as a snapshot shows it."""
    reason = member.bus_error or member.reason if member.standing is FleetRole.DIRECT else ""
    return FleetView(member.standing, member.leader, member.hosts, member.since_ns, reason, member.fallbacks)


def _put(items: tuple[T, ...], role: Role, item: T) -> tuple[T, ...]:
    place = PLACES[role]
    return (*items[:place], item, *items[place + 1 :])
