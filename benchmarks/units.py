"""The cost of a unit of work compared with the plain block, in this build and in the build before."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import units_process
from benchmarks.aims import Aim, aims
from benchmarks.builds import NOW, builds, environment
from benchmarks.machine import measured_on
from benchmarks.result import Column, Result, Table, Value
from benchmarks.units_process import DEPLOYMENT, PLAIN, RUN, TASKS, THREADS
from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.lab.server_factories import find_servers

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "A unit of work in quiet times"
QUESTION: Final = (
    "What does `pool.run` cost compared with a plain `with pool.connection()` block, for one INSERT, in latency and in "
    "the client's CPU time? Both write to one server that does not wait for the disk. Processes of this build and of "
    "the build before take turns. Rounds alternate, and the figures are medians over the rounds."
)
#: The aim for the excess of a unit over a plain block: the larger of the two.
MOST_US: Final = 8.0
MOST_SHARE: Final = 0.05
SETTLE_S: Final = 1.5


class Load(NamedTuple):
    """The processes and threads that write at the same time.

    Attributes:
        one_core: True if they and their servers' processes are on one core, as far as these can be found.
    """

    name: str
    processes: int
    threads: int
    one_core: bool


_QUIET: Final = Load("one thread, on its server's core", 1, 1, one_core=True)
_BUSY: Final = Load("4 processes of 2 threads", 4, 2, one_core=False)
#: The measurements, by engine and by what writes.
_WAYS: Final = (
    (Engine.POSTGRESQL, THREADS, _QUIET),
    (Engine.POSTGRESQL, THREADS, _BUSY),
    (Engine.POSTGRESQL, TASKS, _QUIET),
    (Engine.MYSQL, THREADS, _QUIET),
    (Engine.MYSQL, THREADS, _BUSY),
)
_COLUMNS: Final = (
    Column("servers", "servers", is_key=True),
    Column("pool", "pool of", is_key=True),
    Column("load", "load", is_key=True),
    Column("deployment", "deployment", is_key=True),
    Column("build", "build", is_key=True),
    Column("plain_us", "block, µs", 1),
    Column("run_us", "`run`, µs", 1),
    Column("excess_us", "excess, µs", 1),
    Column("ratio", "ratio", 3),
    Column("plain_cpu_us", "block, µs of CPU", 1),
    Column("run_cpu_us", "`run`, µs of CPU", 1),
    Column("excess_cpu_us", "excess, µs of CPU", 1),
    Column("cpu_ratio", "ratio of CPU", 3),
)
_KEYS: Final = tuple(column.key for column in _COLUMNS if column.is_key)


class _Process:
    """A process of `benchmarks.units_process`."""

    def __init__(self, build: Path, orders: Mapping[str, Any]) -> None:
        environ = environment(build, {**os.environ, "PYTHONUNBUFFERED": "1"})
        command = [sys.executable, units_process.__file__]
        pipe = subprocess.PIPE
        self._popen: Final = subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True)
        self.send(orders)

    def send(self, order: Mapping[str, Any]) -> None:
        """Send *order* to the process."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(order) + "\n")
        self._popen.stdin.flush()

    def receive(self) -> Any:
        """Return the answer of the process."""
        assert self._popen.stdout is not None
        return json.loads(self._popen.stdout.readline())

    def end(self) -> None:
        """End the process and wait for it."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait(30)
        self._popen.stdout.close()


def run(*, quick: bool) -> Result:
    """Run one repetition with both engines, each with and without a deployment."""
    # Short rounds: a disturbance should affect neighbouring rounds alike.
    rounds, calls = (2, 20) if quick else (40, 100)
    rows: list[Mapping[str, Value]] = []
    with builds() as found:
        for engine in Engine:
            with Pair(engine=engine) as pair:
                pair.blue.execute("CREATE TABLE units (n INT)", database="app")
                if engine is Engine.POSTGRESQL:
                    pair.blue.execute("ALTER TABLE units OWNER TO app", database="app")
                for way, role, load in _WAYS:
                    for is_created in (False, True):
                        if way is engine:
                            rows += _rows(pair, found, role, load, is_created=is_created, rounds=rounds, calls=calls)
    notes = (
        "CPU: the CPU time of the client's processes, including bgpool's own threads, without the server.",
        "The deployment is in CREATED, or there is none. On PostgreSQL both send BEGIN, the INSERT and COMMIT.",
        measured_on(),
    )
    title = "One INSERT: `pool.run` compared with `with pool.connection()`"
    return Result((Table("units", title, _COLUMNS, tuple(rows), notes=notes), aims(*_aims(rows))))


def _rows(
    pair: Pair, found: Mapping[str, Path], role: str, load: Load, *, is_created: bool, rounds: int, calls: int
) -> list[Mapping[str, Value]]:
    """Return a row for each build."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        crews = {
            build: stack.enter_context(_crew(pair, path, Path(directory) / str(n), role, load, is_created=is_created))
            for n, (build, path) in enumerate(found.items())
        }
        time.sleep(SETTLE_S)
        figures: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for number in range(rounds):
            for build, crew in crews.items():
                # The first build finds the caches in the state in which the other build has left them.
                for way in (PLAIN, RUN) if number % 2 else (RUN, PLAIN):
                    figures.setdefault((build, way), []).append(_round(crew, way, calls))
    keys = {"servers": find_servers(pair.engine), "pool": role, "load": load.name,
            "deployment": "CREATED" if is_created else "none"}  # fmt: skip
    return [{**keys, "build": build, **_compared(figures[build, PLAIN], figures[build, RUN])} for build in crews]


