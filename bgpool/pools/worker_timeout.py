"""The application server's limit of the time for which a process may be busy with one request or task."""

from __future__ import annotations

import math

__all__ = ["busy_limit_ms", "note_busy_limit"]

_limit_ms = 0


def note_busy_limit(seconds: float | None) -> None:
    """Record that the server ends a process that is busy for *seconds*; None, 0 and infinity mean that it does not.

    A server's hook calls this in the process itself, after the fork.
    """
    global _limit_ms
    _limit_ms = int(seconds * 1000) if seconds and 0 < seconds < math.inf else 0


def busy_limit_ms() -> int:
    """Return that limit in ms; 0 for none, or none that is known."""
    return _limit_ms
