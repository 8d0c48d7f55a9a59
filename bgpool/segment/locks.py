"""Locks that are taken or not, never waited for, and that the kernel takes back at the end of their process."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from bgpool.segment.paths import file_mode, open_checked, refused

__all__ = ["FileLock", "try_lock"]


def try_lock(path: Path) -> FileLock | None:
    """The lock *path* if it is free, held until it is released or the process ends; None if another has it.

    Raises:
        SegmentError: The file is not to be trusted, or cannot be made.
    """
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