@contextlib.contextmanager
def _crew(
    pair: Pair, build: Path, run_dir: Path, role: str, load: Load, *, is_created: bool
) -> Iterator[Sequence[_Process]]:
    """Yield processes that use *build* and have written."""
    options: dict[str, Any] = {"bg_run_dir": str(run_dir), "min_size": load.threads, "max_size": load.threads}
    orders = {"role": role, "dsn": pair.direct_dsn(pair.blue), "options": options, "threads": load.threads,
              "one_core": load.one_core}  # fmt: skip
    with contextlib.ExitStack() as stack:

        def start(orders: Mapping[str, Any]) -> _Process:
            process = _Process(build, orders)
            stack.callback(process.end)
            return process

        if is_created:
            options["bg_resolver"], orders["dsn"] = pair.resolver, pair.dsn
            names = {"blue": pair.names.blue.primary, "green": pair.names.green.primary, "bg_resolver": pair.resolver}
            start({"role": DEPLOYMENT, "run_dir": str(run_dir), "names": names}).receive()
        crew = [start(orders) for _ in range(load.processes)]
        for process in crew:
            process.receive()
        yield crew


def _round(crew: Sequence[_Process], way: str, calls: int) -> tuple[float, float]:
    """Return the median latency and the mean CPU time of all processes, which write at the same time."""
    for process in crew:
        process.send({"way": way, "calls": calls})
    answers = [process.receive() for process in crew]
    latency_us = statistics.median(answer["median_us"] for answer in answers)
    return latency_us, statistics.mean(answer["cpu_us"] for answer in answers)


def _compared(plain: Sequence[tuple[float, float]], units: Sequence[tuple[float, float]]) -> dict[str, Value]:
    """Return the medians of both, and of the excess of each round of units over the round of blocks before it."""

    def compared(which: int) -> tuple[float, float, float]:
        pairs = [(a[which], b[which]) for a, b in zip(plain, units, strict=True)]
        excess = statistics.median(b - a for a, b in pairs)
        return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), excess

    (plain_us, run_us, excess_us), (plain_cpu, run_cpu, excess_cpu) = compared(0), compared(1)
    return {
        "plain_us": plain_us, "run_us": run_us, "excess_us": excess_us, "ratio": 1 + excess_us / plain_us,
        "plain_cpu_us": plain_cpu, "run_cpu_us": run_cpu, "excess_cpu_us": excess_cpu,
        "cpu_ratio": 1 + excess_cpu / plain_cpu,
    }  # fmt: skip


def _aims(rows: Sequence[Mapping[str, Any]]) -> Iterator[Aim]:
    """Yield the excess of this build, as a share of the allowed excess."""
    for row in rows:
        if row["build"] == NOW:
            where = ", ".join(str(row[key]) for key in _KEYS[:-1])
            for what, plain, excess in (("latency", "plain_us", "excess_us"), ("CPU", "plain_cpu_us", "excess_cpu_us")):
                allowed_us = max(MOST_US, MOST_SHARE * row[plain])
                larger = f"the larger of {MOST_US:g} µs and {MOST_SHARE:.0%}"
                text = f"excess of `run` over the plain block, as a share of {larger}: "
                yield Aim(f"{text}{what}, {where}", 1.0, row[excess] / allowed_us)
