"""Work in threads that nobody waits for beyond a limit: a look-up or a driver that hangs keeps no other check back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["side_by_side"]

T = TypeVar("T")


class _Job(threading.Thread, Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        # Daemon: one that hangs must not keep the program from its end.
        super().__init__(name="bgpool-doctor", daemon=True)
        self._function = function
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error


def side_by_side(functions: Sequence[Callable[[], T]], timeout_s: float) -> list[T | None]:
    """What *functions* return, each run in a thread of its own; None for one that has not ended in *timeout_s* seconds.

    Raises what the first of them raised that did.
    """
    jobs = [_Job(function) for function in functions]
    deadline = time.monotonic() + timeout_s
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(max(0.0, deadline - time.monotonic()))
    for job in jobs:
        if not job.is_alive() and job.error is not None:
            raise job.error
    return [None if job.is_alive() else job.result for job in jobs]
