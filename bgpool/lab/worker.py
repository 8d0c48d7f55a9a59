"""A worker of a trial: a forked process whose threads use an inherited pool and report to the parent."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgpack

import bgpool
from bgpool.lab.errors import LabError
from bgpool.lab.ledger import INSERT_SQL, Key, second_of

__all__ = ["PAUSE_S", "Call", "Job", "Worker"]

Job = Literal["write", "write unit", "task unit", "slow unit", "read unit"]
"""``write`` a row in a ``with`` block, or two in a unit of work (`Pool.run`); a slow one takes `SLOW_S`, and one of a
task has an id of the task's."""

PAUSE_S: Final = 0.005
REPORT_EVERY_S: Final = 0.05
SLOW_S: Final = 0.6
CUT: Final = b"c"
"""The order to lose the network; the end of the orders is the order to leave."""

LEAVE_S: Final = 40.0
"""The time that current calls may take to end: a pool holds for up to 30 s by default, and a loaded machine adds to
that. A trial waits longer than this."""


class Call(NamedTuple):
    """One use of the pool that was answered; times are on the monotonic clock.

    Attributes:
        checked_out_s: The time at which the connection was checked out.
        address: The IP address of the server that served it.
    """

    thread: int
    n: int
    began_s: float
    checked_out_s: float
    ended_s: float
    address: str


