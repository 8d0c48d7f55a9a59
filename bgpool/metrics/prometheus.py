"""For Prometheus: everything that is known of a whole host, whichever of its processes is asked.

Names are those that OpenTelemetry's own rules make of the catalogue's, so that both ways lead to the same dashboards.
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
    """One deployment, for a registry of prometheus_client: ``REGISTRY.register(Collector("ledger"))``.

    It keeps nothing: under a server with many processes each of them gives the same answer, and prometheus_client needs
    no directory for them.
    """

    def __init__(self, bg_id: str | int = "1", run_dir: Path | str | None = None) -> None:
        """Of *bg_id*, with *run_dir* as the parameter bg_run_dir; None for the default.

        Raises:
            ConfigurationError: A value that cannot be used.
        """
        settings = Settings.from_mapping({"bg_id": bg_id, **({} if run_dir is None else {"bg_run_dir": run_dir})})
        self._bg_id: Final = settings.bg_id
        self._files: Final = RunFiles.of(look_in(settings.bg_run_dir), settings.bg_id)
        self._reader: Final = Reader(self._files)

    def describe(self) -> Iterable[Family]:
        """Nothing: to register makes no look at anything."""
        return []

    def collect(self) -> Iterator[Family]:
        """Every metric, now."""
        it = Deployment(self._files, self._reader)
        for metric in DEPLOYMENT:
            yield _family(metric.name, metric.kind, metric.unit, metric.text, self._with_id(metric.read(it)))
        for usage in USAGE:
            points = _per_worker if usage.kind is Kind.COUNTER else _summed
            yield _family(
                usage.name, usage.kind, usage.unit, usage.text, self._with_id(points(usage, it.workers()), POOL_NAME)
            )

    def _with_id(self, points: Points, *more: str) -> Points:
        # Of a host the files do not tell which pools its processes have: the deployment stands for them.
        own = dict.fromkeys((BG_ID, *more), self._bg_id)
        return [({**own, **attributes}, value) for attributes, value in points]


def serve(collector: Collector, host: str, port: int) -> int:
    """Answer scrapes of *collector* at *host* and *port*, 0 for any, in a thread of its own; the port.

    Raises:
        OSError: The port cannot be had.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    server, _ = start_http_server(port, host, registry)
    return int(server.server_port)


def _summed(metric: Metric[Usage], rows: Iterable[WorkerRow]) -> Points:
    return metric.read(Usage.merged(row.usage for row in rows))


def _per_worker(metric: Metric[Usage], rows: Iterable[WorkerRow]) -> Points:
    """By row of the table: a sum over processes would fall when one of them ends, and pass for begun anew."""
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
