"""Start a monitor's process from a worker: in its own session, without inheriting anything of the worker.

There is no pipe between the two. A child that another thread of the worker forks at the same time would inherit its
ends, so that a reader would wait for that child. The configuration, which contains a password, is a file without a
name. Errors come back in another file. The end of the started process shows that there is a monitor, or that there will
be none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgpack

from bgpool.core.limits import MONITOR_READY_S, MONITOR_START_S
from bgpool.descriptors import open_descriptors
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.python import environment, interpreter
from bgpool.monitor.rendezvous import Rendezvous
from bgpool.segment.kernel_features import memory_file

__all__ = ["launch"]

#: Not with -m: before Python 3.11 it searches modules in the worker's current directory. The monitor keeps that
#: directory, because certificates, password files and hosts files may have relative paths.
_CODE: Final = """\
import sys
sys.path[:] = filter(None, sys.path)
from bgpool.monitor.__main__ import main
main()
"""
#: The maximum of an error's text that is read, in bytes.
_REASON_BYTES: Final = 4000
#: The interval at which the end of the process is checked if the kernel cannot report it, in seconds.
_POLL_S: Final = 0.02
#: The time to wait for a process that was killed, in seconds.
_KILL_S: Final = 1.0


def launch(config: MonitorConfig, place: Rendezvous | None) -> str:
    """Start a process and wait until its first monitor watches, has exited or has failed.

    Args:
        config: The configuration of that monitor.
        place: The socket at which it accepts others; None for none.

    Returns:
        The reported reason of a failure; empty if there was none.

    Raises:
        OSError: The process cannot be started.
    """
    directory = Path(config.run_dir)
    with _nameless(directory) as given, _nameless(directory) as output:
        data: bytes = msgpack.packb((place.compatibility_key if place is not None else b"", config.dump()))
        while data:
            data = data[os.write(given, data) :]
        os.lseek(given, 0, os.SEEK_SET)
        _wait(_spawn(given, output))
        lines = os.pread(output, _REASON_BYTES, 0).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _spawn(given: int, output: int) -> int:
    """Start a Python process with *given* as standard input and *output* as the other two, and no other files.

    Raises:
        OSError: It cannot be started.
    """
    standard = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate((given, output, output))]
    ours = [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    python = interpreter()
    return os.posix_spawn(
        python,
        [python, "-c", _CODE],
        environment(),
        file_actions=[*standard, *ours],
        setsid=True,
        setsigmask=(),
        # Ignored signals were set by the worker's server for the worker; a monitor must end on them.
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _wait(pid: int) -> None:
    """Wait for the end of *pid*, which limits itself, and kill its whole session if it exceeds the limit."""
    if not _has_ended(pid, MONITOR_READY_S + MONITOR_START_S):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _has_ended(pid, _KILL_S)


def _has_ended(pid: int, timeout_s: float) -> bool:
    """Return whether *pid* ends within *timeout_s* seconds; if so, it is reaped."""
    deadline = time.monotonic() + timeout_s
    _wait_in_the_kernel(pid, timeout_s)
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            # Reaped by the application, or by the kernel if the application ignores SIGCHLD.
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def _wait_in_the_kernel(pid: int, timeout_s: float) -> None:
    """Wait in the kernel for the end of *pid*, if that is supported; otherwise returns early.

    A thread that wakes up fifty times a second requests the interpreter as often. A child of a fork without Python's
    hooks may wait forever if that happens during the fork.
    """
    if sys.platform != "linux":
        return
    # The attribute does not exist if Python was built for an old kernel.
    with contextlib.suppress(AttributeError, OSError), selectors.DefaultSelector() as selector:
        fd = os.pidfd_open(pid)
        try:
            selector.register(fd, selectors.EVENT_READ)
            selector.select(timeout_s)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _nameless(directory: Path) -> Iterator[int]:
    """Yield an unnamed file that no other process can open: in memory, or in *directory*."""
    fd = memory_file()
    if fd is None:
        with tempfile.TemporaryFile(dir=directory) as file:
            fd = os.dup(file.fileno())
    # Above the standard descriptors, which an application may have closed: they would conflict.
    above = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    try:
        yield above
    finally:
        os.close(above)


def _inheritable() -> list[int]:
    """Return the inheritable descriptors, except the standard ones.

    Those above the soft limit, which was lowered after they were opened, are omitted: posix_spawn refuses to close
    them, and the monitor closes them itself.
    """
    found, limit = [], os.sysconf("SC_OPEN_MAX")
    for fd in open_descriptors():
        # The descriptor that was used to read the directory is closed by now.
        with contextlib.suppress(OSError):
            if fd > 2 and (limit < 0 or fd < limit) and os.get_inheritable(fd):
                found.append(fd)
    return found
