"""Seconds to pixels, and where the ticks go."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = ["Scale", "ticks"]

_MOST_TICKS: Final = 12


class Scale(NamedTuple):
    """*begin_s* is drawn at *left*, *end_s* at *right*; what lies outside, at the edge."""

    begin_s: float
    end_s: float
    left: float
    right: float

    def x(self, at_s: float) -> float:
        """Where *at_s* is drawn."""
        part = (at_s - self.begin_s) / (self.end_s - self.begin_s)
        return self.left + (self.right - self.left) * min(1.0, max(0.0, part))

    def sees(self, begin_s: float, end_s: float) -> bool:
        """Whether any of that is within."""
        return end_s >= self.begin_s and begin_s <= self.end_s


def ticks(begin_s: float, end_s: float) -> list[tuple[float, str]]:
    """Round seconds between two others, a dozen at most, and what to write there."""
    rough = (end_s - begin_s) / _MOST_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(begin_s / step), math.floor(end_s / step)
    return [(n * step, f"{n * step:+.{digits}f}" if n else "0") for n in range(first, last + 1)]
