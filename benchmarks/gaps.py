"""The time that threads were without a successful write, from their attempts, in seconds on the monotonic clock."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.crew import Attempt

__all__ = ["first_success_s", "in_flight", "is_back", "longest_gap_s", "median_s", "most_s"]


def longest_gap_s(attempts: Sequence[Attempt], since_s: float) -> float:
    """Return the longest gap of a thread, of the gaps that ended after *since_s*.

    A gap begins with the first attempt after a success and ends with the next success, so a pause between two
    attempts is not part of it. A gap that never ended is not counted: see `is_back`.
    """
    longest_s = 0.0
    began_s: float | None = None
    for attempt in attempts:
        began_s = attempt.began_s if began_s is None else began_s
        if attempt.ok:
            if attempt.ended_s >= since_s:
                longest_s = max(longest_s, attempt.ended_s - began_s)
            began_s = None
    return longest_s


def is_back(attempts: Sequence[Attempt], since_s: float) -> bool:
    """Return whether the last attempt that ended was a success after *since_s*."""
    return bool(attempts) and attempts[-1].ok and attempts[-1].ended_s > since_s


def first_success_s(attempts: Iterable[Attempt], since_s: float) -> float | None:
    """Return the time from *since_s* to the first success after it; None without one."""
    return next((a.ended_s - since_s for a in attempts if a.ok and a.ended_s > since_s), None)


def in_flight(attempts_of: Iterable[Sequence[Attempt]], from_s: float, to_s: float) -> int:
    """Return the number of threads with an attempt under way at some moment from *from_s* to *to_s*."""
    return sum(any(a.began_s <= to_s and a.ended_s >= from_s for a in attempts) for attempts in attempts_of)


def median_s(values: Sequence[float | None]) -> float | None:
    """Return the median. None counts as longer than any number, and may be the result."""
    known = [float("inf") if value is None else value for value in values]
    middle = statistics.median(known) if known else float("inf")
    return None if middle == float("inf") else middle


def most_s(values: Sequence[float | None]) -> float | None:
    """Return the greatest value. None counts as greater than any number."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None
