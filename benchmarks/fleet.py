"""Many workers, forked from a process that has imported everything: what each call of each of their threads came to."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, NamedTuple

from bgpool.lab import LabError
from bgpool.lab.waiting import wait_until

__all__ = ["Call", "Fleet", "Life", "Post"]

_RECORD: Final = struct.Struct("iiidd")
_READY, _FAILED, _OK = range(3)
_STOP_TIMEOUT_S: Final = 5.0


class Call(NamedTuple):
    """One thing that a thread did; times are on the monotonic clock."""

    worker: int
    thread: int
    began_s: float
    ended_s: float
    ok: bool


class Post:
    """A worker's side.

    Attributes:
        number: Which worker, from 0 on.
    """

    def __init__(self, number: int, records: int, turns: int) -> None:
        self.number: Final = number
        self._records: Final = records
        self._turns: Final = turns

    def ready(self) -> None:
        """Say that this worker has what it needs."""
        self._write(_READY, 0, 0.0, 0.0)

    def note(self, thread: int, began_s: float, ended_s: float, *, ok: bool) -> None:
        """Say what a call came to; from any thread."""
        self._write(_OK if ok else _FAILED, thread, began_s, ended_s)

    def wait_turn(self) -> None:
        """Wait until this thread is let go, at no cost."""
        os.read(self._turns, 1)

    def _write(self, kind: int, thread: int, began_s: float, ended_s: float) -> None:
        # Whole records, appended by the kernel: no lock, and nothing is lost with a worker that is killed.
        os.write(self._records, _RECORD.pack(kind, self.number, thread, began_s, ended_s))


Life = Callable[[Post], object]
"""What a worker does first, in its main thread; then it waits for the end while its other threads go on."""


class Fleet:
    """Workers that live until the fleet is left; a context manager. To be entered from a single-threaded process."""

    def __init__(self, processes: int, life: Life) -> None:
        """Describe *processes* workers; nothing is forked yet."""
        self._life: Final = life
        self._processes: Final = processes
        self.pids: list[int] = []

    def __enter__(self) -> Fleet:
        self._file = tempfile.TemporaryFile("a+b", buffering=0)
        self._turns, self._give_turn = os.pipe()
        self._end, self._make_end = os.pipe()
        for number in range(self._processes):
            pid = os.fork()
            if pid == 0:
                self._live(number)
            self.pids.append(pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in (self._make_end, self._end, self._give_turn, self._turns):
            os.close(fd)
        _reap(self.pids)
        self._file.close()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every worker is ready.

        Raises:
            LabError: One was not within *timeout_s* seconds, or ended.
        """

        def all_ready() -> bool:
            if any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in self.pids):
                raise LabError("a worker ended")
            return sum(kind == _READY for kind, *_ in self._records()) == self._processes

        wait_until(all_ready, timeout_s=timeout_s, what=f"{self._processes} workers to be ready", poll_s=0.1)

    def let_go(self, threads: int) -> None:
        """Let *threads* more of those that wait for their turn go, whichever they are."""
        os.write(self._give_turn, bytes(threads))

    def calls(self) -> list[Call]:
        """Every call so far, in the order of their ends."""
        found = [Call(worker, thread, began_s, ended_s, kind == _OK)
                 for kind, worker, thread, began_s, ended_s in self._records() if kind != _READY]  # fmt: skip
        return sorted(found, key=lambda call: call.ended_s)

    def _records(self) -> list[tuple[int, int, int, float, float]]:
        data = os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size, 0)
        return list(_RECORD.iter_unpack(data))

    def _live(self, number: int) -> None:
        """A worker's life; never returns."""
        status = 1
        try:
            os.close(self._make_end)
            os.close(self._give_turn)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._life(Post(number, self._file.fileno(), self._turns))
            # The other end is closed when the fleet is left, and when its process dies.
            os.read(self._end, 1)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)


def _reap(pids: Sequence[int]) -> None:
    """Wait for *pids*, which have been told to end, and kill those that do not."""
    left, deadline_s = list(pids), time.monotonic() + _STOP_TIMEOUT_S
    while left:
        late = time.monotonic() > deadline_s
        for pid in tuple(left):
            if late:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, 0 if late else os.WNOHANG)[0]:
                left.remove(pid)
        time.sleep(0.01)
