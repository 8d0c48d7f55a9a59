"""The messages between the monitors of a fleet. They carry readings, never decisions.

One monitor, the leader, queries the database and publishes the answers. Every other host turns these into the same
events that its own queries would have produced, and decides for itself. core/member.py elects the leader.

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

#: The time of facts in transit: each host replaces it with its own time.
NEVER: Final = Instant(0, 0)

#: The possible results of a query to a server.
Fact = Answered | StatusRead | MetadataAbsent | MetadataFailed | ProbeFailed


class FleetRole(Enum):
    """A host's role in its fleet. The value is shown to users."""

    DIRECT = "direct"
    FOLLOWER = "follower"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of one query to the server of a role.

    Attributes:
        facts: Answered and the result of the metadata query, or ProbeFailed alone; each at NEVER.
        read_ns: The time of the query, on the wall clock of the host that made it.
    """

    facts: tuple[Fact, ...]
    read_ns: int

    def events(self, at: Instant) -> tuple[Fact, ...]:
        """Return the facts as events at *at*."""
        return tuple(replace(fact, at=at) for fact in self.facts)

    @property
    def is_answer(self) -> bool:
        """True if the server answered."""
        return not isinstance(self.facts[0], ProbeFailed)


@dataclass(frozen=True, slots=True)
class FleetOrder:
    """An operator's order to all hosts.

    Attributes:
        number: The order's identity: its time, in ns since 1970 with 20 digits, and random digits. The newest order has
            the greatest number.
        until_ns: The time at which the order expires, on the wall clock.
    """

    number: str
    order: Order
    until_ns: int

    @property
    def given_ns(self) -> int:
        """The time at which the order was given, taken from its number; 0 if the number is malformed."""
        digits = self.number.partition("-")[0]
        return int(digits) if digits.isascii() and digits.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the leader: a full message with readings, or a heartbeat, which confirms the last readings.

    Attributes:
        term, seq: Its position in the stream. A claim of the leadership has the seq 0.
        leader: The id of the member that wrote it.
        issued_ns: The time of writing, on the leader's wall clock.
        application: A digest of the engine, user and database for which the leader's queries are valid.
        hosts: The number of hosts that the leader counts, including itself.
        deployment: A digest of blue's name; empty while the leader has no inventory.
        whole: The seq, in this term, of the newest full message; of a full message, its own seq.
        read_ns: For each role, in the order of Role: the last time at which a query had the result of the full message,
            on the leader's wall clock; 0 for a role that it does not query.
        readings: The readings of a full message, in the order of Role, None for a role that is not queried; empty in a
            heartbeat.
        order: The operator's order in force; None if there is none.
        resigns: True if the leader exits or no longer gets answers, so that another host must take over.
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
    """A host's report about itself, for the leader and for the operator.

    Attributes:
        member: The id of its monitor's tenure.
        host: The host's name.
        place: The host's own hex digits, which its next monitor keeps. Several hosts may have one name.
        issued_ns: The time of the report, on its own wall clock.
        missing: The obstacles to a switchover, as texts; empty if it may begin.
        workers, held: The processes that use the bg_id, and their held callers.
        order: The number of the last operator's order that it has accepted; empty if none.
        clock_off_ms: The time by which the leader's clock seems to be behind its own; None before the first message.
        fallbacks: The number of times at which it fell back to querying the database itself.
        refused: The messages that it refused: forged, replayed, damaged or foreign.
        nudged: True if this is a nudge: the leader must query immediately.
        leaves: True for the host's last report.
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
    """A host's role in its fleet, as shown in a snapshot.

    Attributes:
        leader: The id of the last known leader; empty if none.
        hosts: The number of hosts, as counted by the leader; 0 while unknown.
        since_ns: The time at which it took this role, on the monotonic clock.
        reason: The reason for which it queries the database itself although there is a bus; empty if it does not.
        fallbacks: The number of times at which it fell back to querying the database itself.
    """

    standing: FleetRole
    leader: str = ""
    hosts: int = 0
    since_ns: int = 0
    reason: str = ""
    fallbacks: int = 0


# -- events of a member --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MessageHeard:
    """An authentic message was read from the stream. It may be stale or irrelevant.

    Attributes:
        is_past: True if it was published before this host began to read: its age says nothing about any clock.
    """

    at: Instant
    message: Message
    is_past: bool = False


@dataclass(frozen=True, slots=True)
class Claimed:
    """The stream accepted this host's claim: this host leads in *term*."""

    at: Instant
    term: int


@dataclass(frozen=True, slots=True)
class PublishRefused:
    """The stream refused this host's message in *term*: it has a newer entry of another host."""

    at: Instant
    term: int


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The stream that this host led no longer exists, so that the order of its ids is lost."""

    at: Instant


@dataclass(frozen=True, slots=True)
class BusFailed:
    """The bus cannot be read or written, which counts as silence. The text is for the operator; empty once it works."""

    at: Instant
    error: str


@dataclass(frozen=True, slots=True)
class ReportsRead:
    """The leader's summary of the hosts' reports.

    Attributes:
        hosts: The number of hosts that have reported recently.
        order: The newest operator's order; None if none is in force.
        nudged: True if a host was nudged.
        switching: True if a host is in a switchover.
        strangers: The number of hosts whose clocks differ from this host's by more than the limit.
    """

    at: Instant
    hosts: int
    order: FleetOrder | None = None
    nudged: bool = False
    switching: bool = False
    strangers: int = 0


FleetEvent = MessageHeard | Claimed | PublishRefused | StreamLost | BusFailed | ReportsRead

#: An event that a monitor handles: of the database, the operator and the workers, or of the fleet.
AnyEvent = Event | FleetEvent

#: The index of each role in a message.
PLACES: Final = {role: place for place, role in enumerate(Role)}
