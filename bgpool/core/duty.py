"""The duty of a fleet member: the servers to query, the maximum rate, and the message to publish.

``duty(member, snapshot, at)`` is a pure function of the current state, like ``plan``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from bgpool.core.events import Instant, MetadataAbsent
from bgpool.core.fleet import PLACES, Fact, FleetOrder, FleetRole, Message, Reading
from bgpool.core.limits import (
    FLEET_BARRED_S,
    FLEET_CLAIM_PAUSE_S,
    FLEET_HEARTBEAT_S,
    FLEET_HEARTBEAT_SWITCHING_S,
    FLEET_TURN_S,
    FLEET_UNANSWERED_S,
    FLEET_WHOLE_S,
)
from bgpool.core.member import LastPublished, Member, RoleState, alone_at_ns, give_up, silence_ns, silent_at_ns, stands
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.plan import is_awaited
from bgpool.core.readings import has_rows, mark_of, meaning
from bgpool.core.snapshot import Snapshot

__all__ = ["Duty", "Publication", "duty", "farewell", "published"]

_NS: Final = 1_000_000_000
#: A time that is never reached.
_NOT: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to write to the leaders' stream.

    Attributes:
        message: The message. The term of a claim is only a minimum: the newest entry of the stream decides.
    """

    message: Message

    @property
    def is_claim(self) -> bool:
        """True if the message claims the leadership. Only a claim may create the stream."""
        return self.message.seq == 0


@dataclass(frozen=True, slots=True)
class Duty:
    """The current duty of a member.

    Attributes:
        asks: For each role, in the order of Role: the time since which this host queries that server itself, 0 for
            always; None if it does not query it. When the value changes, a query is due immediately.
        pace_ms: The shortest time between two queries to one server.
        publication: The message to publish now; None if there is none.
        due_ns: The time at which the duty must be computed again if no event occurs before, on the monotonic clock.
    """

    asks: tuple[int | None, ...] = (0, 0)
    pace_ms: int = 0
    publication: Publication | None = None
    due_ns: int = _NOT


def duty(member: Member, snapshot: Snapshot, at: Instant) -> Duty:
    """Return the duty of *member* at *at*."""
    due = []
    if member.standing is not FleetRole.DIRECT:
        due.append(max(silent_at_ns(member, snapshot), alone_at_ns(member)) + 1)
    asks: list[int | None] = []
    for role in Role:
        from_ns = _asks_from_ns(member, snapshot, role)
        is_due = from_ns <= at.mono_ns
        if not is_due:
            due.append(from_ns)
        # In NOT_CREATED every host queries both servers in any case.
        asks.append(from_ns if is_due else 0 if snapshot.phase is Phase.NOT_CREATED else None)
    publication, due_ns = _publication(member, snapshot, at)
    leads = member.standing is FleetRole.LEADER
    pace_ms = 0 if leads else member.pace_ns // 1_000_000
    return Duty(tuple(asks), pace_ms, publication, min([*due, due_ns]))


def _asks_from_ns(member: Member, snapshot: Snapshot, role: Role) -> int:
    """Return the time from which *member* queries *role* itself, on the monotonic clock."""
    doubt = member.doubts[PLACES[role]]
    if doubt is not None:
        return doubt.ask_at_ns
    if member.standing is not FleetRole.FOLLOWER or snapshot.phase is Phase.NOT_CREATED:
        return 0
    counting = _counting(snapshot)
    if role not in counting or not all(member.unheard_ns[PLACES[one]] for one in counting):
        return _NOT
    # The leader gets no answer from any relevant server. Other hosts may get one, so they take turns to query.
    unheard_ns, asked_ns = member.unheard_ns[PLACES[role]], member.asked_ns[PLACES[role]]
    turn_ns = int(member.hosts * FLEET_TURN_S * _NS)
    return asked_ns + turn_ns if asked_ns > unheard_ns else unheard_ns + int(member.jitter * turn_ns)


def _publication(member: Member, snapshot: Snapshot, at: Instant) -> tuple[Publication | None, int]:
    """Return the message to publish now, and the time to check again."""
    if member.standing is FleetRole.LEADER and member.sent is not None:
        return _of_leader(member, member.sent, snapshot, at)
    may_claim = member.standing is FleetRole.DIRECT or bool(member.vacant) or _outranks(member, snapshot)
    asked_ns = _asked_ns(member, snapshot)
    if not may_claim or asked_ns is None:
        return None, _NOT
    claim_at_ns = max(member.claim_at_ns, member.barred_ns, asked_ns)
    if member.stirred_ns and not _outranks(member, snapshot):
        # There is a leader; only this host cannot use its messages.
        claim_at_ns = max(claim_at_ns, member.stirred_ns + silence_ns(snapshot))
    if at.mono_ns < claim_at_ns:
        return None, claim_at_ns
    least = max(member.fence[0], member.tried) + 1
    return Publication(_message(member, snapshot, least, 0, at, whole=0, order=_order(member, snapshot, at))), _NOT


