"""All metrics by their OpenTelemetry names, and how to read them. docs/metrics.md has the same list for users."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

from bgpool.core.fleet import FleetRole
from bgpool.core.phase import Phase
from bgpool.metrics.deployment import Deployment
from bgpool.segment.history import OUTCOMES
from bgpool.segment.table import Usage

__all__ = ["BG_ID", "DEPLOYMENT", "POOL_NAME", "USAGE", "WORKER", "Attributes", "Kind", "Metric", "Points"]

T = TypeVar("T")

Attributes = Mapping[str, str]
Points = Iterable[tuple[Attributes, float]]

#: Source: OpenTelemetry's semantic conventions for database client metrics (in development as of 2026-08).
POOL_NAME: Final = "db.client.connection.pool.name"
STATE: Final = "db.client.connection.state"
BG_ID: Final = "bgpool.bg_id"
WORKER: Final = "bgpool.worker"
ROLE: Final = "bgpool.fleet.role"
SETTLED: Final = "bgpool.settled_by"


class Kind(Enum):
    """The kind of a metric, which determines the valid operations on its values."""

    #: Only increases, until the counted object is created again: use rates.
    COUNTER = "counter"
    #: May be summed over processes.
    UP_DOWN = "updowncounter"
    #: Must not be summed.
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric(Generic[T]):
    """A metric. *read* turns the measured object into points. A *unit* in braces is an annotation, not a unit."""

    name: str
    kind: Kind
    unit: str
    text: str
    read: Callable[[T], Points]


def _plain(read: Callable[[T], float | None]) -> Callable[[T], Points]:
    """Return a single point without attributes of its own, or none."""

    def points(source: T) -> Points:
        value = read(source)
        return [] if value is None else [({}, value)]

    return points


#: Metrics of a process, or of one of its pools.
USAGE: Final[tuple[Metric[Usage], ...]] = (
    Metric(
        "db.client.connection.count",
        Kind.UP_DOWN,
        "{connection}",
        "Connections, idle or used.",
        lambda usage: [({STATE: "idle"}, usage.idle), ({STATE: "used"}, usage.in_use)],
    ),
    Metric(
        "db.client.connection.pending_requests",
        Kind.UP_DOWN,
        "{request}",
        "Callers that wait for a connection; those held by a switchover are not among them.",
        _plain(lambda usage: usage.waiting),
    ),
    Metric(
        "bgpool.held",
        Kind.UP_DOWN,
        "{request}",
        "Callers that wait for a switchover to pass.",
        _plain(lambda usage: usage.held),
    ),
    Metric(
        "bgpool.checkouts",
        Kind.COUNTER,
        "{checkout}",
        "Checkouts that were given a connection.",
        _plain(lambda usage: usage.served),
    ),
    Metric(
        "bgpool.checkouts.failed",
        Kind.COUNTER,
        "{checkout}",
        "Checkouts that ended with an error: held for too long, rejected, or no connection in time.",
        _plain(lambda usage: usage.failed),
    ),
    Metric(
        "bgpool.connections.drained",
        Kind.COUNTER,
        "{connection}",
        "Connections that switchovers made unfit.",
        _plain(lambda usage: usage.drained),
    ),
    Metric(
        "bgpool.connections.cut",
        Kind.COUNTER,
        "{connection}",
        "Connections that were cut because they were still in use after the grace.",
        _plain(lambda usage: usage.cut),
    ),
    Metric(
        "bgpool.units.settled",
        Kind.COUNTER,
        "{unit}",
        "Units of work whose COMMIT was cut, by the source of its outcome.",
        lambda usage: [
            ({SETTLED: "receipt found"}, usage.receipts_found),
            ({SETTLED: "no receipt"}, usage.receipts_missing),
            ({SETTLED: "old blue"}, usage.old_blue_told),
        ],
    ),
    Metric(
        "bgpool.units.already_applied",
        Kind.COUNTER,
        "{unit}",
        "Units of work that ended with AlreadyApplied: another run with their id was applied.",
        _plain(lambda usage: usage.already_applied),
    ),
    Metric(
        "bgpool.receipts.unusable",
        Kind.UP_DOWN,
        "{pool}",
        "Pools whose receipts table cannot be used.",
        _plain(lambda usage: usage.no_receipts),
    ),
    Metric(
        "bgpool.receipts.deleted",
        Kind.COUNTER,
        "{row}",
        "Old receipts that units of work have deleted.",
        _plain(lambda usage: usage.receipts_deleted),
    ),
)

#: Metrics of a deployment, as known on the host.
DEPLOYMENT: Final[tuple[Metric[Deployment], ...]] = (
    Metric(
        "bgpool.phase",
        Kind.GAUGE,
        "",
        "1 for the phase that the deployment is in, 0 for every other.",
        lambda it: (
            [({"bgpool.phase": phase.name}, float(phase is it.snapshot.phase)) for phase in Phase]
            if it.snapshot is not None
            else []
        ),
    ),
    Metric(
        "bgpool.ready",
        Kind.GAUGE,
        "",
        "1 if inventory, addresses and the map from blue to green are complete.",
        _plain(lambda it: float(it.snapshot.ready) if it.snapshot is not None else None),
    ),
    Metric(
        "bgpool.epoch",
        Kind.GAUGE,
        "",
        "Rises with every decision that makes older connections unfit.",
        _plain(lambda it: it.snapshot.epoch if it.snapshot is not None else None),
    ),
    Metric(
        "bgpool.monitor.age",
        Kind.GAUGE,
        "s",
        "Time since the monitor's last heartbeat, of which there are five per second.",
        _plain(lambda it: it.monitor_age_s),
    ),
    Metric(
        "bgpool.monitor.term",
        Kind.GAUGE,
        "",
        "Counts the monitors that this host has had.",
        _plain(lambda it: it.term),
    ),
    Metric(
        "bgpool.workers",
        Kind.GAUGE,
        "{process}",
        "Processes that use the bg_id.",
        _plain(lambda it: len(it.workers())),
    ),
    Metric(
        "bgpool.workers.behind",
        Kind.GAUGE,
        "{process}",
        "Those of them that have not acted on the newest snapshot.",
        _plain(lambda it: sum(row.usage.sequence < it.sequence for row in it.workers())),
    ),
    Metric(
        "bgpool.switchovers",
        Kind.COUNTER,
        "{switchover}",
        "Switchovers that have ended, since the run directory was made.",
        lambda it: [({"bgpool.outcome": outcome}, it.totals().get(outcome, 0)) for outcome in OUTCOMES],
    ),
    Metric(
        "bgpool.fleet.role",
        Kind.GAUGE,
        "",
        "1 for the host's place in its fleet, 0 for every other.",
        lambda it: (
            [({ROLE: standing.value}, float(standing is it.fleet.standing)) for standing in FleetRole]
            if it.fleet is not None
            else []
        ),
    ),
    Metric(
        "bgpool.fleet.bus.age",
        Kind.GAUGE,
        "s",
        "Time since the monitor last heard a message of its fleet that counts.",
        _plain(lambda it: it.bus_age_s if it.fleet is not None else None),
    ),
    Metric(
        "bgpool.fleet.fallbacks",
        Kind.COUNTER,
        "{fallback}",
        "How often the host went back to asking the database itself, since its monitor began.",
        _plain(lambda it: it.fleet.fallbacks if it.fleet is not None else None),
    ),
    Metric(
        "bgpool.fleet.hosts",
        Kind.GAUGE,
        "{host}",
        "Hosts of the fleet, by its leader's count.",
        _plain(lambda it: (it.fleet.hosts or None) if it.fleet is not None else None),
    ),
)
