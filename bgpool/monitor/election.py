"""Who writes the segment: the process that holds the lock of the newest term.

Every tenure has a lock file of its own, numbered one above the tenure before. The kernel lets one process have it and
takes it back when that process dies. A monitor that lives but has stopped is not waited for: the next term's lock is
free, and whoever gets it makes a new segment file, so that nothing the old one still writes is ever read.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bgpool.core.limits import HEARTBEAT_HUNG_S, HEARTBEAT_STALE_S
from bgpool.errors import SegmentError
from bgpool.segment.locks import is_held
from bgpool.segment.paths import RunFiles, file_mode, open_checked, refused
from bgpool.segment.pending_files import pending_files_of
from bgpool.segment.reader import AnotherBoot, trusted_map

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = ["Tenure", "claim"]

_RETRY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Tenure:
    """The right to write a segment.

    Attributes:
        term: Which tenure; the segment's header carries it.
        lock: Held until the process ends.
    """

    term: int
    lock: FileLock


def claim(files: RunFiles) -> Tenure | None:
    """Become the monitor, unless there is one.

    Waits for a monitor that has fallen silent to speak again, to die, or to count as hung; at most
    HEARTBEAT_HUNG_S and a little.

    Returns:
        The tenure; None if another monitor lives.

    Raises:
        SegmentError: The segment is of a newer version of bgpool, or of another boot and its monitor lives; or a lock's
            file cannot be used.
    """
    began = time.monotonic()
    while (waited_s := time.monotonic() - began) < 2 * HEARTBEAT_HUNG_S:
        term, age_s = _predecessor(files)
        if age_s < HEARTBEAT_STALE_S and not _is_free(files, term):
            return None
        if age_s > HEARTBEAT_HUNG_S or _is_free(files, term):
            tenure = _take(files, term, _following(files, term, waited_s))
            if tenure is not None:
                return tenure
        time.sleep(_RETRY_S)
    return None


def _following(files: RunFiles, term: int, waited_s: float) -> int:
    """The term to ask for after *term*, by somebody who has waited so long.

    Never below one that has a draft: it may be put in place, and is removed by a higher term only. Whoever has that
    term's lock and does not begin was stopped in between: it is passed over.
    """
    begun = max((pending.term for pending in pending_files_of(files.segment)), default=0)
    return max(term + 1, begun) + int(waited_s // HEARTBEAT_HUNG_S)


def _take(files: RunFiles, term: int, following: int) -> Tenure | None:
    """The tenure *following* that of *term*, unless somebody was faster."""
    lock = _try_lock(files.tenure(following))
    if lock is None:
        return None
    # Between the look at the segment and the lock, a whole tenure may have come and gone.
    if _predecessor(files)[0] != term:
        lock.release()
        return None
    # Whoever may still hold it is fenced off, and nobody else has a reason to ask for it.
    with contextlib.suppress(OSError):
        files.tenure(term).unlink(missing_ok=True)
    return Tenure(following, lock)


def _predecessor(files: RunFiles) -> tuple[int, float]:
    """The term of the segment in place, 0 for none, and the age of its last sign of life in seconds.

    Raises:
        SegmentError: It is of another boot, whose locks the kernel would have released, and its monitor lives: that
            monitor and ours would replace each other without end.
    """
    try:
        old = trusted_map(files)
    except AnotherBoot as error:
        term, pid = error.header.term, error.header.pid
        if _is_free(files, term):
            return term, float("inf")
        raise SegmentError(
            f"{error}, and its monitor (pid {pid}) lives: processes that do not share a boot and a time namespace "
            "need run directories of their own, see BGPOOL_RUN_DIR"
        ) from None
    return (old.header.term, old.heartbeat_age_s()) if old is not None else (0, float("inf"))


def _is_free(files: RunFiles, term: int) -> bool:
    """Whether the monitor of *term* is gone."""
    return term == 0 or not is_held(files.tenure(term))


def _try_lock(path: Path) -> FileLock | None:
    """The lock *path* if it is free; None if another process has it.

    Raises:
        SegmentError: The file is not to be trusted, or cannot be made.
    """
    # Here, so that only a process that runs for election imports it: its audit hook makes forks from threads fail.
    from filelock import FileLock, Timeout

    os.close(open_checked(path, os.O_RDWR | os.O_CREAT))
    # Not per thread: it is taken by one thread and belongs to the process.
    lock = FileLock(str(path), mode=file_mode(path.parent), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except OSError as error:
        raise refused(f"{path} cannot be locked", error) from None
    return lock
