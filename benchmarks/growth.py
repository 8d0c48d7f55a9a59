"""The growth of costs with the endpoints of a deployment, with workers, and with deployments."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import growth_process
from benchmarks.aims import Aim, aims
from benchmarks.builds import NOW, builds, environment
from benchmarks.footprint import cpu_ms_per_s, memory_of, threads_of
from benchmarks.forked_workers import ForkedWorkers, WorkerReporter
from benchmarks.growth_process import Orders
from benchmarks.result import Column, Plot, Result, Table, Value
from benchmarks.rounds import measure
from benchmarks.run_dir import RunDir
from bgpool.core.limits import WATCH_INTERVAL_S
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.lab import Director, LabError, Pair, metadata
from bgpool.lab.waiting import wait_until
from bgpool.segment.codec import encode
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import Presence
from bgpool.segment.reader import Reader
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer

__all__ = ["QUESTION", "TITLE", "run"]

TITLE = "Growth"
QUESTION = (
    "How do the costs grow? Measured are the cost of a published change by the number of endpoints, the cost of the "
    "monitor by the number of workers, and all costs by the number of deployments that one worker uses."
)

ENDPOINTS: Final = (2, 8, 32, 64)
START_TIMEOUT_S: Final = 60.0
#: The number of deployments that a service with a database for each of its parts may have.
MANY: Final = 16

_Row = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a measurement.

    Attributes:
        workers: The numbers of rows in the table of workers.
        deployments: The numbers of deployments that one worker uses.
        calls: The number of calls of operations that take microseconds.
        settle_s: The time from the start of processes, or from a change of phase, until only the usual work goes on.
        window_s: The time during which CPU is measured.
    """

    workers: tuple[int, ...] = (1, 4, 16, 64)
    deployments: tuple[int, ...] = (1, 4, MANY)
    calls: int = 2000
    settle_s: float = 1.5
    window_s: float = 4.0


def run(*, quick: bool) -> Result:
    """Measure all three."""
    size = Size((1, 4), (1, 2), calls=200, settle_s=0.5, window_s=0.5) if quick else Size()
    endpoints = _endpoints_table([endpoints_row(count, size.calls) for count in ENDPOINTS])
    with Pair() as pair:
        director = Director(pair)
        director.create_deployment()
        with builds() as found:
            deployments = [
                _deployments_row(pair, client, build, count, size)
                for count in size.deployments
                for client, build in found.items()
            ]
            workers = _workers_rows(director, found, size)
    tables = (endpoints, _workers_table(workers), _deployments_table(deployments), _aims(deployments, workers))
    return Result(tables, _PLOTS)


# -- endpoints ---------------------------------------------------------------------------------------------------------


