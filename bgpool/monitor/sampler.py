"""Samples the workers through every switchover, and shortly before and after, for its picture.

It runs in a separate thread that no other thread waits for, so that sampling never delays a phase.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from bgpool.core.limits import SAMPLE_AFTER_S, SAMPLE_BEFORE_S, SAMPLE_IDLE_S, SAMPLE_INTERVAL_S
from bgpool.core.phase import SWITCHING, Phase
from bgpool.core.snapshot import Snapshot
from bgpool.core.timeline import zero_ns
from bgpool.errors import SegmentError
from bgpool.logs import log_fields
from bgpool.monitor import samples
from bgpool.monitor.lanes import Lanes
from bgpool.monitor.stoppable import StoppableThread
from bgpool.segment.paths import RunFiles
from bgpool.segment.table import Table

__all__ = ["Sampler"]

_logger: Final = logging.getLogger("bgpool.monitor")


class Sampler(StoppableThread):
    """The thread that takes the samples. The monitor runs on without it."""

    def __init__(self, files: RunFiles, may_write: Callable[[], bool]) -> None:
        """Create the sampler for *files*; *may_write* returns whether this process is still the monitor."""
        super().__init__("bgpool-sampler")
        self._files: Final = files
        self._may_write: Final = may_write
        self._snapshot = Snapshot("")
        self._news: Final = threading.Event()
        self._table: Table | None = None
        self._lanes = Lanes()
        # The sampled switchover, as it was before it was cleared; and the time since which it is over.
        self._story: Snapshot | None = None
        self._over_ns = 0
        self._complaint = ""

    def note(self, snapshot: Snapshot) -> None:
        """Record a published snapshot."""
        begun = (snapshot.phase in SWITCHING) != (self._snapshot.phase in SWITCHING)
        self._snapshot = snapshot
        if begun:
            self._news.set()

    def stop(self) -> None:
        """End; unwritten samples are lost."""
        super().stop()
        self._news.set()

    def run(self) -> None:
        """Sample until stopped."""
        while not self.over.is_set():
            self._news.wait(SAMPLE_IDLE_S if self._story is None else SAMPLE_INTERVAL_S)
            self._news.clear()
            if self.over.is_set():
                return
            try:
                self.look(time.monotonic_ns())
            except Exception as error:
                if repr(error) != self._complaint:
                    self._complaint = repr(error)
                    text = "the rows of the workers cannot be sampled for the timeline: %r"
                    _logger.warning(text, error, extra=self._fields())

    def _fields(self) -> dict[str, str]:
        return log_fields("workers_not_sampled", bg_id=self._snapshot.bg_id, phase=self._snapshot.phase)

    def look(self, now_ns: int) -> None:
        """Take one sample at *now_ns*, on the monotonic clock, and write all of them if a switchover has ended."""
        snapshot = self._snapshot
        if snapshot.phase is Phase.NOT_CREATED and self._story is None:
            self._lanes = Lanes()
            return
        table = self._open()
        since_ns = now_ns - round(SAMPLE_BEFORE_S * 1e9)
        if table is not None:
            self._lanes.take(table.rows(), since_ns)
        if snapshot.phase in SWITCHING:
            if self._over_ns:
                self._end()
            self._story = snapshot
        elif self._story is None:
            self._lanes.forget_before(since_ns)
        elif not self._over_ns:
            # Deleting a deployment clears its timeline.
            self._story = snapshot if _began(snapshot) == _began(self._story) else self._story
            self._over_ns = now_ns
            self._keep(self._story)
        elif now_ns - self._over_ns >= SAMPLE_AFTER_S * 1e9:
            self._end()

    def _end(self) -> None:
        story, self._story, self._over_ns = self._story, None, 0
        if story is not None:
            self._keep(story)

    def _keep(self, story: Snapshot) -> None:
        events = [entry for entry in story.timeline if entry.event != Phase.NOT_CREATED.name]
        phases = [entry.mono_ns for entry in events if entry.event != Phase.CREATED.name]
        if not phases:
            return
        since_ns = phases[0] - round(SAMPLE_BEFORE_S * 1e9)
        told = self._lanes.told(zero_ns(story.timeline), since_ns)
        samples.keep(self._files, _began(story), told, self._lanes.left_out, self._may_write)

    def _open(self) -> Table | None:
        """Return the table in place; None if there is no usable one, which its workers report."""
        if self._table is not None and not self._table.is_in_place(self._files):
            self._table = None
        if self._table is None:
            try:
                self._table = Table(self._files)
            except SegmentError:
                return None
        return self._table


def _began(snapshot: Snapshot) -> int:
    """Return the identity of a switchover, as in the history: the time of its first event, on the wall clock."""
    return snapshot.timeline[0].wall_ns if snapshot.timeline else 0
