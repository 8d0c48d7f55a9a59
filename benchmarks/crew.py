"""The application in which clients are compared: processes whose threads write rows of the lab's ledger.

    with Crew("psycopg_pool", Config.of(pair, names.path), processes=4, threads=2) as crew:
        crew.wait_writing(20)
        ...
        crew.stop()
        report = crew.report()

Each process makes its client after the fork, as with gunicorn without preload.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from json import loads
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, NamedTuple

import msgpack

from benchmarks import footprint
from benchmarks.builds import environment
from benchmarks.clients import CLIENTS, Config
from benchmarks.crew_process import ENDED, Orders, reports_file
from bgpool.lab import LabError
from bgpool.lab.ledger import Key
from bgpool.lab.waiting import wait_until

__all__ = ["PAUSE_S", "Attempt", "Crew", "Report", "Thread"]

PAUSE_S: Final = 0.005
GRACE_S: Final = 3.0
START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05

Thread = tuple[int, int]
"""Worker and thread."""


class Attempt(NamedTuple):
    """A write that has ended. Times are on the monotonic clock."""

    began_s: float
    ended_s: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a crew.

    Attributes:
        attempts: The attempts of each thread, in order; empty for a thread whose first attempt never ended.
        acknowledged: The rows whose commit a thread saw.
        unknown: The rows of failed attempts. They may exist.
        errors: The number of failed attempts, by the name of the exception's class.
        stuck: The threads whose last attempt did not end within the grace period after all were ordered to stop.
    """

    attempts: Mapping[Thread, tuple[Attempt, ...]]
    acknowledged: tuple[Key, ...]
    unknown: tuple[Key, ...]
    errors: Mapping[str, int]
    stuck: tuple[Thread, ...]