class Worker:
    """The parent's view of a worker: everything that the worker has reported so far.

    With the job ``task unit`` each call is a task of a queue with at-least-once delivery. The tasks that a killed
    worker leaves (`left_tasks`) are given to another worker, which runs them with the same id and acknowledges them
    under the same key.

    Attributes:
        endpoint: The host name of its pool.
        calls: Every use of the pool that was answered.
        acknowledged: Rows whose commit the worker received; unknown: rows whose outcome it cannot know.
        undecided: The number of unknown rows whose outcome the server cannot tell either, which is no fault.
        applied, already: Tasks of another worker that it ran again; in *already*, the first run had been applied.
        errors: Calls that failed, threads that never returned, and an unexpected end of the process, as text.
        missing: The number of *errors* that are threads or ends.
        longest_call_s: The longest duration of one call, including failed calls and calls that never returned.
        phase, held: The current values of its pool. With several pools: the phase of the first one, and all held
            callers.
        reach_green: True if its pool knows that receipts reach a green that is a logical replica.
    """

    def __init__(
        self,
        number: int,
        pool: bgpool.Pool[Any],
        threads: int,
        close_first: Iterable[Worker],
        job: Job = "write",
        endpoint: str = "",
        tasks: Sequence[Key] = (),
        tells_commits: bool | None = None,
        pause_s: float = PAUSE_S,
        think_s: float = 0.0,
        more: Sequence[bgpool.Pool[Any]] = (),
    ) -> None:
        """Fork the worker. The child closes the descriptors of earlier workers, which it would otherwise hold open.

        Args:
            number, pool, threads, close_first, job, endpoint: The same as for `Trial.add_worker`.
            tasks: The tasks that another worker has left, which are done first.
            tells_commits: True if a unit whose COMMIT has an unknown outcome counts as a fault; None for the engine's
                ability without receipts.
            pause_s: The pause between two calls of a thread.
            think_s: The pause between the second row of a unit and its COMMIT.
            more: Further pools, of the same engine: the threads are distributed among all of them.
        """
        self.number: Final = number
        self.job: Final = job
        self.endpoint: Final = endpoint
        self.calls: list[Call] = []
        self.acknowledged: list[Key] = []
        self.unknown: list[Key] = []
        self.applied: list[Key] = []
        self.already: list[Key] = []
        self._tasks: Final = tuple(tasks)
        self.undecided = 0
        self.errors: list[str] = []
        self.missing = 0
        self.longest_call_s = 0.0
        self.phase = ""
        self.held = 0
        self.reach_green = False
        self._writes: dict[int, list[float]] = {thread: [] for thread in range(threads)}
        # For each thread, the number and time of its last call that returned: the next call is under way.
        self._last: dict[int, tuple[int, float]] = dict.fromkeys(range(threads), (0, time.monotonic()))
        self._left: set[int] = set()
        self._stopped_s: float | None = None
        self._over_s = 0.0
        self._exit_status: int | None = None
        # True once the unfinished calls were counted, or count as no fault.
        self._is_settled = False
        self._reports, reports = os.pipe()
        orders, self._orders = os.pipe()
        self.pid: Final = os.fork()
        if self.pid == 0:
            others = [fd for w in (self, *close_first) for fd in (w._reports, w._orders)]
            jobs = replace(_JOBS[type(pool)], think_s=think_s)
            if tells_commits is not None:
                jobs = replace(jobs, tells_commits=tells_commits)
            _child(number, (pool, *more), threads, job, jobs, tasks, pause_s, reports, orders, others)
        os.close(reports)
        os.close(orders)
        self._collector = threading.Thread(target=self._collect, name=f"bgpool-trial-worker-{number}", daemon=True)
        self._collector.start()

    @property
    def is_reporting(self) -> bool:
        """True while it runs, or has unread reports."""
        return self._reports >= 0

    def stop(self) -> None:
        """Make it end after the current transactions."""
        orders, self._orders = self._orders, -1
        if orders >= 0:
            self._stopped_s = time.monotonic()
            os.close(orders)

    def wait(self, timeout_s: float) -> None:
        """Wait for its end and its last report; calls and threads without an end are recorded as errors.

        Raises:
            LabError: It did not end in time; it was killed.
        """
        self._collector.join(timeout_s)
        in_time = not self._collector.is_alive()
        self._make_gone()
        if not in_time:
            raise LabError(f"worker {self.number} did not end within {timeout_s:g} s")
        if not self._is_settled:
            self._is_settled = True
            self._settle()

    def kill(self) -> None:
        """Kill it, if necessary; idempotent. Unfinished calls are no errors, because the kill was intended."""
        self._is_settled = True
        self._make_gone()

    def lose_network(self) -> None:
        """Shut down its connections on the client's side: the servers detect it, and finish a COMMIT."""
        with contextlib.suppress(OSError):
            os.write(self._orders, CUT)

    def left_tasks(self) -> list[Key]:
        """Return the tasks that a queue delivers again after the worker's death.

        These are the tasks under way, the tasks of another worker that were not begun, and each thread's last one: the
        worker may have died before it acknowledged the task to the queue.
        """
        begun = [(self.number, thread, n) for thread, (last, _) in self._last.items() for n in (last, last + 1) if n]
        return [*begun, *(task for task in self._tasks if task not in {*self.applied, *self.already})]

    def longest_gap_s(self, since_s: float) -> float:
        """Return the longest time of any one thread without an acknowledged write, from *since_s* to the order to end.

        Without such an order, the time ends now.
        """
        return max(self.longest_gaps_s(since_s), default=0.0)

    def longest_gaps_s(self, since_s: float) -> list[float]:
        """Return the same for each thread."""
        until_s = time.monotonic() if self._stopped_s is None else self._stopped_s
        found = []
        for writes in self._writes.values():
            times = [since_s, *(at for at in writes if at >= since_s)]
            # A call that was under way at that time may have been answered later.
            times.append(max(until_s, times[-1]))
            found.append(max(b - a for a, b in pairwise(times)))
        return found

    def write_times(self) -> list[list[float]]:
        """Return the times of each thread's acknowledged writes, on the monotonic clock."""
        return [list(times) for times in self._writes.values()]

    def rate(self, window_s: float = 1.0) -> float:
        """Return the acknowledged writes per second, over the last *window_s* seconds."""
        since = time.monotonic() - window_s
        return sum(1 for writes in self._writes.values() for at in writes[-2000:] if at >= since) / window_s

    def _collect(self) -> None:
        unpacker = msgpack.Unpacker()
        with os.fdopen(self._reports, "rb", buffering=0) as pipe:
            while data := pipe.read(65536):
                unpacker.feed(data)
                for kind, *values in unpacker:
                    self._take(kind, values)
            self._over_s = time.monotonic()
            # Set before the descriptor is closed and its number reused: the next worker closes the descriptors that it
            # finds here.
            self._reports = -1

    def _make_gone(self) -> None:
        self.stop()
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                # Either the collector has seen the end of its reports, or no caller needs them any longer.
                self._collector.join(1.0)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                status = os.waitpid(self.pid, 0)[1]
            self._exit_status = os.waitstatus_to_exitcode(status)

    def _settle(self) -> None:
        gone = self._last.keys() - self._left
        self.missing = len(gone) + bool(self._exit_status)
        if self._exit_status:
            self.errors.append(f"ended with exit status {self._exit_status}")
        for thread in sorted(gone):
            n, answered_s = self._last[thread]
            self.errors.append(f"thread {thread}: call {n + 1} never came back")
            self.unknown.append((self.number, thread, n + 1))
            self.longest_call_s = max(self.longest_call_s, self._over_s - answered_s)

    def _take(self, kind: str, values: list[Any]) -> None:
        if kind == "state":
            self.phase, self.held, self.reach_green = values
            return
        if kind == "left":
            self._left.update(values)
            return
        if kind == "task":
            was_applied, *task = values
            (self.already if was_applied else self.applied).append((task[0], task[1], task[2]))
            self.acknowledged.append((task[0], task[1], task[2]))
            return
        thread, n, began_s, checked_out_s, ended_s, text = values
        self.longest_call_s = max(self.longest_call_s, ended_s - began_s)
        self._last[thread] = (n, ended_s)
        key = (self.number, thread, n)
        if kind == "done":
            self.calls.append(Call(thread, n, began_s, checked_out_s, ended_s, text))
            self._writes[thread].append(ended_s)
            if self.job != "read unit":
                self.acknowledged.append(key)
            return
        if kind != "failed":
            self.unknown.append(key)
        if kind == "undecided":
            self.undecided += 1
        else:
            self.errors.append(text)


