"""What can happen to the state machine. Every event says when; nothing in the core asks a clock."""

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
    """A moment on two clocks: *mono_ns* for every deadline, *wall_ns* (since 1970, UTC) for display alone."""

    mono_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One row of the metadata, as the server gave it."""

    endpoint: str
    port: int
    role: str
    status: str
    version: str = "1.0"


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Nothing else has to happen for the switchover timer to run out."""

    at: Instant


@dataclass(frozen=True, slots=True)
class Answered:
    """The server of *role* answers, whatever its metadata say.

    Attributes:
        read_only: It takes no writes from anybody: in recovery, or read-only by default.
        replica: It is a physical replica, in recovery.
        max_connections: How many clients it takes, its max_connections; 0 where it did not say.
        role_read_only: It takes none from the application's role, by a setting of that role or of its database.
        subscribes: It has an enabled subscription: it follows another server's changes, in whichever database.
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
    """The metadata as the server of *role* tells it. No rows is an empty table, which is not an absent one.

    Attributes:
        servers: Ids of the servers of that side's topology (Aurora), the writer first; empty on RDS.
    """

    at: Instant
    role: Role
    rows: tuple[StatusRow, ...]
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetadataAbsent:
    """The server of *role* answers, but has no metadata to be seen: no function, no table or no grant.

    Attributes:
        remedy: What was looked for and what would help, for a person.
    """

    at: Instant
    role: Role
    remedy: str


@dataclass(frozen=True, slots=True)
class MetadataFailed:
    """The server of *role* answers, but the question for its metadata failed. That is no news."""

    at: Instant
    role: Role
    error: str


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """The server of *role* could not be reached or does not answer. That is no news: it never moves the phase.

    Attributes:
        refused: The server is there, and refused the login.
    """

    at: Instant
    role: Role
    error: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """What names resolve to now. No addresses means that the name does not exist; a look-up that failed is left out."""

    at: Instant
    addresses: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class CertificateRenewed:
    """The green host *host* lets us in under the name that it has after the switchover."""

    at: Instant
    host: str


@dataclass(frozen=True, slots=True)
class Nudged:
    """A worker's connection to blue was ended by the server, or a write on it refused."""

    at: Instant


class Order(Enum):
    """What an operator can order by hand; the value is the command's name."""

    HOLD = "hold"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Ordered:
    """An operator has given an order.

    Attributes:
        until_ns: When it ends by itself, on the monotonic clock.
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