class Crew:
    """A context manager that runs the application. It starts at once, and always ends its processes on exit."""

    def __init__(
        self,
        client: str,
        config: Config,
        *,
        processes: int,
        threads: int,
        pause_s: float = PAUSE_S,
        grace_s: float = GRACE_S,
        build: Path | None = None,
    ) -> None:
        """Describe the crew.

        Args:
            client: The name of the client in CLIENTS.
            config: The parameters of clients, without size and directory, which the crew sets.
            processes: The number of workers.
            threads: The number of threads in each worker.
            pause_s: The pause between two attempts of a thread; ``math.inf`` for threads that write once and then idle.
            grace_s: The longest time for an attempt that is under way when all are ordered to stop.
            build: The directory of the bgpool that its processes import; None for this one.
        """
        self._build: Final = build or Path(__file__).parents[1]
        self._spec: Final = CLIENTS[client]
        self._stack: Final = contextlib.ExitStack()
        self._directory: Final = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bgpool-crew-"))
        self.config: Final = config.with_(size=threads, directory=self._directory, build=str(self._build))
        self._orders: Final = Orders(client, self.config, processes, threads, pause_s, grace_s)
        self._readers = [_Reports(reports_file(self._directory, worker), worker) for worker in range(processes)]
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: tuple[int, ...] = ()
        self._helpers: set[int] = set()

    def __enter__(self) -> Crew:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def pids(self) -> tuple[int, ...]:
        """The workers' process ids."""
        return self._pids

    def helpers(self) -> tuple[int, ...]:
        """The process ids that the client runs in addition to the workers: bgpool's monitor."""
        found = self._spec.helpers(self.config)
        self._helpers |= set(found)
        return found

    def cpu_s(self) -> float:
        """Return the CPU time that the running workers and helpers have used since their start, in all threads."""
        return sum(_cpu_s(pid) for pid in (*self.pids(), *self.helpers()))

    def log(self) -> str:
        """Return the text that the processes have written to standard error."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_writing(self, timeout_s: float) -> None:
        """Wait until every thread has written a row.

        Raises:
            LabError: One did not within *timeout_s* seconds.
        """
        self.wait_written_since(0.0, timeout_s)

    def wait_written_since(self, since_s: float, timeout_s: float) -> None:
        """Wait until every thread has written a row in an attempt that began after *since_s* on the monotonic clock.

        Raises:
            LabError: One did not within *timeout_s* seconds.
        """
        try:
            wait_until(
                lambda: self._all_written(since_s), timeout_s=timeout_s, what="every thread writes", poll_s=_POLL_S
            )
        except LabError as error:
            raise LabError(f"{error}: {self._orders.client}\n{self.log()[-2000:]}") from None

    def stop(self) -> None:
        """End every thread after its attempt under way. Processes that do not end in time are killed. Idempotent.

        It takes at most `grace_s` and a few seconds.
        """
        process = self._process
        if process is None or process.stdin is None:
            return
        self.helpers()
        process.stdin.close()
        try:
            process.wait(self._orders.grace_s + _STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for pid in (*self._pids, process.pid):
                _kill(pid)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
        self._process = None
        self._end_helpers()

    def report(self) -> Report:
        """Return the results up to now."""
        attempts: dict[Thread, list[Attempt]] = {
            (worker, thread): []
            for worker in range(self._orders.processes)
            for thread in range(self._orders.threads)
        }  # fmt: skip
        stuck = set(attempts)
        acknowledged: list[Key] = []
        unknown: list[Key] = []
        errors: Counter[str] = Counter()
        for reader in self._readers:
            reader.read()
            for thread, n, began_s, ended_s, error in reader.records:
                place = (reader.worker, thread)
                if n == ENDED:
                    stuck.discard(place)
                    continue
                attempts[place].append(Attempt(began_s, ended_s, not error))
                (unknown if error else acknowledged).append((*place, n))
                if error:
                    errors[error] += 1
        return Report(
            {place: tuple(done) for place, done in attempts.items()},
            tuple(acknowledged),
            tuple(unknown),
            errors,
            tuple(sorted(stuck)),
        )

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        return Path(self._directory) / "stderr"

    def _start(self) -> None:
        with self._log.open("wb") as log:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.crew_process"],
                # Not in a directory with a bgpool, which Python would import first.
                cwd=self._directory,
                env=environment(self._build, {**os.environ}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._orders.as_line())
        line = _read_line(process.stdout)
        if not line:
            raise LabError(f"{self._orders.client} did not start: {self.log()[-2000:]}")
        self._pids = tuple(loads(line))

    def _all_written(self, since_s: float) -> bool:
        for reader in self._readers:
            reader.read()
            written = {thread for thread, at_s in reader.last_began_s.items() if at_s >= since_s}
            if len(written) < self._orders.threads:
                return False
        return True

    def _end(self) -> None:
        self.stop()
        self._end_helpers()
        self._stack.close()

    def _end_helpers(self) -> None:
        """End the helpers. A monitor would exit by itself some time after the last worker, which is too late here."""
        for pid in self._helpers:
            _kill(pid, signal.SIGTERM)
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S / 2
        while any(_is_alive(pid) for pid in self._helpers) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        for pid in self._helpers:
            _kill(pid)
        self._helpers.clear()


class _Reports:
    """The reports of one worker, read while it runs.

    Attributes:
        records: All records, in the format of `benchmarks.crew_process.reports_file`.
        last_began_s: The start of the last successful attempt of each thread.
    """

    def __init__(self, path: Path, worker: int) -> None:
        self.worker: Final = worker
        self.records: list[tuple[int, int, float, float, str]] = []
        self.last_began_s: dict[int, float] = {}
        self._path: Final = path
        self._offset = 0
        self._unpacker: Final = msgpack.Unpacker()

    def read(self) -> None:
        """Read the new records. The last record of a killed worker may be incomplete."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        self._unpacker.feed(data)
        for record in self._unpacker:
            thread, n, began_s, _, error = record
            self.records.append(tuple(record))
            if n != ENDED and not error:
                self.last_began_s[thread] = began_s


def _read_line(stream: IO[Any]) -> bytes:
    """Return the first line of *stream*, or the part of it that was received within START_TIMEOUT_S."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    os.set_blocking(stream.fileno(), False)
    line = b""
    while not line.endswith(b"\n") and time.monotonic() < deadline_s:
        data = stream.read(4096)
        if data == b"":
            return b""
        line += data or b""
        if data is None:
            time.sleep(_POLL_S / 5)
    return line


def _cpu_s(pid: int) -> float:
    try:
        return footprint.cpu_s(pid)
    except OSError:
        return 0.0


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
