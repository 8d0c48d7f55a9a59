"""Two ways to do the same, in alternating rounds of one run: a change of the machine's speed meets both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def measure(call: Callable[[], object], calls: int) -> float:
    """Microseconds for one call, as the mean of *calls*."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6


def compare(
    theirs: Callable[[], object], mine: Callable[[], object], peer: str, *, rounds: int, calls: int
) -> dict[str, Any]:
    """Medians of both over *rounds* rounds, and what *mine* takes beyond *theirs*."""
    mine(), theirs()
    pairs = [(measure(theirs, calls), measure(mine, calls)) for _ in range(rounds)]
    theirs_us = statistics.median(a for a, _ in pairs)
    mine_us = statistics.median(b for _, b in pairs)
    excess = sorted(b - a for a, b in pairs)
    return {
        f"{peer}_us": round(theirs_us, 3),
        "bgpool_us": round(mine_us, 3),
        "excess_us": round(statistics.median(excess), 3),
        "excess_us_quartiles": [round(excess[len(excess) // 4], 3), round(excess[3 * len(excess) // 4], 3)],
        "ratio": round(mine_us / theirs_us, 3),
    }


def show(figures: dict[str, dict[str, Any]], peer: str) -> None:
    """Print what compare() returned, by name."""
    for name, figure in figures.items():
        print(
            f"  {name:<26} {peer} {figure[f'{peer}_us']:9.3f}   bgpool {figure['bgpool_us']:9.3f}   "
            f"excess {figure['excess_us']:+.3f} (quartiles {figure['excess_us_quartiles']})   ratio {figure['ratio']}"
        )
