"""The events of the state machine. Every event carries its time; the core reads no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from bgpool.core.phase import Role

__all__ = [
    "Answered",
    "CertificateRenewed",
    "Event",
    "Instant",
    "MetadataAbsent",
    "MetadataFailed",
    "Nudged",
    "Order",
    "Ordered",
    "ProbeFailed",
    "Resolved",
    "StatusRead",
    "StatusRow",
    "Tick",
]


@dataclass(frozen=True, slots=True, order=True)
class Instant:
    """A time on two clocks: *mono_ns* for deadlines, *wall_ns* (since 1970, UTC) only for display."""

    mono_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One row of the metadata, as the server returned it."""

    endpoint: str
    port: int
    role: str
    status: str
    version: str = "1.0"


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. The switchover timer may run out without any other event."""

    at: Instant


@dataclass(frozen=True, slots=True)
class Answered:
    """The server of *role* answered, independent of the content of its metadata.

    Attributes:
        read_only: True if it accepts no writes at all: it is in recovery, or read-only by default.
        replica: True if it is a physical replica, in recovery.
        max_connections: The server's max_connections; 0 if it did not report it.
        role_read_only: True if a setting of the application's role, or of its database, makes that role read-only.
        subscribes: True if it has an enabled subscription, in any database: it follows the changes of another server.
    """

    at: Instant
    role: Role
    read_only: bool
    replica: bool = False
    max_connections: int = 0
    role_read_only: bool = False
    subscribes: bool = False


@dataclass(frozen=True, slots=True)
class StatusRead:
    """The metadata that the server of *role* returned. No rows means an empty table; an absent table is another event.

    Attributes:
        servers: Ids of the servers of that side's topology (Aurora), the writer first; empty on RDS.
    """

    at: Instant
    role: Role
    rows: tuple[StatusRow, ...]
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetadataAbsent:
    """The server of *role* answered, but the metadata are not visible: no function, no table or no grant.

    Attributes:
        remedy: A text for the operator: the object that was looked for and the remedy.
    """

    at: Instant
    role: Role
    remedy: str


@dataclass(frozen=True, slots=True)
class MetadataFailed:
    """The server of *role* answered, but the metadata query failed. This does not change the phase."""

    at: Instant
    role: Role
    error: str


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """The server of *role* could not be reached, or did not answer. This never changes the phase.

    Attributes:
        refused: True if the server could be reached and refused the login.
    """

    at: Instant
    role: Role
    error: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """The current addresses of names. No addresses means that the name does not exist. Failed look-ups are omitted."""

    at: Instant
    addresses: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class CertificateRenewed:
    """A TLS login at the green host *host* succeeded under the name that it has after the switchover."""

    at: Instant
    host: str


@dataclass(frozen=True, slots=True)
class Nudged:
    """The server ended a worker's connection to blue, or refused a write on it."""

    at: Instant


class Order(Enum):
    """An order of the operator. The value is the command's name."""

    HOLD = "hold"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Ordered:
    """The operator gave an order.

    Attributes:
        until_ns: The time at which the order expires, on the monotonic clock.
    """

    at: Instant
    order: Order
    until_ns: int


Event = (
    Tick
    | Answered
    | StatusRead
    | MetadataAbsent
    | MetadataFailed
    | ProbeFailed
    | Resolved
    | CertificateRenewed
    | Nudged
    | Ordered
)
