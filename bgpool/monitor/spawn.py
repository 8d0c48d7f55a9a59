"""Decide which process starts a monitor, when, and with which parameters: one at a time, with increasing pauses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bgpool.core.limits import (
    GIVE_WAY_S,
    HEARTBEAT_HUNG_S,
    HEARTBEAT_STALE_S,
    MONITOR_SHORT_LIFE_S,
    MONITOR_START_S,
    RESTART_PAUSE_MAX_S,
    RESTART_PAUSE_S,
)
from bgpool.core.observations import Observation, Visibility, worth
from bgpool.errors import SegmentError
from bgpool.logs import log_fields
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.placement import bring_up
from bgpool.segment.layout import FutureFormat
from bgpool.segment.locks import Lock, try_lock
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import best_offer
from bgpool.segment.reader import SegmentMap

__all__ = ["Starter"]

_logger: Final = logging.getLogger("bgpool.monitor")


class Starter:
    """One process's starter of monitors, used whenever there is none. It is used by one thread at a time."""

    def __init__(self, bg_id: str, configs: Callable[[], Sequence[MonitorConfig]]) -> None:
        """Create a starter for *bg_id*, which uses the best of the configurations that *configs* returns."""
        self._bg_id: Final = bg_id
        self._configs: Final = configs
        self._starts = 0
        # The holder of a required lock, as the inode of the lock file; the time since which it holds it; and the time
        # of the last check.
        self._blocked_by = 0
        self._blocked_since = self._blocked_at = 0.0
        # The number of consecutive failures, and the last logged reason; and the time of the last success.
        self._failures = 0
        self._said = ""
        self._started_at: float | None = None

    def ensure_monitor(self, files: RunFiles) -> bool:
        """Start a monitor unless one is alive or another process is starting one; wait until it watches.

        For a separate thread: takes up to MONITOR_READY_S, and after a failure a pause of up to RESTART_PAUSE_MAX_S, in
        which no process with the same parameters tries either.

        Returns:
            True if this call started a monitor that is alive. False, for example, if another process has better
                parameters, which then has GIVE_WAY_S to start one.

        Raises:
            SegmentError: A lock file cannot be used, or a newer version of bgpool has created the segment.
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
        """Return the parameters with the best expected visibility; None if another process should start its own."""
        age_s, observations = _last_words(files)
        now_ns = time.monotonic_ns()
        worths = [(worth(observations, config.parameters, now_ns), config) for config in self._configs()]
        best = max((value for value, _ in worths), default=0)
        if not best or (best < _best_offer(files) and age_s < HEARTBEAT_STALE_S + GIVE_WAY_S):
            return None
        equals = [config for value, config in worths if value == best]
        # In turn: passwords of one name may differ, and parameters that fail must not block the others.
        return equals[self._starts % len(equals)]

    def _start(self, config: MonitorConfig, files: RunFiles) -> bool:
        if self._started_at is not None:
            if time.monotonic() - self._started_at < MONITOR_SHORT_LIFE_S + HEARTBEAT_STALE_S:
                self._note_failure(files, "it stopped at once")
            else:
                self._failures, self._said = 0, ""
        self._started_at = None
        lock = self._take(files.spawning)
        if lock is None:
            return False
        # Released before any pause, so that a process with other parameters may start a monitor.
        try:
            if not _is_silent(files):
                self._failures, self._said = 0, ""
                return False
            self._starts += 1
            # The worker may have another user than the process that created the pool, and so another directory.
            config = replace(config, run_dir=str(files.directory))
            # A monitor that fails or exits immediately twice may be affected by its process, or may be the cause of
            # that process's end.
            reason = bring_up(config, alone=self._failures > 1 or _was_refused(config, files))
        except OSError as error:
            reason = str(error)
        finally:
            lock.release()
        if _is_silent(files):
            self._note_failure(files, reason or "it ended without giving a reason")
            return False
        self._started_at = time.monotonic()
        return True

    def _note_failure(self, files: RunFiles, reason: str) -> None:
        """Log the reason, once while it stays the same, and pause. The turn is held, so equal processes pause, too."""
        if reason != self._said:
            self._said = reason
            bg_id, extra = self._bg_id, log_fields("monitor_not_started", bg_id=self._bg_id)
            _logger.warning(
                "[bg_id: %r] the monitor could not be started: %s; see %s", bg_id, reason, files.log, extra=extra
            )
        pause_s = min(RESTART_PAUSE_S * 2**self._failures, RESTART_PAUSE_MAX_S)
        self._failures += 1
        time.sleep(pause_s)

    def _take(self, path: Path) -> Lock | None:
        """Return the lock on *path* if it is free; a lock of a hung starter is taken away for the next call."""
        lock = try_lock(path)
        if lock is None:
            self._give_up_on_another(path)
        return lock

    def _give_up_on_another(self, path: Path) -> None:
        """Take the lock away from a hung starter: in the worst case two monitors start, and one is elected."""
        now = time.monotonic()
        try:
            holder = path.stat().st_ino
        except OSError:
            return
        if holder != self._blocked_by or now - self._blocked_at > HEARTBEAT_HUNG_S:
            # Of all processes that wait for the same starter, only one takes its lock away; the others wait for that
            # one. And an old observation belongs to the start of another monitor, which has ended since.
            self._blocked_by, self._blocked_since = holder, now
        self._blocked_at = now
        if now - self._blocked_since > MONITOR_START_S:
            path.unlink(missing_ok=True)


def _is_silent(files: RunFiles) -> bool:
    """Return whether there is no heartbeat of a monitor.

    Raises:
        FutureFormat: Any monitor that this process starts would exit again.
    """
    try:
        return SegmentMap(files).heartbeat_age_s() > HEARTBEAT_STALE_S
    except FutureFormat:
        raise
    except (OSError, SegmentError):
        return True


def _last_words(files: RunFiles) -> tuple[float, tuple[Observation, ...]]:
    """Return the age of the last heartbeat in seconds, and the observations of earlier monitors."""
    try:
        mapped = SegmentMap(files)
        found = mapped.read()
    except (OSError, SegmentError):
        return float("inf"), ()
    return mapped.heartbeat_age_s(), found[1].observations if found is not None else ()


def _was_refused(config: MonitorConfig, files: RunFiles) -> bool:
    """Return whether the server has refused a password of the callable, whose module may have read an old one."""
    mine = [observation for observation in _last_words(files)[1] if observation.parameters == config.parameters]
    return config.password_callable is not None and any(
        observation.visibility is Visibility.REFUSED for observation in mine
    )


def _best_offer(files: RunFiles) -> int:
    try:
        return best_offer(files)
    except SegmentError:
        # A process that cannot be read offers nothing.
        return 0