def endpoints_row(count: int, calls: int) -> _Row:
    """Return the cost of publishing and of reading a snapshot with *count* endpoints."""
    first = _snapshot(count)
    second = replace(first, epoch=first.epoch + 1)
    with tempfile.TemporaryDirectory() as name:
        files = RunFiles.of(Path(name) / "run", "bench")
        prepare_run_dir(files.directory)
        writer = Writer(files, 1, first)
        reader = Reader(files)
        publish_us, refresh_us = [], []
        for number in range(calls):
            begin = time.perf_counter_ns()
            writer.publish(second if number % 2 else first)
            between = time.perf_counter_ns()
            reader.refresh()
            refresh_us.append((time.perf_counter_ns() - between) / 1000)
            publish_us.append((between - begin) / 1000)
        return {
            "endpoints": count,
            "bytes": len(encode(first)),
            "encode_us": statistics.median(measure(lambda: encode(first), calls // 20) for _ in range(20)),
            "publish_us": statistics.median(publish_us),
            "refresh_us": statistics.median(refresh_us),
            "unchanged_ns": 1000 * statistics.median(measure(reader.refresh, 10 * calls) for _ in range(20)),
        }


def _snapshot(endpoints: int) -> Snapshot:
    """Return the snapshot of a deployment with *count* endpoints before a switchover. Half of them are green."""
    blue = [f"ledger-{n}.c0abcdefghij.eu-west-1.rds.amazonaws.com" for n in range(endpoints // 2)]
    green = [f"ledger-{n}-green-abc123.c0abcdefghij.eu-west-1.rds.amazonaws.com" for n in range(endpoints // 2)]
    hosts = [Host(name, 5432, Role.SOURCE, (f"10.0.0.{n}",)) for n, name in enumerate(blue)]
    hosts += [Host(name, 5432, Role.TARGET, (f"10.0.1.{n}",)) for n, name in enumerate(green)]
    twins = tuple(zip(blue, green, strict=True))
    return Snapshot("bench", Phase.CREATED, ready=True, hosts=tuple(hosts), twins=twins)


def _endpoints_table(rows: Sequence[_Row]) -> Table:
    return Table(
        "endpoints",
        "A published change, by the endpoints of the deployment",
        (
            Column("endpoints", "Endpoints", is_key=True),
            Column("bytes", "Bytes of the snapshot"),
            Column("encode_us", "Encode (µs)", 1),
            Column("publish_us", "Encode and publish (µs)", 1),
            Column("refresh_us", "Read after a change (µs)", 1),
            Column("unchanged_ns", "Read without one (ns)", 0),
        ),
        tuple(rows),
        notes=("The size of the file does not depend on the size of the snapshot.",),
    )


# -- workers -----------------------------------------------------------------------------------------------------------


def _workers_rows(director: Director, found: Mapping[str, Path], size: Size) -> list[_Row]:
    """Return the cost of the monitor of one deployment, in quiet times and in a switchover that does not proceed.

    A monitor of each build goes through the same phases, and the builds are measured in turn.
    """
    with contextlib.ExitStack() as ends:
        run_dirs = {client: _watched(ends, director.pair, build) for client, build in found.items()}
        rows: list[_Row] = []
        for phase, status in ((Phase.CREATED, None), (Phase.IN_PROGRESS, metadata.IN_PROGRESS)):
            if status is not None:
                director.publish(metadata.INITIATED)
                _wait_phase(run_dirs.values(), Phase.PREPARATION)
                director.publish(status)
            _wait_phase(run_dirs.values(), phase)
            for count in size.workers:
                for client, run_dir in run_dirs.items():
                    with ForkedWorkers(count - 1, partial(_be_present, files=run_dir.files("0"))) as others:
                        others.wait_ready(START_TIMEOUT_S)
                        time.sleep(size.settle_s)
                        cpu = cpu_ms_per_s(run_dir.monitors(), size.window_s)
                        memory = memory_of(run_dir.monitors())
                    row = {"cpu_ms_per_s": cpu, "pss_mb": memory.pss_mb, "rss_mb": memory.rss_mb}
                    rows.append({"client": client, "phase": phase.name, "workers": count, **row})
        return rows


def _watched(ends: contextlib.ExitStack, pair: Pair, build: Path) -> RunDir:
    """Return the run directory of a worker with *build* and of its monitor. Both live until *ends*."""
    run_dir = ends.enter_context(RunDir(build))
    ends.enter_context(_working(build, Orders(pair.dsn, pair.resolver, str(run_dir.path), ("0",), timer_ms=600_000)))
    run_dir.wait_ready("0", timeout_s=START_TIMEOUT_S)
    return run_dir


def _wait_phase(run_dirs: Iterable[RunDir], phase: Phase) -> None:
    def are_there() -> bool:
        return all(run_dir.states("0").get("0", (None, False))[0] is phase for run_dir in run_dirs)

    wait_until(are_there, timeout_s=START_TIMEOUT_S, what=f"the phase {phase.name}")


def _be_present(reporter: WorkerReporter, *, files: RunFiles) -> None:
    """Be a process that only keeps a row up to date, as a worker's watcher does."""
    presence = Presence(files)

    def write() -> None:
        while True:
            presence.write(Usage(in_use=2))
            time.sleep(WATCH_INTERVAL_S)

    threading.Thread(target=write, daemon=True).start()
    reporter.ready()


def _workers_table(rows: Sequence[_Row]) -> Table:
    return Table(
        "workers",
        "The monitor of one deployment, by workers on the host",
        (
            Column("client", "Build", is_key=True),
            Column("phase", "Phase", is_key=True),
            Column("workers", "Workers", is_key=True),
            Column("cpu_ms_per_s", "CPU (ms/s)", 1),
            Column("pss_mb", "Memory, PSS (MB)", 1),
            Column("rss_mb", "Memory, RSS (MB)", 1),
        ),
        tuple(rows),
        notes=(
            "One worker has a pool; the others only keep their rows up to date. Intervals are the defaults: 1 s in"
            " CREATED, 0.1 s in IN_PROGRESS.",
            "PSS is smaller when other processes map the same libraries.",
        ),
    )


# -- deployments -------------------------------------------------------------------------------------------------------


def _deployments_row(pair: Pair, client: str, build: Path, count: int, size: Size) -> _Row:
    """Return the cost of *count* deployments for a host with one worker. It has a pool in each, on the same servers."""
    bg_ids = tuple(map(str, range(count)))
    orders = (pair.dsn, pair.resolver)
    with RunDir(build) as run_dir, _working(build, Orders(*orders, str(run_dir.path), bg_ids)) as worker:
        run_dir.wait_ready(*bg_ids, timeout_s=START_TIMEOUT_S)
        time.sleep(size.settle_s)
        monitors = run_dir.monitors()
        return {
            "client": client,
            "deployments": count,
            "monitors": len(monitors),
            "monitoring_connections": pair.monitoring_connections(),
            "worker_threads": threads_of(worker),
            "monitors_pss_mb": memory_of(monitors).pss_mb,
            "worker_pss_mb": memory_of([worker]).pss_mb,
            "monitors_cpu_ms_per_s": cpu_ms_per_s(monitors, size.window_s),
            "worker_cpu_ms_per_s": cpu_ms_per_s([worker], size.window_s),
        }


@contextlib.contextmanager
def _working(build: Path, orders: Orders) -> Iterator[int]:
    """Yield the process id of a worker with *build* that has its pools. The worker ends with the block."""
    command = [sys.executable, "-m", growth_process.__name__]
    # Before Python 3.11 this directory is searched first, whatever the environment contains.
    environ = environment(build, dict(os.environ))
    with subprocess.Popen(
        command, cwd=build, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(orders.as_line())
            process.stdin.flush()
            if (said := process.stdout.readline().strip()) != "ready":
                raise LabError(f"a worker of the benchmark said {said!r}")
            yield process.pid
        finally:
            process.kill()


def _deployments_table(rows: Sequence[_Row]) -> Table:
    return Table(
        "deployments",
        "Deployments that one worker uses",
        (
            Column("client", "Build", is_key=True),
            Column("deployments", "Deployments", is_key=True),
            Column("monitors", "Monitor processes"),
            Column("monitoring_connections", "Monitoring connections"),
            Column("worker_threads", "Threads of the worker"),
            Column("monitors_pss_mb", "Memory of the monitors, PSS (MB)", 1),
            Column("worker_pss_mb", "Memory of the worker, PSS (MB)", 1),
            Column("monitors_cpu_ms_per_s", "CPU of the monitors (ms/s)", 1),
            Column("worker_cpu_ms_per_s", "CPU of the worker (ms/s)", 1),
        ),
        tuple(rows),
        notes=("Nothing is sent through the pools. All deployments are in CREATED and polled once a second.",),
    )


def _aims(deployments: Sequence[_Row], workers: Sequence[_Row]) -> Table:
    """Return the aims for a host with many deployments, and for one monitor. The most expensive row counts."""
    many = [row for row in deployments if row["client"] == NOW and row["deployments"] == MANY]
    found = [Aim(f"memory of the monitors of {MANY} deployments, MB", 60, _most(many, "monitors_pss_mb"))]
    for phase, most in (("CREATED", 3), ("IN_PROGRESS", 25)):
        mine = [row for row in workers if row["client"] == NOW and row["phase"] == phase]
        found.append(
            Aim(f"CPU of the monitor in {phase}, with any number of workers, ms/s", most, _most(mine, "cpu_ms_per_s"))
        )
    return aims(*found)


def _most(rows: Sequence[_Row], name: str) -> float | None:
    return max((float(row[name] or 0) for row in rows), default=None)


_PLOTS: Final = (
    Plot(
        "growth-endpoints", "Reading a change, by endpoints (µs)", "endpoints", "lines", "endpoints", "refresh_us",
    ),
    Plot(
        "growth-workers", "CPU of the monitor, by workers (ms/s)", "workers", "lines", "workers", "cpu_ms_per_s",
        series="phase", log="x", where={"client": NOW},
    ),
    Plot(
        "growth-deployments", "Memory of the monitors, by deployments (MB)", "deployments", "lines", "deployments",
        "monitors_pss_mb", series="client",
    ),
)  # fmt: skip
