"""Comparison of two ways in alternating rounds of one run, so that a change of the machine's speed affects both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.result import Value


def measure(call: Callable[[], object], calls: int) -> float:
    """Return the microseconds of one call, as the mean of *calls*."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6


def medians(*calls_of: Callable[[], object], rounds: int, calls: int) -> list[float]:
    """Return the median over *rounds* rounds of each, in microseconds for one call."""
    for call in calls_of:
        call()
    found = [[measure(call, calls) for call in calls_of] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def compare(theirs: Callable[[], object], mine: Callable[[], object], *, rounds: int, calls: int) -> dict[str, Value]:
    """Return the medians of both over *rounds* rounds, and the median excess of *mine* over *theirs* in a round."""
    mine(), theirs()
    pairs = [(measure(theirs, calls), measure(mine, calls)) for _ in range(rounds)]
    theirs_us, mine_us = statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
    return {
        "theirs_us": theirs_us,
        "bgpool_us": mine_us,
        "excess_us": statistics.median(b - a for a, b in pairs),
        "ratio": mine_us / theirs_us,
    }
