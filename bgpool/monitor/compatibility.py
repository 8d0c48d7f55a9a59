"""What makes two monitors alike, so that one process may run both: whatever their own processes would have in common.

A monitor depends on its process: on the environment (certificates, passwords of libpq's), the user, the directory, the
network that it is in, and on the application's code that makes passwords. Monitors that differ in anything get
processes of their own, which is what each would have if there were no sharing at all.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bgpool._version import __version__
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.python import environment, interpreter

__all__ = ["compatibility_key"]

#: Variables that differ from one process of an application to the next and mean nothing to a monitor: of shells, and
#: of systemd's.
_NOISE: Final = frozenset(
    {
        "_", "PWD", "OLDPWD", "SHLVL",
        "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "MAINPID",
        "MANAGERPID", "MANAGERPIDFDID", "NOTIFY_SOCKET", "SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC",
    }
)  # fmt: skip
_PROCESS: Final = Path("/proc/self")
#: Lines of its status.
_RIGHTS: Final = (b"CapEff:", b"NoNewPrivs:", b"Seccomp:")
#: By name: a process that was root's when it began may not list the directory.
_NAMESPACES: Final = ("ns/cgroup", "ns/ipc", "ns/mnt", "ns/net", "ns/pid", "ns/time", "ns/user", "ns/uts")


def compatibility_key(config: MonitorConfig) -> bytes | None:
    """A digest that is the same for monitors which may share a process; None where that cannot be told.

    It is made of the environment, in which there may be passwords: 32 bytes for the process's own user alone.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        root = Path("/").stat()
        found = (
            (__version__, sys.version, interpreter(), str(Path.cwd())),
            (os.getresuid(), os.getresgid(), sorted(os.getgroups())),
            sorted((name, value) for name, value in environment().items() if name not in _NOISE),
            # Another container has other namespaces and another root; another service, another control group.
            [str(path.readlink()) for path in map(_PROCESS.joinpath, _NAMESPACES) if os.path.lexists(path)],
            (root.st_dev, root.st_ino, (_PROCESS / "cgroup").read_bytes()),
            # A task that an administrator has limited, or given less time, does not do so to the application.
            ((_PROCESS / "limits").read_bytes(), os.getpriority(os.PRIO_PROCESS, 0), _rights()),
            [sorted(_code_of(pickled)) for pickled in _callables_of(config)],
        )
    except OSError:
        return None
    return hashlib.sha256(repr(found).encode("utf-8", "surrogateescape")).digest()


def _rights() -> list[bytes]:
    """What the kernel lets this process do."""
    return [line for line in (_PROCESS / "status").read_bytes().splitlines() if line.startswith(_RIGHTS)]


def _callables_of(config: MonitorConfig) -> Iterator[bytes]:
    yield config.password_callable or b""
    if config.fleet is not None:
        yield config.fleet.password_callable or b""
        yield config.fleet.key_callable or b""


def _code_of(pickled: bytes) -> set[tuple[object, ...]]:
    """The functions and classes that *pickled* is made of, and their files; whatever else is in it is their data.

    One that hangs or kills its process does so to those alone that are made of the same ones. A file that was replaced
    makes another process, in which it is imported anew.
    """
    if not pickled:
        return set()
    names = _Names(io.BytesIO(pickled))
    try:
        names.load()
    except Exception:
        # Nothing is known of it but itself.
        return {(pickled,)}
    return {(module, name, *_file_of(module)) for module, name in names.found}


def _file_of(module: str) -> tuple[object, ...]:
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None:
        return ()
    try:
        found = Path(path).stat()
    except OSError:  # in an archive
        return (path,)
    return path, found.st_mtime_ns, found.st_size


class _Names(pickle.Unpickler):
    """Finds out what a pickle refers to. Nothing is imported, and nothing of the application's runs."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.found: Final[set[tuple[str, str]]] = set()

    def find_class(self, module: str, name: str, /) -> Any:
        """Something that takes whatever the object would."""
        self.found.add((module, name))
        return _Anything


class _Anything:
    """In place of an object of any class."""

    def __new__(cls, *_args: object, **_options: object) -> _Anything:
        return super().__new__(cls)

    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _item: object) -> None:
        pass

    extend = add = update = append
