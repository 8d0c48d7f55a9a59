"""Compatibility of monitors: one process may run two monitors if separate processes would not differ in anything.

A monitor depends on its process: on the environment (certificates, libpq's passwords), the user, the directory, the
network, and on the application's code that makes passwords. Monitors that differ in any of these get separate
processes, as they would without sharing.
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

#: Variables that differ between processes of an application and are irrelevant for a monitor: those of shells and of
#: systemd.
_NOISE: Final = frozenset(
    {
        "_", "PWD", "OLDPWD", "SHLVL",
        "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "MAINPID",
        "MANAGERPID", "MANAGERPIDFDID", "NOTIFY_SOCKET", "SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC",
    }
)  # fmt: skip
_PROCESS: Final = Path("/proc/self")
#: Lines of /proc/self/status.
_RIGHTS: Final = (b"CapEff:", b"NoNewPrivs:", b"Seccomp:")
#: By name: a process that was root's at its start may not list the directory.
_NAMESPACES: Final = ("ns/cgroup", "ns/ipc", "ns/mnt", "ns/net", "ns/pid", "ns/time", "ns/user", "ns/uts")


def compatibility_key(config: MonitorConfig) -> bytes | None:
    """Return a digest that is equal for monitors that may share a process; None if it cannot be determined.

    It depends on the environment, which may contain passwords: 32 bytes for processes of the same user only.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        root = Path("/").stat()
        found = (
            (__version__, sys.version, interpreter(), str(Path.cwd())),
            (os.getresuid(), os.getresgid(), sorted(os.getgroups())),
            sorted((name, value) for name, value in environment().items() if name not in _NOISE),
            # Another container has other namespaces and another root; another service has another control group.
            [str(path.readlink()) for path in map(_PROCESS.joinpath, _NAMESPACES) if os.path.lexists(path)],
            (root.st_dev, root.st_ino, (_PROCESS / "cgroup").read_bytes()),
            # An administrator's limits or priority for one task must not apply to the application's other monitors.
            ((_PROCESS / "limits").read_bytes(), os.getpriority(os.PRIO_PROCESS, 0), _rights()),
            [sorted(_code_of(pickled)) for pickled in _callables_of(config)],
        )
    except OSError:
        return None
    return hashlib.sha256(repr(found).encode("utf-8", "surrogateescape")).digest()


def _rights() -> list[bytes]:
    """Return this process's permissions in the kernel."""
    return [line for line in (_PROCESS / "status").read_bytes().splitlines() if line.startswith(_RIGHTS)]


def _callables_of(config: MonitorConfig) -> Iterator[bytes]:
    yield config.password_callable or b""
    if config.fleet is not None:
        yield config.fleet.password_callable or b""
        yield config.fleet.key_callable or b""


def _code_of(pickled: bytes) -> set[tuple[object, ...]]:
    """Return the functions and classes that *pickled* refers to, and their files; the rest of it is their data.

    A callable that hangs or kills its process affects only monitors with the same functions and classes. A replaced
    file leads to another process, which imports it again.
    """
    if not pickled:
        return set()
    names = _Names(io.BytesIO(pickled))
    try:
        names.load()
    except Exception:
        # Its contents are unknown, so it is compatible only with itself.
        return {(pickled,)}
    return {(module, name, *_file_of(module)) for module, name in names.found}


def _file_of(module: str) -> tuple[object, ...]:
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None:
        return ()
    try:
        found = Path(path).stat()
    except OSError:  # the file is in an archive
        return (path,)
    return path, found.st_mtime_ns, found.st_size


class _Names(pickle.Unpickler):
    """Collects the names that a pickle refers to. Nothing is imported, and no code of the application runs."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.found: Final[set[tuple[str, str]]] = set()

    def find_class(self, module: str, name: str, /) -> Any:
        """Return a class that accepts the state of any object."""
        self.found.add((module, name))
        return _Anything


class _Anything:
    """A replacement for an object of any class."""

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
