"""A monitor's threads. They end with their monitor, because its process may go on with other monitors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final

from bgpool.core.limits import PARTS_END_S

__all__ = ["StoppableThread", "bg_id_of_thread", "wait_ended"]


class StoppableThread(threading.Thread):
    """A thread that ends after stop(): at once, or where it waits for something that it cannot leave, after that.

    Attributes:
        bg_id: Whose it is: that of the thread that has made it, unless it is given.
        over: Set when it is to end.
    """

    def __init__(self, name: str, bg_id: str = "") -> None:
        super().__init__(name=name, daemon=True)
        self.bg_id = bg_id or bg_id_of_thread()
        self.over: Final = threading.Event()

    def stop(self) -> None:
        """Have the thread end; waits for nothing. One that was not started ends as soon as it is."""
        self.over.set()


def bg_id_of_thread() -> str:
    """Whose the calling thread is; empty where it is no monitor's."""
    return str(getattr(threading.current_thread(), "bg_id", ""))


def wait_ended(parts: Iterable[StoppableThread]) -> None:
    """Wait until *parts*, which were stopped, have ended, for PARTS_END_S at most in all."""
    deadline = time.monotonic() + PARTS_END_S
    for part in parts:
        # One that was never started cannot be waited for.
        if part.is_alive():
            part.join(max(0.0, deadline - time.monotonic()))
