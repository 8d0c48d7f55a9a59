"""The duration of ``bgpool status`` as a whole process, next to many processes that hold rows."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.result import Column, Result, Table, Value
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import Presence
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "bgpool status"
QUESTION: Final = (
    "How long does it take to check whether a host may be switched over? The whole process is measured, including the "
    "start of the interpreter. At the same time other processes each hold a row and update it as a pool does."
)
WORKERS: Final = 64
ROUNDS: Final = 15
WATCH_S: Final = 0.25

_COLUMNS: Final = (
    Column("asked", "command", is_key=True),
    Column("workers", "workers", is_key=True),
    Column("median_s", "median, s", 3),
    Column("longest_s", "longest, s", 3),
)


def run(*, quick: bool) -> Result:
    """Run one repetition."""
    workers, rounds = (4, 2) if quick else (WORKERS, ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        prepare_run_dir(directory)
        files = RunFiles.of(directory, "bench")
        writer = Writer(files, 1, Snapshot("bench", Phase.CREATED))
        pids = [_start_worker(files, writer.sequence) for _ in range(workers)]
        try:
            time.sleep(2 * WATCH_S)
            rows = tuple(_measure(directory, options, workers, rounds) for options in ([], ["--ready"], ["--json"]))
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    return Result((Table("status", f"Duration of the command, in {rounds} runs", _COLUMNS, rows),))


def _start_worker(files: RunFiles, sequence: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        presence = Presence(files)
        while True:
            presence.write(Usage(sequence, in_use=2))
            time.sleep(WATCH_S)
    finally:
        os._exit(1)


def _measure(directory: Path, options: list[str], workers: int, rounds: int) -> Mapping[str, Value]:
    took_s = []
    for _ in range(rounds):
        began = time.monotonic()
        program = [sys.executable, "-c", "from bgpool.cli import main; main()", "status", "--run-dir", str(directory)]
        subprocess.run([*program, *options], stdout=subprocess.DEVNULL, check=False)
        took_s.append(time.monotonic() - began)
    asked = " ".join(["bgpool status", *options])
    return {"asked": asked, "workers": workers, "median_s": statistics.median(took_s), "longest_s": max(took_s)}
