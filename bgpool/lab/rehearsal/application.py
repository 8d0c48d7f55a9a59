"""A user's program in a process group of its own, from its start to the end of all its descendants."""

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
"""An environment variable that all its descendants inherit: a monitor, for example, is in a session of its own."""


class Application:
    """A running program.

    Attributes:
        killed: True if it did not end on request.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | int) -> None:
        """Start it without input, with *output* as its standard output and standard error.

        Raises:
            OSError: It cannot be started.
        """
        self.killed = False
        self._mark: Final = secrets.token_hex(16)
        # A group of its own: a Ctrl-C at the terminal reaches only this process, which stops the program after the
        # load.
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
        """The exit status of the started program, negative for the signal that ended it; None while it runs."""
        if self._process.returncode is not None:
            return self._process.returncode
        # Without reaping it: until then, no other process gets its number or that of its group.
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Send SIGTERM, wait *timeout_s* seconds, and kill all remaining descendants; idempotent."""
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
        """Kill processes that left the group until none is left: one of them may have been forking."""
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
    """Return the processes that were started with *setting* in their environment, as far as it is readable."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # The environment of a zombie is empty.
            with contextlib.suppress(OSError):
                if os.fsencode(setting) in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
