"""A process with pools exits soon and without output."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpool.errors import SegmentError
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import workers
from bgpool.segment.reader import SegmentMap

pytestmark = pytest.mark.slow

#: The time for an interpreter's exit on a loaded machine. Earlier, exit waited one second for each of three threads of
#: each pool.
POOLS, EXIT_S = 8, 20.0


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are accepted and never answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize("engine", ["postgresql", "mysql"])
def test_exit_is_quick_while_pools_connect_to_a_silent_host(silent_port: int, tmp_path: Path, engine: str) -> None:
    run = tmp_path / "run"
    script = f"""
import time, bgpool
for n in range({POOLS}):
    bgpool.get_pool(f"{engine}://app:x@127.0.0.1:{silent_port}/app{{n}}", bg_run_dir={str(run)!r}).open()
time.sleep(0.3)
print(time.monotonic(), flush=True)
"""
    try:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        took_s = time.monotonic() - float(done.stdout)
        assert (done.returncode, done.stderr) == (0, "")
        assert took_s < EXIT_S
        assert workers(RunFiles.of(run, "1")) == ()
    finally:
        with contextlib.suppress(FileNotFoundError, SegmentError, ProcessLookupError):
            os.kill(SegmentMap(RunFiles.of(run, "1")).header.pid, signal.SIGKILL)
