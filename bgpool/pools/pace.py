"""The schedule of a watcher's looks at its process: the less changes, the rarer they are.

A look costs several times as much as waking up. So a look that is due soon is taken when the thread is awake anyway,
and a process in which nothing happens is looked at every few seconds.
"""

from __future__ import annotations

import math
import time
from typing import Final

from bgpool.core.limits import BUSY_CPU_S, LOOK_INTERVAL_MAX_S, NEWS_FIRST_S, WATCH_INTERVAL_S
from bgpool.segment.table import Usage

__all__ = ["Pace"]

#: The factor by which the interval grows while a look finds nothing new.
_SLOWER: Final = 4

#: The fraction of the interval after which a look is taken early if the thread is awake anyway.
_EARLY: Final = 0.8

#: The index of a Usage's longest hold, which grows while nothing else happens.
_LONGEST: Final = Usage._fields.index("longest_hold_ms")


class Pace:
    """The times of looks, on the monotonic clock.

    Attributes:
        looked_at: The start of the last look.
        look_at: The time at which the next look is due.
    """

    def __init__(self) -> None:
        """Create a schedule whose first look is due immediately."""
        self.looked_at = self.look_at = 0.0
        # The times from which a look may be early: in any case, and if other threads have used the CPU since the last
        # one.
        self._early_at, self._busy_at = 0.0, math.inf
        self._others_cpu_s = 0.0
        self._interval_s = 0.0
        self._found: tuple[int, ...] = ()
        # True if there was a reason for another look since the last one began.
        self._noted = False

    def may_look(self, now: float) -> bool:
        """Return whether a look may be taken because the thread is awake anyway."""
        return now >= self._early_at or (now >= self._busy_at and _others_cpu_s() - self._others_cpu_s > BUSY_CPU_S)

    def hear(self, now: float) -> None:
        """Record a publication. Rows and logs follow after the release of callers, no more often than usual."""
        self._interval_s = 0.0
        self._advance(max(now + NEWS_FIRST_S, self.looked_at + WATCH_INTERVAL_S))

    def note(self, within_s: float) -> bool:
        """Request a look within *within_s*, from any thread; return whether that is sooner than scheduled."""
        at = time.monotonic() + within_s
        if at >= self.look_at:
            return False
        # Set first: a look that is just ending sets the time of the next one.
        self._noted = True
        self._advance(at)
        return True

    def begin(self, now: float) -> None:
        """Record that a look begins. The next one is scheduled soon in case this one fails."""
        self._noted = False
        self.looked_at = now
        self._set(now + WATCH_INTERVAL_S, now + WATCH_INTERVAL_S, math.inf)

    def end(self, now: float, usage: Usage, least_s: float) -> None:
        """Record that the look has found *usage*; *least_s* is the interval while that changes."""
        found = (*usage[:_LONGEST], *usage[_LONGEST + 1 :])
        slower_s = min(_SLOWER * self._interval_s, LOOK_INTERVAL_MAX_S) if found == self._found else 0.0
        self._found, self._interval_s = found, max(slower_s, least_s)
        self._others_cpu_s = _others_cpu_s()
        self._set(now + self._interval_s, now + _EARLY * self._interval_s, now + least_s / 2)
        if self._noted:
            # Another look was requested during this one.
            self._advance(now + WATCH_INTERVAL_S)

    def _advance(self, at: float) -> None:
        """Move the next look forward to *at*, if it was due later."""
        at = min(self.look_at, at)
        self._set(at, at, self._busy_at)

    def _set(self, look_at: float, early_at: float, busy_at: float) -> None:
        self.look_at, self._early_at, self._busy_at = look_at, early_at, busy_at


def _others_cpu_s() -> float:
    """Return the CPU time of this process's threads, except for the calling one."""
    return time.process_time() - time.thread_time()
