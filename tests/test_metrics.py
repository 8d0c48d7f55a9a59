"""Metrics have the values of the rows and the snapshot, by documented names, and a scrape never fails."""

from __future__ import annotations

import builtins
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import bgpool
import bgpool.metrics
from bgpool.cli import metrics as cli_metrics
from bgpool.core.fleet import FleetRole, FleetView
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot, TimelineEntry
from bgpool.lab import Pair
from bgpool.metrics.catalogue import DEPLOYMENT, USAGE
from bgpool.metrics.prometheus import Collector
from bgpool.segment import history
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import Presence
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer
from tests.docs.pages import blocks

DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"
NAMES = [*(metric.name for metric in USAGE), *(metric.name for metric in DEPLOYMENT)]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    prepare_run_dir(tmp_path / "run")
    return RunFiles.of(tmp_path / "run", "ledger")


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(files: RunFiles) -> Samples:
    registry = CollectorRegistry()
    registry.register(Collector(files.stem, files.directory))
    return parsed(generate_latest(registry).decode())


def value(samples: Samples, name: str, **labels: str) -> float:
    """The one sample called *name* that has *labels* among its own."""
    (found,) = [v for (n, own), v in samples.items() if n == name and labels.items() <= dict(own).items()]
    return found


def test_metrics_cover_the_whole_host(files: RunFiles) -> None:
    writer = Writer(files, 3, Snapshot("ledger", Phase.IN_PROGRESS, epoch=7, ready=True))
    writer.beat()
    history.keep(files, Snapshot("ledger", Phase.COMPLETED, timeline=(TimelineEntry(1, 2, "PREPARATION"),)))
    first, second = Presence(files), Presence(files)
    first.write(Usage(1, held=1, in_use=2, idle=3, waiting=4, drained=5, cut=6, served=100, failed=8))
    second.write(Usage(0, held=10, in_use=20, idle=30, waiting=40, drained=50, cut=60, served=900, failed=80))
    told = scrape(files)
    mine = {"bgpool_bg_id": "ledger"}
    pool = {**mine, "db_client_connection_pool_name": "ledger"}
    assert value(told, "bgpool_phase", bgpool_phase="IN_PROGRESS", **mine) == 1
    assert sum(v for (name, _), v in told.items() if name == "bgpool_phase") == 1
    assert value(told, "bgpool_ready", **mine) == 1
    assert value(told, "bgpool_epoch") == 7
    assert value(told, "bgpool_monitor_term") == 3
    assert 0 <= value(told, "bgpool_monitor_age_seconds") < 60
    assert value(told, "bgpool_workers") == 2
    assert value(told, "bgpool_workers_behind") == 1
    assert value(told, "bgpool_switchovers_total", bgpool_outcome="completed") == 1
    assert value(told, "bgpool_switchovers_total", bgpool_outcome="rolled back") == 0
    assert value(told, "db_client_connection_count", db_client_connection_state="idle", **pool) == 33
    assert value(told, "db_client_connection_count", db_client_connection_state="used", **pool) == 22
    assert value(told, "db_client_connection_pending_requests", **pool) == 44
    assert value(told, "bgpool_held", **pool) == 11
    assert value(told, "bgpool_checkouts_total", bgpool_worker="0", **pool) == 100
    assert value(told, "bgpool_checkouts_total", bgpool_worker="1", **pool) == 900
    assert value(told, "bgpool_checkouts_failed_total", bgpool_worker="1") == 80
    assert value(told, "bgpool_connections_drained_total", bgpool_worker="0") == 5
    assert value(told, "bgpool_connections_cut_total", bgpool_worker="1") == 60
    first.close()
    # What one process counted goes with it, and no other's count falls.
    told = scrape(files)
    assert value(told, "bgpool_checkouts_total") == 900
    assert value(told, "bgpool_workers") == 1
    second.close()


def test_a_host_on_which_nothing_is_there_or_to_be_trusted_is_no_error(files: RunFiles, tmp_path: Path) -> None:
    told = scrape(RunFiles.of(tmp_path / "nowhere", "ledger"))
    assert value(told, "bgpool_workers") == 0
    assert not any(name in ("bgpool_phase", "bgpool_monitor_age_seconds") for name, _ in told)
    assert not (tmp_path / "nowhere").exists(), "to look makes nothing"
    files.segment.write_bytes(b"broken")
    files.workers.mkdir()
    files.history.write_text("[7]")
    told = scrape(files)
    assert value(told, "bgpool_workers") == 0
    assert value(told, "bgpool_switchovers_total", bgpool_outcome="completed") == 0


def test_a_place_in_a_fleet(files: RunFiles) -> None:
    writer = Writer(files, 3, Snapshot("ledger", Phase.CREATED))
    assert not any(name.startswith("bgpool_fleet") for name, _ in scrape(files)), "without a bus"
    writer.publish(Snapshot("ledger", Phase.CREATED, fleet=FleetView(FleetRole.DIRECT, fallbacks=2)))
    told = scrape(files)
    assert value(told, "bgpool_fleet_role", bgpool_fleet_role="direct", bgpool_bg_id="ledger") == 1
    assert value(told, "bgpool_fleet_fallbacks_total") == 2
    # Nothing has been heard yet.
    assert not any(name in ("bgpool_fleet_hosts", "bgpool_fleet_bus_age_seconds") for name, _ in told)
    writer.publish(Snapshot("ledger", Phase.CREATED, fleet=FleetView(FleetRole.LEADER, "2f7c1b90a4d85e63", 30)))
    writer.note_bus(time.monotonic_ns() - 7 * 10**9)
    told = scrape(files)
    roles = {dict(own)["bgpool_fleet_role"]: v for (name, own), v in told.items() if name == "bgpool_fleet_role"}
    assert roles == {"leader": 1, "follower": 0, "direct": 0}
    assert value(told, "bgpool_fleet_hosts") == 30
    assert 7 <= value(told, "bgpool_fleet_bus_age_seconds") < 60


