"""Letting those go one after the other who wait for a word to change.

To log in takes milliseconds of a core. With all processes of a host at it at once everybody's first connection is ready
when all are; in turn half of them have it in half of the time, and the last not later.
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
    """The line of those who wait on one word.

    Some are let go at once; each of them lets the next one go when it has its connection, see Reader.wake_next. As some
    may take long, or be stopped, the clock lets more go, and after LINE_S everybody.
    """

    def __init__(self, address: int) -> None:
        """The line on the word at *address*, which must stay mapped until end()."""
        self._address: Final = address
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def moves(self) -> bool:
        """Whether somebody may still be in line who is to be let go."""
        return self._thread is not None and self._thread.is_alive()

    def let_go(self) -> None:
        """Begin; the word has changed."""
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
        """Let everybody go who is still in line, and wait until that is done."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._over.set()
            thread.join()


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
