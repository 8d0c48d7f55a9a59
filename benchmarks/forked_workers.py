"""Many workers, forked from a process that has imported everything, which report each call of each of their threads."""

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

__all__ = ["Call", "ForkedWorkers", "WorkerMain", "WorkerReporter"]

_RECORD: Final = struct.Struct("iiidd")
_READY, _FAILED, _OK = range(3)
_STOP_TIMEOUT_S: Final = 5.0


class Call(NamedTuple):
    """A call of a thread. Times are on the monotonic clock."""

    worker: int
    thread: int
    began_s: float
    ended_s: float
    ok: bool


class WorkerReporter:
    """The worker's end of the pipes.

    Attributes:
        number: The number of the worker, from 0 on.
    """

    def __init__(self, number: int, records: int, turns: int) -> None:
        self.number: Final = number
        self._records: Final = records
        self._turns: Final = turns

    def ready(self) -> None:
        """Report that this worker is ready."""
        self._write(_READY, 0, 0.0, 0.0)

    def note(self, thread: int, began_s: float, ended_s: float, *, ok: bool) -> None:
        """Report the outcome of a call, from any thread."""
        self._write(_OK if ok else _FAILED, thread, began_s, ended_s)

    def wait_turn(self) -> None:
        """Block this thread until it is released, without using CPU."""
        os.read(self._turns, 1)

    def _write(self, kind: int, thread: int, began_s: float, ended_s: float) -> None:
        # The kernel appends whole records. No lock is needed, and no record is lost if a worker is killed.
        os.write(self._records, _RECORD.pack(kind, self.number, thread, began_s, ended_s))


WorkerMain = Callable[[WorkerReporter], object]
"""The first work of a worker, in its main thread. The worker then waits for its end while its other threads run."""


class ForkedWorkers:
    """A context manager whose workers live until its exit. Enter it from a single-threaded process."""

    def __init__(self, processes: int, main: WorkerMain) -> None:
        """Describe *processes* workers. Nothing is forked yet."""
        self._main: Final = main
        self._processes: Final = processes
        self.pids: list[int] = []

    def __enter__(self) -> ForkedWorkers:
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
            LabError: A worker was not ready within *timeout_s* seconds, or ended.
        """

        def all_ready() -> bool:
            if any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in self.pids):
                raise LabError("a worker ended")
            return sum(kind == _READY for kind, *_ in self._records()) == self._processes

        wait_until(all_ready, timeout_s=timeout_s, what=f"{self._processes} workers to be ready", poll_s=0.1)

    def release(self, threads: int) -> None:
        """Release any *threads* of the threads that wait for their turn."""
        os.write(self._give_turn, bytes(threads))

    def calls(self) -> list[Call]:
        """Return all calls so far, in the order of their ends."""
        found = [Call(worker, thread, began_s, ended_s, kind == _OK)
                 for kind, worker, thread, began_s, ended_s in self._records() if kind != _READY]  # fmt: skip
        return sorted(found, key=lambda call: call.ended_s)

    def _records(self) -> list[tuple[int, int, int, float, float]]:
        data = os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size, 0)
        return list(_RECORD.iter_unpack(data))

    def _live(self, number: int) -> None:
        """Be a worker. Never returns."""
        status = 1
        try:
            os.close(self._make_end)
            os.close(self._give_turn)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._main(WorkerReporter(number, self._file.fileno(), self._turns))
            # The other end is closed when the context manager exits, and when its process dies.
            os.read(self._end, 1)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)


def _reap(pids: Sequence[int]) -> None:
    """Wait for *pids*, which have been ordered to end, and kill the processes that do not."""
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
