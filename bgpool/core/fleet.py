"""What the monitors of a fleet tell each other: readings, never decisions.

One of them, the leader, asks the database. It publishes what it was answered, and every other host makes of that the
events that its own questions would have made; each goes on deciding for itself. See core/member.py for who leads.

Source: behaviour.md §11.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from bgpool.core.events import (
    Answered,
    Event,
    Instant,
    MetadataAbsent,
    MetadataFailed,
    Order,
    ProbeFailed,
    StatusRead,
)
from bgpool.core.phase import Phase, Role

__all__ = [
    "AnyEvent",
    "NEVER",
    "PublishRefused",
    "BusFailed",
    "Claimed",
    "Fact",
    "FleetEvent",
    "FleetOrder",
    "FleetView",
    "StreamLost",
    "Message",
    "MessageHeard",
    "PLACES",
    "Reading",
    "Report",
    "ReportsRead",
    "FleetRole",
]

#: The time of facts that are on their way: each host stamps them with its own.
NEVER: Final = Instant(0, 0)

#: What a question to a server can come to.
Fact = Answered | StatusRead | MetadataAbsent | MetadataFailed | ProbeFailed


class FleetRole(Enum):
    """A host's place in its fleet; the value is what people read."""

    DIRECT = "direct"
    FOLLOWER = "follower"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one question to a role came to.

    Attributes:
        facts: Answered and what the metadata said, or ProbeFailed alone; each at NEVER.
        read_ns: When, on the wall clock of the host that asked.
    """

    facts: tuple[Fact, ...]
    read_ns: int

    def events(self, at: Instant) -> tuple[Fact, ...]:
        """The facts as events of *at*."""
        return tuple(replace(fact, at=at) for fact in self.facts)

    @property
    def is_answer(self) -> bool:
        """Whether the server answered at all."""
        return not isinstance(self.facts[0], ProbeFailed)


@dataclass(frozen=True, slots=True)
class FleetOrder:
    """An operator's order to all hosts.

    Attributes:
        number: What tells it from others: its time, in ns since 1970 with 20 digits, and random digits, so that the
            newest is the greatest.
        until_ns: When it ends by itself, on the wall clock.
    """

    number: str
    order: Order
    until_ns: int

    @property
    def given_ns(self) -> int:
        """When it was given, by its number; 0 where that does not say."""
        digits = self.number.partition("-")[0]
        return int(digits) if digits.isascii() and digits.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Message:
    """What a leader publishes: a whole message with readings, or a heartbeat, which says that they still stand.

    Attributes:
        term, seq: Its place in the stream. A claim of the leadership has the seq 0.
        leader: The id of the member that wrote it.
        issued_ns: When, on that one's wall clock.
        application: Whose settings the leader's questions were about: a mark that is the same for equal ones.
        hosts: How many hosts the leader counts, itself included.
        deployment: Which one it is about, by a mark of blue's name; empty while the leader has no inventory.
        whole: The seq, in this term, of the newest whole message; of a whole message, its own.
        read_ns: When each role was last read with the result of that message, in the order of Role, on the leader's
            wall clock; 0 for a role that it does not ask.
        readings: Those of a whole message, in the order of Role, None for a role that is not asked; empty in a
            heartbeat.
        order: The operator's order that stands; None for none.
        resigns: The leader leaves, or is not answered any more: somebody else is to lead.
    """

    term: int
    seq: int
    leader: str
    issued_ns: int
    application: str
    hosts: int
    whole: int
    read_ns: tuple[int, int]
    readings: tuple[Reading | None, ...] = ()
    order: FleetOrder | None = None
    resigns: bool = False
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a host says of itself, to the leader and to people.

    Attributes:
        member: The id of its monitor's tenure.
        host: What it calls itself.
        place: Hex digits of its own, which its next monitor has, too: several hosts may go by one name.
        issued_ns: When, on its own wall clock.
        missing: What stands between the host and a switchover, in words; empty if it may begin.
        workers, held: Processes that use the bg_id, and their callers that wait.
        order: The number of the last operator's order that it has taken; empty for none.
        clock_off_ms: How far the leader's clock seems to be behind its own; None where it has heard none.
        fallbacks: How often it has fallen back to asking the database itself.
        refused: Messages that it has refused: forged, replayed, damaged or foreign.
        nudged: It is not news of the host but a nudge: the leader is to ask at once.
        leaves: It is the host's last one.
    """

    member: str
    host: str
    place: str
    version: str
    issued_ns: int
    application: str
    phase: Phase
    missing: tuple[str, ...]
    workers: int
    held: int
    standing: FleetRole
    order: str = ""
    clock_off_ms: int | None = None
    fallbacks: int = 0
    refused: int = 0
    nudged: bool = False
    leaves: bool = False


@dataclass(frozen=True, slots=True)
class FleetView:
    """A host's place in its fleet, as a snapshot shows it.

    Attributes:
        leader: The id of the leader that was heard last; empty for none.
        hosts: How many hosts there are, by the leader's count; 0 while nobody has said.
        since_ns: Since when it has this standing, on the monotonic clock.
        reason: Why it asks the database itself although there is a bus; empty where it does not.
        fallbacks: How often it has fallen back to asking the database itself.
    """

    standing: FleetRole
    leader: str = ""
    hosts: int = 0
    since_ns: int = 0
    reason: str = ""
    fallbacks: int = 0


# -- what happens to a member --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MessageHeard:
    """An authentic message was read from the stream, in whatever state it is.

    Attributes:
        is_past: It was there before this host began to listen: how old it is says nothing of anybody's clock.
    """

    at: Instant
    message: Message
    is_past: bool = False


@dataclass(frozen=True, slots=True)
class Claimed:
    """The stream has taken our claim: we lead in *term*."""

    at: Instant
    term: int


@dataclass(frozen=True, slots=True)
class PublishRefused:
    """The stream has refused what we wrote in *term*: somebody is ahead."""

    at: Instant
    term: int


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The stream that we led is gone, and the order of its ids with it."""

    at: Instant


@dataclass(frozen=True, slots=True)
class BusFailed:
    """The bus cannot be read or written. That is a silence; the text is for a person, and empty when it works again."""

    at: Instant
    error: str


@dataclass(frozen=True, slots=True)
class ReportsRead:
    """What the leader has read of the hosts' reports.

    Attributes:
        hosts: How many hosts have reported lately.
        order: The newest operator's order; None where none stands.
        nudged: A host was nudged.
        switching: A host is in a switchover.
        strangers: Hosts whose clocks differ from this host's by more than they may.
    """

    at: Instant
    hosts: int
    order: FleetOrder | None = None
    nudged: bool = False
    switching: bool = False
    strangers: int = 0


FleetEvent = MessageHeard | Claimed | PublishRefused | StreamLost | BusFailed | ReportsRead

#: What a monitor takes: of the database's, the operators' and the workers' doing, or of the fleet's.
AnyEvent = Event | FleetEvent

#: The place of each role in a message.
PLACES: Final = {role: place for place, role in enumerate(Role)}
