"""Somebody else's program, in a process group of its own, from its start to the end of everything that it started."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from bgpool.lab.waiting import POLL_S
from bgpool.settings import REHEARSAL

__all__ = ["Application"]

STOP_TIMEOUT_S: Final = 10.0
KILL_TIMEOUT_S: Final = 5.0

MARK: Final = REHEARSAL
"""An environment variable that whatever it starts inherits: a monitor, for one, is in a session of its own."""


class Application:
    """A program that runs.

    Attributes:
        killed: It did not end when it was told to.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | int) -> None:
        """Start it: with nothing to read, and *output* for what it writes to standard output and standard error.

        Raises:
            OSError: It cannot be started.
        """
        self.killed = False
        self._mark: Final = secrets.token_hex(16)
        # Of its own: a Ctrl-C at the terminal is for us, who tell it once nobody asks it for anything any more.
        self._process: Final = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, MARK: self._mark},
            start_new_session=True,
        )

    @property
    def exit_status(self) -> int | None:
        """Of the program that was started, negative for the signal that ended it; None while it runs."""
        if self._process.returncode is not None:
            return self._process.returncode
        # Without taking it in: its number, and that of its group, are nobody else's until then.
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Tell it to end (SIGTERM), wait *timeout_s* seconds, and kill whatever is left that it started; idempotent."""
        if self._process.returncode is not None:
            return
        if not self._ends_within(0.0):
            os.kill(self._process.pid, signal.SIGTERM)
            self.killed = not self._ends_within(timeout_s)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(KILL_TIMEOUT_S)
        self._kill_marked()

    def _ends_within(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while self.exit_status is None:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(POLL_S)
        return True

    def _kill_marked(self) -> None:
        """Kill those who left the group, and look again until there are none: one of them may have been forking."""
        deadline_s = time.monotonic() + KILL_TIMEOUT_S
        while (left := _processes_with(f"{MARK}={self._mark}")) and time.monotonic() < deadline_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)

    def __repr__(self) -> str:
        state = "running" if self.exit_status is None else f"ended with {self.exit_status}"
        return f"<Application pid {self._process.pid} {state}>"


def _processes_with(setting: str) -> list[int]:
    """The processes that were started with *setting* in their environment, as far as it may be read."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # That of a zombie is empty.
            with contextlib.suppress(OSError):
                if os.fsencode(setting) in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
