"""System name resolution of our own: a mount namespace in which /etc/hosts is a file that we write.

Peers ask the system for addresses, and a lab's names are in nobody's DNS. A process that has entered such a namespace
sees the file for /etc/hosts and asks nothing else: a name that is not in it is unknown at once.
"""

from __future__ import annotations

import ctypes
import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bgpool.lab import Director, Pair

__all__ = ["Names", "available", "enter", "names_of"]

_HOSTS: Final = "/etc/hosts"
_NSSWITCH: Final = "/etc/nsswitch.conf"
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_MS_BIND: Final = 0x1000
_MS_PRIVATE_REC: Final = 1 << 18 | 0x4000

_FILE_BYTES: Final = 4096
"""What libc reads at a time: a file of this size is read in one piece, so nobody sees a part of it."""

_FILLING: Final = "#" * 63 + "\n"
_TRY_TIMEOUT_S: Final = 10.0
_UNKNOWN_AT_ONCE_S: Final = 0.5


class Names:
    """The file, and beside it the one that says that nothing else is asked. Used by one thread at a time."""

    def __init__(self, directory: Path) -> None:
        """Make the files in *directory*, with no names but the machine's own."""
        self.path: Final = directory / "system-hosts"
        self.path.touch(mode=0o644)
        _switch_file(self.path).write_text("passwd: files\ngroup: files\nhosts: files\n")
        self.publish({})

    def publish(self, entries: Mapping[str, str]) -> None:
        """Let each name lead to its address, and no others.

        In place and in one write: a bind mount stays with the file that it was made of, so replacing it would not do.

        Raises:
            ValueError: More than the file can hold.
        """
        lines = [("127.0.0.1", "localhost"), ("127.0.0.1", socket.gethostname())]
        lines += [(address, name) for name, address in entries.items()]
        text = "".join(f"{address}\t{name}\n" for address, name in lines)
        if len(text) > _FILE_BYTES:
            raise ValueError(f"{len(entries)} names are more than {_FILE_BYTES} bytes")
        left = _FILE_BYTES - len(text)
        text += "\n" * (left % len(_FILLING)) + _FILLING * (left // len(_FILLING))
        fd = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(fd, text.encode("ascii"), 0)
        finally:
            os.close(fd)


def names_of(pair: Pair, director: Director | None = None) -> Names:
    """The names of *pair* as they are now, and as they become with each step of *director*."""
    names = Names(pair.directory)
    names.publish(pair.hosts.read())
    if director is not None:
        director.on_event.append(lambda _: names.publish(pair.hosts.read()))
    return names


def enter(hosts: Path) -> None:
    """Have this process, and those that it starts, see *hosts* (`Names.path`) as /etc/hosts.

    For a process of one thread. Without the rights of root it is made root of a user namespace of its own.

    Raises:
        OSError: The system does not allow it.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = _CLONE_NEWNS if uid == 0 else _CLONE_NEWNS | _CLONE_NEWUSER
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.unshare, "unshare", ctypes.c_int(flags))
    if flags & _CLONE_NEWUSER:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    # Otherwise the mounts below would show outside.
    _mount(libc, "none", "/", _MS_PRIVATE_REC)
    _mount(libc, os.fspath(hosts), _HOSTS, _MS_BIND)
    _mount(libc, os.fspath(_switch_file(hosts)), _NSSWITCH, _MS_BIND)


@functools.cache
def available() -> str:
    """Why there can be no names of our own here; empty where there can."""
    if sys.platform != "linux":
        return "mount namespaces are Linux's"
    if not Path(_NSSWITCH).exists():
        return f"there is no {_NSSWITCH}, without which unknown names would be asked of DNS"
    with tempfile.TemporaryDirectory(prefix="bgpool-names-") as directory:
        names = Names(Path(directory))
        names.publish({"bgpool-known.invalid": "127.1.2.3"})
        command = [sys.executable, "-c", "import benchmarks.hosts as h; h._try()", os.fspath(names.path)]
        try:
            done = subprocess.run(
                command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=_TRY_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"names of our own could not be tried: {type(error).__name__}"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or ["names of our own do not work, and nothing says why"])[-1]


def _try() -> None:
    """Whether it works, in a process of its own: raises what is wrong."""
    enter(Path(sys.argv[1]))
    found = socket.gethostbyname("bgpool-known.invalid")
    if found != "127.1.2.3":
        raise RuntimeError(f"a name of our own leads to {found}")
    began_s = time.monotonic()
    try:
        socket.getaddrinfo("bgpool-unknown.invalid", 1)
    except socket.gaierror:
        if time.monotonic() - began_s > _UNKNOWN_AT_ONCE_S:
            raise RuntimeError("an unknown name is not unknown at once") from None
        return
    raise RuntimeError("an unknown name is known")


def _switch_file(hosts: Path) -> Path:
    return hosts.with_name("system-nsswitch.conf")


def _mount(libc: ctypes.CDLL, source: str, target: str, flags: int) -> None:
    what = f"mount on {target}"
    _call(libc.mount, what, source.encode(), target.encode(), None, ctypes.c_ulong(flags), None)


def _call(function: ctypes._NamedFuncPointer, what: str, *arguments: object) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
