"""What each worker did through a switchover: its row in the table of workers, again and again, within bounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from bgpool.core.limits import SAMPLE_INTERVAL_S, SAMPLED_WORKERS, SAMPLES
from bgpool.segment.table import ERRORS, Usage

__all__ = ["COLUMNS", "Lanes", "Sample"]

#: What a row counts since its process began.
_COUNTED: Final = ("served", "failed", "drained", "cut", "repeated", *ERRORS)

#: The numbers of a sample as JSON has them, in this order.
COLUMNS: Final = ("offset_ms", "held", "waiting", *_COUNTED)


class Sample(NamedTuple):
    """One worker at one moment: *at_ns*, on the monotonic clock, is when the worker itself wrote it."""

    at_ns: int
    usage: Usage


class _Lane:
    """One worker's samples."""

    def __init__(self, pid: int) -> None:
        self.pid: Final = pid
        self.samples: list[Sample] = []
        self._step_ns = SAMPLE_INTERVAL_S * 1e9

    def take(self, sample: Sample) -> None:
        if self.samples and sample.at_ns < self.samples[-1].at_ns + self._step_ns and not self._is_news(sample.usage):
            return
        if self.samples and sample.at_ns <= self.samples[-1].at_ns:
            return
        self.samples.append(sample)
        if len(self.samples) > SAMPLES:
            # Counters lose nothing by it; what is held does, and the middle of a long hold is like its rest.
            self.samples = self.samples[::2]
            self._step_ns *= 2

    def _is_news(self, usage: Usage) -> bool:
        last = self.samples[-1].usage
        return (usage.held > 0) != (last.held > 0) or any(
            getattr(usage, name) != getattr(last, name) for name in ("failed", "cut", *ERRORS)
        )


class Lanes:
    """The samples of all workers.

    Attributes:
        left_out: Workers that were there when there were SAMPLED_WORKERS already.
    """

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, int], _Lane] = {}
        self.left_out = 0

    def take(self, rows: Iterable[tuple[int, int, int, Usage]], since_ns: int) -> None:
        """Add what *rows* (row, pid, update in ns, usage) say that was not known, and is not older than *since_ns*."""
        left_out = 0
        for row, pid, at_ns, usage in rows:
            # The row of the dead keeps what they said last.
            if at_ns < since_ns:
                continue
            lane = self._lanes.get((row, pid))
            if lane is None:
                if len(self._lanes) >= SAMPLED_WORKERS:
                    left_out += 1
                    continue
                lane = self._lanes[row, pid] = _Lane(pid)
            lane.take(Sample(at_ns, usage))
        self.left_out = max(self.left_out, left_out)

    def forget_before(self, at_ns: int) -> None:
        """Drop what is older, and workers of which nothing is left."""
        for lane in self._lanes.values():
            lane.samples = [sample for sample in lane.samples if sample.at_ns >= at_ns]
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.samples}
        self.left_out = 0

    def told(self, zero_ns: int, since_ns: int) -> Iterator[dict[str, Any]]:
        """Each worker as JSON has it: ``pid``, and ``samples`` with the numbers of COLUMNS, from *since_ns* on.

        Offsets count from *zero_ns*; what has been counted since a process began, from its first sample.
        """
        for lane in self._lanes.values():
            samples = [sample for sample in lane.samples if sample.at_ns >= since_ns]
            if not samples:
                continue
            first = samples[0].usage
            yield {
                "pid": lane.pid,
                "samples": [
                    [
                        round((at_ns - zero_ns) / 1e6),
                        usage.held,
                        usage.waiting,
                        *(getattr(usage, name) - getattr(first, name) for name in _COUNTED),
                    ]
                    for at_ns, usage in samples
                ],
            }
