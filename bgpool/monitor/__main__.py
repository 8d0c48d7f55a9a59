"""``python -m bgpool.monitor``: the process that a worker starts. Its configuration comes on standard input."""

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
from bgpool.monitor import be_monitor
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.group import MonitorGroup
from bgpool.monitor.rendezvous import Rendezvous

#: The parameter of mallopt(3), and how many there may be. Source: malloc.h.
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
#: How often it is looked whether the monitor has ended before it watched, in seconds.
_POLL_S: Final = 0.05


def main() -> None:
    """Read the configuration, have a child that watches, and leave it alone as soon as that is settled."""
    # A monitor ends when it is told to; Python would raise KeyboardInterrupt in whatever it is doing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _close_above_the_limit()
    # This process is no worker, whatever an application's modules may want to do here.
    be_monitor()
    compatibility_key, data = msgpack.unpackb(sys.stdin.buffer.read())
    config = MonitorConfig.load(data)
    starter = _leave_the_starters_files()
    # A pipe among ourselves: nobody else is here who could be given its ends by a fork.
    told, tell = os.pipe()
    # Twice a child is nobody's child: the starter reaps the first, and never has a zombie of the second.
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
    # A resolver may hold a thread for minutes; nothing that is left to do is worth waiting for it.
    logging.shutdown()
    os._exit(0)


def _lighten() -> None:
    """Have the process cost little, however many threads it will have."""
    # What was imported stays: the collector need not look through it again and again while all threads wait.
    gc.collect()
    gc.freeze()
    threading.stack_size(STACK_BYTES)
    # A callable of the application's that computes keeps all other threads waiting for so long, each time that they
    # have waited for anything else.
    sys.setswitchinterval(SWITCH_S)
    # One for each of many threads, as glibc has it, would hold what other threads could use.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def _close_above_the_limit() -> None:
    """Close what the starter could not keep from us; with such a number nothing of our own can have been opened."""
    limit = os.sysconf("SC_OPEN_MAX")
    for fd in (int(path.name) for path in Path("/dev/fd").iterdir()):
        if 0 <= limit <= fd:
            with contextlib.suppress(OSError):
                os.close(fd)


def _attend(pid: int, told: int, starter: int) -> None:
    """Wait until the monitor watches, which it says on *told*, or has ended; end it where it takes too long."""
    deadline = time.monotonic() + MONITOR_READY_S
    while time.monotonic() < deadline:
        # Not the end of the pipe: the application may have forked children, which keep it open.
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
        # All of the session, which we lead: whatever the application's modules have started, and ourselves.
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


class _Starter:
    """The process that has started this one, and waits, by way of the one that attends."""

    def __init__(self, config: MonitorConfig, tell: int, output: int) -> None:
        """*tell* leads to the one that attends; *output* is where the starter reads what went wrong."""
        self._config: Final = config
        self._tell: Final = tell
        self._output: Final = output
        self._told = False

    def take(self) -> MonitorConfig:
        """The first monitor of this process."""
        return self._config

    def tell(self, reason: str) -> None:
        """As Asker says."""
        if self._told:
            return
        self._told = True
        if reason:
            _tell(self._output, reason)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._tell, b"!")
        os.close(self._tell)
        # Nobody reads it any more; closed, its number might come to stand for something else.
        os.dup2(0, self._output, inheritable=False)


def _tell(starter: int, reason: str) -> None:
    """What the starter is to log: one line."""
    with contextlib.suppress(OSError):
        os.write(starter, f"{' '.join(reason.split())}\n".encode(errors="replace"))


def _leave_the_starters_files() -> int:
    """Have nothing for standard input and output any more; where the starter reads what went wrong.

    What an application's modules print is not for the starter: there may be secrets in it.
    """
    starter = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.close(nothing)
    return starter


if __name__ == "__main__":
    main()
