"""What a snapshot remembers for people: the rows of the summary table, and lines for the application's log."""

from __future__ import annotations

from dataclasses import replace

from bgpool.core.events import Instant
from bgpool.core.limits import NOTICE_CHARS, NOTICES, TIMELINE_EVENTS
from bgpool.core.snapshot import Notice, Snapshot, TimelineEntry

__all__ = ["add_entry", "add_notice"]


def add_entry(snapshot: Snapshot, at: Instant, event: str, evidence: str = "") -> Snapshot:
    """*snapshot* with one row more in its timeline."""
    entry = TimelineEntry(at.mono_ns, at.wall_ns, event, evidence)
    return replace(snapshot, timeline=(*snapshot.timeline, entry)[-TIMELINE_EVENTS:])


def add_notice(snapshot: Snapshot, level: int, logger: str, event: str, text: str, *, once: bool = True) -> Snapshot:
    """Have *text* logged; with *once*, unless it is among the last lines already."""
    text = text[:NOTICE_CHARS]
    if once and any(notice.text == text for notice in snapshot.notices):
        return snapshot
    number = snapshot.notices[-1].number + 1 if snapshot.notices else 1
    notice = Notice(number, level, f"bgpool.{logger}", text, event)
    return replace(snapshot, notices=(*snapshot.notices, notice)[-NOTICES:])
