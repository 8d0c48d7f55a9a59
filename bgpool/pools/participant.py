"""The membership of a process in a deployment: all its pools there share one watch, and all watches one thread."""

from __future__ import annotations

import array
import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bgpool.logs import log_fields
from bgpool.pools import fork
from bgpool.pools.loops import LoopWaits
from bgpool.pools.watch import Watch, WatchedPool
from bgpool.segment.paths import RunFiles, look_in
from bgpool.segment.reader import Reader, Reading
from bgpool.settings import DISABLE

__all__ = ["NonParticipant", "Disabled", "WatchedPool", "Participant"]

_logger: Final = logging.getLogger("bgpool.pool")


class Participant:
    """The membership of a process. There is one for each run directory and bg_id, shared by all pools with these.

    Attributes:
        bg_id, files: The deployment.
        reader: The segment's reader; without a snapshot if the run directory cannot be used.
        loops: The waits of tasks for a publication.
    """

    def __init__(self, bg_id: str, run_dir: Path | None, ensure_monitor: Callable[[RunFiles], object]) -> None:
        """Create the membership in *bg_id*, with *run_dir* as the parameter bg_run_dir."""
        self.bg_id: Final = bg_id
        self._ensure_monitor: Final = ensure_monitor
        self._run_dir: Final = run_dir
        self._user = os.geteuid()
        self.files = RunFiles.of(look_in(run_dir), bg_id)
        self.reader = Reader(self.files)
        self.loops: Final = LoopWaits(self.is_watched)
        self._reset()
        fork.call_in_child(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} bg_id={self.bg_id!r} {self.reader!r}>"

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # Replaced as a whole; a garbage-collected pool no longer counts.
        self._joined: tuple[weakref.ref[WatchedPool], ...] = ()
        self._watch: Watch | None = None

    def after_fork_in_child(self) -> None:
        """Start without pools."""
        self._reset()
        self.loops.reset()

    def join(self, pool: WatchedPool) -> None:
        """Add *pool*; the first one starts the process's presence and its watch.

        It raises no errors of its own; if it is interrupted, nothing was started.
        """
        with self._lock:
            if not any(joined() is pool for joined in self._joined):
                self._joined += (weakref.ref(pool),)
            watch = self._watch
            if watch is not None:
                watch.note_member()
                return
            self._follow_user()
            self._watch = watch = Watch(
                self.bg_id, self.files, self.reader, self.pools, self._ensure_monitor, self.loops.wake
            )
        try:
            watch.begin()
        except BaseException:
            with self._lock:
                self._watch = None
            watch.end()
            raise

    def _follow_user(self) -> None:
        """Use the directory of the user that a server's worker has switched to after its master created the pool."""
        if self._user != os.geteuid():
            self._user = os.geteuid()
            self.files = RunFiles.of(look_in(self._run_dir), self.bg_id)
            self.reader.follow(self.files)

    def leave(self, pool: WatchedPool) -> None:
        """Remove *pool*; the last one ends the process's presence."""
        with self._lock:
            self._joined = tuple(joined for joined in self._joined if joined() not in (None, pool))
            if self._joined or self._watch is None:
                return
            watch, self._watch = self._watch, None
        watch.end()

    def nudge(self) -> None:
        """Notify the monitor that the server has cut a connection: it queries at once and publishes the result."""
        watch = self._watch
        if watch is not None:
            watch.nudge()

    def note_hold(self) -> None:
        """Record that a caller begins to be held, so that the row and the log show it."""
        watch = self._watch
        if watch is not None:
            watch.note_hold()

    def is_watched(self) -> bool:
        """Return whether the thread that receives publications is alive."""
        watch = self._watch
        return watch is not None and watch.is_alive()

    def count_workers(self) -> int:
        """Return the number of processes of the host that use the bg_id now, as far as it is known; at least one."""
        watch = self._watch
        return watch.count_workers() if watch is not None else 1

    def locked_out_workers(self) -> list[int]:
        """Return the pids of the host's processes with a pool whose login green refuses, as far as they are known."""
        watch = self._watch
        return watch.locked_out_workers() if watch is not None else []

    def speaks_for_host(self) -> bool:
        """Return whether this is the one process of the host that reports facts about the whole host."""
        watch = self._watch
        return watch is not None and watch.speaks_for_host()

    def pools(self) -> list[WatchedPool]:
        """Return the pools that have joined and not left."""
        return [pool for joined in self._joined if (pool := joined()) is not None]


class NonParticipant(Participant):
    """The participant of a process that is itself a monitor. It takes no part, and its pools are plain pools."""

    def __init__(self, bg_id: str, run_dir: Path | None, ensure_monitor: Callable[[RunFiles], object]) -> None:
        super().__init__(bg_id, run_dir, ensure_monitor)
        self.reader = _NoReader(self.files)

    def join(self, pool: WatchedPool) -> None:
        """Do nothing: a process that waits for a monitor to exit must not count as a user of it."""


class Disabled(NonParticipant):
    """The participant of a process in which ``$BGPOOL_DISABLE`` switches bgpool off: no membership, and a log line."""

    def join(self, pool: WatchedPool) -> None:
        """Log once in each process that its pools are plain pools: a forgotten variable costs the next switchover."""
        global _told_in
        super().join(pool)
        if _told_in == os.getpid():
            return
        _told_in = os.getpid()
        _logger.warning(
            "%s=%s is set: every pool of this process is a plain pool and is not carried through a switchover; unset "
            "it and restart the process to use bgpool again",
            DISABLE,
            os.environ.get(DISABLE, ""),
            extra=log_fields("bgpool_disabled", bg_id=self.bg_id),
        )


#: The id of the process that has logged that bgpool is disabled in it.
_told_in = 0


class _NoReader(Reader):
    """A reader without a segment."""

    def refresh(self) -> Reading:
        """Return the reading without a segment."""
        return _NOTHING


class _NoSegment(Reading):
    """The reading of a process that never has a segment: a checkout need not look again."""

    @property
    def is_current(self) -> bool:
        """Always true: no snapshot is ever published here."""
        return True


# Not 0, because the kernel sets the number to that in a forked child.
_NOTHING: Final = _NoSegment(memoryview(array.array("Q", [1])), 1, None, None)
