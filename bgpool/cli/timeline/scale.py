"""Conversion of seconds to pixels, and the positions of ticks."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = ["Scale", "ticks"]

_MOST_TICKS: Final = 12


class Scale(NamedTuple):
    """Draws *begin_s* at *left* and *end_s* at *right*; values outside are drawn at the edge."""

    begin_s: float
    end_s: float
    left: float
    right: float

    def x(self, at_s: float) -> float:
        """Return the position of *at_s*."""
        part = (at_s - self.begin_s) / (self.end_s - self.begin_s)
        return self.left + (self.right - self.left) * min(1.0, max(0.0, part))

    def sees(self, begin_s: float, end_s: float) -> bool:
        """Return whether any part of the range is visible."""
        return end_s >= self.begin_s and begin_s <= self.end_s


def ticks(begin_s: float, end_s: float) -> list[tuple[float, str]]:
    """Return round seconds in the range, a dozen at most, with their labels."""
    rough = (end_s - begin_s) / _MOST_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(begin_s / step), math.floor(end_s / step)
    return [(n * step, f"{n * step:+.{digits}f}" if n else "0") for n in range(first, last + 1)]
