"""Metrics for Prometheus: all values of a whole host, from any of its processes.

The names follow from the catalogue by OpenTelemetry's own rules, so that the same dashboards work with both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector as BaseCollector

from bgpool.metrics.catalogue import BG_ID, DEPLOYMENT, POOL_NAME, USAGE, WORKER, Attributes, Kind, Metric, Points
from bgpool.metrics.deployment import Deployment
from bgpool.segment.paths import RunFiles, look_in
from bgpool.segment.presence import WorkerRow
from bgpool.segment.reader import Reader
from bgpool.segment.table import Usage
from bgpool.settings import Settings

__all__ = ["Collector", "serve"]

_UNITS: Final = {"s": "_seconds"}


class Collector(BaseCollector):
    """A deployment, for a registry of prometheus_client: ``REGISTRY.register(Collector("ledger"))``.

    It has no state: under a server with many processes each of them returns the same values, and prometheus_client
    needs no directory for them.
    """

    def __init__(self, bg_id: str | int = "1", run_dir: Path | str | None = None) -> None:
        """Collect the metrics of *bg_id*, with *run_dir* as the parameter bg_run_dir; None for the default.

        Raises:
            ConfigurationError: A value is invalid.
        """
        settings = Settings.from_mapping({"bg_id": bg_id, **({} if run_dir is None else {"bg_run_dir": run_dir})})
        self._bg_id: Final = settings.bg_id
        self._files: Final = RunFiles.of(look_in(settings.bg_run_dir), settings.bg_id)
        self._reader: Final = Reader(self._files)

    def describe(self) -> Iterable[Family]:
        """Return nothing, so that registering reads no files."""
        return []

    def collect(self) -> Iterator[Family]:
        """Return all metrics with their current values."""
        it = Deployment(self._files, self._reader)
        for metric in DEPLOYMENT:
            yield _family(metric.name, metric.kind, metric.unit, metric.text, self._with_id(metric.read(it)))
        for usage in USAGE:
            points = _per_worker if usage.kind is Kind.COUNTER else _summed
            yield _family(
                usage.name, usage.kind, usage.unit, usage.text, self._with_id(points(usage, it.workers()), POOL_NAME)
            )

    def _with_id(self, points: Points, *more: str) -> Points:
        # The files do not contain the pools of other processes, so the deployment is used instead of pool names.
        own = dict.fromkeys((BG_ID, *more), self._bg_id)
        return [({**own, **attributes}, value) for attributes, value in points]


def serve(collector: Collector, host: str, port: int) -> int:
    """Serve scrapes of *collector* at *host* and *port*, 0 for any, in a separate thread. Return the port.

    Raises:
        OSError: The port is not available.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    server, _ = start_http_server(port, host, registry)
    return int(server.server_port)


def _summed(metric: Metric[Usage], rows: Iterable[WorkerRow]) -> Points:
    return metric.read(Usage.merged(row.usage for row in rows))


def _per_worker(metric: Metric[Usage], rows: Iterable[WorkerRow]) -> Points:
    """Return the values by row of the table: a sum over processes would decrease when one ends, like at a reset."""
    return [({WORKER: str(row.row), **own}, value) for row in rows for own, value in metric.read(row.usage)]


def _family(name: str, kind: Kind, unit: str, text: str, points: Points) -> Family:
    points = list(points)
    flat = name.replace(".", "_") + _UNITS.get(unit, "")
    labels = list(points[0][0]) if points else []
    make = CounterMetricFamily if kind is Kind.COUNTER else GaugeMetricFamily
    family = make(flat, text, labels=[label.replace(".", "_") for label in labels])
    for attributes, value in points:
        family.add_metric(_values(attributes, labels), value)
    return family


def _values(attributes: Attributes, labels: Iterable[str]) -> list[str]:
    return [attributes[label] for label in labels]
