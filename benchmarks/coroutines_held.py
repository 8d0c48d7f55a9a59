"""Coroutines that are held in one process, while another process publishes their release."""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.footprint import cpu_ms_per_s
from benchmarks.result import Value
from benchmarks.wakeup_process import BLUE, GREEN
from bgpool.core.phase import Phase, Role
from bgpool.core.routing import Action, Purpose
from bgpool.core.snapshot import Host, Snapshot
from bgpool.dsn import parse
from bgpool.pools.alias import Endpoint
from bgpool.pools.gate import Gate
from bgpool.pools.participant import Participant
from bgpool.pools.waits import BLOCKING
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.reader import Reading
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer

__all__ = ["LOOPS", "WAYS", "measure_held"]

#: The functions that run a coroutine to its end, by the name of the loop.
LOOPS: Final[Mapping[str, Callable[[Coroutine[Any, Any, Any]], Any]]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
#: The wait during which the process's CPU is measured, and the interval of a caller that polls.
WAIT_S: Final = 0.5
POLL_S: Final = 0.01


def measure_held(loop: str, way: str, callers: int, *, times: int) -> dict[str, Value]:
    """Hold *callers* coroutines in one of the WAYS and release them, *times* times. Return the medians."""
    found = [_measure(loop, way, callers) for _ in range(times)]
    names = ("median_ms", "last_ms", "waiting_ms")
    return {name: statistics.median(column) for name, column in zip(names, zip(*found, strict=True), strict=True)}


def _measure(loop: str, way: str, callers: int) -> tuple[float, float, float]:
    hosts = (Host(BLUE, 5432, Role.SOURCE, ("10.0.0.1",)), Host(GREEN, 5432, Role.TARGET, ("10.0.0.2",)))
    deadline_ns = time.monotonic_ns() + 600 * 10**9
    held = Snapshot("1", Phase.IN_PROGRESS, 3, ready=True, hosts=hosts, twins=((BLUE, GREEN),), deadline_ns=deadline_ns)
    with tempfile.TemporaryDirectory() as name:
        files = RunFiles.of(Path(name) / "run", "1")
        prepare_run_dir(files.directory)
        writer = Writer(files, 1, held)
        reports, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            _wait_in(loop, way, callers, files, report)
        os.close(report)
        with os.fdopen(reports, "rb") as pipe:
            waiting = struct.unpack("d", pipe.read(8))
            writer.beat()
            published = time.monotonic()
            writer.publish(replace(held, phase=Phase.POST, epoch=5, pinned=True))
            median, last = struct.unpack("dd", pipe.read(16))
        os.waitpid(pid, 0)
    return 1000 * (median - published), 1000 * (last - published), waiting[0]


def _wait_in(loop: str, way: str, callers: int, files: RunFiles, report: int) -> None:
    """Be a process whose coroutines wait. It reports the CPU cost and the times at which they continued, and exits."""
    status = 1
    try:
        participant = Participant("1", files.directory, lambda _: None)
        place, settings, _ = parse(f"postgresql://app@{BLUE}/app", {"bg_connect_timeout_ms": 60_000})
        waits = participant.loops if way == _OURS else BLOCKING
        gate = Gate(participant.reader, settings, Endpoint(place, settings), waits=waits)
        participant.join(_Waiting(gate))

        def tell_cost() -> None:
            os.write(report, struct.pack("d", cpu_ms_per_s([os.getpid()], WAIT_S)))

        passed = LOOPS[loop](_hold(WAYS[way], gate, callers, tell_cost))
        os.write(report, struct.pack("dd", statistics.median(passed), max(passed)))
        status = 0
    finally:
        # The child must never run or close anything of the parent.
        os._exit(status)


async def _hold(
    wait: Callable[[Gate], Awaitable[object]], gate: Gate, callers: int, tell_cost: Callable[[], None]
) -> list[float]:
    """Return the times at which the *callers* coroutines continued."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(callers))
    passed: list[float] = []

    async def caller() -> None:
        await wait(gate)
        passed.append(time.monotonic())

    tasks = [asyncio.ensure_future(caller()) for _ in range(callers)]
    await asyncio.sleep(0.2)
    threading.Thread(target=tell_cost).start()
    await asyncio.gather(*tasks)
    return passed


async def _await_gate(gate: Gate) -> None:
    await gate.await_admitted(Purpose.CHECKOUT, timeout_s=60)


async def _to_thread(gate: Gate) -> None:
    await asyncio.to_thread(gate.wait_admitted, Purpose.CHECKOUT, timeout_s=60)


async def _poll(gate: Gate) -> None:
    while gate.decide(gate._reader.refresh(), Purpose.CHECKOUT).action is Action.HOLD:
        await asyncio.sleep(POLL_S)


_OURS: Final = "AsyncPool"
#: The ways in which a coroutine can wait.
WAYS: Final[Mapping[str, Callable[[Gate], Awaitable[object]]]] = {
    _OURS: _await_gate,
    "to_thread, a thread each": _to_thread,
    "a check every 10 ms": _poll,
}


class _Waiting:
    """A stand-in for a pool whose callers all wait, for the process's watcher."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def apply(self, reading: Reading) -> None:
        """Start like a pool."""
        self._gate.snapshot(reading)

    def tick(self) -> float:
        """Do nothing: there is no connection to cut."""
        return math.inf

    def usage(self) -> Usage:
        """Return the figures for the table of workers."""
        return self._gate.tally.usage()

    def is_holding(self, reading: Reading) -> bool:
        """For the log."""
        return self._gate.decide(reading, Purpose.CHECKOUT).action is Action.HOLD

    def take_longest_hold_s(self) -> float:
        """For the log."""
        return self._gate.tally.take_longest_s()
