"""Records in a snapshot for people: the rows of the summary table, and lines for the application's log."""

from __future__ import annotations

from dataclasses import replace

from bgpool.core.events import Instant
from bgpool.core.limits import NOTICE_CHARS, NOTICES, TIMELINE_EVENTS
from bgpool.core.phase import SWITCHING
from bgpool.core.snapshot import Notice, Snapshot, TimelineEntry
from bgpool.core.timeline import HEARD

__all__ = ["add_entry", "add_notice", "note_heard"]


def add_entry(snapshot: Snapshot, at: Instant, event: str, evidence: str = "") -> Snapshot:
    """Return *snapshot* with one more row in its timeline."""
    entry = TimelineEntry(at.mono_ns, at.wall_ns, event, evidence)
    return replace(snapshot, timeline=(*snapshot.timeline, entry)[-TIMELINE_EVENTS:])


def add_notice(snapshot: Snapshot, level: int, logger: str, event: str, text: str, *, once: bool = True) -> Snapshot:
    """Add a log line with *text*; with *once*, only if it is not already among the last lines."""
    text = text[:NOTICE_CHARS]
    if once and any(notice.text == text for notice in snapshot.notices):
        return snapshot
    number = snapshot.notices[-1].number + 1 if snapshot.notices else 1
    notice = Notice(number, level, f"bgpool.{logger}", text, event)
    return replace(snapshot, notices=(*snapshot.notices, notice)[-NOTICES:])


def note_heard(before: Snapshot, after: Snapshot, at: Instant) -> Snapshot:
    """Return *after* with a row that says that the phase came from the fleet, once in each switchover.

    Args:
        before: The snapshot before the reading was received.
        after: The snapshot after that reading, and nothing else, was applied.
        at: The time at which it was applied. The end of a switchover gets no such row, because its own row must be
            last.
    """
    moved = after.phase is not before.phase and after.phase in SWITCHING
    if not moved or any(entry.event == HEARD for entry in after.timeline):
        return after
    return add_entry(after, at, HEARD)
