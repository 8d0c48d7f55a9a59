"""Starting a monitor's process from a worker: in a session of its own, with nothing of the worker's.

No pipe leads from the one to the other. A child that another thread of the worker forks meanwhile would inherit its
ends, and whoever waits for the end of what is written there would wait for that child. The configuration, which holds
a password, is a file without a name; what went wrong comes back in another; and the end of the process that was
started says that there is a monitor, or that there will be none.
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
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.python import environment, interpreter
from bgpool.monitor.rendezvous import Rendezvous
from bgpool.segment.kernel_features import memory_file

__all__ = ["launch"]

#: Not with -m: before Python 3.11 it looks for modules in the directory that the worker happens to be in. The monitor
#: stays there: certificates, password files and hosts files may be given by relative paths.
_CODE: Final = """\
import sys
sys.path[:] = filter(None, sys.path)
from bgpool.monitor.__main__ import main
main()
"""
#: What is read of an error's text, in bytes.
_REASON_BYTES: Final = 4000
#: How often it is looked whether the process has ended where the kernel does not tell, in seconds.
_POLL_S: Final = 0.02
#: How long a process that was killed is waited for, in seconds.
_KILL_S: Final = 1.0


def launch(config: MonitorConfig, place: Rendezvous | None) -> str:
    """Start a process and wait until its first monitor watches, has left or has failed.

    Args:
        config: Of that one.
        place: Where it is to take others; None for nowhere.

    Returns:
        Why it failed, as far as it said; empty if it did not.

    Raises:
        OSError: It cannot be started.
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
    """A Python of its own that has *given* as standard input and *output* as the two others, and nothing else of ours.

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
        # What a worker ignores, its server did for the worker's sake: a monitor ends when it is told to.
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _wait(pid: int) -> None:
    """Wait for the end of *pid*, which has a bound of its own, and end its whole session if it has not kept it."""
    if not _has_ended(pid, MONITOR_READY_S + MONITOR_START_S):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _has_ended(pid, _KILL_S)


def _has_ended(pid: int, timeout_s: float) -> bool:
    """Whether *pid* ends within *timeout_s* seconds; reaped if it does."""
    deadline = time.monotonic() + timeout_s
    _wait_in_the_kernel(pid, timeout_s)
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            # Reaped by the application, or by the kernel where the application wants no word of its children.
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def _wait_in_the_kernel(pid: int, timeout_s: float) -> None:
    """Wait in the kernel for the end of *pid*, where it can; returns early where it cannot.

    A thread that wakes up fifty times a second asks for the interpreter as often; a child of a fork without Python's
    hooks may wait for ever if one does so just then.
    """
    if sys.platform != "linux":
        return
    # The attribute is missing where Python was built for an old kernel.
    with contextlib.suppress(AttributeError, OSError), selectors.DefaultSelector() as selector:
        fd = os.pidfd_open(pid)
        try:
            selector.register(fd, selectors.EVENT_READ)
            selector.select(timeout_s)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _nameless(directory: Path) -> Iterator[int]:
    """A file that nobody can open, for as long as the block lasts: in memory, or in *directory* and without a name."""
    fd = memory_file()
    if fd is None:
        with tempfile.TemporaryFile(dir=directory) as file:
            fd = os.dup(file.fileno())
    # Beyond the standard ones, which an application may have closed: they would be in each other's way.
    above = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    try:
        yield above
    finally:
        os.close(above)


def _inheritable() -> list[int]:
    """Our descriptors that another program would be given, the standard ones excepted.

    Without those above the soft limit, which was lowered after they were opened: posix_spawn refuses to close them, and
    the monitor does it itself.
    """
    found, limit = [], os.sysconf("SC_OPEN_MAX")
    for fd in (int(path.name) for path in Path("/dev/fd").iterdir()):
        # The one that the directory was read through is closed by now.
        with contextlib.suppress(OSError):
            if fd > 2 and (limit < 0 or fd < limit) and os.get_inheritable(fd):
                found.append(fd)
    return found