def _child(
    number: int,
    pools: Sequence[bgpool.Pool[Any]],
    threads: int,
    job: Job,
    jobs: _Jobs,
    tasks: Sequence[Key],
    pause_s: float,
    reports: int,
    orders: int,
    to_close: list[int],
) -> None:
    """Run the child; never returns."""
    status = 1
    try:
        for fd in to_close:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        # A Ctrl-C is for the parent, which orders the worker to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler cleans up the parent's resources
        stopping = threading.Event()
        lock = threading.Lock()

        def report(*what: Any) -> None:
            with lock, contextlib.suppress(BrokenPipeError):
                os.write(reports, msgpack.packb(what))

        crew = [
            threading.Thread(
                target=_use,
                args=(
                    number,
                    thread,
                    pools[thread % len(pools)],
                    job,
                    jobs,
                    tasks[thread::threads],
                    pause_s,
                    stopping,
                    report,
                ),
                daemon=True,
            )
            for thread in range(threads)
        ]
        for thread in crew:
            thread.start()
        # The parent closes the other end of this pipe to stop the worker; its death closes it, too.
        while True:
            if select.select([orders], [], [], REPORT_EVERY_S)[0]:
                if os.read(orders, 1) != CUT:
                    break
                _cut_connections()
            stats = [pool.stats() for pool in pools]
            receipts = pools[0]._receipts
            reach_green = receipts is not None and receipts.reach_green
            phase, held = stats[0].phase, sum(one.held for one in stats)
            report("state", phase.name if phase is not None else "", held, reach_green)
        stopping.set()
        deadline_s = time.monotonic() + LEAVE_S
        for thread in crew:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        for pool in pools:
            pool.close(timeout=1.0)
        status = 0
    except BaseException as error:
        sys.stderr.write(f"worker {number}: {error!r}\n")
    finally:
        os._exit(status)


