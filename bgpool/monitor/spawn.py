"""Starting a monitor from a worker: a process of its own, in a session of its own, with nothing of the worker's.

No pipe leads from the one to the other. A child that another thread of the worker forks meanwhile would inherit its
ends, and whoever waits for the end of what is written there would wait for that child. The configuration, which holds
a password, is a file without a name; what went wrong comes back in another; and the end of the process that was
started says that there is a monitor, or that there will be none.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bgpool.core.limits import (
    GIVE_WAY_S,
    HEARTBEAT_HUNG_S,
    HEARTBEAT_STALE_S,
    MONITOR_READY_S,
    MONITOR_SHORT_LIFE_S,
    MONITOR_START_S,
    RESTART_PAUSE_MAX_S,
    RESTART_PAUSE_S,
)
from bgpool.core.sightings import Sighting, worth
from bgpool.errors import SegmentError
from bgpool.logs import log_fields
from bgpool.monitor.config import MonitorConfig
from bgpool.segment.host import memory_file
from bgpool.segment.layout import FutureFormat
from bgpool.segment.locks import Lock, try_lock
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import best_offer
from bgpool.segment.reader import SegmentMap

__all__ = ["Starter"]

_logger: Final = logging.getLogger("bgpool.monitor")

#: Not with -m: before Python 3.11 it looks for modules in the directory that the worker happens to be in. The monitor
#: stays there: certificates, password files and hosts files may be given by relative paths.
_CODE: Final = """\
import sys
sys.path[:] = filter(None, sys.path)
from bgpool.monitor.__main__ import main
main()
"""
#: What is read of an error's text, in bytes.
_REASON_BYTES: Final = 4000
#: How often it is looked whether the process has ended where the kernel does not tell, in seconds.
_POLL_S: Final = 0.02
#: How long a process that was killed is waited for, in seconds.
_KILL_S: Final = 1.0


class Starter:
    """One process's way to a monitor, tried whenever there is none. Used by one thread at a time."""

    def __init__(self, bg_id: str, configs: Callable[[], Sequence[MonitorConfig]]) -> None:
        """A starter of the monitor of *bg_id*, with the best of what *configs* returns at that time."""
        self._bg_id: Final = bg_id
        self._configs: Final = configs
        self._starts = 0
        # Who holds a lock that we need, by the inode of the lock's file, since when, and when we last saw that.
        self._blocked_by = 0
        self._blocked_since = self._blocked_at = 0.0
        # Attempts in a row that came to nothing, and what was said about it; when the last one succeeded, if it did.
        self._failures = 0
        self._said = ""
        self._started_at: float | None = None

    def ensure_monitor(self, files: RunFiles) -> bool:
        """Start a monitor unless one lives or somebody else is starting one; wait until it watches.

        For a thread of its own: takes up to MONITOR_READY_S, and a pause of up to RESTART_PAUSE_MAX_S if there was no
        success, in which no process with the same parameters tries, either.

        Returns:
            Whether this call started one that lives. Not where another process has better parameters for it, which then
            has GIVE_WAY_S to start one.

        Raises:
            SegmentError: A lock's file cannot be used, or a newer version of bgpool has made the segment.
        """
        if not _is_silent(files):
            return False
        config = self._choose(files)
        if config is None:
            return False
        turn = self._take(files.turn(config.mark))
        if turn is None:
            return False
        try:
            return self._start(config, files)
        finally:
            turn.release()

    def _choose(self, files: RunFiles) -> MonitorConfig | None:
        """The parameters that may be expected to see most; None where another process is to start its own instead."""
        age_s, sightings = _last_words(files)
        now_ns = time.monotonic_ns()
        worths = [(worth(sightings, config.parameters, now_ns), config) for config in self._configs()]
        best = max((value for value, _ in worths), default=0)
        if not best or (best < _best_offer(files) and age_s < HEARTBEAT_STALE_S + GIVE_WAY_S):
            return None
        equals = [config for value, config in worths if value == best]
        # In turn: passwords of one name may differ, and what cannot be started must not stand in the others' way.
        return equals[self._starts % len(equals)]

    def _start(self, config: MonitorConfig, files: RunFiles) -> bool:
        if self._started_at is not None:
            if time.monotonic() - self._started_at < MONITOR_SHORT_LIFE_S + HEARTBEAT_STALE_S:
                self._note_failure(files, "it left at once")
            else:
                self._failures, self._said = 0, ""
        self._started_at = None
        lock = self._take(files.spawning)
        if lock is None:
            return False
        # Released before any pause: a process with other parameters may start a monitor meanwhile.
        try:
            if not _is_silent(files):
                self._failures, self._said = 0, ""
                return False
            self._starts += 1
            reason = _run(config, files)
        except OSError as error:
            reason = str(error)
        finally:
            lock.release()
        if _is_silent(files):
            self._note_failure(files, reason or "it ended without a word")
            return False
        self._started_at = time.monotonic()
        return True

    def _note_failure(self, files: RunFiles, reason: str) -> None:
        """Log why, once for as long as it stays the same, and pause: with our turn held, so do processes like ours."""
        if reason != self._said:
            self._said = reason
            bg_id, extra = self._bg_id, log_fields("monitor_not_started", bg_id=self._bg_id)
            _logger.warning(
                "[bg_id: %r] no monitor could be started: %s; see %s", bg_id, reason, files.log, extra=extra
            )
        pause_s = min(RESTART_PAUSE_S * 2**self._failures, RESTART_PAUSE_MAX_S)
        self._failures += 1
        time.sleep(pause_s)

    def _take(self, path: Path) -> Lock | None:
        """The lock on *path* if it is free; taken away from a starter that hangs, for the next call."""
        lock = try_lock(path)
        if lock is None:
            self._give_up_on_another(path)
        return lock

    def _give_up_on_another(self, path: Path) -> None:
        """Take the lock away from a starter that hangs: at worst two monitors start, and one is elected."""
        now = time.monotonic()
        try:
            holder = path.stat().st_ino
        except OSError:
            return
        if holder != self._blocked_by or now - self._blocked_at > HEARTBEAT_HUNG_S:
            # Of all who wait for the same starter, one takes its lock away; the others wait for that one. And what was
            # seen long ago was the start of another monitor, which has come and gone.
            self._blocked_by, self._blocked_since = holder, now
        self._blocked_at = now
        if now - self._blocked_since > MONITOR_START_S:
            path.unlink(missing_ok=True)


