"""System name resolution for the benchmarks: a mount namespace in which /etc/hosts is a file of this module.

Other clients resolve names through the system, and no DNS server has the lab's names. A process that has entered the
namespace sees the file as /etc/hosts and uses no other source: a name that is not in the file is unknown at once.
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
"""The size that libc reads at a time. It reads a file of this size in one piece, so no reader sees a part of it."""

_FILLING: Final = "#" * 63 + "\n"
_TRY_TIMEOUT_S: Final = 10.0
_UNKNOWN_AT_ONCE_S: Final = 0.5


class Names:
    """The hosts file, and next to it the switch file that disables all other sources. Used by one thread at a time."""

    def __init__(self, directory: Path) -> None:
        """Create the files in *directory*, with the machine's own names only."""
        self.path: Final = directory / "system-hosts"
        self.path.touch(mode=0o644)
        _switch_file(self.path).write_text("passwd: files\ngroup: files\nhosts: files\n")
        self.publish({})

    def publish(self, entries: Mapping[str, str]) -> None:
        """Map each name to its address, and remove all other names.

        The file is changed in place and in one write. A bind mount keeps its original file, so replacing the file would
        have no effect.

        Raises:
            ValueError: The names do not fit into the file.
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
    """Return the names of *pair*, which follow each step of *director*."""
    names = Names(pair.directory)
    names.publish(pair.hosts.read())
    if director is not None:
        director.on_event.append(lambda _: names.publish(pair.hosts.read()))
    return names


def enter(hosts: Path) -> None:
    """Make this process and its children see *hosts* (`Names.path`) as /etc/hosts.

    The process must have one thread. Without the rights of root it becomes root of a new user namespace.

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
    # Otherwise the mounts below would be visible outside.
    _mount(libc, "none", "/", _MS_PRIVATE_REC)
    _mount(libc, os.fspath(hosts), _HOSTS, _MS_BIND)
    _mount(libc, os.fspath(_switch_file(hosts)), _NSSWITCH, _MS_BIND)


@functools.cache
def available() -> str:
    """Return the reason why a process cannot have its own hosts file here; empty if it can."""
    if sys.platform != "linux":
        return "mount namespaces exist on Linux only"
    if not Path(_NSSWITCH).exists():
        return f"there is no {_NSSWITCH}, without which the system would query DNS for unknown names"
    with tempfile.TemporaryDirectory(prefix="bgpool-names-") as directory:
        names = Names(Path(directory))
        names.publish({"bgpool-known.invalid": "127.1.2.3"})
        command = [sys.executable, "-c", "import benchmarks.hosts as h; h._try()", os.fspath(names.path)]
        try:
            done = subprocess.run(
                command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=_TRY_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"a hosts file in a mount namespace could not be tried: {type(error).__name__}"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or ["a hosts file in a mount namespace does not work"])[-1]


def _try() -> None:
    """Try it in a separate process, and raise an error if it does not work."""
    enter(Path(sys.argv[1]))
    found = socket.gethostbyname("bgpool-known.invalid")
    if found != "127.1.2.3":
        raise RuntimeError(f"a name of the hosts file resolves to {found}")
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
