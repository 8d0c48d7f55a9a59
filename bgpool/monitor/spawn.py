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

from bgpool.core.limits import HEARTBEAT_STALE_S, MONITOR_START_S
from bgpool.errors import SegmentError
from bgpool.logs import log_fields
from bgpool.monitor.config import MonitorConfig
from bgpool.segment.locks import try_lock
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import SegmentMap

__all__ = ["Starter"]

_logger: Final = logging.getLogger("bgpool.monitor")


class Starter:
    """One process's way to a monitor, tried whenever there is none."""

    def __init__(self, config: MonitorConfig) -> None:
        """A starter of the monitor that *config* describes."""
        self._config: Final = config
        self._blocked_since: float | None = None

    def ensure_monitor(self, files: RunFiles) -> bool:
        """Start a monitor unless one lives or somebody else is starting one; wait until it watches.

        For a thread of its own: takes up to MONITOR_START_S, never much more.

        Returns:
            Whether this call started one that lives.

        Raises:
            SegmentError: The lock's file cannot be used.
        """
        lock = try_lock(files.spawning)
        if lock is None:
            self._give_up_on_another(files)
            return False
        self._blocked_since = None
        try:
            if not _is_silent(files):
                return False
            _start(self._config)
            if _is_silent(files):
                extra = log_fields("monitor_not_started", bg_id=self._config.bg_id)
                _logger.warning(
                    "the monitor of bg_id %r did not start; see %s", self._config.bg_id, files.log, extra=extra
                )
                return False
            return True
        finally:
            lock.release()

    def _give_up_on_another(self, files: RunFiles) -> None:
        """Take the lock away from a starter that hangs: at worst two monitors start, and one is elected."""
        now = time.monotonic()
        if self._blocked_since is None or not _is_silent(files):
            self._blocked_since = now
        elif now - self._blocked_since > MONITOR_START_S:
            self._blocked_since = None
            files.spawning.unlink(missing_ok=True)


def _is_silent(files: RunFiles) -> bool:
    """Whether no monitor gives signs of life."""
    try:
        return SegmentMap(files).heartbeat_age_s() > HEARTBEAT_STALE_S
    except (FileNotFoundError, SegmentError):
        return True


def _start(config: MonitorConfig) -> None:
    """Start it and wait until it watches, has left or has failed: the end of its output says so in each case."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    process = subprocess.Popen(
        [_interpreter(), "-m", "bgpool.monitor"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
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
