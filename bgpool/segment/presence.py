"""Who is there: a shared lock per process that uses a bg_id. The kernel releases it, whatever happens."""

from __future__ import annotations

import fcntl
import os

from bgpool.segment.paths import RunFiles, open_checked

__all__ = ["Presence", "anybody_present"]


class Presence:
    """A shared lock on the presence file, from construction to close() or the end of the process."""

    def __init__(self, files: RunFiles) -> None:
        """Be present.

        Raises:
            SegmentError: The file is not to be trusted.
            BlockingIOError: The monitor is looking at the file at this very moment; try again.
        """
        self._fd = open_checked(files.presence, os.O_RDWR | os.O_CREAT)
        try:
            # Never wait: a monitor that was stopped while it looked must not stop a worker.
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise

    def is_in_place(self, files: RunFiles) -> bool:
        """Whether the path still leads to the locked file; if not, nobody can see that we are here."""
        try:
            return os.path.samestat(os.fstat(self._fd), files.presence.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Be gone. In a forked child this closes the inherited descriptor; the parent stays present."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def anybody_present(files: RunFiles) -> bool:
    """Whether a process on this host uses the bg_id of *files*."""
    try:
        fd = open_checked(files.presence, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
