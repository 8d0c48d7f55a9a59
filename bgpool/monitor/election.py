"""Who writes the segment: the process that holds the lock of the newest term.

Every tenure has a lock file of its own, numbered one above the tenure before. The kernel lets one process have it and
takes it back when that process dies. A monitor that lives but has stopped is not waited for: the next term's lock is
free, and whoever gets it makes a new segment file, so that nothing the old one still writes is ever read.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Final

from bgpool.core.limits import HEARTBEAT_HUNG_S, HEARTBEAT_STALE_S
from bgpool.core.snapshot import Snapshot
from bgpool.errors import SegmentError
from bgpool.segment.layout import FutureFormat
from bgpool.segment.locks import FileLock, try_lock
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import SegmentMap

__all__ = ["Tenure", "claim"]

_RETRY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Tenure:
    """The right to write a segment.

    Attributes:
        term: Which tenure; the segment's header carries it.
        snapshot: What the monitor before knew, to go on from.
        lock: Held until the process ends.
    """

    term: int
    snapshot: Snapshot
    lock: FileLock


def claim(files: RunFiles, bg_id: str) -> Tenure | None:
    """Become the monitor, unless there is one.

    Waits for a monitor that has fallen silent to speak again, to die, or to count as hung; at most
    HEARTBEAT_HUNG_S and a little.

    Returns:
        The tenure; None if another monitor lives.

    Raises:
        SegmentError: The segment is of a newer version of bgpool, or a lock's file cannot be used.
    """
    began = time.monotonic()
    while (waited_s := time.monotonic() - began) < 2 * HEARTBEAT_HUNG_S:
        old = _mapped(files)
        term = old.header.term if old is not None else 0
        age_s = old.heartbeat_age_s() if old is not None else float("inf")
        if age_s < HEARTBEAT_STALE_S and not _is_free(files, term):
            return None
        if age_s > HEARTBEAT_HUNG_S or _is_free(files, term):
            # Whoever has the next term's lock and does not begin was stopped in between: it is passed over.
            tenure = _take(files, bg_id, term, term + 1 + int(waited_s // HEARTBEAT_HUNG_S))
            if tenure is not None:
                return tenure
        time.sleep(_RETRY_S)
    return None


def _take(files: RunFiles, bg_id: str, term: int, following: int) -> Tenure | None:
    """The tenure *following* that of *term*, unless somebody was faster."""
    lock = try_lock(files.tenure(following))
    if lock is None:
        return None
    # Between the look at the segment and the lock, a whole tenure may have come and gone.
    old = _mapped(files)
    if (old.header.term if old is not None else 0) != term:
        lock.release()
        return None
    # Whoever may still hold it is fenced off, and nobody else has a reason to ask for it.
    with contextlib.suppress(OSError):
        files.tenure(term).unlink(missing_ok=True)
    return Tenure(following, _last_snapshot(old, bg_id), lock)


def _is_free(files: RunFiles, term: int) -> bool:
    """Whether the monitor of *term* is gone."""
    if term == 0:
        return True
    lock = try_lock(files.tenure(term))
    if lock is None:
        return False
    lock.release()
    return True


def _mapped(files: RunFiles) -> SegmentMap | None:
    """The segment in place; None if there is none or it is not to be trusted, which a new monitor puts right."""
    try:
        return SegmentMap(files)
    except FutureFormat:
        # Two versions that replace each other's segment would leave nobody with a monitor.
        raise
    except (FileNotFoundError, SegmentError):
        return None


def _last_snapshot(old: SegmentMap | None, bg_id: str) -> Snapshot:
    try:
        found = old.read() if old is not None else None
    except SegmentError:
        found = None
    return found[1] if found is not None and found[1].bg_id == bg_id else Snapshot(bg_id)
