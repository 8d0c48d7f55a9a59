"""Metrics through OpenTelemetry's API: each process reports its own pools, and one of them the host-wide values.

So sums over processes, as backends compute them, are correct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter

from bgpool import registry
from bgpool._version import __version__
from bgpool.metrics.catalogue import BG_ID, DEPLOYMENT, POOL_NAME, USAGE, Attributes, Kind, Metric
from bgpool.metrics.deployment import Deployment
from bgpool.segment.table import Usage

__all__ = ["instrument"]

T = TypeVar("T")
Sources = Callable[[], Iterable[tuple[Attributes, T]]]


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Register all metrics; see bgpool.metrics.instrument."""
    meter = get_meter("bgpool", __version__, meter_provider)
    for usage in USAGE:
        _register(meter, usage, _pools)
    for metric in DEPLOYMENT:
        _register(meter, metric, _deployments)


def _register(meter: Meter, metric: Metric[T], sources: Sources[T]) -> None:
    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for own, source in sources():
            for attributes, value in metric.read(source):
                yield Observation(value, {**own, **attributes})

    create: Final[Callable[..., Any]] = {
        Kind.COUNTER: meter.create_observable_counter,
        Kind.UP_DOWN: meter.create_observable_up_down_counter,
        Kind.GAUGE: meter.create_observable_gauge,
    }[metric.kind]
    create(metric.name, callbacks=[observe], unit=metric.unit, description=metric.text)


def _pools() -> Iterable[tuple[Attributes, Usage]]:
    """Return this process's pools, grouped by name."""
    found: dict[tuple[str, str], Usage] = {}
    for pool in registry.pools():
        key = pool.bg_id, pool.name
        found[key] = Usage.merged((found.get(key, Usage()), pool.usage()))
    return [({BG_ID: bg_id, POOL_NAME: name}, usage) for (bg_id, name), usage in found.items()]


def _deployments() -> Iterable[tuple[Attributes, Deployment]]:
    """Return the deployments whose host-wide values this process reports."""
    return [
        ({BG_ID: participant.bg_id}, Deployment(participant.files, participant.reader))
        for participant in registry.participants()
        if participant.speaks_for_host()
    ]
