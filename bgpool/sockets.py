"""What is done to, and asked of, a connection's socket behind the driver's back."""

from __future__ import annotations

import contextlib
import os
import select
import socket

__all__ = ["cut", "has_ended", "identity"]


def identity(fd: int) -> tuple[int, int]:
    """What tells the socket behind *fd* from every other; descriptors are numbers that are used again.

    Raises:
        OSError: *fd* is not open.
    """
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def cut(fd: int, expected: tuple[int, int]) -> bool:
    """Shut the socket *fd* down in both directions, so that whoever waits on it sees its end at once.

    The owner still has the descriptor and closes it; nothing is sent beyond TCP's own FIN. A duplicate is taken
    first and compared with *expected*, because the owner may close, and the number be used again, at any moment.

    Returns:
        Whether the socket was there to be cut.
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
    """Whether nothing can be sent through the socket *fd* any more: it was reset, or shut down in both directions.

    Nothing is read, and no error of the socket is taken away. False under gevent, whose poll does not tell.
    """
    poll = select.poll()
    # POLLERR, POLLHUP and POLLNVAL need not be asked for.
    poll.register(fd, 0)
    return bool(poll.poll(0))