def _cut_connections() -> None:
    """Shut down this process's TCP connections without any message of the protocol, like a lost network."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            connection = socket.socket(fileno=os.dup(int(entry.name)))
            with connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    connection.shutdown(socket.SHUT_RDWR)


def task_id(task: Key) -> str:
    """Return the id of every run of *task*."""
    return "-".join(map(str, task))


Served = tuple[str, float]


@dataclass(frozen=True)
class _Jobs:
    """The jobs of the threads, whatever the engine of their pool.

    Attributes:
        address: A callable that returns the IP address of a connection's server.
        sleep: A statement that takes as many seconds as its parameter.
        tells_commits: True if the server can be queried for the outcome of a COMMIT that was cut.
        think_s: The pause between the second row of a unit and its COMMIT.
    """

    address: Callable[[Any], str]
    sleep: str
    tells_commits: bool
    think_s: float = 0.0

    def do(self, job: Job, pool: bgpool.Pool[Any], key: Key) -> Served:
        """Make one call."""
        if job == "write":
            with pool.connection() as connection:
                return self._insert(connection, key)
        units: dict[Job, Callable[[Any, Key], Served]] = {
            "write unit": self._insert_two,
            "slow unit": self._insert_slowly,
            "read unit": self._select,
        }
        if job == "task unit":
            outcome = pool.run(self._insert_two, key, receipt_id=task_id(key))
            if isinstance(outcome, bgpool.AlreadyApplied):
                raise LabError(f"{outcome}, but this is the first run of the task")
            return outcome
        return pool.run(units[job], key)

    def do_again(self, pool: bgpool.Pool[Any], task: Key) -> bool:
        """Run *task*, which another worker has begun; return whether that run was applied."""
        return isinstance(pool.run(self._insert_two, task, receipt_id=task_id(task)), bgpool.AlreadyApplied)

    def is_honest(self, job: Job, error: Exception) -> bool:
        """Return whether *error* is no fault: a cut COMMIT of a unit whose outcome no server can tell."""
        return not self.tells_commits and job != "write" and isinstance(error, bgpool.CommitOutcomeUnknown)

    def _insert(self, connection: Any, key: Key) -> Served:
        checked_out_s = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute(INSERT_SQL, key)
        return self.address(connection), checked_out_s

    def _insert_two(self, connection: Any, key: Key) -> Served:
        served = self._insert(connection, key)
        self._insert(connection, second_of(key))
        if self.think_s:
            time.sleep(self.think_s)
        return served

    def _insert_slowly(self, connection: Any, key: Key) -> Served:
        served = self._insert(connection, key)
        time.sleep(SLOW_S / 2)
        with connection.cursor() as cursor:
            cursor.execute(self.sleep, (SLOW_S / 2,))
        self._insert(connection, second_of(key))
        return served

    def _select(self, connection: Any, _: Key) -> Served:
        checked_out_s = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute("SELECT max(seq) FROM ledger")
        return self.address(connection), checked_out_s


_JOBS: Final[Mapping[type[bgpool.Pool[Any]], _Jobs]] = {
    bgpool.PostgresPool: _Jobs(lambda connection: str(connection.info.hostaddr), "SELECT pg_sleep(%s)", True),
    bgpool.MysqlPool: _Jobs(lambda connection: str(connection.peer), "SELECT SLEEP(%s)", False),
}


def _use(
    number: int,
    thread: int,
    pool: bgpool.Pool[Any],
    job: Job,
    jobs: _Jobs,
    tasks: Sequence[Key],
    pause_s: float,
    stopping: threading.Event,
    report: Callable[..., None],
) -> None:
    for task in tasks:
        began_s = time.monotonic()
        try:
            report("task", jobs.do_again(pool, task), *task)
        except Exception as error:  # As below; the row is not this thread's.
            report(_kind(jobs, job, error), thread, 0, began_s, 0.0, time.monotonic(), f"task {task}: {error!r}")
    n = 0
    while not stopping.wait(pause_s):
        n += 1
        began_s = time.monotonic()
        try:
            address, checked_out_s = jobs.do(job, pool, (number, thread, n))
        except Exception as error:  # An application continues after a bug of the pool, too; it is reported.
            report(_kind(jobs, job, error), thread, n, began_s, 0.0, time.monotonic(), repr(error))
        else:
            report("done", thread, n, began_s, checked_out_s, time.monotonic(), address)
    # A thread that does not report its end has died, or hangs in the call after the last reported one.
    report("left", thread)


def _kind(jobs: _Jobs, job: Job, error: Exception) -> str:
    """Return the kind of *error*: ``undecided`` (no fault), ``unknown`` (the row may be there), or ``failed``."""
    if jobs.is_honest(job, error):
        return "undecided"
    # Before the deployment is known, only the failure of the statement is known.
    decided = isinstance(error, bgpool.SwitchoverError) and not isinstance(error, bgpool.CommitOutcomeUnknown)
    return "failed" if decided else "unknown"
