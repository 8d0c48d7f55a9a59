"""A recorded switchover, read from the run directory. The content of the files is validated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from bgpool.core.limits import NAME_CHARS, TIMELINE_EVENTS
from bgpool.core.phase import SWITCHING, Phase
from bgpool.core.snapshot import TimelineEntry
from bgpool.core.timeline import CREATED_AGAIN, RELEASED_BY_HAND, zero_ns
from bgpool.monitor import samples
from bgpool.monitor.samples import Recording
from bgpool.segment import history
from bgpool.segment.paths import RunFiles

__all__ = ["Band", "RecordedSwitchover", "deployments", "stories", "told_errors"]

_HISTORY: Final = ".history.json"
_MOST_NS: Final = 2**62
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff]")


class Band(NamedTuple):
    """A phase, from one offset to another, in seconds."""

    phase: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class RecordedSwitchover:
    """A switchover that has ended.

    Attributes:
        outcome: One of history.OUTCOMES.
        events: The events of the summary table; times on the monotonic clock are relative to its time zero.
        recording: The workers' samples.
        record: The record of the history.
    """

    bg_id: str
    outcome: str
    events: tuple[TimelineEntry, ...]
    recording: Recording
    record: dict[str, Any]

    @property
    def zero(self) -> str:
        """The event that offsets are relative to."""
        return next((entry.event for entry in self.events if entry.mono_ns == 0), self.events[0].event)

    @property
    def bands(self) -> tuple[Band, ...]:
        """The phases of the switchover; the last one has no duration yet."""
        phases = {phase.name for phase in SWITCHING} | {Phase.COMPLETED.name, CREATED_AGAIN}
        found = [entry for entry in self.events if entry.event in phases]
        ends = [entry.mono_ns / 1e9 for entry in found[1:]] + [max(e.mono_ns for e in self.events) / 1e9]
        return tuple(Band(e.event, e.mono_ns / 1e9, end_s) for e, end_s in zip(found, ends, strict=True))

    @property
    def hold_s(self) -> float | None:
        """The time from IN_PROGRESS to the release, or to the end of a rollback, in seconds; None without a hold."""
        band = next((band for band in self.bands if band.phase == Phase.IN_PROGRESS.name), None)
        if band is None:
            return None
        release = self.release
        return (release.mono_ns / 1e9 if release is not None else band.end_s) - band.begin_s

    @property
    def release(self) -> TimelineEntry | None:
        """The event that ended the hold."""
        return next((after for before, after in pairwise(self._phases()) if before.event == "IN_PROGRESS"), None)

    @property
    def evidence(self) -> str:
        """The evidence that caused the release; empty without a hold."""
        release = self.release
        if release is None:
            return ""
        return "metadata: back to blue" if release.event == CREATED_AGAIN else release.evidence or "not recorded"

    def _phases(self) -> Iterator[TimelineEntry]:
        names = {band.phase for band in self.bands} | {RELEASED_BY_HAND}
        return (entry for entry in self.events if entry.event in names)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``--json``: the record, the hold, its end, and every worker's samples."""
        hold_s = self.hold_s
        return {
            **self.record,
            "hold_ms": round(1000 * hold_s, 3) if hold_s is not None else None,
            "evidence": self.evidence,
            "errors": self.recording.errors,
            "workers_left_out": self.recording.left_out,
            "workers": [
                {"pid": worker.pid, "samples": [sample._asdict() for sample in worker.samples]}
                for worker in self.recording.workers
            ],
        }


def told_errors(recording: Recording) -> str:
    """Return the errors that reached the application, by type, and the repeated units; empty without workers."""
    if not recording.workers:
        return ""
    last = [worker.samples[-1] for worker in recording.workers if worker.samples]
    # An earlier version did not count types.
    without = "not recorded by type" if any(sample.failed for sample in last) else "none"
    errors = ", ".join(f"{count} {name}" for name, count in recording.errors.items()) or without
    repeated = sum(sample.repeated for sample in last)
    again = f"; units of work that were run again: {repeated}" if repeated else ""
    return f"errors of bgpool that reached the application: {errors}{again}"


def deployments(directory: Path) -> tuple[RunFiles, ...]:
    """Return the files of every bg_id that has a history in *directory*.

    Raises:
        OSError: It cannot be read.
    """
    names = sorted(path.name for path in directory.iterdir() if path.name.endswith(_HISTORY))
    return tuple(RunFiles(directory, name.removesuffix(_HISTORY)) for name in names)


def stories(files: RunFiles, count: int) -> tuple[tuple[RecordedSwitchover, ...], tuple[str, ...]]:
    """Return the last *count* switchovers, the oldest first; and the problem of the files, if any."""
    past = history.look(files)
    told = [_story(files, record) for record in past.records]
    good = tuple(story for story in told if story is not None)[-count:]
    problems = [past.problem]
    if lost := told.count(None):
        problems.append(f"{lost} of {len(told)} records in {files.history} cannot be read and are left out")
    problems += [story.recording.problem for story in good]
    return good, tuple(filter(None, problems))


def _story(files: RunFiles, record: dict[str, Any]) -> RecordedSwitchover | None:
    try:
        events = tuple(_event(item) for item in record["events"][:TIMELINE_EVENTS])
        bg_id, outcome = _text(record["bg_id"]), record["outcome"]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not events or outcome not in history.OUTCOMES:
        return None
    zero = zero_ns(events)
    counted = tuple(TimelineEntry(e.mono_ns - zero, e.wall_ns, e.event, e.evidence) for e in events)
    return RecordedSwitchover(bg_id, outcome, counted, samples.read(files, events[0].wall_ns), record)


def _event(item: dict[str, Any]) -> TimelineEntry:
    offset_ms, wall_ns = item["offset_ms"], item["at_unix_ns"]
    if type(wall_ns) is not int or not 0 <= wall_ns < _MOST_NS or not abs(float(offset_ms)) < _MOST_NS / 1e6:
        raise ValueError("no time")
    return TimelineEntry(round(offset_ms * 1e6), wall_ns, _text(item["event"]), _text(item["evidence"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text was expected")
    return _UNPRINTABLE.sub("?", value[:NAME_CHARS])