def _is_silent(files: RunFiles) -> bool:
    """Whether no monitor gives signs of life.

    Raises:
        FutureFormat: Whatever monitor we start would leave again.
    """
    try:
        return SegmentMap(files).heartbeat_age_s() > HEARTBEAT_STALE_S
    except FutureFormat:
        raise
    except (OSError, SegmentError):
        return True


def _last_words(files: RunFiles) -> tuple[float, tuple[Sighting, ...]]:
    """The age of the last monitor's last sign of life, in seconds, and what parameters have shown until then."""
    try:
        mapped = SegmentMap(files)
        found = mapped.read()
    except (OSError, SegmentError):
        return float("inf"), ()
    return mapped.heartbeat_age_s(), found[1].sightings if found is not None else ()


def _best_offer(files: RunFiles) -> int:
    try:
        return best_offer(files)
    except SegmentError:
        # Whoever cannot be seen offers nothing.
        return 0


def _run(config: MonitorConfig, files: RunFiles) -> str:
    """Start one and wait until it watches, has left or has failed; why it failed, as far as it said.

    Raises:
        OSError: It cannot be started.
    """
    with _nameless(files.directory) as given, _nameless(files.directory) as output:
        # The worker may be another user's than the process that made the pool, and have another directory.
        data = replace(config, run_dir=str(files.directory)).dump()
        while data:
            data = data[os.write(given, data) :]
        os.lseek(given, 0, os.SEEK_SET)
        _wait(_spawn(given, output))
        lines = os.pread(output, _REASON_BYTES, 0).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _spawn(given: int, output: int) -> int:
    """A Python of its own that has *given* as standard input and *output* as the two others, and nothing else of ours.

    Raises:
        OSError: It cannot be started.
    """
    path = [str(Path(entry).absolute()) for entry in sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    standard = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate((given, output, output))]
    ours = [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    python = _interpreter()
    return os.posix_spawn(
        python,
        [python, "-c", _CODE],
        environment,
        file_actions=[*standard, *ours],
        setsid=True,
        setsigmask=(),
        # What a worker ignores, its server did for the worker's sake: a monitor ends when it is told to.
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _wait(pid: int) -> None:
    """Wait for the end of *pid*, which has a bound of its own, and end its whole session if it has not kept it."""
    if not _has_ended(pid, MONITOR_READY_S + MONITOR_START_S):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _has_ended(pid, _KILL_S)


def _has_ended(pid: int, timeout_s: float) -> bool:
    """Whether *pid* ends within *timeout_s* seconds; reaped if it does."""
    deadline = time.monotonic() + timeout_s
    _wait_in_the_kernel(pid, timeout_s)
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            # Reaped by the application, or by the kernel where the application wants no word of its children.
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def _wait_in_the_kernel(pid: int, timeout_s: float) -> None:
    """Wait in the kernel for the end of *pid*, where it can; returns early where it cannot.

    A thread that wakes up fifty times a second asks for the interpreter as often; a child of a fork without Python's
    hooks may wait for ever if one does so just then.
    """
    if sys.platform != "linux":
        return
    # The attribute is missing where Python was built for an old kernel.
    with contextlib.suppress(AttributeError, OSError), selectors.DefaultSelector() as selector:
        fd = os.pidfd_open(pid)
        try:
            selector.register(fd, selectors.EVENT_READ)
            selector.select(timeout_s)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _nameless(directory: Path) -> Iterator[int]:
    """A file that nobody can open, for as long as the block lasts: in memory, or in *directory* and without a name."""
    fd = memory_file()
    if fd is None:
        with tempfile.TemporaryFile(dir=directory) as file:
            fd = os.dup(file.fileno())
    # Beyond the standard ones, which an application may have closed: they would be in each other's way.
    above = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    try:
        yield above
    finally:
        os.close(above)


def _inheritable() -> list[int]:
    """Our descriptors that another program would be given, the standard ones excepted.

    Without those above the soft limit, which was lowered after they were opened: posix_spawn refuses to close them, and
    the monitor does it itself.
    """
    found, limit = [], os.sysconf("SC_OPEN_MAX")
    for fd in (int(path.name) for path in Path("/dev/fd").iterdir()):
        # The one that the directory was read through is closed by now.
        with contextlib.suppress(OSError):
            if fd > 2 and (limit < 0 or fd < limit) and os.get_inheritable(fd):
                found.append(fd)
    return found


def _interpreter() -> str:
    """The Python to run; where Python is embedded (uWSGI), sys.executable is the program that it is embedded in, or "".

    Raises:
        FileNotFoundError: None can be found.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if Path(sys.executable or "").name.startswith(("python", "pypy")):
        return sys.executable
    for prefix in (sys.exec_prefix, sys.base_exec_prefix):
        if os.access(Path(prefix) / "bin" / name, os.X_OK):
            return str(Path(prefix) / "bin" / name)
    if found := shutil.which(name):
        return found
    raise FileNotFoundError(f"there is no {name} in {sys.exec_prefix} or on the PATH to run a monitor with")
