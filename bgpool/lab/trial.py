"""A trial: pre-forked workers write a ledger through the pool during a switchover, and the ledger is judged.

This runs bgpool's main task, on real servers, in one function. The demo shows it, and the tests run it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.lab import ledger
from bgpool.lab.director import Director, Event, Schedule
from bgpool.lab.errors import LabError
from bgpool.lab.ledger import Key
from bgpool.lab.pair import MONITOR_ROLE, Pair
from bgpool.lab.report import MOST_EXAMPLES, Report, Stray, release_of, resume_s, strays
from bgpool.lab.server import Flavour
from bgpool.lab.truth import TruthProbe
from bgpool.lab.waiting import wait_until
from bgpool.lab.worker import PAUSE_S, Job, Worker
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader, SegmentMap

__all__ = ["MEASURED", "Trial"]

T = TypeVar("T")

#: A switchover as measured on Aurora MySQL (2026-07-30), in a quarter of the time: read-only 0.5 s after IN_PROGRESS,
#: green writable at 4.6 s, names changed at 11.5 s, DNS moved at 18.6 s, deployment gone at 30.8 s.
MEASURED: Final = Schedule(
    initiated_s=-4.5,
    writes_stopped_s=0.5,
    connections_dropped_s=0.7,
    caught_up_s=0.8,
    green_promoted_s=4.6,
    old_blue_open_s=6.0,
    names_changed_s=11.5,
    blue_dns_moved_s=18.6,
    green_dns_gone_s=30.8,
    completed_s=30.9,
    scale=0.25,
)

READY_TIMEOUT_S: Final = 60.0
SETTLE_S: Final = 1.0
STOP_TIMEOUT_S: Final = 45.0
GLANCE_S: Final = 0.02


@dataclass
class Trial:
    """One trial; a context manager, inside which run() may be called once.

    Attributes:
        workers: The number of processes, forked after the pool was made, that use the writer endpoint.
        threads: The number of threads of each worker.
        job: The job of the threads.
        schedule: The switchover's times.
        engine, flavour: The same as for Pair.
        pair_options: More keywords for Pair.
        pool_options: More keywords for get_pool.
        own_monitor: True if the monitor logs in under a role of its own.
        evidence_event: The director's step after whose end a release is possible, except in a rollback.
        on_event: Called with every step of the director, in its thread.
        on_ready: Called once the deployment is ready for a switchover.
        settle_s: The time for which the application continues after the last step, in seconds.
    """

    workers: int = 4
    threads: int = 2
    job: Job = "write"
    schedule: Schedule = MEASURED
    engine: Engine = Engine.POSTGRESQL
    flavour: Flavour = "rds"
    pair_options: dict[str, Any] = field(default_factory=dict)
    pool_options: dict[str, Any] = field(default_factory=dict)
    own_monitor: bool = False
    evidence_event: str = "green_open"
    on_event: list[Callable[[Event], None]] = field(default_factory=list)
    on_ready: Callable[[], None] | None = None
    settle_s: float = SETTLE_S

    def __enter__(self) -> Trial:
        self.run_dir = Path(tempfile.mkdtemp(prefix="bgpool-trial-"))
        self._stack = contextlib.ExitStack()
        self._released: Snapshot | None = None
        self._connections = 0
        try:
            self._stack.callback(shutil.rmtree, self.run_dir, ignore_errors=True)
            self.pair = self._stack.enter_context(Pair(self.flavour, engine=self.engine, **self.pair_options))
            self.director = Director(self.pair, self.schedule)
            self.director.on_event += self.on_event
            ledger.create(self.pair)
            self.crew: list[Worker] = []
            self.pool = self.make_pool(self.pair.dsn)
            for _ in range(self.workers):
                self.add_worker()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An interrupt during the clean-up would leave servers behind.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if _in_main_thread() else None
        try:
            self.director.abort()
            self._stack.close()
        finally:
            if previous is not None:
                signal.signal(signal.SIGINT, previous)

    # -- the application -----------------------------------------------------------------------------------------

    def make_pool(self, dsn: str, **options: Any) -> bgpool.Pool[Any]:
        """Make a pool of this trial on *dsn*, closed at the trial's end."""
        pool = bgpool.get_pool(dsn, **self._options(), **options)
        self._stack.callback(pool.close)
        return pool

    def keep(self, resource: contextlib.AbstractContextManager[T]) -> T:
        """Enter *resource* and exit it at the trial's end, after the workers."""
        return self._stack.enter_context(resource)

    def add_worker(
        self,
        *,
        pool: bgpool.Pool[Any] | None = None,
        job: Job | None = None,
        threads: int = 0,
        endpoint: str = "",
        tasks: Sequence[Key] = (),
        tells_commits: bool | None = None,
        pause_s: float = PAUSE_S,
        think_s: float = 0.0,
    ) -> Worker:
        """Fork one more worker; it starts at once.

        Args:
            pool: The pool that it uses; None for the trial's own.
            job: Its job; None for the trial's own.
            threads: The number of its threads; 0 for the same number as the others.
            endpoint: The host name of its pool, for the report; empty for the writer endpoint.
            tasks, tells_commits, pause_s, think_s: The same as for `Worker`.
        """
        worker = Worker(
            len(self.crew),
            pool or self.pool,
            threads or self.threads,
            close_first=self.crew,
            job=job or self.job,
            endpoint=endpoint or self.pair.names.blue.primary,
            tasks=tasks,
            tells_commits=tells_commits,
            pause_s=pause_s,
            think_s=think_s,
        )
        self._stack.callback(worker.kill)
        self.crew.append(worker)
        return worker

    def stop_workers(self) -> None:
        """Make every worker end after its current call, and collect its results.

        Raises:
            LabError: One did not end.
        """
        for worker in self.crew:
            worker.stop()
        for worker in self.crew:
            worker.wait(STOP_TIMEOUT_S)

    # -- the switchover ------------------------------------------------------------------------------------------

    def run(self, play: Callable[[Trial], None] | None = None, *, rolled_back: bool = False) -> Report:
        """Run the switchover while the application continues, and judge the result.

        Args:
            play: The events that are directed; None for `switch_over`.
            rolled_back: True if blue is expected to remain the primary.

        Raises:
            LabError: The deployment did not become ready, or a worker did not end.
        """
        with TruthProbe(self.pair) as truth:
            truth.wait_writing()
            began_s = time.monotonic()
            (play or Trial.switch_over)(self)
            time.sleep(self.settle_s)
            self.stop_workers()
        if truth.down_s is None and not rolled_back:
            raise LabError("green never took a write")
        return self._report(began_s, truth, rolled_back)

    def switch_over(self) -> None:
        """Create the deployment, wait until it is ready, and run the director's steps."""
        self.director.create_deployment()
        self.wait_ready()
        if self.on_ready is not None:
            self.on_ready()
        self.direct(self.director.run)

    def wait_ready(self) -> None:
        """Wait until the monitor reports that a switchover may begin.

        Raises:
            LabError: It did not within READY_TIMEOUT_S.
        """
        wait_until(self._is_ready, timeout_s=READY_TIMEOUT_S, what="the deployment is ready")
        self._connections = max(self._connections, self.pair.lasting_monitoring_connections())

    def direct(self, run: Callable[[], object]) -> None:
        """Call the director's *run* in a thread, so that an interrupt is handled at once; raises its errors."""
        failures: list[BaseException] = []

        def direct() -> None:
            try:
                run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=direct, name="bgpool-director", daemon=True)
        thread.start()
        reader = Reader(self._files())
        while thread.is_alive():
            thread.join(GLANCE_S)
            # Save it now: when a deployment is deleted, its timeline is gone.
            snapshot = reader.refresh().snapshot
            if release_of(snapshot) is not None:
                self._released = snapshot
        if failures:
            raise failures[0]
        self._connections = max(self._connections, self.pair.lasting_monitoring_connections())

    def snapshot(self) -> Snapshot | None:
        """Return the snapshot that the monitor publishes now."""
        return Reader(self._files()).refresh().snapshot

    def monitor_pid(self) -> int:
        """Return the process id of the monitor.

        Raises:
            LabError: There is no monitor.
        """
        try:
            return SegmentMap(self._files()).header.pid
        except (FileNotFoundError, bgpool.SegmentError) as error:
            raise LabError(f"no monitor: {error}") from None

    # -- the verdict ---------------------------------------------------------------------------------------------

    def _report(self, began_s: float, truth: TruthProbe, rolled_back: bool) -> Report:
        acknowledged: list[Key] = [key for worker in self.crew for key in worker.acknowledged]
        unknown: list[Key] = [key for worker in self.crew for key in worker.unknown]
        judge = ledger.judge_rollback if rolled_back else ledger.judge
        outages = [outage.down_s for outage in truth.outages]
        snapshot = self.snapshot()
        entry = release_of(snapshot) or release_of(self._released)
        released_s = entry.mono_ns / 1e9 if entry is not None else None
        evidence_s = self._evidence_s("rolled_back" if rolled_back else self.evidence_event)
        writers = [worker for worker in self.crew if worker.job != "read unit"]
        errors = [f"worker {worker.number}: {error}" for worker in self.crew for error in worker.errors]
        return Report(
            verdict=judge(self.pair, acknowledged, unknown),
            undecided=sum(worker.undecided for worker in self.crew),
            errors=len(errors),
            missing=sum(worker.missing for worker in self.crew),
            error_examples=tuple(errors[:MOST_EXAMPLES]),
            calls=sum(len(worker.calls) for worker in self.crew),
            longest_call_s=max(worker.longest_call_s for worker in self.crew),
            longest_gap_s=max(worker.longest_gap_s(began_s) for worker in writers),
            down_s=max(outages, default=0.0),
            evidence=entry.evidence if entry is not None else "",
            release_s=released_s - evidence_s if released_s is not None and evidence_s is not None else None,
            resume_s=resume_s(writers, evidence_s) if evidence_s is not None else None,
            strays=tuple(self._strays(released_s))[:MOST_EXAMPLES],
            monitoring_connections=self._connections,
            snapshot=snapshot,
            error_counts=Counter(error.partition("(")[0] for worker in self.crew for error in worker.errors),
        )

    def _evidence_s(self, event: str) -> float | None:
        try:
            return self.director.event(event).monotonic_s
        except KeyError:
            return None

    def _strays(self, released_s: float | None) -> list[Stray]:
        blue = {server.address for server in self.pair.side("blue")}
        green = {server.address for server in self.pair.side("green")}
        entries = (self.snapshot() or Snapshot("")).timeline
        drained = [entry.mono_ns / 1e9 for entry in entries if entry.event == Phase.IN_PROGRESS.name]
        if released_s is None:
            # Rolled back, or never begun: no caller may use green at any time.
            return strays(self.crew, set(), green, 0.0, float("inf"))
        return strays(self.crew, blue, green, drained[-1] if drained else released_s, released_s)

    # -- inside --------------------------------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        usual = {
            "bg_id": "demo",
            "bg_resolver": self.pair.resolver,
            "bg_run_dir": self.run_dir,
            # The environment is ignored: a trial's servers do not belong to the fleet.
            "bg_fleet": None,
            "bg_interval_increased_ms": 500,
            "min_size": self.threads,
            "max_size": self.threads,
        }
        if self.own_monitor:
            usual["monitoring"] = {"user": MONITOR_ROLE, "password": self.pair.lab_password}
        if self.pair.iam is not None:
            usual["password"] = self.pair.tokens
        return usual | self.pool_options

    def _files(self) -> RunFiles:
        options = self._options()
        return RunFiles.of(Path(options["bg_run_dir"]), str(options["bg_id"]))

    def _is_ready(self) -> bool:
        snapshot = self.snapshot()
        return snapshot is not None and snapshot.ready


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
