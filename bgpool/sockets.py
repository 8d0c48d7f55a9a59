"""Operations on a connection's socket that bypass the driver."""

from __future__ import annotations

import contextlib
import os
import select
import socket

__all__ = ["cut", "has_ended", "identity"]


def identity(fd: int) -> tuple[int, int]:
    """Return the identity of the socket of *fd*. A descriptor is none, because its number is reused.

    Raises:
        OSError: *fd* is not open.
    """
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def cut(fd: int, expected: tuple[int, int]) -> bool:
    """Shut down the socket *fd* in both directions, so that a thread that waits on it returns immediately.

    The owner keeps the descriptor and closes it; only TCP's FIN is sent. The descriptor is duplicated first and the
    duplicate compared with *expected*, because the owner may close it, and the number be reused, at any time.

    Returns:
        True if the expected socket was still open.
    """
    try:
        duplicate = os.dup(fd)
    except OSError:
        return False
    try:
        if identity(duplicate) != expected:
            return False
        with socket.socket(fileno=os.dup(duplicate)) as sock, contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        return True
    except OSError:
        return False
    finally:
        os.close(duplicate)


def has_ended(fd: int) -> bool:
    """Return whether the socket *fd* can no longer send: it was reset, or shut down in both directions.

    Reads no data and leaves the socket's pending error in place. Always False under gevent, whose poll does not show
    it.
    """
    poll = select.poll()
    # POLLERR, POLLHUP and POLLNVAL are always reported.
    poll.register(fd, 0)
    return bool(poll.poll(0))
