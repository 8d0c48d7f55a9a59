"""A process's part in a deployment: it is present, it watches the segment, and it tells its pools what has changed."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from bgpool.core.limits import RESTART_INTERVAL_S, WATCH_INTERVAL_S
from bgpool.core.snapshot import Snapshot
from bgpool.errors import SegmentError
from bgpool.pools import fork
from bgpool.segment.locks import FileLock, try_lock
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import Presence
from bgpool.segment.reader import Reader, Reading
from bgpool.segment.table import Usage

__all__ = ["Member", "Participant"]

_logger: Final = logging.getLogger("bgpool.pool")


class Member(Protocol):
    """A pool, as its participant sees it."""

    def apply(self, reading: Reading) -> None:
        """Act on a new snapshot."""
        ...

    def tick(self) -> None:
        """Do what is due by time."""
        ...

    def usage(self) -> Usage:
        """What it does now."""
        ...

    def close(self) -> None:
        """End it; it leaves."""
        ...


class Participant:
    """One per process, run directory and bg_id; shared by all pools with these. One watcher thread while it has any.

    Attributes:
        reader: The segment; says nothing where the run directory cannot be used.
    """

    def __init__(self, bg_id: str, directory: Path, ensure_monitor: Callable[[RunFiles], object]) -> None:
        self._bg_id: Final = bg_id
        self._directory: Final = directory
        self._ensure_monitor: Final = ensure_monitor
        self._files: Final = RunFiles.of(directory, bg_id)
        self.reader = Reader(self._files)
        self._reset()
        fork.call_in_child(self)

    def __repr__(self) -> str:
        return f"<Participant bg_id={self._bg_id!r} {self.reader!r}>"

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._starter: threading.Thread | None = None
        self._presence: Presence | None = None
        self._relay: FileLock | None = None
        self._relayed = 0
        self._complaint = ""

    def after_fork_in_child(self) -> None:
        """The watcher stayed with the parent, and so did the right to count as present."""
        if self._presence is not None:
            self._presence.close()
        self._reset()

    def join(self, member: Member) -> None:
        """Take *member* on; the first one makes the process present and starts the watcher."""
        with self._lock:
            self._members.add(member)
            if self._watcher is not None:
                return
            self._stopping = threading.Event()
            self._watcher = threading.Thread(
                target=self._watch, args=(self._stopping,), name=f"bgpool-watch-{self._bg_id}", daemon=True
            )
        try:
            prepare_run_dir(self._directory)
        except SegmentError as error:
            _logger.warning("[bg_id: %r] %s; the pool works as a plain pool", self._bg_id, error)
            return
        self.reader.check_path()
        known = self.reader.refresh().snapshot
        self._relayed = known.notices[-1].number if known and known.notices else 0
        self._be_present()
        self._watcher.start()

    def leave(self, member: Member) -> None:
        """Let *member* go; the last one ends the process's presence."""
        with self._lock:
            self._members.discard(member)
            if self._members or self._watcher is None:
                return
            self._stopping.set()
            self._watcher = None
            presence, self._presence = self._presence, None
            relay, self._relay = self._relay, None
        if presence is not None:
            presence.close()
        if relay is not None:
            relay.release()

    def close_members(self) -> None:
        """Close every pool that takes part."""
        for member in list(self._members):
            member.close()

    def nudge(self) -> None:
        """Tell the monitor that the server has cut one of our connections: it asks at once, and all hear of it."""
        presence = self._presence
        if presence is not None:
            presence.nudge()

    def _watch(self, stopping: threading.Event) -> None:
        """The watcher's life. Nothing that goes wrong in one round may end it: pools would never hear again."""
        # At once: a worker that is recycled after a tenth of a second must have started a monitor by then.
        due = True
        while not stopping.is_set():
            try:
                if due:
                    due = False
                    self._look_after()
                due = not self._round()
            except Exception as error:
                self._complain(f"watching failed and goes on: {error!r}")
                stopping.wait(WATCH_INTERVAL_S)

    def _round(self) -> bool:
        """Act on what is published, and wait for more; whether there is."""
        reading = self.reader.refresh()
        members = list(self._members)
        for member in members:
            member.apply(reading)
            member.tick()
        self._report(members, reading)
        if reading.snapshot is not None:
            self._relay_notices(reading.snapshot)
        return reading.wait_changed(WATCH_INTERVAL_S)

    def _look_after(self) -> None:
        """Nothing was published for a while: is everything still in its place?"""
        if self._presence is not None and not self._presence.is_in_place(self._files):
            self._presence.close()
            self._presence = None
            prepare_run_dir(self._directory)
        self.reader.check_path()
        self._be_present()
        self._try_to_relay()
        silent = self.reader.monitor_is_silent()
        if silent and (self._starter is None or not self._starter.is_alive()):
            # Apart from the watcher: the start of a process takes longer than a release may.
            self._starter = threading.Thread(target=self._start_monitor, name="bgpool-starter", daemon=True)
            self._starter.start()

    def _start_monitor(self) -> None:
        try:
            self._ensure_monitor(self._files)
        except Exception as error:
            self._complain(f"the monitor cannot be started: {error!r}")
            self._stopping.wait(RESTART_INTERVAL_S)

    def _be_present(self) -> None:
        if self._presence is not None or self._stopping.is_set():
            return
        try:
            self._presence = Presence(self._files)
        except SegmentError as error:
            self._complain(str(error))

    def _report(self, members: list[Member], reading: Reading) -> None:
        """Fill our row, for whoever wants to know what every process of the host does."""
        presence = self._presence
        if presence is not None:
            figures = [member.usage() for member in members]
            total = Usage(*map(sum, zip(*figures, strict=True))) if figures else Usage()
            presence.write(total._replace(sequence=reading.sequence))

    def _try_to_relay(self) -> None:
        if self._relay is None:
            try:
                self._relay = try_lock(self._files.relay)
            except SegmentError as error:
                self._complain(str(error))

    def _complain(self, text: str) -> None:
        """Say it, once for as long as it stays the same: the watcher looks four times a second."""
        if text != self._complaint:
            self._complaint = text
            _logger.warning("[bg_id: %r] %s", self._bg_id, text)

    def _relay_notices(self, snapshot: Snapshot) -> None:
        """Log what the monitor has to say, in one process of the host: the one that holds the relay's lock."""
        news = [notice for notice in snapshot.notices if notice.number > self._relayed]
        if not news:
            return
        self._try_to_relay()
        self._relayed = news[-1].number
        if self._relay is not None:
            for notice in news:
                logging.getLogger(notice.logger).log(
                    notice.level, "[bg_id: %r] %s", self._bg_id, notice.text, extra={"bg_id": self._bg_id}
                )
