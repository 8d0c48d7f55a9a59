"""What every log line of bgpool carries beside its text, for handlers that write JSON, and for filters."""

from __future__ import annotations

import logging
import time

from bgpool.core.phase import Phase

__all__ = ["log_fields", "utc_formatter"]


def log_fields(event: str, *, bg_id: str = "", phase: Phase | None = None, host: str = "") -> dict[str, str]:
    """The *extra* of a line: always all four, so that a format may name them; empty where there is nothing to say.

    Args:
        event: What kind of line it is; docs/errors.md has the list.
        bg_id: Which deployment.
        phase: Its phase at that moment.
        host: Which host or address the line is about.
    """
    return {"event": event, "bg_id": bg_id, "phase": phase.name if phase is not None else "", "host": host}


def utc_formatter(fields: str) -> logging.Formatter:
    """A formatter for logs that bgpool itself writes: the time in UTC, as everywhere else, then *fields*."""
    formatter = logging.Formatter(f"%(asctime)s.%(msecs)03dZ {fields}", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter
