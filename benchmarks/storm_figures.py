"""What a storm of connections comes to in figures: from the server's log, and from what the threads saw."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.arrivals import Attempt, most_at_once
from benchmarks.fleet import Call
from benchmarks.result import Value

__all__ = ["BIN_MS", "FULL", "Storm"]

BIN_MS: Final = 100
#: What is drawn of the time after the way was open, in ms.
DRAWN_MS: Final = 3000
#: Throughput is back when so much of what it was before is reached, in a window of BIN_MS.
FULL: Final = 0.9


@dataclass(frozen=True, slots=True)
class Storm:
    """What was seen. Times are on the monotonic clock, but for those of attempts, which are since 1970.

    Attributes:
        workers: How many there were, each with as many *threads*.
        before_s: How long before *began_s* all of them that were at work worked as usual.
        held_before: Connections that all pools together had.
        began_s: When the switchover was in progress.
        opened_s: When the client could find green; what the times of the figures count from.
        wall_s: What to add to the monotonic clock for the time since 1970.
        calls: In the order of their ends.
    """

    workers: int
    threads: int
    before_s: float
    held_before: int
    began_s: float
    opened_s: float
    wall_s: float
    calls: Sequence[Call]
    attempts: Sequence[Attempt]

    def figures(self) -> dict[str, Value]:
        """The measured columns of the summary."""
        by_thread, workers = self._firsts_s(), self.workers
        firsts = [min(mine) for n in range(workers) if (mine := [at for (w, _), at in by_thread.items() if w == n])]
        busiest = max((int(row["attempts"]) for row in self._binned() if row["attempts"]), default=0)
        return {
            "held_before": self.held_before,
            "most_at_once": most_at_once(self.attempts),
            "busiest": busiest,
            "attempts": len(self.attempts),
            "refused": sum(not each.ok for each in self.attempts),
            "errors": sum(not call.ok for call in self.calls if call.ended_s > self.began_s),
            "first_median_s": statistics.median_low(firsts) if len(firsts) * 2 > workers else None,
            "first_last_s": max(firsts) if len(firsts) == workers else None,
            "every_thread_s": max(by_thread.values()) if len(by_thread) == workers * self.threads else None,
            "full_s": self._full_s(),
        }

    def bins(self) -> list[dict[str, int]]:
        """Attempts by the time at which they came, in ms from the moment at which the way was open."""
        return [row for row in self._binned() if 0 <= row["at_ms"] < DRAWN_MS]

    def _binned(self) -> list[dict[str, int]]:
        spans_ms = [(self._at_ms(each.received_s), self._at_ms(each.ended_s)) for each in self.attempts]
        # Every bin that is drawn, also those in which nobody came, and those before and after in which somebody did.
        starts = {*range(0, DRAWN_MS, BIN_MS), *(int(came // BIN_MS) * BIN_MS for came, _ in spans_ms)}
        return [
            {
                "at_ms": start,
                "attempts": sum(start <= came < start + BIN_MS for came, _ in spans_ms),
                "at_once": most_at_once(
                    each
                    for each, (came, ended) in zip(self.attempts, spans_ms, strict=True)
                    if came < start + BIN_MS and ended >= start
                ),
            }
            for start in sorted(starts)
        ]

    def _at_ms(self, wall_s: float) -> float:
        return 1000 * (wall_s - self.wall_s - self.opened_s)

    def _firsts_s(self) -> dict[tuple[int, int], float]:
        """When each thread that came back had its first success, by worker and thread."""
        firsts: dict[tuple[int, int], float] = {}
        for call in self.calls:
            if call.ok and call.ended_s > self.opened_s:
                firsts.setdefault((call.worker, call.thread), call.ended_s - self.opened_s)
        return firsts

    def _full_s(self) -> float | None:
        """When the window of BIN_MS that ends then was the first with as many successes as before."""
        window_s = BIN_MS / 1000
        times = [call.ended_s for call in self.calls if call.ok]
        since_s = self.began_s - self.before_s
        before = sum(since_s <= at < self.began_s for at in times) / (self.before_s / window_s)
        after = [at for at in times if at > self.opened_s]
        needed = max(1, round(FULL * before))
        for first, last in zip(after, after[needed - 1 :], strict=False):
            if last - first <= window_s:
                return last - self.opened_s
        return None
