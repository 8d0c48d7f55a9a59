"""The additional fields of log lines, for handlers that write JSON, and for filters."""

from __future__ import annotations

import logging
import time

from bgpool.core.phase import Phase

__all__ = ["log_fields", "utc_formatter"]


def log_fields(event: str, *, bg_id: str = "", phase: Phase | None = None, host: str = "") -> dict[str, str]:
    """Return the *extra* of a line: always all four fields, so that a format may use them; empty if not applicable.

    Args:
        event: The kind of line; docs/night.md has the list.
        bg_id: The deployment.
        phase: The deployment's phase at that time.
        host: The host or address that the line is about.
    """
    return {"event": event, "bg_id": bg_id, "phase": phase.name if phase is not None else "", "host": host}


def utc_formatter(fields: str) -> logging.Formatter:
    """Return a formatter for logs that bgpool itself writes: the time in UTC, then *fields*."""
    formatter = logging.Formatter(f"%(asctime)s.%(msecs)03dZ {fields}", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter
