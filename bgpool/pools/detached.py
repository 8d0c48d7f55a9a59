"""A step that has no end of its own, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from bgpool.signals import refusing

__all__ = ["within"]

T = TypeVar("T")


def within(seconds: float, function: Callable[[], T]) -> T:
    """What *function* returns within *seconds*; blocks for so long at most.

    It is called in a thread of its own, which is left alone after that: a driver that waits for a server that was
    stopped cannot be told to end.

    Raises:
        TimeoutError: It has not returned, or no thread could be started.
        Exception: What it raises.
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
        return made  # type: ignore[return-value]  # what it returned is a T
    try:
        raise failure
    finally:
        # Or it would be kept by its own traceback.
        del failure
