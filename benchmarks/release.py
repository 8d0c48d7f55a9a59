"""How soon callers in many processes are let go after a publish, and what they cost while they wait.

    python benchmarks/release.py [--json FILE]

Processes with two threads each wait at the gate of a deployment in IN_PROGRESS; POST is published; each thread notes
when it was let through. No database: what is measured is the segment, the wake-up and the decision, on all cores
there are. CPU is that of the whole process, its watcher included, while it waits.
"""

from __future__ import annotations

import argparse
import json
import math
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
from bgpool.core.limits import HEARTBEAT_S
from bgpool.core.phase import Phase, Role
from bgpool.core.routing import Purpose
from bgpool.core.snapshot import Host, Snapshot
from bgpool.dsn import parse
from bgpool.pools.alias import Endpoint
from bgpool.pools.gate import Gate
from bgpool.pools.participant import Participant
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.reader import Reading
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer

PROCESSES = (1, 4, 16, 64)
THREADS = 2
REPETITIONS = 5
#: What the beginning takes, and the wait that is measured, in seconds.
START_S = 1.0
WAIT_S = 3.0
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
        for _ in range(int((START_S + WAIT_S + 0.02 * processes) / HEARTBEAT_S)):
            writer.beat()
            time.sleep(HEARTBEAT_S)
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
    participant = Participant("1", files.directory, lambda _: None)
    gate = Gate(participant.reader, settings, Endpoint(place, settings))
    member = Waiting(gate)
    participant.join(member)
    passed: list[float] = []

    def wait() -> None:
        gate.wait_admitted(Purpose.CHECKOUT, timeout_s=60)
        passed.append(time.monotonic())

    threads = [threading.Thread(target=wait) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(START_S)
    before, began = _cpu_s(), time.monotonic()
    # Ends before the release does: what that takes is no part of the wait.
    time.sleep(WAIT_S * 0.9)
    cost = 1000 * (_cpu_s() - before) / (time.monotonic() - began)
    for thread in threads:
        thread.join()
    for at in passed:
        os.write(report, struct.pack("dd", at, cost))
    os._exit(0)


class Waiting:
    """As a pool whose callers all wait, to the process's watcher."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def apply(self, reading: Reading) -> None:
        """What a pool begins with."""
        self._gate.snapshot(reading)

    def tick(self) -> float:
        """Nothing is to be cut."""
        return math.inf

    def usage(self) -> Usage:
        """For the table of workers."""
        return Usage(held=self._gate.held)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
