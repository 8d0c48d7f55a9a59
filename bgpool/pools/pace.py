"""How often a watcher looks at what its process does: the less there is to see, the more rarely.

A look costs several times what waking up costs. So one that is due in a while is taken when the thread is awake anyway,
and a process in which nothing happens is looked at every few seconds.
"""

from __future__ import annotations

import math
import time
from typing import Final

from bgpool.core.limits import BUSY_CPU_S, LOOK_INTERVAL_MAX_S, NEWS_FIRST_S, WATCH_INTERVAL_S
from bgpool.segment.table import Usage

__all__ = ["Pace"]

#: How many times as long it is to the next look, while the last one has found nothing new.
_SLOWER: Final = 4

#: Which part of its time a look waits for at least, before it is taken because the thread is awake anyway.
_EARLY: Final = 0.8

#: Where a Usage has its longest hold, which grows while nothing happens.
_LONGEST: Final = Usage._fields.index("longest_hold_ms")


class Pace:
    """When the next look is due. Times are on the monotonic clock.

    Attributes:
        looked_at: When the last one began.
        look_at: When the next one is due.
    """

    def __init__(self) -> None:
        """The first one is due at once."""
        self.looked_at = self.look_at = 0.0
        # From when on it may come early: in any case, and because other threads have used the CPU since the last one.
        self._early_at, self._busy_at = 0.0, math.inf
        self._others_cpu_s = 0.0
        self._interval_s = 0.0
        self._found: tuple[int, ...] = ()
        # There was a reason for another one since the last one began.
        self._noted = False

    def may_look(self, now: float) -> bool:
        """Whether one may be taken, because the thread is awake anyway."""
        return now >= self._early_at or (now >= self._busy_at and _others_cpu_s() - self._others_cpu_s > BUSY_CPU_S)

    def hear(self, now: float) -> None:
        """Something was published: rows and logs come when those were let go who wait, and no oftener than usual."""
        self._interval_s = 0.0
        self._advance(max(now + NEWS_FIRST_S, self.looked_at + WATCH_INTERVAL_S))

    def note(self, within_s: float) -> bool:
        """There is something to tell of within *within_s*, says any thread; whether that is sooner than it would be."""
        at = time.monotonic() + within_s
        if at >= self.look_at:
            return False
        # First: a look that is just ending sets the time of the next one.
        self._noted = True
        self._advance(at)
        return True

    def begin(self, now: float) -> None:
        """A look begins. The next one is due soon, in case this one fails."""
        self._noted = False
        self.looked_at = now
        self._set(now + WATCH_INTERVAL_S, now + WATCH_INTERVAL_S, math.inf)

    def end(self, now: float, usage: Usage, least_s: float) -> None:
        """It has found *usage*; *least_s* is the interval while that changes."""
        found = (*usage[:_LONGEST], *usage[_LONGEST + 1 :])
        slower_s = min(_SLOWER * self._interval_s, LOOK_INTERVAL_MAX_S) if found == self._found else 0.0
        self._found, self._interval_s = found, max(slower_s, least_s)
        self._others_cpu_s = _others_cpu_s()
        self._set(now + self._interval_s, now + _EARLY * self._interval_s, now + least_s / 2)
        if self._noted:
            # Meanwhile.
            self._advance(now + WATCH_INTERVAL_S)

    def _advance(self, at: float) -> None:
        """The next one is due at *at*, if it was to be later."""
        at = min(self.look_at, at)
        self._set(at, at, self._busy_at)

    def _set(self, look_at: float, early_at: float, busy_at: float) -> None:
        self.look_at, self._early_at, self._busy_at = look_at, early_at, busy_at


def _others_cpu_s() -> float:
    """What the threads of this process have used of the CPU, but for the calling one."""
    return time.process_time() - time.thread_time()
