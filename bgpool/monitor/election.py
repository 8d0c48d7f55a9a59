"""The election of the monitor: only the process that holds the lock of the newest term may write the segment.

Every tenure has its own lock file, numbered one above the last tenure's. The kernel grants it to one process and
releases it when that process dies. A monitor that is alive but has stopped is not waited for: the next term's lock is
free, and the process that gets it creates a new segment file, so that no reader sees further writes of the old monitor.
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
        term: The term; the segment's header contains it.
        lock: The lock, held until the process ends.
    """

    term: int
    lock: FileLock


def claim(files: RunFiles) -> Tenure | None:
    """Become the monitor, unless there is one.

    If the monitor has fallen silent, waits until it writes a heartbeat, dies, or counts as hung; at most a little
    longer than HEARTBEAT_HUNG_S.

    Returns:
        The tenure; None if another monitor is alive.

    Raises:
        SegmentError: The segment is of a newer version of bgpool, or of another boot while its monitor is alive; or a
            lock file cannot be used.
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
    """Return the term to claim after *term*, for a process that has waited *waited_s* seconds.

    It is never below a term with a pending segment file: that file may still be put in place, and only a higher term
    removes it. A process that holds that term's lock without starting was stopped in between: it is skipped.
    """
    begun = max((pending.term for pending in pending_files_of(files.segment)), default=0)
    return max(term + 1, begun) + int(waited_s // HEARTBEAT_HUNG_S)


def _take(files: RunFiles, term: int, following: int) -> Tenure | None:
    """Claim the tenure *following* that of *term*, unless another process was faster."""
    lock = _try_lock(files.tenure(following))
    if lock is None:
        return None
    # Between the read of the segment and the lock, a whole tenure may have passed.
    if _predecessor(files)[0] != term:
        lock.release()
        return None
    # A process that still holds it is fenced off, and no other process needs it.
    with contextlib.suppress(OSError):
        files.tenure(term).unlink(missing_ok=True)
    return Tenure(following, lock)


def _predecessor(files: RunFiles) -> tuple[int, float]:
    """Return the term of the segment in place, 0 for none, and the age of its heartbeat in seconds.

    Raises:
        SegmentError: It is of another boot, whose locks the kernel would have released, and its monitor is alive. That
            monitor and this one would replace each other forever.
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
    """Return whether the monitor of *term* is gone."""
    return term == 0 or not is_held(files.tenure(term))


def _try_lock(path: Path) -> FileLock | None:
    """Return the lock *path* if it is free; None if another process holds it.

    Raises:
        SegmentError: The file cannot be trusted or created.
    """
    # Imported here, so that only processes in an election import it: its audit hook makes forks from threads fail.
    from filelock import FileLock, Timeout

    os.close(open_checked(path, os.O_RDWR | os.O_CREAT))
    # Not per thread: one thread acquires it for the whole process.
    lock = FileLock(str(path), mode=file_mode(path.parent), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except OSError as error:
        raise refused(f"{path} cannot be locked", error) from None
    return lock
