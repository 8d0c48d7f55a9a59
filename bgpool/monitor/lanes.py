"""The history of each worker through a switchover: samples of its row in the table of workers, limited in number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from bgpool.core.limits import SAMPLE_INTERVAL_S, SAMPLED_WORKERS, SAMPLES
from bgpool.segment.table import ERRORS, Usage

__all__ = ["COLUMNS", "Lanes", "Sample"]

#: The columns that a row counts since the start of its process.
_COUNTED: Final = ("served", "failed", "drained", "cut", "repeated", *ERRORS)

#: The numbers of a sample in JSON, in this order.
COLUMNS: Final = ("offset_ms", "held", "waiting", *_COUNTED)


class Sample(NamedTuple):
    """A sample of one worker. *at_ns*, on the monotonic clock, is the time at which the worker wrote it."""

    at_ns: int
    usage: Usage


class _Lane:
    """The samples of one worker."""

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
            # This loses no counts. Of held callers it loses detail, but the middle of a long hold is uniform.
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
        left_out: Workers that appeared when there were already SAMPLED_WORKERS.
    """

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, int], _Lane] = {}
        self.left_out = 0

    def take(self, rows: Iterable[tuple[int, int, int, Usage]], since_ns: int) -> None:
        """Add the new values in *rows* (row, pid, update in ns, usage) that are not older than *since_ns*."""
        left_out = 0
        for row, pid, at_ns, usage in rows:
            # A dead process's row keeps its last values.
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
        """Remove older samples, and workers without samples."""
        for lane in self._lanes.values():
            lane.samples = [sample for sample in lane.samples if sample.at_ns >= at_ns]
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.samples}
        self.left_out = 0

    def told(self, zero_ns: int, since_ns: int) -> Iterator[dict[str, Any]]:
        """Return each worker as a JSON object: ``pid``, and ``samples`` with the values of COLUMNS since *since_ns*.

        Offsets are relative to *zero_ns*, counts to the worker's first sample.
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
