"""The state of an application's processes during a switchover, read repeatedly from their rows in the worker table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bgpool.base_errors import SegmentError
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.core.timeline import CREATED_AGAIN
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader
from bgpool.segment.table import ROWS, Usage, read_rows

__all__ = ["ApplicationProcesses", "Process", "ProcessHistory"]

#: The interval between two readings, in seconds.
LOOK_S: Final = 0.05
#: The longest delay with which a row is written, in seconds.
LATE_S: Final = 0.1
_RELEASES: Final = (Phase.POST.name, Phase.COMPLETED.name, CREATED_AGAIN)

Fate = Literal["there", "gone", "came"]


@dataclass(frozen=True, slots=True)
class Process:
    """The history of a process that uses the bg_id.

    Attributes:
        fate: ``there`` from the beginning of the switchover to the end; ``gone`` before the end; ``came`` later.
        most_held: The largest number of callers that waited for the end of the switchover.
        held_s: The longest time with held callers, in seconds; no caller was held for longer. Rows are written at every
            change of the snapshot and at least once a second. Where they leave the beginning or end of a hold open, it
            is IN_PROGRESS or the release.
        drained: The number of connections that the switchover made unfit.
        cut: The number of drained connections that were still in use after the grace.
        connections: The number of connections in its pools at the end; 0 for a process that is gone.
        checkouts: The number of checkouts from the beginning of the switchover to the end, including failed ones. A row
            is up to a second old, so the last checkouts before the beginning may be included, and some of the very last
            ones may be missing.
    """

    pid: int
    fate: Fate
    most_held: int
    held_s: float
    drained: int
    cut: int
    connections: int
    checkouts: int


class ApplicationProcesses:
    """All processes that use a bg_id.

    Attributes:
        snapshot: The last one that shows a switchover, else the last one.
        phase: The phase of the last one; None before the first.
    """

    def __init__(self, files: RunFiles) -> None:
        self._files: Final = files
        self._reader: Final = Reader(files)
        self._seen: Final[dict[int, ProcessHistory]] = {}
        self._present: tuple[int, ...] = ()
        self._beginning: frozenset[int] = frozenset()
        self._began_s = 0.0
        self.snapshot: Snapshot | None = None
        self.phase: Phase | None = None

    def look(self) -> None:
        """Read the rows and the snapshot; an untrustworthy table is ignored."""
        rows: Sequence[tuple[int, int, int, Usage, int]] = ()
        with contextlib.suppress(SegmentError, FileNotFoundError):
            rows = read_rows(self._files)
        # After the rows: the snapshot then contains everything that a process has acted on.
        self._take(self._reader.refresh().snapshot)
        moments = self._moments()
        for _, pid, updated_ns, usage, _ in rows:
            if pid in self._seen or len(self._seen) < ROWS:
                self._seen.setdefault(pid, ProcessHistory()).take(updated_ns / 1e9, usage, moments)
        self._present = tuple(pid for _, pid, *_ in rows)

    def begin(self) -> None:
        """Begin the switchover with the processes of the last reading."""
        self._beginning = frozenset(self._present)
        self._began_s = time.monotonic()
        for seen in self._seen.values():
            seen.begin()

    @property
    def here(self) -> int:
        """The number of processes at the last reading."""
        return len(self._present)

    def processes(self) -> tuple[Process, ...]:
        """Return the histories of all processes that existed at the beginning, or started later."""
        return tuple(
            seen.summary(pid, _fate(pid in self._beginning, pid in self._present))
            for pid, seen in sorted(self._seen.items())
            if pid in self._beginning or seen.since_s > self._began_s
        )

    def _take(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        self.phase = snapshot.phase
        # When a deployment is deleted, its timeline is gone.
        if _has_begun(snapshot) or not _has_begun(self.snapshot):
            self.snapshot = snapshot

    def _moments(self) -> Mapping[str, float]:
        timeline = self.snapshot.timeline if self.snapshot is not None else ()
        return {entry.event: entry.mono_ns / 1e9 for entry in timeline}


class ProcessHistory:
    """The history of one process, row by row; times are those of its writes, in seconds on the monotonic clock."""

    def __init__(self) -> None:
        self.since_s: Final = time.monotonic()
        self._usage = Usage()
        self._before = 0  # checkouts before the beginning of the switchover
        self._most = 0
        self._longest_s = 0.0
        self._quiet_s: float | None = None  # the last row without held callers
        self._since_s: float | None = None  # callers are held since then
        self._busy_s = 0.0  # the last row with held callers

    def take(self, at_s: float, usage: Usage, moments: Mapping[str, float]) -> None:
        """Record a row; the same row may be recorded repeatedly."""
        self._usage = usage
        self._most = max(self._most, usage.held)
        if usage.held:
            if self._since_s is None:
                drained_s = moments.get(Phase.IN_PROGRESS.name, at_s)
                earliest_s = self._quiet_s if self._quiet_s is not None else at_s
                self._since_s = drained_s if earliest_s - LATE_S < drained_s < at_s else earliest_s
            self._busy_s = at_s
            self._longest_s = max(self._longest_s, at_s - self._since_s)
            return
        self._quiet_s = at_s
        if self._since_s is not None:
            released_s = [moments[name] for name in _RELEASES if name in moments]
            ends_s = [moment for moment in released_s if self._busy_s - LATE_S < moment < at_s]
            self._longest_s = max(self._longest_s, min(ends_s, default=at_s) - self._since_s)
            self._since_s = None

    def begin(self) -> None:
        """Count checkouts from now on."""
        self._before = self._checkouts

    def summary(self, pid: int, fate: Fate) -> Process:
        """Return the whole history."""
        usage = self._usage
        connections = 0 if fate == "gone" else usage.in_use + usage.idle
        # The count of a pool disappears when the pool is closed.
        checkouts = max(0, self._checkouts - self._before)
        held_s = round(self._longest_s, 3)
        return Process(pid, fate, self._most, held_s, usage.drained, usage.cut, connections, checkouts)

    @property
    def _checkouts(self) -> int:
        return self._usage.served + self._usage.failed


def _has_begun(snapshot: Snapshot | None) -> bool:
    begun = (Phase.PREPARATION.name, Phase.IN_PROGRESS.name)
    return snapshot is not None and any(entry.event in begun for entry in snapshot.timeline)


def _fate(was_there: bool, is_there: bool) -> Fate:
    if not is_there:
        return "gone"
    return "there" if was_there else "came"
