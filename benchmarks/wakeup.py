"""The time until callers in many processes are released after a publication, and the CPU of waiting and quiet ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

from benchmarks.aims import Aim, aims
from benchmarks.builds import NOW, builds, environment
from benchmarks.result import Column, Plot, Result, Table, Value

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "Wake-up at the release"
QUESTION: Final = (
    "How soon are callers released after the release was published, what do they cost while they wait, and what does a "
    "quiet process cost? Processes with one connector each are quiet in CREATED. Then two threads of each process wait "
    "at the gate of a deployment in IN_PROGRESS. POST is published, and each thread records the time at which it "
    "passes the gate. There is no database: the figures measure the segment, the wake-up and the decision, on all "
    "cores. CPU is that of the whole process, including its watcher."
)
PROCESSES: Final = (1, 4, 16, 64)
DEPLOYMENTS: Final = (1, 4, 16)

#: The aims for the CPU of a waiting process, in ms per s, and for the number of threads that bgpool runs in a worker.
WAITING_MS: Final = 0.3
OWN_THREADS: Final = 3

_COLUMNS: Final = (
    Column("build", "build", is_key=True),
    Column("processes", "processes", is_key=True),
    Column("median_ms", "median thread, ms", 2),
    Column("last_ms", "last thread, ms", 2),
    Column("waiting_ms", "CPU of a waiting process, ms per s", 2),
    Column("quiet_ms", "CPU of a quiet process, ms per s", 2),
)
_DEPLOYMENTS: Final = (
    Column("build", "build", is_key=True),
    Column("deployments", "deployments", is_key=True),
    Column("threads", "bgpool's own threads"),
    Column("cpu_ms", "CPU of the process, ms per s", 2),
)

_Row = Mapping[str, Value]


def run(*, quick: bool) -> Result:
    """Run one repetition."""
    counts, deployments = (PROCESSES[:2], DEPLOYMENTS[:2]) if quick else (PROCESSES, DEPLOYMENTS)
    with builds() as found:
        rows = [_row(build, "processes", n, quick=quick) for n in counts for build in found.items()]
        many = [_row(build, "deployments", n, quick=quick) for n in deployments for build in found.items()]
    waiting = max(cast(float, row["waiting_ms"]) for row in rows if row["build"] == NOW)
    (most,) = (row for row in many if row["build"] == NOW and row["deployments"] == deployments[-1])
    return Result(
        (
            Table(
                "wakeup", "From the publication of the release to the threads that waited for it", _COLUMNS, tuple(rows)
            ),
            Table(
                "wakeup-deployments",
                "One worker with a connector in each of several deployments, in quiet times",
                _DEPLOYMENTS,
                tuple(many),
                notes=("All threads are bgpool's own: a connector has no driver's pool.",),
            ),
            aims(
                Aim("CPU of a waiting process with two held threads, ms per s", WAITING_MS, waiting),
                Aim(
                    f"bgpool's own threads in a worker with {deployments[-1]} deployments",
                    OWN_THREADS,
                    cast(float, most["threads"]),
                ),
            ),
        ),
        (
            Plot(
                "wakeup-last",
                "The last thread is let through",
                "wakeup",
                "lines",
                "processes",
                "last_ms",
                series="build",
                log="x",
            ),
        ),
    )


def _row(build: tuple[str, Path], what: str, count: int, *, quick: bool) -> _Row:
    """Return the figures of *build*, a name and a directory, with *count* processes or deployments."""
    name, directory = build
    program = str(Path(__file__).with_name("wakeup_process.py"))
    command = [sys.executable, program, what, str(count), *(["quick"] if quick else [])]
    environ = environment(directory, dict(os.environ))
    done = subprocess.run(command, env=environ, cwd="/", capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    return {"build": name, what: count, **json.loads(done.stdout)}
