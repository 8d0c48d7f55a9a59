"""Starting a monitor from a worker: a process of its own, in a session of its own, with nothing of the worker's."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bgpool.core.limits import MONITOR_START_S
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.election import try_lock
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader

__all__ = ["ensure_monitor"]

_logger: Final = logging.getLogger("bgpool.monitor")
_POLL_S: Final = 0.02


def ensure_monitor(config: MonitorConfig, files: RunFiles) -> bool:
    """Start a monitor unless one lives or somebody else is starting one; wait for its first sign of life.

    For a watcher thread: takes up to MONITOR_START_S, never more.

    Returns:
        Whether this call started one that lives.
    """
    lock = try_lock(str(files.spawning))
    if lock is None:
        return False
    try:
        reader = Reader(files)
        reader.check_path()
        if not reader.monitor_is_silent():
            return False
        _start(config)
        deadline = time.monotonic() + MONITOR_START_S
        while reader.monitor_is_silent():
            if time.monotonic() > deadline:
                _logger.warning(
                    "the monitor of bg_id %r did not start within %.0f s; see %s",
                    config.bg_id,
                    MONITOR_START_S,
                    files.log,
                )
                return False
            time.sleep(_POLL_S)
            reader.check_path()
        return True
    finally:
        lock.release()


def _start(config: MonitorConfig) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    process = subprocess.Popen(
        [_interpreter(), "-m", "bgpool.monitor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=environment,
        start_new_session=True,
        close_fds=True,
    )
    with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.communicate(config.dump(), timeout=MONITOR_START_S)
    if process.poll() is None:
        process.kill()
        process.wait()


def _interpreter() -> str:
    """The Python to run; where Python is embedded (uWSGI), sys.executable is the program that it is embedded in."""
    if Path(sys.executable).name.startswith("python"):
        return sys.executable
    return str(Path(sys.exec_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
