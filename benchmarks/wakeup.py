"""How soon callers in many processes are let go after a publish, and what they cost while they wait."""

from __future__ import annotations

import math
import os
import resource
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.result import Column, Plot, Result, Table, Value
from bgpool.core.limits import HEARTBEAT_S
from bgpool.core.phase import Phase, Role
from bgpool.core.routing import Action, Purpose
from bgpool.core.snapshot import Host, Snapshot
from bgpool.dsn import parse
from bgpool.pools.alias import Endpoint
from bgpool.pools.gate import Gate
from bgpool.pools.participant import Participant
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.reader import Reading
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "Wake-up at the release"
QUESTION: Final = (
    "How soon are callers let go after the release was published, and what do they cost while they wait? Processes "
    "with two threads each wait at the gate of a deployment in IN_PROGRESS; POST is published; each thread notes when "
    "it was let through. No database: what is measured is the segment, the wake-up and the decision, on all cores "
    "there are. CPU is that of the whole process, its watcher included."
)
PROCESSES: Final = (1, 4, 16, 64)
THREADS: Final = 2
#: What the beginning takes, and the wait that is measured, in seconds.
START_S: Final = 1.0
WAIT_S: Final = 3.0
BLUE: Final = "db.c0.eu-west-1.rds.amazonaws.com"
GREEN: Final = "db-green-abc123.c0.eu-west-1.rds.amazonaws.com"

_COLUMNS: Final = (
    Column("processes", "processes", is_key=True),
    Column("median_ms", "median thread, ms", 2),
    Column("last_ms", "last thread, ms", 2),
    Column("waiting_ms", "CPU of a waiting process, ms per s", 2),
)


def run(*, quick: bool) -> Result:
    """One repetition."""
    rows = tuple(_measure(count) for count in (PROCESSES[:2] if quick else PROCESSES))
    table = Table("wakeup", "From the publish to the threads that waited for it", _COLUMNS, rows)
    return Result(
        (table,),
        (Plot("wakeup-last", "The last thread is let through", "wakeup", "lines", "processes", "last_ms", log="x"),),
    )


def _measure(processes: int) -> Mapping[str, Value]:
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
    if len(passed) != processes * THREADS:
        raise RuntimeError(f"{len(passed)} of {processes * THREADS} threads were let through")
    return {
        "processes": processes,
        "median_ms": statistics.median(passed),
        "last_ms": max(passed),
        "waiting_ms": statistics.median(cpu for _, cpu in figures),
    }


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
        return self._gate.tally.usage()

    def is_holding(self, reading: Reading) -> bool:
        """For the log."""
        return self._gate.decide(reading, Purpose.CHECKOUT).action is Action.HOLD

    def take_longest_hold_s(self) -> float:
        """For the log."""
        return self._gate.tally.take_longest_s()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
