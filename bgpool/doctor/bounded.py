"""Work in threads with a time limit: a look-up or a driver that hangs delays no other check."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["side_by_side"]

T = TypeVar("T")


class _Job(threading.Thread, Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        # Daemon, so that a thread that hangs does not prevent the program from exiting.
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
    """Return the results of *functions*, each run in its own thread; None for one that takes longer than *timeout_s*.

    Raises the error of the first of *functions*, in their order, that raised one.
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
