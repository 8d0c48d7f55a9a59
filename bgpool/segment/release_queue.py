"""A queue that wakes the waiters of a word one after the other.

A login takes milliseconds of a core. If all processes of a host log in at the same time, the first connection of each
is ready only when all are. In turn, half of them are connected in half of the time, and the last is no later.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

from bgpool.core.limits import CONNECTS_PER_CORE, LINE_PACE_S, LINE_S
from bgpool.segment import wake
from bgpool.signals import refusing

__all__ = ["ReleaseQueue", "cores"]


class ReleaseQueue:
    """The queue of the waiters of one word.

    Some are woken immediately. Each of them wakes the next one when it has its connection, see Reader.wake_next. As
    some may take long, or be stopped, more are woken over time, and after LINE_S all.
    """

    def __init__(self, address: int) -> None:
        """Create the queue of the word at *address*, which must stay mapped until end()."""
        self._address: Final = address
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def moves(self) -> bool:
        """True if there may still be waiters that must be woken."""
        return self._thread is not None and self._thread.is_alive()

    def let_go(self) -> None:
        """Start waking: the word has changed."""
        wake.wake_others(self._address)
        wake.wake_in_line(self._address, CONNECTS_PER_CORE * cores())
        if self.moves:
            return
        self._over = threading.Event()
        self._thread = threading.Thread(target=refusing(self._run), args=(self._over,), name="bgpool-line", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            wake.wake_all(self._address)

    def _run(self, over: threading.Event) -> None:
        until, pause_s = time.monotonic() + LINE_S, LINE_PACE_S / cores()
        while time.monotonic() < until:
            if over.wait(pause_s) or not wake.wake_in_line(self._address, 1):
                break
        wake.wake_all(self._address)

    def end(self) -> None:
        """Wake all remaining waiters, and wait until that is done."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._over.set()
            thread.join()


def cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
