"""Measure one build for benchmarks/wakeup.py and print the figures as JSON. The processes that wait are its children.

There is no database: a deployment is a segment that this module writes. The waiting objects are connectors, as in an
application.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bgpool import get_connector
from bgpool.core.limits import HEARTBEAT_S
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.writer import Writer

THREADS: Final = 2
#: The settling times at the start and after the change to a hold, and the measured times of quiet and of the hold, in
#: seconds. The second set is for a run that only shows that the benchmark works. A quiet process checks its own state
#: at least every 4 s, which costs several times as much as a wake-up. The measurement must include at least one such
#: check, and none of the more frequent checks at the beginning of a hold.
START_S, QUICK_START_S = 2.0, 0.5
MEASURED_S, QUICK_MEASURED_S = 4.0, 0.5
BLUE: Final = "db.c0.eu-west-1.rds.amazonaws.com"
GREEN: Final = "db-green-abc123.c0.eu-west-1.rds.amazonaws.com"

_HOSTS: Final = (Host(BLUE, 5432, Role.SOURCE, ("127.0.0.1",)), Host(GREEN, 5432, Role.TARGET, ("127.0.0.2",)))
_FIGURES: Final = struct.Struct("dddd")


def measure_release(processes: int) -> Mapping[str, float]:
    """Measure processes in quiet times, then in a hold with threads that wait, then at the release."""
    with _deployments("1") as (directory, (writer,)):
        reports, report = os.pipe()
        pids = [_fork(_wait, directory, report) for _ in range(processes)]
        _beat([writer], START_S + MEASURED_S + 0.02 * processes)
        held = replace(_quiet("1"), phase=Phase.IN_PROGRESS, epoch=3, ready=True, deadline_ns=_in_ns(600))
        writer.publish(held)
        _beat([writer], START_S + 1.1 * MEASURED_S)
        published = time.monotonic()
        writer.publish(replace(held, phase=Phase.POST, epoch=5, pinned=True))
        for pid in pids:
            os.waitpid(pid, 0)
        os.close(report)
        with os.fdopen(reports, "rb") as pipe:
            figures = list(_FIGURES.iter_unpack(pipe.read()))
    passed = [1000 * (at - published) for at, *_ in figures]
    if len(passed) != processes * THREADS:
        raise RuntimeError(f"{len(passed)} of {processes * THREADS} threads passed the gate")
    return {
        "median_ms": statistics.median(passed),
        "last_ms": max(passed),
        "waiting_ms": statistics.median(waiting for _, _, waiting, _ in figures),
        "quiet_ms": statistics.median(quiet for _, quiet, _, _ in figures),
    }


def _wait(directory: Path, report: int) -> None:
    """Be a process that is quiet at first. Then two threads wait, and report the time at which they passed the gate."""
    connector = _connector(directory, "1")
    time.sleep(START_S)
    quiet = _cpu_ms_per_s(MEASURED_S)
    while connector.admits():
        time.sleep(0.01)
    passed: list[float] = []

    def wait() -> None:
        connector.wait_admitted(60)
        passed.append(time.monotonic())

    threads = [threading.Thread(target=wait) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(START_S)
    # The measurement ends before the release, which is not part of the wait.
    waiting = _cpu_ms_per_s(MEASURED_S)
    for thread in threads:
        thread.join()
    for at in passed:
        os.write(report, _FIGURES.pack(at, quiet, waiting, 0.0))


def measure_deployments(count: int) -> Mapping[str, float]:
    """Measure a process with a connector in each of *count* deployments, in quiet times."""
    names = [str(number) for number in range(count)]
    with _deployments(*names) as (directory, writers):
        reports, report = os.pipe()
        pid = _fork(_use, directory, report, names)
        _beat(writers, START_S + 1.2 * MEASURED_S + 0.05 * count)
        os.waitpid(pid, 0)
        os.close(report)
        with os.fdopen(reports, "rb") as pipe:
            _, cpu, threads, _ = _FIGURES.unpack(pipe.read())
    return {"threads": threads, "cpu_ms": cpu}


def _use(directory: Path, report: int, names: Sequence[str]) -> None:
    connectors = [_connector(directory, name) for name in names]
    time.sleep(START_S)
    cpu = _cpu_ms_per_s(MEASURED_S)
    # All threads are bgpool's own: a connector has no driver's pool.
    own = len(threading.enumerate()) - 1
    os.write(report, _FIGURES.pack(0.0, cpu, own, len(connectors)))


@contextmanager
def _deployments(*names: str) -> Iterator[tuple[Path, list[Writer]]]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        prepare_run_dir(directory)
        yield directory, [Writer(RunFiles.of(directory, name), 1, _quiet(name)) for name in names]


def _quiet(name: str) -> Snapshot:
    # Not ready, so that no login is tried on a green that does not exist.
    return Snapshot(name, Phase.CREATED, hosts=_HOSTS, twins=((BLUE, GREEN),))


def _connector(directory: Path, name: str) -> Any:
    options: Mapping[str, Any] = {"bg_run_dir": directory, "bg_connect_timeout_ms": 60_000}
    connector: Any = get_connector(f"postgresql://app@{BLUE}/app", bg_id=name, **options)
    connector.open()
    return connector


def _fork(life: Callable[..., object], *args: object) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        life(*args)
        status = 0
    finally:
        os._exit(status)


def _beat(writers: Sequence[Writer], seconds: float) -> None:
    """Play the monitors for *seconds*."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for writer in writers:
            writer.beat()
        time.sleep(HEARTBEAT_S)


def _in_ns(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


def _cpu_ms_per_s(seconds: float) -> float:
    """Return the CPU that this process uses in the next *seconds*, in ms per second."""
    before, began = _cpu_s(), time.monotonic()
    time.sleep(seconds)
    return 1000 * (_cpu_s() - before) / (time.monotonic() - began)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    if sys.argv[3:] == ["quick"]:
        START_S, MEASURED_S = QUICK_START_S, QUICK_MEASURED_S
    measure = {"processes": measure_release, "deployments": measure_deployments}[sys.argv[1]]
    print(json.dumps(measure(int(sys.argv[2]))))
