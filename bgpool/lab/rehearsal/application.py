"""Somebody else's program, in a process group of its own, from its start to the end of the last of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO, Final

from bgpool.lab.waiting import POLL_S

__all__ = ["Application"]

STOP_TIMEOUT_S: Final = 10.0
KILL_TIMEOUT_S: Final = 5.0


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
        # Of its own: a Ctrl-C at the terminal is for us, who tell it once nobody asks it for anything any more.
        self._process: Final = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
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
        """Tell it to end (SIGTERM), wait *timeout_s* seconds, and kill what is left of its group; idempotent."""
        if self._process.returncode is not None:
            return
        if not self._ends_within(0.0):
            os.kill(self._process.pid, signal.SIGTERM)
            self.killed = not self._ends_within(timeout_s)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(KILL_TIMEOUT_S)

    def _ends_within(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while self.exit_status is None:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(POLL_S)
        return True

    def __repr__(self) -> str:
        state = "running" if self.exit_status is None else f"ended with {self.exit_status}"
        return f"<Application pid {self._process.pid} {state}>"
