"""Turn a worker's samples into curves: rates, held callers, and the times of errors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from bgpool.monitor.samples import WorkerSample, WorkerSamples

__all__ = ["Curve", "Mark", "Step", "curve_of", "sum_of"]

#: The time without a sample after which a worker counts as gone, in seconds. It writes its row four times a second, and
#: after a long switchover only some of the samples are kept.
_GONE_S: Final = 3.0


class Step(NamedTuple):
    """An interval in seconds with *rate* checkouts per second and *held* callers."""

    begin_s: float
    end_s: float
    rate: float
    held: float


class Mark(NamedTuple):
    """A problem: errors reached the application, or connections were cut.

    Attributes:
        errors: The number of errors and their type, as text.
    """

    at_s: float
    errors: tuple[str, ...]
    cut: int


class Curve(NamedTuple):
    """A lane of the picture."""

    label: str
    steps: tuple[Step, ...]
    marks: tuple[Mark, ...]

    @property
    def top_rate(self) -> float:
        """The highest rate."""
        return max((step.rate for step in self.steps), default=0.0)

    @property
    def top_held(self) -> float:
        """The maximum of callers held at a time."""
        return max((step.held for step in self.steps), default=0.0)


def curve_of(worker: WorkerSamples) -> Curve:
    """Return the curve of *worker*. Between two samples only their difference is known."""
    steps, marks = [], []
    for before, after in pairwise(worker.samples):
        begin_s, end_s = before.offset_ms / 1000, after.offset_ms / 1000
        if end_s <= begin_s:
            continue
        if end_s - begin_s < _GONE_S:
            steps.append(Step(begin_s, end_s, max(0, after.served - before.served) / (end_s - begin_s), before.held))
        errors, cut = tuple(_new_errors(before, after)), after.cut - before.cut
        if errors or cut > 0:
            marks.append(Mark(end_s, errors, max(0, cut)))
    return Curve(f"pid {worker.pid}", tuple(steps), tuple(marks))


def _new_errors(before: WorkerSample, after: WorkerSample) -> Iterator[str]:
    known = before.errors
    for name, count in after.errors.items():
        if count > known.get(name, 0):
            yield f"{count - known.get(name, 0)} {name}"
    if after.errors == known and after.failed > before.failed:
        # An earlier version did not count types.
        yield f"{after.failed - before.failed} failed"


def sum_of(curves: Sequence[Curve], begin_s: float, end_s: float, parts: int) -> Curve:
    """Return the sum of *curves* between two times, in *parts* intervals."""
    width_s = (end_s - begin_s) / parts
    begins = [[step.begin_s for step in curve.steps] for curve in curves]
    steps = []
    for part in range(parts):
        at_s = begin_s + part * width_s
        there = [
            curve.steps[index]
            for curve, starts in zip(curves, begins, strict=True)
            if (index := bisect_right(starts, at_s + width_s / 2) - 1) >= 0 and curve.steps[index].end_s > at_s
        ]
        if there:
            steps.append(Step(at_s, at_s + width_s, sum(s.rate for s in there), sum(s.held for s in there)))
    marks = sorted(mark for curve in curves for mark in curve.marks)
    return Curve(f"all {len(curves)} workers", tuple(steps), tuple(marks))
