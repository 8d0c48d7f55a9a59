"""What a process has in a deployment while it has pools there: a row, somebody who watches, perhaps the relay."""

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

__all__ = ["Member", "Watch"]

_logger: Final = logging.getLogger("bgpool.pool")

#: Past the moment at which something is due, not just before it.
_PAST_S: Final = 0.005

#: Lines that are remembered so that they are not logged again.
_COMPLAINTS: Final = 16

#: Those of host.LACKS that this process has logged.
_lacks_logged: Final = [0]


class Member(Protocol):
    """A pool, as its participant sees it."""

    def apply(self, reading: Reading) -> None:
        """Act on a new snapshot."""
        ...

    def tick(self) -> float:
        """Do what is due by time; seconds until something is again, infinite if nothing is."""
        ...

    def usage(self) -> Usage:
        """What it does now."""
        ...

    def is_holding(self, reading: Reading) -> bool:
        """Whether a checkout would be held by *reading*."""
        ...

    def take_longest_hold_s(self) -> float:
        """The longest hold that has ended since the last call, in seconds; 0 if none has."""
        ...


class Watch:
    """From the moment the first pool joins to the moment the last one leaves; another one after that.

    What it has, it has until end(): nothing that its threads come by later is kept. Its rounds are the watcher's.
    """

    def __init__(
        self,
        bg_id: str,
        files: RunFiles,
        reader: Reader,
        members: Callable[[], list[Member]],
        ensure_monitor: Callable[[RunFiles], object],
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """A watch that tells *members* what *reader* reads, and sees to it that there is a monitor.

        Calls *wake*, before anything else, when something was published.
        """
        self._bg_id: Final = bg_id
        self._files: Final = files
        self._reader: Final = reader
        self._members: Final = members
        self._ensure_monitor: Final = ensure_monitor
        self._wake: Final = wake
        self._stopping = False
        self._starter: threading.Thread | None = None
        self._restart_at = 0.0
        # Protects the two that follow, and that neither is there once the watch is stopping.
        self._lock: Final = threading.Lock()
        self._presence: Presence | None = None
        self._relay: Lock | None = None
        self._absent_until = 0.0
        self._relayed: Notice | None = None
        self._complaints: Final[set[str]] = set()
        # What had been counted when the hold at hand began, or at the last look while there is none.
        self._before_hold = Usage()
        self._holding = False
        # What was acted on last, and when that is due though nothing is published.
        self._heard: Reading | None = None
        self._act_at = 0.0
        self._timers: tuple[float, ...] = ()
        # When to look at everything else.
        self._pace: Final = Pace()
        # Whether callers were held at the last look, and until when they go before us, on the monotonic clock.
        self._has_held = False
        self._way_until = 0.0
        # From when on callers that nothing holds any more have lost their turn; infinite once that was looked at.
        self._lost_from = math.inf

    def begin(self) -> None:
        """Be present, and start to watch; where the run directory cannot be used, say so and do neither."""
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
            # The last pool has left meanwhile, and there was nothing yet that could have been dropped.
            watcher.drop(self)

    def end(self) -> None:
        """Stop watching, and be gone."""
        with self._lock:
            self._stopping = True
            relay, self._relay = self._relay, None
        watcher.drop(self)
        self._leave_the_row()
        if relay is not None:
            relay.release()

    def note_member(self) -> None:
        """There is one more: it acts on what is published, and the row tells of it."""
        self._act_at = 0.0
        self._pace.note(0.0)
        watcher.stir(self)

    def note_hold(self) -> None:
        """A caller begins to be held: there is a look within WATCH_INTERVAL_S, however rare they have become."""
        if self._pace.note(WATCH_INTERVAL_S):
            watcher.stir(self)

    def is_alive(self) -> bool:
        """Whether the thread is at work that watches."""
        return watcher.is_watched(self)

    def nudge(self) -> None:
        """Ring the monitor's bell."""
        presence = self._presence
        if presence is not None:
            presence.nudge()

    def count_workers(self) -> int:
        """How many processes of the host use the bg_id just now, as far as can be told; at least one."""
        presence = self._presence
        return presence.count_workers() if presence is not None else 1

    def locked_out_workers(self) -> list[int]:
        """As Participant says."""
        presence = self._presence
        return presence.locked_out_workers() if presence is not None else []

    def speaks_for_host(self) -> bool:
        """Whether this process has the relay; it takes it where nobody has."""
        self._try_to_relay()
        return self._relay is not None

    # -- what the watcher calls ----------------------------------------------------------------------------------

    def hear(self, now: float) -> None:
        """Act on what is published, and on time that has run out; nothing, where there is nothing new."""
        if self._gives_way(now):
            return
        self._way_until = 0.0
        reading = self._reader.refresh()
        news = reading is not self._heard
        if not news and now < self._act_at:
            return
        # First, so that what fails is tried again, and not at once.
        self._heard, self._act_at = reading, now + WATCH_INTERVAL_S
        if news:
            self._lost_from = now + LINE_S
            self._pace.hear(now)
            self._timers = _timers(reading.snapshot)
            self._wake()
        self._act(reading, self._members())

    def _act(self, reading: Reading, members: list[Member]) -> None:
        """Have *members* act on *reading*, and note when they are to do so again."""
        failure: BaseException | None = None
        due_at = math.inf
        for member in members:
            try:
                member.apply(reading)
                due_at = min(due_at, time.monotonic() + max(0.0, member.tick()))
            except BaseException as error:
                # The others' connections are to be drained all the same.
                failure = error
        if failure is not None:
            raise failure
        # Pools act on a timer that runs out as well.
        self._act_at = min([due_at, *(at for at in self._timers if at > time.monotonic())])

    def attend(self, now: float) -> None:
        """Do all that nobody waits for: the row, logs, and whether everything is still in its place."""
        self._pace.begin(now)
        try:
            self._look_after()
        finally:
            self._look(now)

    def _look(self, now: float) -> None:
        """What the members do: for the row and the logs."""
        members, reading = self._members(), self._heard or self._reader.refresh()
        self._act(reading, members)
        usages = [member.usage() for member in members]
        total = Usage.merged(usages)
        self._has_held = total.held > 0
        if now > self._lost_from and reading.is_current:
            # Once: whoever begins to be held later has read what is published.
            self._lost_from = math.inf
            self._wake_lost(reading, members, usages)
        self._report(total, reading)
        self._log_holds(members, total, reading)
        if reading.snapshot is not None:
            self._relay_notices(reading.snapshot, total)
        switching = reading.snapshot is not None and reading.snapshot.phase in SWITCHING
        # What the rows say in a switchover, a picture is made of afterwards; and the end of a hold is to be logged.
        least_s = WATCH_INTERVAL_S if self._holding or switching else HEARTBEAT_STALE_S
        self._pace.end(now, total, least_s)

    def _wake_lost(self, reading: Reading, members: list[Member], usages: list[Usage]) -> None:
        """Wake callers who sleep on in line, see bgpool.segment.release_queue, though the line is over.

        The monitor was killed that should have let them go, and a caller that had a turn is stopped.
        """
        if any(usage.held and not member.is_holding(reading) for member, usage in zip(members, usages, strict=True)):
            self._reader.wake_waiters()

    def fail(self, error: BaseException) -> None:
        """One of the two has raised *error*."""
        self._complain("watcher_failed", f"the watcher failed and tries again: {error!r}")

    def due_at(self, now: float) -> float:
        """When one of the two has something to do though nothing is published; *now*, where a look may come early."""
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
        # Whether there is a monitor: once it would count as silent, if it gave no more signs of life.
        return min(at, max(mapped.beat[0] / 1e9 + HEARTBEAT_STALE_S + _PAST_S, look_at))

    def word(self) -> Word | None:
        """What says that something else is published than was heard."""
        reading = self._heard
        if reading is None or reading.mapped is None or self._way_until:
            return None
        return Word(reading.word, reading.mapped.address, reading.sequence)

    def _gives_way(self, now: float) -> bool:
        """Whether what is published is for callers who are held here: they read it themselves, and have the core first.

        For CALLERS_FIRST_S: what comes after IN_PROGRESS is for nobody else to act on at once, but for tasks, who are
        woken from here alone.
        """
        heard = self._heard
        # Without a file nothing is published at all.
        known = heard.snapshot if heard is not None and heard.mapped is not None else None
        held = known is not None and known.phase is Phase.IN_PROGRESS
        if heard is None or not held or not self._has_held or heard.is_current:
            self._way_until = 0.0
        elif not self._way_until:
            self._way_until = now + CALLERS_FIRST_S
            self._wake()
        # Never with what is due by the clock, such as a cut.
        return now < min(self._way_until, self._act_at)

    def _look_after(self) -> None:
        """Whether everything is still in its place, a monitor as well."""
        presence = self._presence
        if presence is not None and not presence.is_in_place(self._files):
            self._leave_the_row()
            self._make_run_dir()
        self._reader.check_path()
        self._be_present()
        silent = self._reader.monitor_is_silent() and time.monotonic() >= self._restart_at
        if silent and (self._starter is None or not self._starter.is_alive()):
            # Apart from the watcher: the start of a process takes longer than a release may.
            self._starter = threading.Thread(target=self._start_monitor, name="bgpool-starter", daemon=True)
            self._starter.start()

    def _make_run_dir(self) -> None:
        """Make it where it does not exist, and log where: it need not be the directory that the user named.

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
        """Log it, once: the watcher comes by it again and again, by several in turn."""
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
        """Fill our row, for whoever wants to know what every process of the host does."""
        presence = self._presence
        if presence is not None:
            presence.write(total._replace(sequence=reading.sequence))

    def _log_holds(self, members: list[Member], total: Usage, reading: Reading) -> None:
        """Log one line when callers begin to be held, and one when the last of them has gone on.

        Callers that give up and come again in one switchover make no further lines.
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
        if total.held or any(member.is_holding(reading) for member in members):
            return
        before, self._before_hold, self._holding = self._before_hold, total, False
        longest_s = max((member.take_longest_hold_s() for member in members), default=0.0)
        held, late = total.holds - before.holds, total.hold_timeouts - before.hold_timeouts
        text = "[bg_id: %r] callers released: %d were held, the longest for %.1f s; %d of them had timed out"
        extra = log_fields("hold_ended", bg_id=self._bg_id, phase=phase)
        _logger.info(text, self._bg_id, max(0, held), longest_s, max(0, late), extra=extra)

    # -- the relay -----------------------------------------------------------------------------------------------

    def _relay_notices(self, snapshot: Snapshot, total: Usage) -> None:
        """Log what the monitor has to say, in one process of the host: the one that holds the relay's lock."""
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
        """Log that the server around this process may end it while a caller is held: the monitor cannot know."""
        misfit = hold_misfit(total.hold_limit_ms, total.busy_limit_ms)
        if misfit:
            extra = log_fields("time_limit_too_short", bg_id=self._bg_id)
            _logger.warning("[bg_id: %r] %s", self._bg_id, misfit, extra=extra)

    def _try_to_relay(self) -> None:
        """Take the relay's lock if it is free; kept until end(), so that one log has all."""
        # In one go: of two threads of ours that try, the second would take the first for another process.
        with self._lock:
            if self._relay is not None or self._stopping:
                return
            try:
                self._relay = try_lock(self._files.relay)
            except SegmentError as error:
                self._complain("log_not_relayed", f"this process cannot relay the monitor's log lines: {error}")


def _log_lacks(bg_id: str) -> None:
    """Log what the kernel refuses, once in this process; a child of its parent's need not say it again."""
    refused_to = lacks() & ~_lacks_logged[0]
    _lacks_logged[0] |= refused_to
    for lack in (lack for bit, lack in LACKS.items() if refused_to & bit):
        extra = log_fields("system_call_refused", bg_id=bg_id)
        _logger.warning("[bg_id: %r] %s: %s; %s", bg_id, lack.name, lack.text, lack.remedy, extra=extra)


def _news(notices: tuple[Notice, ...], last: Notice | None) -> tuple[Notice, ...]:
    """Those of *notices* that came after *last*; all of them where a segment was made anew, and counts from 1 again."""
    if last is None or (last not in notices and notices and notices[0].number <= last.number):
        return notices
    return tuple(notice for notice in notices if notice.number > last.number)


def _timers(snapshot: Snapshot | None) -> tuple[float, ...]:
    """When timers of *snapshot* have run out, on the monotonic clock."""
    return tuple(end / 1e9 + _PAST_S for end in snapshot.timers if end) if snapshot is not None else ()
