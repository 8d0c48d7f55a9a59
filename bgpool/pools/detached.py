"""Run a function that may never return in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from bgpool.signals import refusing

__all__ = ["within"]

T = TypeVar("T")


def within(seconds: float, function: Callable[[], T]) -> T:
    """Return the result of *function* if it returns within *seconds*; block for at most that time.

    It is called in a thread of its own, which is abandoned after that: a driver that waits for a stopped server cannot
    be interrupted.

    Raises:
        TimeoutError: It has not returned, or no thread could be started.
        Exception: Any error that it raises.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))
        done.set()

    try:
        threading.Thread(target=refusing(run), name="bgpool-call", daemon=True).start()
    except (RuntimeError, MemoryError) as error:
        raise TimeoutError(f"no thread could be started: {error}") from error
    if not done.wait(max(0.0, seconds)):
        raise TimeoutError(f"not done within {seconds:.1f} s")
    made, failure = outcome.pop()
    if failure is None:
        return made  # type: ignore[return-value]  # the result is a T
    try:
        raise failure
    finally:
        # Otherwise its own traceback would keep it alive.
        del failure