def _of_leader(member: Member, sent: LastPublished, snapshot: Snapshot, at: Instant) -> tuple[Publication | None, int]:
    switching = snapshot.phase in SWITCHING or member.others_switch
    seq = sent.seq + 1
    if _is_out_of_time(member):
        return farewell(member, snapshot, at), at.mono_ns
    beat_ns = sent.at_ns + int((FLEET_HEARTBEAT_SWITCHING_S if switching else FLEET_HEARTBEAT_S) * _NS)
    whole_ns = sent.whole_at_ns + int(FLEET_WHOLE_S * _NS)
    order = _order(member, snapshot, at)
    if at.mono_ns >= whole_ns or _said(sent.known, member.id) != _said(member.known, member.id):
        return Publication(_message(member, snapshot, member.term, seq, at, whole=seq, order=order)), at.mono_ns
    if at.mono_ns >= beat_ns or sent.order != member.order:
        return Publication(_message(member, snapshot, member.term, seq, at, whole=sent.whole, order=order)), at.mono_ns
    return None, min(beat_ns, whole_ns)


def farewell(member: Member, snapshot: Snapshot, at: Instant) -> Publication:
    """Return the last message of a leader that resigns: another host must take over."""
    sent = member.sent
    seq, whole = (sent.seq + 1, sent.whole) if sent is not None else (1, 0)
    return Publication(replace(_message(member, snapshot, member.term, seq, at, whole=whole), resigns=True))


def published(member: Member, publication: Publication, at: Instant) -> Member:
    """Return *member* after *publication* was handed to the publisher."""
    if publication.is_claim:
        pause_ns = int(FLEET_CLAIM_PAUSE_S * (0.5 + member.jitter) * _NS)
        return replace(member, claim_at_ns=at.mono_ns + pause_ns, claimed=member.known)
    message, sent = publication.message, member.sent
    if message.resigns:
        member = replace(member, barred_ns=at.mono_ns + int(FLEET_BARRED_S * _NS), strangers=0)
        return give_up(member, "most hosts' clocks differ from this host's", at)
    if sent is None:
        return member
    sent = replace(sent, seq=message.seq, at_ns=at.mono_ns, order=member.order)
    if message.readings:
        sent = replace(sent, whole=message.seq, whole_at_ns=at.mono_ns, known=member.known)
    return replace(member, sent=sent)


def _message(
    member: Member, snapshot: Snapshot, term: int, seq: int, at: Instant, *, whole: int, order: FleetOrder | None = None
) -> Message:
    readings = tuple(
        known.reading if known is not None and known.author == member.id else None for known in member.known
    )
    first, second = (reading.read_ns if reading is not None else 0 for reading in readings)
    return Message(
        term,
        seq,
        member.id,
        at.wall_ns,
        member.application,
        max(1, member.hosts),
        whole,
        (first, second),
        readings if seq == whole else (),
        order,
        deployment=mark_of(snapshot),
    )


def _order(member: Member, snapshot: Snapshot, at: Instant) -> FleetOrder | None:
    """Return the operator's order that a host which joins now must obey as well; None if there is none."""
    return member.order if member.order is not None and stands(member.order, snapshot, at) else None


def _said(known: tuple[RoleState | None, ...], author: str) -> list[tuple[Fact, ...] | None]:
    """Return the facts that *author* has read itself, for each role."""
    return [meaning(one.reading) if one is not None and one.author == author else None for one in known]


def _counting(snapshot: Snapshot) -> tuple[Role, ...]:
    """Return the relevant servers: those whose answers will show the next change that callers wait for."""
    if is_awaited(snapshot):
        return (Role.TARGET,)
    return tuple(Role) if snapshot.phase in SWITCHING else (Role.SOURCE,)


def _asked_ns(member: Member, snapshot: Snapshot) -> int | None:
    """Return the time from which this host may claim, on the monotonic clock; None before it queries a relevant server.

    A host with an answer may claim immediately. A host without one first gives the others time to get an answer. If
    no host gets one, one of them must still query for all.
    """
    found = []
    for role in _counting(snapshot):
        known, asked_ns = member.known[PLACES[role]], member.asked_ns[PLACES[role]]
        if known is None or known.author != member.id or asked_ns < member.alone_since_ns:
            continue
        wait_s = 0.0 if known.reading.is_answer else FLEET_UNANSWERED_S
        found.append(asked_ns + int(wait_s * _NS))
    return min(found, default=None)


def _is_out_of_time(member: Member) -> bool:
    """Return whether the leader's own clock is wrong, so that most hosts must ignore its messages."""
    return 2 * member.strangers > member.hosts


def _outranks(member: Member, snapshot: Snapshot) -> bool:
    """Return whether a relevant server tells this host more than its leader, so that this host must take over."""
    whole = member.whole
    if (
        whole is None
        or member.standing is not FleetRole.FOLLOWER
        or (whole.term, whole.leader) != (member.fence[0], member.leader)
    ):
        return False
    for role in _counting(snapshot):
        known, said = member.known[PLACES[role]], whole.readings[PLACES[role]]
        if known is not None and known.author == member.id and said is not None and _tells_more(known.reading, said):
            return True
    return False


def _tells_more(reading: Reading, other: Reading) -> bool:
    """Return whether *reading* has an answer and *other* has none, or shows metadata that *other* does not see."""
    if isinstance(other.facts[-1], MetadataAbsent):
        return has_rows(reading)
    return reading.is_answer and not other.is_answer
