"""Where a worker meets a process that runs monitors already: a Unix socket in the run directory.

Each side has the kernel say whose process the other one is. Nothing rests on the end of a connection: a child that is
forked meanwhile has a copy of it. So each side says all that it has to say in one message.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgpack

from bgpool.core.limits import HOST_ANSWER_S, HOST_QUEUE, MONITOR_READY_S
from bgpool.errors import SegmentError
from bgpool.monitor.config import MonitorConfig
from bgpool.segment.pending_files import new_pending_file, pending_files_of, remove

__all__ = ["Peer", "Rendezvous", "ask", "leave", "listen"]

#: The largest message, in bytes; the kernel takes about as much.
_BYTES: Final = 200_000
#: What is answered at once, and once it watches or has left; what follows the second is why it does not watch.
_TAKEN: Final = b"taken"
_DONE: Final = b"done:"
#: pid, uid and gid. Source: unix(7).
_CREDENTIALS: Final = struct.Struct("3i")
#: The longest path that an address of a socket takes, in bytes, with its end. Source: unix(7).
_PATH_BYTES: Final = 108


class Rendezvous(NamedTuple):
    """Where processes meet whose monitors are alike.

    Attributes:
        directory: The run directory.
        compatibility_key: See bgpool.monitor.compatibility.
    """

    directory: Path
    compatibility_key: bytes

    @property
    def socket(self) -> Path:
        """The socket's path. It has few digits of the likeness: too few to try guesses of a password against."""
        return self.directory / f"~host-{os.geteuid()}-{self.compatibility_key.hex()[:4]}.sock"

    @property
    def lock(self) -> Path:
        """Held by who starts a process there."""
        return self.socket.with_suffix(".lock")

    def inode(self) -> int:
        """What tells one socket from the next one at the same path; 0 where there is none."""
        try:
            return self.socket.lstat().st_ino
        except OSError:
            return 0


# -- the worker's side -------------------------------------------------------------------------------------------------


def ask(place: Rendezvous, config: MonitorConfig) -> str | None:
    """Have the process at *place* watch *config*, too; waits until it does.

    Returns:
        Empty if it does, or has left again because another one does; why it does not; None where there is nobody who
        takes it.
    """
    try:
        sock = _keep(_make)
    except OSError:
        return None
    try:
        # A process that was stopped has its kernel accept for it, and says nothing.
        sock.settimeout(HOST_ANSWER_S)
        with _address(place.socket) as address:
            sock.connect(address)
        if not _is_ours(sock):
            return None
        sock.send(msgpack.packb((place.compatibility_key, config.dump())))
        return _outcome(sock) if sock.recv(_BYTES) == _TAKEN else None
    except OSError:
        return None
    finally:
        _drop(sock)


def _outcome(sock: socket.socket) -> str | None:
    sock.settimeout(MONITOR_READY_S)
    try:
        said = sock.recv(_BYTES)
    except TimeoutError:
        return f"it did not watch after {MONITOR_READY_S:.0f} s"
    return said.removeprefix(_DONE).decode(errors="replace") if said.startswith(_DONE) else None


def _is_ours(sock: socket.socket) -> bool:
    """Whether the process at the other end is of our user, and is none of another container's.

    In a group's run directory other users can be there, and containers that share one may have users of one number. Of
    a process that is not in our pid namespace, or in one below, the kernel tells no pid.
    """
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(pid > 0 and uid == os.geteuid())


# -- the other side ----------------------------------------------------------------------------------------------------


def listen(place: Rendezvous) -> socket.socket | None:
    """A socket at *place*, in the place of whatever was there; None where that cannot be."""
    pending = new_pending_file(place.socket)
    try:
        sock = _keep(_make)
    except OSError:
        return None
    try:
        for left in pending_files_of(place.socket):
            remove(left)
        # Before it has a name: whatever the umask.
        os.fchmod(sock.fileno(), 0o600)
        with _address(pending.path) as address:
            sock.bind(address)
        sock.listen(HOST_QUEUE)
        sock.setblocking(False)
        # Only now: whoever finds it is not refused.
        pending.path.replace(place.socket)
    except (OSError, SegmentError):
        _drop(sock)
        return None
    return sock


def leave(sock: socket.socket, place: Rendezvous, inode: int) -> None:
    """Close *sock*, and remove its name if that still leads to *inode*."""
    if place.inode() == inode:
        place.socket.unlink(missing_ok=True)
    _drop(sock)


class Peer:
    """A worker that asks for a monitor at a socket, from the other side."""

    def __init__(self, listener: socket.socket, compatibility_key: bytes) -> None:
        """The next one that has connected; only monitors of *compatibility_key* are to be had.

        Raises:
            OSError: There is none, or descriptors have run out.
        """
        self._sock: Final = _keep(lambda: listener.accept()[0])
        self._compatibility_key: Final = compatibility_key
        self._told = False

    def take(self) -> MonitorConfig | None:
        """What is to be watched; None where that is nothing that this process may be asked for."""
        try:
            self._sock.settimeout(HOST_ANSWER_S)
            if not _is_ours(self._sock):
                return None
            compatibility_key, data = msgpack.unpackb(self._sock.recv(_BYTES))
            if compatibility_key != self._compatibility_key:
                return None
            config = MonitorConfig.load(data)
            self._sock.send(_TAKEN)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return config

    def tell(self, reason: str) -> None:
        """Why it is not watched; empty where it is. Hangs up."""
        if not self._told:
            self._told = True
            with contextlib.suppress(OSError):
                self._sock.send(_DONE + reason.encode(errors="replace"))
            _drop(self._sock)


# -- both --------------------------------------------------------------------------------------------------------------

#: Sockets of this process that no child of a fork is to keep.
_open: Final[list[socket.socket]] = []


#: Held while one is made or closed, and while a child is forked: in between it would be one that nobody knows.
_settled: Final = threading.RLock()


def _make() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _keep(make: Callable[[], socket.socket]) -> socket.socket:
    with _settled:
        sock = make()
        _open.append(sock)
    return sock


def _drop(sock: socket.socket) -> None:
    with _settled:
        with contextlib.suppress(ValueError):
            _open.remove(sock)
        sock.close()


def _go_on() -> None:
    # Not acquired where this module was imported during the fork.
    with contextlib.suppress(RuntimeError):
        _settled.release()


def _leave_to_parent() -> None:
    while _open:
        with contextlib.suppress(OSError):
            os.close(_open.pop().detach())
    _go_on()


os.register_at_fork(before=_settled.acquire, after_in_parent=_go_on, after_in_child=_leave_to_parent)


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str | bytes]:
    """What to bind or connect to for *path*, however long that is."""
    plain = os.fsencode(path)
    if len(plain) < _PATH_BYTES:
        yield plain
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
