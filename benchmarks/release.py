"""How soon callers in many processes are let go after a publish, and what they cost while they wait.

    python benchmarks/release.py [--json FILE]

Processes with two threads each wait at the gate of a deployment in IN_PROGRESS; POST is published; each thread notes
when it was let through. No database: what is measured is the segment, the wake-up and the decision, on all cores
there are. CPU includes the beginning and the end of the wait.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import struct
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from bgpool._version import __version__
from bgpool.core.phase import Phase, Role
from bgpool.core.routing import Purpose
from bgpool.core.snapshot import Host, Snapshot
from bgpool.dsn import parse
from bgpool.pools.alias import Endpoint
from bgpool.pools.gate import Gate
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.reader import Reader
from bgpool.segment.writer import Writer

PROCESSES = (1, 4, 16, 64)
THREADS = 2
REPETITIONS = 5
WAIT_S = 1.0
BLUE = "db.c0.eu-west-1.rds.amazonaws.com"
GREEN = "db-green-abc123.c0.eu-west-1.rds.amazonaws.com"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    target = parser.parse_args().json
    rows = [measure(count) for count in PROCESSES]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, bgpool {__version__}"
    print(f"{machine}; {THREADS} threads a process, {REPETITIONS} repetitions, milliseconds from the publish")
    for row in rows:
        print(
            f"  {row['processes']:3} processes   median {row['median_ms']:7.2f}   last {row['last_ms']:7.2f}   "
            f"CPU while waiting {row['waiting_cpu_ms_per_s']:.2f} ms/s a process"
        )
    if target is not None:
        target.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


def measure(processes: int) -> dict[str, float]:
    """Medians over the repetitions."""
    runs = [_once(processes) for _ in range(REPETITIONS)]
    return {
        "processes": processes,
        "median_ms": statistics.median(run[0] for run in runs),
        "last_ms": statistics.median(run[1] for run in runs),
        "waiting_cpu_ms_per_s": statistics.median(run[2] for run in runs),
    }


def _once(processes: int) -> tuple[float, float, float]:
    hosts = (Host(BLUE, 5432, Role.SOURCE, ("10.0.0.1",)), Host(GREEN, 5432, Role.TARGET, ("10.0.0.2",)))
    deadline_ns = time.monotonic_ns() + 600 * 10**9
    held = Snapshot("1", Phase.IN_PROGRESS, 3, ready=True, hosts=hosts, twins=((BLUE, GREEN),), deadline_ns=deadline_ns)
    with tempfile.TemporaryDirectory() as name:
        files = RunFiles.of(Path(name) / "run", "1")
        prepare_run_dir(files.directory)
        writer = Writer(files, 1, held)
        reports, report = os.pipe()
        pids = [_fork(files, report) for _ in range(processes)]
        time.sleep(WAIT_S + 0.02 * processes)
        published = time.monotonic()
        writer.publish(replace(held, phase=Phase.POST, epoch=5, pinned=True))
        for pid in pids:
            os.waitpid(pid, 0)
        os.close(report)
        with os.fdopen(reports, "rb") as pipe:
            figures = list(struct.iter_unpack("dd", pipe.read()))
    passed = [1000 * (at - published) for at, _ in figures]
    assert len(passed) == processes * THREADS
    return statistics.median(passed), max(passed), statistics.median(cpu for _, cpu in figures)


def _fork(files: RunFiles, report: int) -> int:
    """A process whose threads wait, report when they were let through and what the wait cost the process, and end."""
    pid = os.fork()
    if pid:
        return pid
    place, settings, _ = parse(f"postgresql://app@{BLUE}/app", {"bg_connect_timeout_ms": 60_000})
    gate = Gate(Reader(files), settings, Endpoint(place, settings))
    before, began = _cpu_s(), time.monotonic()

    def wait() -> None:
        gate.wait_admitted(Purpose.CHECKOUT, timeout_s=60)
        at = time.monotonic()
        os.write(report, struct.pack("dd", at, 1000 * (_cpu_s() - before) / (at - began)))

    threads = [threading.Thread(target=wait) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
