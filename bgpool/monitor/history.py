"""The timelines of the last switchovers, kept in the run directory for programs to read: the summary table's twin."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Final

from bgpool.core.limits import HISTORY_BYTES, HISTORY_RECORDS
from bgpool.core.phase import SWITCHING, Phase
from bgpool.core.snapshot import Snapshot
from bgpool.core.timeline import zero_ns
from bgpool.plain_errors import SegmentError
from bgpool.segment.paths import RunFiles, create_checked, open_checked

__all__ = ["keep", "read", "record"]

_BEGINNING: Final = {Phase.PREPARATION.name, Phase.IN_PROGRESS.name, Phase.POST.name}


def record(snapshot: Snapshot) -> dict[str, Any] | None:
    """The switchover that *snapshot* tells of, as JSON has it; None while there is none, or none that has ended.

    Returns:
        ``bg_id``; ``outcome``, ``completed`` or ``rolled back``; ``hosts`` with the addresses recorded before;
        ``events``, each with ``at_unix_ns``, ``offset_ms`` as in the summary table, ``event`` and ``evidence``.
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
            for entry in snapshot.timeline
        ],
    }


def keep(files: RunFiles, snapshot: Snapshot) -> None:
    """Write down the switchover that *snapshot* tells of, if any; over what was written of the same one before.

    Raises:
        OSError, SegmentError: It cannot be written.
    """
    new = record(snapshot)
    if new is None:
        return
    others = [old for old in read(files) if _key(old) != _key(new)]
    text = json.dumps([*others, new][-HISTORY_RECORDS:], indent=1)
    draft = files.history.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    fd = create_checked(draft, os.O_WRONLY)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(files.history)


def read(files: RunFiles) -> list[dict[str, Any]]:
    """The last switchovers as `record` makes them, the oldest first; none where there is no file to be trusted."""
    try:
        fd = open_checked(files.history, os.O_RDONLY)
    except (FileNotFoundError, SegmentError):
        return []
    with os.fdopen(fd, "rb") as file:
        data = file.read(HISTORY_BYTES + 1)
    found: object = None
    if len(data) <= HISTORY_BYTES:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(data)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _key(item: dict[str, Any]) -> object:
    """What tells one switchover from another: when its first event was."""
    events = item.get("events")
    first = events[0] if isinstance(events, list) and events else None
    return first.get("at_unix_ns") if isinstance(first, dict) else None
