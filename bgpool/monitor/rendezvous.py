"""The rendezvous of a worker with a process that already runs monitors: a Unix socket in the run directory.

Each side gets the other's credentials from the kernel. The protocol does not rely on the end of a connection, because a
child that is forked at the same time has a copy of it. So each side sends everything in one message.
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

#: The largest message in bytes, close to the kernel's limit.
_BYTES: Final = 200_000
#: The answer that is sent immediately, and again once it watches or has exited; the second is followed by the reason of
#: a failure.
_TAKEN: Final = b"taken"
_DONE: Final = b"done:"
#: pid, uid and gid. Source: unix(7).
_CREDENTIALS: Final = struct.Struct("3i")
#: The longest path of a socket address in bytes, including the terminator. Source: unix(7).
_PATH_BYTES: Final = 108


class Rendezvous(NamedTuple):
    """The rendezvous of processes whose monitors are compatible.

    Attributes:
        directory: The run directory.
        compatibility_key: See bgpool.monitor.compatibility.
    """

    directory: Path
    compatibility_key: bytes

    @property
    def socket(self) -> Path:
        """The socket's path. It has few digits of the compatibility key: too few to verify guesses of a password."""
        return self.directory / f"~host-{os.geteuid()}-{self.compatibility_key.hex()[:4]}.sock"

    @property
    def lock(self) -> Path:
        """The path of the lock that a process holds while it starts another one there."""
        return self.socket.with_suffix(".lock")

    def inode(self) -> int:
        """Return the identity of the socket at the path; 0 if there is none."""
        try:
            return self.socket.lstat().st_ino
        except OSError:
            return 0


# -- the worker's side -------------------------------------------------------------------------------------------------


def ask(place: Rendezvous, config: MonitorConfig) -> str | None:
    """Make the process at *place* watch *config* as well; waits until it does.

    Returns:
        Empty if it does, or has exited because another monitor does; the reason if it does not; None if no process
            accepts it.
    """
    try:
        sock = _keep(_make)
    except OSError:
        return None
    try:
        # If a process was stopped, the kernel accepts the connection for it, but it never answers.
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
    """Return whether the process at the other end belongs to the same user and to no other container.

    In a group's run directory other users may be present, and containers that share one may have users with equal ids.
    The kernel reports no pid for a process that is not in this pid namespace or in one below.
    """
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(pid > 0 and uid == os.geteuid())


# -- the monitors' side ------------------------------------------------------------------------------------------------


def listen(place: Rendezvous) -> socket.socket | None:
    """Return a socket at *place*, which replaces an existing one; None if that is not possible."""
    pending = new_pending_file(place.socket)
    try:
        sock = _keep(_make)
    except OSError:
        return None
    try:
        for left in pending_files_of(place.socket):
            remove(left)
        # Before it has a name: independent of the umask.
        os.fchmod(sock.fileno(), 0o600)
        with _address(pending.path) as address:
            sock.bind(address)
        sock.listen(HOST_QUEUE)
        sock.setblocking(False)
        # Put it in place only now, so that no client is refused.
        pending.path.replace(place.socket)
    except (OSError, SegmentError):
        _drop(sock)
        return None
    return sock


def leave(sock: socket.socket, place: Rendezvous, inode: int) -> None:
    """Close *sock*, and remove its path if that still leads to *inode*."""
    if place.inode() == inode:
        place.socket.unlink(missing_ok=True)
    _drop(sock)


class Peer:
    """A worker that requests a monitor at a socket; the monitors' side."""

    def __init__(self, listener: socket.socket, compatibility_key: bytes) -> None:
        """Accept the next connection; only monitors of *compatibility_key* are allowed.

        Raises:
            OSError: There is no connection, or descriptors have run out.
        """
        self._sock: Final = _keep(lambda: listener.accept()[0])
        self._compatibility_key: Final = compatibility_key
        self._told = False

    def take(self) -> MonitorConfig | None:
        """Return the configuration to watch; None if the request is not allowed in this process."""
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
        """Send the reason for which it is not watched, empty if it is, and close the connection."""
        if not self._told:
            self._told = True
            with contextlib.suppress(OSError):
                self._sock.send(_DONE + reason.encode(errors="replace"))
            _drop(self._sock)


# -- both sides --------------------------------------------------------------------------------------------------------

#: Sockets of this process that a forked child must close.
_open: Final[list[socket.socket]] = []


#: Held while a socket is created or closed, and during a fork: in between, no object would refer to the socket.
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
    # Not acquired if this module was imported during the fork.
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
    """Yield an address to bind or connect to for *path*, of any length."""
    plain = os.fsencode(path)
    if len(plain) < _PATH_BYTES:
        yield plain
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
