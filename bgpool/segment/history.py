"""The timelines of the last switchovers, kept in the run directory for programs: the machine-readable summary table."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from bgpool.base_errors import SegmentError
from bgpool.core.limits import HISTORY_BYTES, HISTORY_RECORDS
from bgpool.core.phase import SWITCHING, Phase
from bgpool.core.snapshot import Snapshot, TimelineEntry
from bgpool.core.timeline import CREATED_AGAIN, HELD_BY_HAND, HOLD_OVER, zero_ns
from bgpool.logs import log_fields
from bgpool.segment.paths import RunFiles, create_checked, open_checked
from bgpool.segment.pending_files import new_pending_file, pending_files_of, remove

__all__ = ["OUTCOMES", "History", "keep", "look", "read", "record", "totals"]

#: The monitor's logger, because only the monitor keeps a history.
_logger: Final = logging.getLogger("bgpool.monitor")

#: The possible outcomes of a switchover.
OUTCOMES: Final = ("completed", "rolled back")

_BEGINNING: Final = {Phase.PREPARATION.name, Phase.IN_PROGRESS.name, Phase.POST.name}


def record(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the switchover in *snapshot* as a JSON object; None if there is none, or none that has ended.

    Returns:
        ``bg_id``; ``outcome``, ``completed`` or ``rolled back``; ``hosts`` with the addresses recorded before;
            ``events``, each with ``at_unix_ns``, ``offset_ms`` as in the summary table, ``event`` and ``evidence``.
            After it was kept also ``totals``: the number of switchovers with each outcome.
    """
    happened = {entry.event for entry in snapshot.timeline}
    if snapshot.phase in SWITCHING or not happened & _BEGINNING:
        return None
    zero = zero_ns(snapshot.timeline)
    return {
        "bg_id": snapshot.bg_id,
        "outcome": "rolled back" if snapshot.rolled_back else "completed",
        "hosts": [
            {"name": host.name, "port": host.port, "colour": host.role.colour, "addresses": list(host.addresses)}
            for host in snapshot.hosts
        ],
        "events": [
            {
                "at_unix_ns": entry.wall_ns,
                "offset_ms": round((entry.mono_ns - zero) / 1e6, 3),
                "event": entry.event,
                "evidence": entry.evidence,
            }
            for entry in _story(snapshot.timeline)
        ],
    }


def _story(timeline: Sequence[TimelineEntry]) -> list[TimelineEntry]:
    """Return *timeline* without an operator's holds after the end, which belong to no switchover."""
    end = max(
        (n for n, entry in enumerate(timeline) if entry.event in (Phase.COMPLETED.name, CREATED_AGAIN)), default=0
    )
    return [entry for n, entry in enumerate(timeline) if n <= end or entry.event not in (HELD_BY_HAND, HOLD_OVER)]


def keep(files: RunFiles, snapshot: Snapshot, may_write: Callable[[], bool] = lambda: True) -> None:
    """Write the switchover in *snapshot*, if any, to the history, in place of an earlier record of the same one.

    Args:
        files: The files of the deployment.
        snapshot: The current snapshot.
        may_write: Returns whether the caller is still the monitor; if not, nothing is written.

    Raises:
        OSError, SegmentError: It cannot be written.
    """
    new = record(snapshot)
    if new is None:
        return
    pending = new_pending_file(files.history)
    fd = create_checked(pending.path, os.O_WRONLY)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            # A monitor that was stopped and resumes must not replace newer data by old. If it is stopped before this
            # check, the check fails. If it is stopped after it, the later monitor finds and removes its pending file,
            # so that the replacement fails. In the worst case it resumes at that very time and removes the later
            # monitor's pending file: the later monitor then reports that, and writes the record with the next entry.
            if not may_write():
                return
            for other in pending_files_of(files.history):
                if other != pending:
                    remove(other)
            past = look(files)
            if past.problem:
                extra = log_fields("history_replaced", bg_id=snapshot.bg_id, phase=snapshot.phase)
                _logger.warning("%s; the file is replaced", past.problem, extra=extra)
            others = [old for old in past.records if _key(old) != _key(new)]
            _count(new, others)
            json.dump([*others, new][-HISTORY_RECORDS:], file, indent=1)
        pending.path.replace(files.history)
    finally:
        remove(pending)


class History(NamedTuple):
    """The content of a history file.

    Attributes:
        records: The last switchovers in the format of `record`, the oldest first.
        problem: The reason for which the file, or a part of it, cannot be used; empty if there is no problem, or no
            file.
    """

    records: list[dict[str, Any]]
    problem: str = ""


def read(files: RunFiles) -> list[dict[str, Any]]:
    """Return the last switchovers in the format of `record`, the oldest first; none without a trusted file."""
    return look(files).records


def look(files: RunFiles) -> History:
    """Return the same, and the problem of the file."""
    try:
        fd = open_checked(files.history, os.O_RDONLY)
    except FileNotFoundError:
        return History([])
    except SegmentError as error:
        return History([], f"the history is refused: {error}")
    with os.fdopen(fd, "rb") as file:
        data = file.read(HISTORY_BYTES + 1)
    damaged = f"the history is damaged: {files.history}"
    if len(data) > HISTORY_BYTES:
        return History([], f"{damaged} has more than {HISTORY_BYTES} bytes")
    found: object = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(data)
    if not isinstance(found, list):
        return History([], f"{damaged} is no list in JSON")
    records = [item for item in found if isinstance(item, dict)]
    lost = len(found) - len(records)
    return History(records, f"{damaged} has {lost} items of {len(found)} that are no records" if lost else "")


def _count(new: dict[str, Any], before: list[dict[str, Any]]) -> None:
    """Add the number of switchovers with each outcome to *new*, including itself, because older records are dropped."""
    counted = totals(before)
    new["totals"] = {**counted, new["outcome"]: counted.get(new["outcome"], 0) + 1}


def totals(records: list[dict[str, Any]]) -> dict[str, int]:
    """Return the number of switchovers by outcome since the run directory was created, from the last of *records*."""
    found = records[-1].get("totals") if records else None
    counts = found if isinstance(found, dict) else {}
    return {name: counts[name] for name in OUTCOMES if isinstance(counts.get(name), int)}


def _key(item: dict[str, Any]) -> object:
    """Return the identity of a switchover: the time of its first event."""
    events = item.get("events")
    first = events[0] if isinstance(events, list) and events else None
    return first.get("at_unix_ns") if isinstance(first, dict) else None
