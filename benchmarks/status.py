"""How long ``bgpool status`` takes as a whole process, beside 64 that hold rows: python benchmarks/status.py"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import Presence
from bgpool.segment.table import Usage
from bgpool.segment.writer import Writer

WORKERS = 64
ROUNDS = 15
WATCH_S = 0.25


def main() -> None:
    """Print a line for each way to ask."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        prepare_run_dir(directory)
        files = RunFiles.of(directory, "bench")
        writer = Writer(files, 1, Snapshot("bench", Phase.CREATED))
        pids = [_start_worker(files, writer.sequence) for _ in range(WORKERS)]
        try:
            time.sleep(2 * WATCH_S)
            for options in ([], ["--ready"], ["--json"]):
                _measure(["status", "--run-dir", str(directory), *options])
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _start_worker(files: RunFiles, sequence: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    presence = Presence(files)
    while True:
        presence.write(Usage(sequence, in_use=2))
        time.sleep(WATCH_S)


def _measure(arguments: list[str]) -> None:
    took_s = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        program = [sys.executable, "-c", "from bgpool.cli import main; main()", *arguments]
        subprocess.run(program, stdout=subprocess.DEVNULL, check=False)
        took_s.append(time.monotonic() - began)
    asked = " ".join(["bgpool status", *arguments[3:]])
    print(f"{asked:24} median {statistics.median(took_s):.3f} s, longest of {ROUNDS} {max(took_s):.3f} s")


if __name__ == "__main__":
    main()
