"""``python -m bgpool.monitor``: the process that a worker starts. It reads its configuration from standard input."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgpack

from bgpool.core.limits import MONITOR_READY_S, STACK_BYTES, SWITCH_S
from bgpool.descriptors import open_descriptors
from bgpool.monitor import be_monitor
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.group import MonitorGroup
from bgpool.monitor.rendezvous import Rendezvous

#: The parameter of mallopt(3), and the maximum of arenas. Source: malloc.h.
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
#: The interval at which the end of a monitor that does not watch yet is detected, in seconds.
_POLL_S: Final = 0.05


def main() -> None:
    """Read the configuration, start a child that watches, and exit as soon as it watches or has failed."""
    # A monitor ends on SIGINT; Python would raise KeyboardInterrupt at any point of the program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _close_above_the_limit()
    # This process is not a worker, even if an application's modules create pools here.
    be_monitor()
    compatibility_key, data = msgpack.unpackb(sys.stdin.buffer.read())
    config = MonitorConfig.load(data)
    starter = _leave_the_starters_files()
    # A pipe is safe here: no other thread exists that could fork and leak its ends.
    told, tell = os.pipe()
    # The starter reaps the first process. The second is adopted by init, so that it never becomes a zombie.
    pid = os.fork()
    if pid:
        os.close(tell)
        _attend(pid, told, starter)
        os._exit(0)
    os.close(told)
    _lighten()
    MonitorGroup(Rendezvous(Path(config.run_dir), compatibility_key) if compatibility_key else None).run(
        _Starter(config, tell, starter)
    )
    # A resolver may block a thread for minutes; no remaining work is worth waiting for it.
    logging.shutdown()
    os._exit(0)


def _lighten() -> None:
    """Reduce the cost of the process, independent of its number of threads."""
    # Imported objects stay alive: the collector need not scan them repeatedly while all threads wait.
    gc.collect()
    gc.freeze()
    threading.stack_size(STACK_BYTES)
    # While a callable of the application computes, all other threads are delayed by this interval, each time after they
    # have waited.
    sys.setswitchinterval(SWITCH_S)
    # glibc's default of one arena per thread would reserve memory that other threads could use.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def _close_above_the_limit() -> None:
    """Close inherited descriptors above the limit, which the starter could not close; none is this process's own."""
    limit = os.sysconf("SC_OPEN_MAX")
    for fd in open_descriptors():
        if 0 <= limit <= fd:
            with contextlib.suppress(OSError):
                os.close(fd)


def _attend(pid: int, told: int, starter: int) -> None:
    """Wait until the monitor reports on *told* that it watches, or has ended; kill it if that takes too long."""
    deadline = time.monotonic() + MONITOR_READY_S
    while time.monotonic() < deadline:
        # Do not rely on the end of the pipe: the application may have forked children, which keep it open.
        if select.select([told], [], [], _POLL_S)[0]:
            if os.read(told, 1):
                return
            time.sleep(_POLL_S)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if os.WIFSIGNALED(status):
                _tell(starter, f"it was killed by signal {os.WTERMSIG(status)}")
            return
    _tell(starter, f"it did not watch after {MONITOR_READY_S:.0f} s, and was killed")
    with contextlib.suppress(ProcessLookupError):
        # Kill the whole session, which this process leads, including processes that the application's modules have
        # started.
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


class _Starter:
    """The process that started this one and waits. It is reached through the attending process."""

    def __init__(self, config: MonitorConfig, tell: int, output: int) -> None:
        """*tell* leads to the attending process; the starter reads errors from *output*."""
        self._config: Final = config
        self._tell: Final = tell
        self._output: Final = output
        self._told = False

    def take(self) -> MonitorConfig:
        """Return the configuration of the first monitor of this process."""
        return self._config

    def tell(self, reason: str) -> None:
        """See Requester."""
        if self._told:
            return
        self._told = True
        if reason:
            _tell(self._output, reason)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._tell, b"!")
        os.close(self._tell)
        # It is no longer read. Closing it would free its number for another file.
        os.dup2(0, self._output, inheritable=False)


def _tell(starter: int, reason: str) -> None:
    """Write one line that the starter logs."""
    with contextlib.suppress(OSError):
        os.write(starter, f"{' '.join(reason.split())}\n".encode(errors="replace"))


def _leave_the_starters_files() -> int:
    """Stop using the starter's files for standard input and output, except the one from which it reads errors.

    Output of an application's modules must not reach the starter, because it may contain secrets.
    """
    starter = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.close(nothing)
    return starter


if __name__ == "__main__":
    main()
