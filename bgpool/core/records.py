"""What a snapshot remembers for people: the rows of the summary table, and lines for the application's log."""

from __future__ import annotations

from dataclasses import replace

from bgpool.core.events import Instant
from bgpool.core.limits import NOTICE_CHARS, NOTICES, TIMELINE_EVENTS
from bgpool.core.phase import SWITCHING
from bgpool.core.snapshot import Notice, Snapshot, TimelineEntry
from bgpool.core.timeline import HEARD

__all__ = ["add_entry", "add_notice", "note_heard"]


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


def note_heard(before: Snapshot, after: Snapshot, at: Instant) -> Snapshot:
    """*after* with a row that it was heard from the fleet, once in each switchover.

    Args:
        before: What was true before a reading that was heard.
        after: What that reading, and nothing else, has made of it.
        at: When it was taken. A row that ends a switchover is its last one: what is entered then gets none.
    """
    moved = after.phase is not before.phase and after.phase in SWITCHING
    if not moved or any(entry.event == HEARD for entry in after.timeline):
        return after
    return add_entry(after, at, HEARD)