def test_a_wrong_parameter_is_refused() -> None:
    with pytest.raises(bgpool.ConfigurationError):
        Collector("ledger", run_dir=7)  # type: ignore[arg-type]  # that is the point


def test_every_metric_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE)
    assert documented == NAMES


def test_the_alert_of_the_docs_sees_a_monitor_that_is_not_there() -> None:
    assert "absent(bgpool_monitor_age_seconds)" in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("address", ["9187", "a:b:1", ":70000", "[::1]", "localhost:", ":-1"])
def test_an_address_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(bgpool.ConfigurationError, match="allowed is"):
        cli_metrics.serve(address, "1", tmp_path)


@pytest.mark.parametrize("missing", ["prometheus_client", "opentelemetry"])
def test_without_its_library_it_says_what_to_install(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.startswith(("bgpool.metrics.", missing)):
            monkeypatch.delitem(sys.modules, name)
    for name in ("prometheus", "otel"):
        monkeypatch.delattr(bgpool.metrics, name, raising=False)
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    if missing == "opentelemetry":
        with pytest.raises(bgpool.ConfigurationError, match=r"bgpool\[otel\]"):
            bgpool.metrics.instrument()
    else:
        with pytest.raises(bgpool.ConfigurationError, match=r"bgpool\[prometheus\]"):
            cli_metrics.serve(":0", "1", tmp_path)


@pytest.fixture
def monitor(files: RunFiles) -> Iterator[subprocess.Popen[str]]:
    """bgpool monitor --metrics, of a database that is not there."""
    command = [sys.executable, "-c", "from bgpool.cli import main; main()", "monitor", "-", "--metrics", ":0"]
    with subprocess.Popen(
        [*command, "--bg-id", "ledger"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BGPOOL_RUN_DIR": str(files.directory), "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdin is not None
        process.stdin.write("postgresql://app:secret@127.0.0.1:1/app\n")
        process.stdin.close()
        yield process
        process.kill()


def test_a_monitor_in_the_foreground_answers_scrapes(monitor: subprocess.Popen[str]) -> None:
    assert monitor.stderr is not None
    line = next(line for line in monitor.stderr if "metrics are served at" in line)
    found = re.search(r"http://127\.0\.0\.1:\d+/metrics", line)
    assert found is not None
    deadline = time.monotonic() + 20
    while True:
        with urllib.request.urlopen(found[0], timeout=10) as answer:
            text = answer.read().decode()
        told = parsed(text)
        if any(name == "bgpool_phase" for name, _ in told):
            break
        assert time.monotonic() < deadline, "the monitor's own segment is not told of"
        time.sleep(0.05)
    assert value(told, "bgpool_phase", bgpool_phase="NOT_CREATED", bgpool_bg_id="ledger") == 1
    assert value(told, "bgpool_monitor_term") == 1
    assert "secret" not in text
    monitor.send_signal(signal.SIGTERM)
    assert monitor.wait(20) == 0


@pytest.mark.lab
def test_opentelemetry_has_every_pool_and_the_host(tmp_path: Path) -> None:
    reader = InMemoryMetricReader()
    bgpool.metrics.instrument(MeterProvider([reader]))
    with Pair() as pair:
        pool = bgpool.get_pool(
            pair.dsn, bg_id="otel", bg_resolver=pair.resolver, bg_run_dir=tmp_path / "run", min_size=1, max_size=1
        )
        try:
            deadline = time.monotonic() + 20
            with pool.connection():
                while "bgpool.phase" not in (told := collected(reader)):
                    assert time.monotonic() < deadline, "no process reports the host's values"
                    time.sleep(0.05)
                own = {"bgpool.bg_id": "otel", "db.client.connection.pool.name": pool.name}
                assert (own, 1) in told["bgpool.checkouts"]
                assert ({**own, "db.client.connection.state": "used"}, 1) in told["db.client.connection.count"]
                assert set(told) <= set(NAMES)
            assert ({"bgpool.bg_id": "otel"}, 1) in told["bgpool.workers"]
        finally:
            pool.close()
    assert not any(point[0].get("bgpool.bg_id") == "otel" for points in collected(reader).values() for point in points)


def collected(reader: InMemoryMetricReader) -> dict[str, list[tuple[dict[str, Any], float]]]:
    data = reader.get_metrics_data()
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
    return {
        metric.name: [(dict(point.attributes or {}), point.value) for point in metric.data.data_points]  # type: ignore[union-attr]  # no histograms here
        for scope in scopes
        for metric in scope.metrics
    }


def test_the_recipe_for_the_multiprocess_mode(files: RunFiles, tmp_path: Path) -> None:
    """/metrics makes a registry for each request there: what is registered elsewhere is not in its answer."""
    Writer(files, 3, Snapshot("ledger", Phase.CREATED)).beat()
    (recipe,) = [block.text for block in blocks(DOCS, "python") if "MultiProcessCollector" in block.text]
    program = (
        f"import prometheus_client\n{recipe}\n"
        "prometheus_client.Counter('orders', 'of the application').inc()\n"
        "print(metrics().decode())"
    )
    multiprocess = tmp_path / "multiprocess"
    multiprocess.mkdir()
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(multiprocess),
        "BGPOOL_RUN_DIR": str(files.directory),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    told = parsed(done.stdout)
    assert value(told, "orders_total") == 1, done.stderr
    assert value(told, "bgpool_phase", bgpool_phase="CREATED") == 1
