"""The threads of a monitor. They end with their monitor, because its process may continue with other monitors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final

from bgpool.core.limits import PARTS_END_S

__all__ = ["StoppableThread", "bg_id_of_thread", "wait_ended"]


class StoppableThread(threading.Thread):
    """A thread that ends after stop(): immediately, or after a wait that it cannot leave.

    Attributes:
        bg_id: The bg_id of its monitor; by default that of the creating thread.
        over: Set when the thread must end.
    """

    def __init__(self, name: str, bg_id: str = "") -> None:
        super().__init__(name=name, daemon=True)
        self.bg_id = bg_id or bg_id_of_thread()
        self.over: Final = threading.Event()

    def stop(self) -> None:
        """Request the end of the thread, without waiting. A thread that was not started ends when it is started."""
        self.over.set()


def bg_id_of_thread() -> str:
    """Return the bg_id of the calling thread's monitor; empty if it has none."""
    return str(getattr(threading.current_thread(), "bg_id", ""))


def wait_ended(parts: Iterable[StoppableThread]) -> None:
    """Wait until *parts*, which were stopped, have ended; at most PARTS_END_S for all together."""
    deadline = time.monotonic() + PARTS_END_S
    for part in parts:
        # A thread that was never started cannot be joined.
        if part.is_alive():
            part.join(max(0.0, deadline - time.monotonic()))
