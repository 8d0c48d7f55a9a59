"""Non-blocking file locks, which the kernel releases when their process ends.

flock(2) is called directly. Importing filelock installs an audit hook with which ``os.fork`` raises RuntimeError in one
thread while another thread is forking. A worker is the application's process, and may fork at any time. A filelock lock
on the same file and one of these exclude each other: both use flock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path
from typing import Final

from bgpool.descriptors import open_descriptors
from bgpool.segment.paths import identity_of, leads_to, open_checked, refused

__all__ = ["Lock", "is_held", "leave_to_parent", "try_lock"]


class Lock:
    """A lock that this process holds until release(), until the object is collected, or until the process ends.

    A lock belongs to the open file description, which a forked child shares with its parent. So the child's descriptor
    is closed at the fork: the child does not hold the lock, and does not keep it alive after its parent.
    """

    def __init__(self, path: Path) -> None:
        """Create a lock on *path* that is not held yet; see try_lock()."""
        self._path: Final = path
        self._fd = -1
        _locks.add(self)

    def __repr__(self) -> str:
        return f"<Lock {self._path} {'held' if self._fd >= 0 else 'released'}>"

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock. Repeated calls have no effect."""
        if self._fd < 0:
            return
        _unsettled[id(self)] = self._path
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # Closed, never unlocked: LOCK_UN in a forked child would release the parent's lock.
            os.close(fd)
        _unsettled.pop(id(self), None)

    def is_in_place(self) -> bool:
        """True if the path still leads to the locked file; if not, another process can lock the path."""
        try:
            return self._fd >= 0 and leads_to(self._path, identity_of(self._fd))
        except OSError:
            return False

    def take(self, flags: int, kind: int) -> bool:
        """Open the file with *flags* and lock it, with *kind* LOCK_EX or LOCK_SH. Return whether it was free.

        Raises:
            FileNotFoundError: The file does not exist, and *flags* are without O_CREAT.
            SegmentError: The file cannot be trusted, created or locked.
        """
        _unsettled[id(self)] = self._path
        try:
            self._fd = open_checked(self._path, flags)
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except FileNotFoundError:
            raise
        except OSError as error:
            self.release()
            raise refused(f"{self._path} cannot be locked", error) from None
        finally:
            _unsettled.pop(id(self), None)
        return True


_locks: Final[weakref.WeakSet[Lock]] = weakref.WeakSet()
#: Paths that are being opened or closed. A child that is forked between the system call and the assignment of its
#: result, or between the assignment and the close, inherits a descriptor that no object refers to.
_unsettled: Final[dict[int, Path]] = {}


def try_lock(path: Path) -> Lock | None:
    """Return the lock on *path*, held until release or the process's end; None if it is held, even by this process.

    Raises:
        SegmentError: The file cannot be trusted, created or locked.
    """
    lock = Lock(path)
    return lock if lock.take(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) else None


def is_held(path: Path) -> bool:
    """Return whether any process, including this one, holds the lock on *path*; False if the file does not exist.

    Takes the lock briefly in shared mode, so that concurrent callers do not mistake each other for a holder.

    Raises:
        SegmentError: See try_lock().
    """
    lock = Lock(path)
    try:
        return not lock.take(os.O_RDONLY, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    finally:
        lock.release()


def leave_to_parent() -> None:
    """In a forked child, close all descriptors of the parent's locks. Called by Python's fork hook; may be repeated."""
    for lock in list(_locks):
        lock.release()
    for path in _unsettled.values():
        _close_all(path)
    _unsettled.clear()


def _close_all(path: Path) -> None:
    """Close all descriptors of the file at *path*."""
    with contextlib.suppress(OSError):
        wanted = path.stat()
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in open_descriptors():
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(fd), wanted):
                    # Replaced instead of closed: the number stays in use, in case an object still closes it.
                    os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)


os.register_at_fork(after_in_child=leave_to_parent)
