"""The only way in which the lab waits: bounded, interruptible, and with a message after a timeout."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event

from bgpool.lab.errors import LabAbortError, LabError

POLL_S = 0.01
"""The interval of checks: short compared with a switchover's steps, long compared with the cost of one check."""


def wait_until(
    condition: Callable[[], bool],
    *,
    timeout_s: float,
    what: str,
    abort: Event | None = None,
    poll_s: float = POLL_S,
) -> None:
    """Check *condition* every *poll_s* seconds until it holds; it is checked at least once.

    Raises:
        LabError: It did not hold within *timeout_s* seconds; the message names *what*.
        LabAbortError: *abort* was set.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            raise LabError(f"{what}: not within {timeout_s:g} s")
        pause(poll_s, abort=abort, what=what)


def pause(duration_s: float, *, abort: Event | None = None, what: str = "waiting") -> None:
    """Sleep *duration_s* seconds; zero or less does not sleep.

    Raises:
        LabAbortError: *abort* was set before or during the sleep.
    """
    if abort is None:
        time.sleep(max(duration_s, 0.0))
    elif abort.wait(max(duration_s, 0.0)):
        raise LabAbortError(f"{what}: aborted")
