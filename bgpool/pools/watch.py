"""The state of a process in a deployment while it has pools there: a row, a watcher, and perhaps the relay."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from bgpool.core.limits import CALLERS_FIRST_S, HEARTBEAT_STALE_S, LINE_S, RESTART_INTERVAL_S, WATCH_INTERVAL_S
from bgpool.core.phase import SWITCHING, Phase
from bgpool.core.snapshot import Notice, Snapshot
from bgpool.core.timeouts import hold_misfit
from bgpool.errors import SegmentError
from bgpool.logs import log_fields
from bgpool.pools import watcher
from bgpool.pools.pace import Pace
from bgpool.segment.kernel_features import LACKS, lacks
from bgpool.segment.locks import Lock, try_lock
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import Presence
from bgpool.segment.reader import Reader, Reading
from bgpool.segment.table import Usage
from bgpool.segment.wake import Word

__all__ = ["WatchedPool", "Watch"]

_logger: Final = logging.getLogger("bgpool.pool")

#: The margin by which the watcher wakes after a due time, so that it never wakes just before it.
_PAST_S: Final = 0.005

#: The number of lines that are remembered so that they are not logged again.
_COMPLAINTS: Final = 16

#: The bits of kernel_features.LACKS that this process has logged.
_lacks_logged: Final = [0]


class WatchedPool(Protocol):
    """A pool, from the view of its participant."""

    def apply(self, reading: Reading) -> None:
        """Apply a new snapshot."""
        ...

    def tick(self) -> float:
        """Do the work that is due by time; return the seconds until more is due, infinite if none is."""
        ...

    def usage(self) -> Usage:
        """Return its current counts."""
        ...

    def is_holding(self, reading: Reading) -> bool:
        """Return whether a checkout would be held under *reading*."""
        ...

    def take_longest_hold_s(self) -> float:
        """Return the longest hold that has ended since the last call, in seconds; 0 if none has."""
        ...


class Watch:
    """The watch of a deployment, from the first pool that joins to the last one that leaves. Then a new one is created.

    It keeps its resources until end(). Resources that its threads acquire after that are released immediately. The
    watcher's thread calls its steps.
    """

    def __init__(
        self,
        bg_id: str,
        files: RunFiles,
        reader: Reader,
        pools: Callable[[], list[WatchedPool]],
        ensure_monitor: Callable[[RunFiles], object],
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """Create a watch that passes the readings of *reader* to *pools*, and ensures that there is a monitor.

        When something was published, it calls *wake* before anything else.
        """
        self._bg_id: Final = bg_id
        self._files: Final = files
        self._reader: Final = reader
        self._pools: Final = pools
        self._ensure_monitor: Final = ensure_monitor
        self._wake: Final = wake
        self._stopping = False
        self._starter: threading.Thread | None = None
        self._restart_at = 0.0
        # Protects the next two attributes, and ensures that both are None once the watch is stopping.
        self._lock: Final = threading.Lock()
        self._presence: Presence | None = None
        self._relay: Lock | None = None
        self._absent_until = 0.0
        self._relayed: Notice | None = None
        self._complaints: Final[set[str]] = set()
        # The counts when the current hold began, or at the last look if there is no hold.
        self._before_hold = Usage()
        self._holding = False
        # The reading that was applied last, and the time at which it must be applied again without a publication.
        self._heard: Reading | None = None
        self._act_at = 0.0
        self._timers: tuple[float, ...] = ()
        # The schedule of looks at everything else.
        self._pace: Final = Pace()
        # True if callers were held at the last look; and the time until which this thread gives way to them, on the
        # monotonic clock.
        self._has_held = False
        self._way_until = 0.0
        # The time from which callers that are no longer held have lost their turn; infinite once that was checked.
        self._lost_from = math.inf

    def begin(self) -> None:
        """Claim a row and start to watch; if the run directory cannot be used, log that and do neither."""
        try:
            self._make_run_dir()
            self._reader.check_path()
        except (SegmentError, OSError) as error:
            self._complain("plain_pool", f"{error}; the pool works as a plain pool")
            return
        _log_lacks(self._bg_id)
        known = self._reader.refresh().snapshot
        self._relayed = known.notices[-1] if known and known.notices else None
        self._be_present()
        try:
            watcher.take(self)
        except RuntimeError as error:
            text = f"no thread can be started to watch the segment ({error}); the pool works as a plain pool"
            self._complain("plain_pool", text)
            self.end()
        if self._stopping:
            # The last pool has left in the meantime, when there was no watch yet that could be dropped.
            watcher.drop(self)

    def end(self) -> None:
        """Stop watching, and release the row and the relay."""
        with self._lock:
            self._stopping = True
            relay, self._relay = self._relay, None
        watcher.drop(self)
        self._leave_the_row()
        if relay is not None:
            relay.release()

    def note_member(self) -> None:
        """Include a new pool: it applies the published snapshot, and the row shows it."""
        self._act_at = 0.0
        self._pace.note(0.0)
        watcher.stir(self)

    def note_hold(self) -> None:
        """Record a new hold: the next look follows within WATCH_INTERVAL_S, even if looks have become rare."""
        if self._pace.note(WATCH_INTERVAL_S):
            watcher.stir(self)

    def is_alive(self) -> bool:
        """Return whether the watching thread is alive."""
        return watcher.is_watched(self)

    def nudge(self) -> None:
        """Ring the monitor's doorbell."""
        presence = self._presence
        if presence is not None:
            presence.nudge()

    def count_workers(self) -> int:
        """Return the number of processes of the host that use the bg_id now, as far as it is known; at least one."""
        presence = self._presence
        return presence.count_workers() if presence is not None else 1

    def locked_out_workers(self) -> list[int]:
        """Like Participant.locked_out_workers."""
        presence = self._presence
        return presence.locked_out_workers() if presence is not None else []

    def speaks_for_host(self) -> bool:
        """Return whether this process has the relay; take it if it is free."""
        self._try_to_relay()
        return self._relay is not None

    # -- called by the watcher -----------------------------------------------------------------------------------

    def hear(self, now: float) -> None:
        """Act on a publication and on expired timers; do nothing if there is nothing new."""
        if self._gives_way(now):
            return
        self._way_until = 0.0
        reading = self._reader.refresh()
        news = reading is not self._heard
        if not news and now < self._act_at:
            return
        # Set first, so that a failed step is repeated, but not immediately.
        self._heard, self._act_at = reading, now + WATCH_INTERVAL_S
        if news:
            self._lost_from = now + LINE_S
            self._pace.hear(now)
            self._timers = _timers(reading.snapshot)
            self._wake()
        self._act(reading, self._pools())

    def _act(self, reading: Reading, pools: list[WatchedPool]) -> None:
        """Let *pools* apply *reading*, and record the time of the next application."""
        failure: BaseException | None = None
        due_at = math.inf
        for pool in pools:
            try:
                pool.apply(reading)
                due_at = min(due_at, time.monotonic() + max(0.0, pool.tick()))
            except BaseException as error:
                # The other pools' connections must be drained in any case.
                failure = error
        if failure is not None:
            raise failure
        # Pools act on an expired timer, too.
        self._act_at = min([due_at, *(at for at in self._timers if at > time.monotonic())])

    def attend(self, now: float) -> None:
        """Do the work for which no caller waits: the row, the logs, and the check that all files are in place."""
        self._pace.begin(now)
        try:
            self._look_after()
        finally:
            self._look(now)

    def _look(self, now: float) -> None:
        """Collect the pools' counts for the row and the logs."""
        pools, reading = self._pools(), self._heard or self._reader.refresh()
        self._act(reading, pools)
        usages = [pool.usage() for pool in pools]
        total = Usage.merged(usages)
        self._has_held = total.held > 0
        if now > self._lost_from and reading.is_current:
            # Once is enough: a caller that begins to be held later has read the published snapshot.
            self._lost_from = math.inf
            self._wake_lost(reading, pools, usages)
        self._report(total, reading)
        self._log_holds(pools, total, reading)
        if reading.snapshot is not None:
            self._relay_notices(reading.snapshot, total)
        switching = reading.snapshot is not None and reading.snapshot.phase in SWITCHING
        # The picture of a switchover is drawn from the rows, and the end of a hold must be logged.
        least_s = WATCH_INTERVAL_S if self._holding or switching else HEARTBEAT_STALE_S
        self._pace.end(now, total, least_s)

    def _wake_lost(self, reading: Reading, pools: list[WatchedPool], usages: list[Usage]) -> None:
        """Wake callers that still sleep in the release queue, see bgpool.segment.release_queue, although it has ended.

        This happens if the monitor that should have woken them was killed, and a caller that had a turn is stopped.
        """
        if any(usage.held and not pool.is_holding(reading) for pool, usage in zip(pools, usages, strict=True)):
            self._reader.wake_waiters()

    def fail(self, error: BaseException) -> None:
        """Handle *error*, which hear() or attend() has raised."""
        self._complain("watcher_failed", f"the watcher failed and tries again: {error!r}")

    def due_at(self, now: float) -> float:
        """Return the time at which hear() or attend() is due in any case; *now* if an early look is possible."""
        if self._way_until:
            return min(self._way_until, self._act_at)
        pace = self._pace
        if pace.may_look(now):
            return now
        at, look_at = min(self._act_at, pace.look_at), pace.looked_at + WATCH_INTERVAL_S
        reading = self._heard
        mapped = reading.mapped if reading is not None else None
        if mapped is None:
            return min(at, look_at)
        # The check for a living monitor is due when it would count as silent without a further heartbeat.
        return min(at, max(mapped.beat[0] / 1e9 + HEARTBEAT_STALE_S + _PAST_S, look_at))

    def word(self) -> Word | None:
        """Return the word that shows a publication after the reading that was applied."""
        reading = self._heard
        if reading is None or reading.mapped is None or self._way_until:
            return None
        return Word(reading.word, reading.mapped.address, reading.sequence)

    def _gives_way(self, now: float) -> bool:
        """Return whether this thread gives way to callers held here, which read the publication themselves.

        They need the core, so it does so for CALLERS_FIRST_S. After IN_PROGRESS no publication requires an immediate
        action of this thread, except for tasks, which only this thread wakes. They are woken at the beginning.
        """
        heard = self._heard
        # Without a file nothing is published.
        known = heard.snapshot if heard is not None and heard.mapped is not None else None
        held = known is not None and known.phase is Phase.IN_PROGRESS
        if heard is None or not held or not self._has_held or heard.is_current:
            self._way_until = 0.0
        elif not self._way_until:
            self._way_until = now + CALLERS_FIRST_S
            self._wake()
        # Actions that are due by the clock, such as a cut, are never postponed.
        return now < min(self._way_until, self._act_at)

    def _look_after(self) -> None:
        """Check that all files are in place, and that there is a monitor."""
        presence = self._presence
        if presence is not None and not presence.is_in_place(self._files):
            self._leave_the_row()
            self._make_run_dir()
        self._reader.check_path()
        self._be_present()
        silent = self._reader.monitor_is_silent() and time.monotonic() >= self._restart_at
        if silent and (self._starter is None or not self._starter.is_alive()):
            # In a thread of its own, because the start of a process takes longer than a release may.
            self._starter = threading.Thread(target=self._start_monitor, name="bgpool-starter", daemon=True)
            self._starter.start()

    def _make_run_dir(self) -> None:
        """Create the run directory if needed, and log its path: it may differ from the one that the user named.

        Raises:
            SegmentError: It cannot be used.
        """
        directory = self._files.directory
        if prepare_run_dir(directory):
            extra = log_fields("run_dir_created", bg_id=self._bg_id)
            _logger.info("created run directory %s, private to user %d", directory, os.geteuid(), extra=extra)

    def _start_monitor(self) -> None:
        try:
            self._ensure_monitor(self._files)
        except Exception as error:
            self._complain("monitor_not_started", f"the monitor cannot be started: {error}")
            self._restart_at = time.monotonic() + RESTART_INTERVAL_S

    def _complain(self, event: str, text: str) -> None:
        """Log *text* once: the watcher meets the same problems again and again, and several of them in turn."""
        if text not in self._complaints:
            if len(self._complaints) >= _COMPLAINTS:
                self._complaints.clear()
            self._complaints.add(text)
            _logger.warning("[bg_id: %r] %s", self._bg_id, text, extra=log_fields(event, bg_id=self._bg_id))

    # -- the row -------------------------------------------------------------------------------------------------

    def _be_present(self) -> None:
        if self._presence is not None or self._stopping or time.monotonic() < self._absent_until:
            return
        try:
            presence = Presence(self._files)
            with self._lock:
                if not self._stopping:
                    self._presence = presence
                    return
            presence.close()
        except (SegmentError, OSError) as error:
            text = f"this process cannot enter itself in the table of workers; bgpool status does not show it: {error}"
            self._complain("worker_not_listed", text)
            self._absent_until = time.monotonic() + RESTART_INTERVAL_S

    def _leave_the_row(self) -> None:
        with self._lock:
            presence, self._presence = self._presence, None
        if presence is not None:
            presence.close()

    def _report(self, total: Usage, reading: Reading) -> None:
        """Write this process's row, which shows its state to other processes of the host."""
        presence = self._presence
        if presence is not None:
            presence.write(total._replace(sequence=reading.sequence))

    def _log_holds(self, pools: list[WatchedPool], total: Usage, reading: Reading) -> None:
        """Log one line when callers begin to be held, and one when the last of them proceeds.

        Callers that give up and return in the same switchover cause no further lines.
        """
        phase = reading.snapshot.phase if reading.snapshot is not None else None
        if not self._holding:
            before, self._before_hold = self._before_hold, total
            if total.holds <= before.holds:
                return
            self._holding, self._before_hold = True, before
            text = "[bg_id: %r] holding callers: %d so far"
            extra = log_fields("hold_started", bg_id=self._bg_id, phase=phase)
            _logger.info(text, self._bg_id, total.holds - before.holds, extra=extra)
        if total.held or any(pool.is_holding(reading) for pool in pools):
            return
        before, self._before_hold, self._holding = self._before_hold, total, False
        longest_s = max((pool.take_longest_hold_s() for pool in pools), default=0.0)
        held, late = total.holds - before.holds, total.hold_timeouts - before.hold_timeouts
        text = "[bg_id: %r] callers released: %d held, the longest for %.1f s; %d timed out"
        extra = log_fields("hold_ended", bg_id=self._bg_id, phase=phase)
        _logger.info(text, self._bg_id, max(0, held), longest_s, max(0, late), extra=extra)

    # -- the relay -----------------------------------------------------------------------------------------------

    def _relay_notices(self, snapshot: Snapshot, total: Usage) -> None:
        """Log the monitor's notices, in one process of the host: the one that holds the relay lock."""
        news = _news(snapshot.notices, self._relayed)
        if not news:
            return
        self._try_to_relay()
        self._relayed = news[-1]
        if self._relay is not None:
            for notice in news:
                extra = log_fields(notice.event, bg_id=self._bg_id, phase=snapshot.phase)
                logger = logging.getLogger(notice.logger)
                logger.log(notice.level, "[bg_id: %r] %s", self._bg_id, notice.text, extra=extra)
                if notice.event == "ready":
                    self._log_misfit(total)

    def _log_misfit(self, total: Usage) -> None:
        """Log that the application server may end this process while a caller is held. The monitor cannot know this."""
        misfit = hold_misfit(total.hold_limit_ms, total.busy_limit_ms)
        if misfit:
            extra = log_fields("time_limit_too_short", bg_id=self._bg_id)
            _logger.warning("[bg_id: %r] %s", self._bg_id, misfit, extra=extra)

    def _try_to_relay(self) -> None:
        """Take the relay lock if it is free, and keep it until end(), so that one log gets all lines."""
        # In one step: of two threads of this process that try, the second would take the first for another process.
        with self._lock:
            if self._relay is not None or self._stopping:
                return
            try:
                self._relay = try_lock(self._files.relay)
            except SegmentError as error:
                self._complain("log_not_relayed", f"this process cannot relay the monitor's log lines: {error}")


def _log_lacks(bg_id: str) -> None:
    """Log the system calls that the kernel refuses, once; a child does not repeat its parent's lines."""
    refused_to = lacks() & ~_lacks_logged[0]
    _lacks_logged[0] |= refused_to
    for lack in (lack for bit, lack in LACKS.items() if refused_to & bit):
        extra = log_fields("system_call_refused", bg_id=bg_id)
        _logger.warning("[bg_id: %r] %s: %s; %s", bg_id, lack.name, lack.text, lack.remedy, extra=extra)


def _news(notices: tuple[Notice, ...], last: Notice | None) -> tuple[Notice, ...]:
    """Return the *notices* after *last*; all if the segment was created again, so that numbers start from 1 again."""
    if last is None or (last not in notices and notices and notices[0].number <= last.number):
        return notices
    return tuple(notice for notice in notices if notice.number > last.number)


def _timers(snapshot: Snapshot | None) -> tuple[float, ...]:
    """Return the times at which the timers of *snapshot* have expired, on the monotonic clock."""
    return tuple(end / 1e9 + _PAST_S for end in snapshot.timers if end) if snapshot is not None else ()
