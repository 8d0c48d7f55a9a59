"""The lab's directories, and the watchdog that removes them if the lab cannot."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bgpool.lab import watchdog
from bgpool.lab.errors import LabError

PREFIX = "bgpool-lab-"
END_TIMEOUT_S = 10.0

SOCKET_PATH_BYTES = 107
"""The capacity of ``sockaddr_un.sun_path`` on Linux, without the final zero."""

LONGEST_SOCKET = "/s-two/.s.PGSQL.65535"


class Guard:
    """The temporary directories of one lab; `close` or the owner's death removes them and their servers."""

    def __init__(self, parent: Path | None = None) -> None:
        """Make the directories below *parent*, by default the system's place for temporary files.

        Sockets get a directory of their own in /tmp if *parent*'s path is too long for them.
        """
        self._owner_pid = os.getpid()
        self.base = self._make(parent)
        self.directories = [self.base]
        self.sockets = self.base
        if len(os.fsencode(self.base)) + len(LONGEST_SOCKET) > SOCKET_PATH_BYTES:
            self.sockets = self._make(Path("/tmp"))
            self.directories.append(self.sockets)
        try:
            self._watchdog = self._start_watchdog()
        except OSError as error:
            self._remove()
            raise LabError(f"the lab's watchdog cannot be started: {error}") from error

    @property
    def is_owner(self) -> bool:
        """False in a forked child, which must leave the parent's servers alone."""
        return os.getpid() == self._owner_pid

    def close(self) -> None:
        """Kill the remaining processes below the directories, remove these, and end the watchdog; idempotent."""
        if not self.is_owner:
            return
        if self._watchdog.stdin is not None:
            with contextlib.suppress(OSError):
                self._watchdog.stdin.close()  # the watchdog now does the rest
        try:
            self._watchdog.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._watchdog.kill()
            self._watchdog.wait(END_TIMEOUT_S)
        self._remove()

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__, str(self._owner_pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(b"".join(os.fsencode(d) + b"\n" for d in self.directories))
        process.stdin.flush()
        return process

    @staticmethod
    def _make(parent: Path | None) -> Path:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
        path.chmod(0o711)  # the servers' account passes through; the contents have modes of their own
        return path

    def _remove(self) -> None:
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)
