"""The figures of a storm of connections, from the server's log and from the calls of the threads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.arrivals import Attempt, most_at_once
from benchmarks.forked_workers import Call
from benchmarks.result import Value

__all__ = ["BIN_MS", "FULL", "Storm"]

BIN_MS: Final = 100
#: The time that is drawn, in ms from the moment at which the client could find green.
DRAWN_MS: Final = 3000
#: The fraction of the earlier throughput at which it counts as back, in a window of BIN_MS.
FULL: Final = 0.9


@dataclass(frozen=True, slots=True)
class Storm:
    """The observations of a storm. Times are on the monotonic clock, except for attempts, whose times are since 1970.

    Attributes:
        workers: The number of workers, each with *threads* threads.
        before_s: The time before *began_s* during which all active threads worked as usual.
        held_before: The number of connections of all pools together.
        began_s: The time at which the switchover was in progress.
        opened_s: The time at which the client could find green. The times of the figures are counted from it.
        wall_s: The difference between the time since 1970 and the monotonic clock.
        calls: The calls in the order of their ends.
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
        """Return the measured columns of the summary."""
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
        """Return the attempts by their time, in ms from the moment at which the client could find green."""
        return [row for row in self._binned() if 0 <= row["at_ms"] < DRAWN_MS]

    def _binned(self) -> list[dict[str, int]]:
        spans_ms = [(self._at_ms(each.received_s), self._at_ms(each.ended_s)) for each in self.attempts]
        # All bins that are drawn, including empty ones, and earlier and later bins that have attempts.
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
        """Return the time of the first success of each thread that came back, by worker and thread."""
        firsts: dict[tuple[int, int], float] = {}
        for call in self.calls:
            if call.ok and call.ended_s > self.opened_s:
                firsts.setdefault((call.worker, call.thread), call.ended_s - self.opened_s)
        return firsts

    def _full_s(self) -> float | None:
        """Return the end of the first window of BIN_MS with as many successes as before."""
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
