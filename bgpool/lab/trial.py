"""A trial: pre-forked workers write a ledger through the pool while a switchover runs, and the ledger is judged.

This is the main job of bgpool in one function, on real servers. The demo shows it, and the tests run it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import bgpool
from bgpool.core.snapshot import Snapshot
from bgpool.lab import ledger
from bgpool.lab.director import Director, Event, Schedule
from bgpool.lab.errors import LabError
from bgpool.lab.ledger import Key, Verdict
from bgpool.lab.pair import Pair
from bgpool.lab.truth import TruthProbe
from bgpool.lab.waiting import wait_until
from bgpool.lab.worker import Worker
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader, SegmentMap

__all__ = ["MEASURED", "Report", "Trial"]

#: A switchover as it was measured on Aurora MySQL (2026-07-30), a quarter as long: read-only 0.5 s after
#: IN_PROGRESS, green writable at 4.6 s, names changed at 11.5 s, DNS moved at 18.6 s, gone at 30.8 s.
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

READY_TIMEOUT_S: Final = 20.0
SETTLE_S: Final = 1.0
STOP_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True)
class Report:
    """What a trial came to.

    Attributes:
        verdict: The ledger's.
        errors: Transactions that an application saw fail.
        error_examples: The first few of them, by worker.
        longest_gap_s: Longest time that a thread was without an acknowledged write, through the switchover.
        down_s: From the last write that blue took to the first that green took, for a client that knows both.
        monitoring_connections: Most that were open on both servers together, while the deployment was watched.
        snapshot: The last one published; its timeline is the summary.
    """

    verdict: Verdict
    errors: int
    error_examples: tuple[str, ...]
    longest_gap_s: float
    down_s: float
    monitoring_connections: int
    snapshot: Snapshot | None

    @property
    def excess_s(self) -> float:
        """The part of the longest gap that the database did not cause."""
        return self.longest_gap_s - self.down_s


@dataclass
class Trial:
    """One trial; a context manager, inside which run() may be called once.

    Attributes:
        workers: Processes, forked after the pool was made.
        threads: In each of them.
        schedule: The switchover's times.
        pool_options: More keywords for get_pool.
        on_event: Called with every step of the director, in its thread.
    """

    workers: int = 4
    threads: int = 2
    schedule: Schedule = MEASURED
    flavour: Any = "rds"
    pool_options: dict[str, Any] = field(default_factory=dict)
    on_event: list[Callable[[Event], None]] = field(default_factory=list)
    on_ready: Callable[[], None] | None = None

    def __enter__(self) -> Trial:
        self.run_dir = Path(tempfile.mkdtemp(prefix="bgpool-trial-"))
        self._stack = contextlib.ExitStack()
        try:
            self._stack.callback(shutil.rmtree, self.run_dir, ignore_errors=True)
            self.pair = self._stack.enter_context(Pair(self.flavour))
            self.director = Director(self.pair, self.schedule)
            self.director.on_event += self.on_event
            ledger.create(self.pair)
            self.pool = bgpool.get_pool(self.pair.dsn, **self._options())
            self._stack.callback(self.pool.close)
            self.crew: list[Worker] = []
            for number in range(self.workers):
                self.add_worker(number)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An interrupt that comes while we clean up would leave servers behind.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if _in_main_thread() else None
        try:
            self.director.abort()
            self._stack.close()
        finally:
            if previous is not None:
                signal.signal(signal.SIGINT, previous)

    def add_worker(self, number: int) -> Worker:
        """Fork one more worker; it starts to write at once."""
        worker = Worker(number, self.pool, self.threads, close_first=self.crew)
        self._stack.callback(worker.kill)
        self.crew.append(worker)
        return worker

    def run(self) -> Report:
        """Create the deployment, wait until it is ready, switch over, let the application go on, and judge.

        Raises:
            LabError: The deployment did not become ready, or a worker did not end.
        """
        self.director.create_deployment()
        with TruthProbe(self.pair) as truth:
            truth.wait_writing()
            wait_until(self._is_ready, timeout_s=READY_TIMEOUT_S, what="the deployment to be ready")
            if self.on_ready is not None:
                self.on_ready()
            connections = self.pair.monitoring_connections()
            began_s = time.monotonic()
            self._direct()
            connections = max(connections, self.pair.monitoring_connections())
            time.sleep(SETTLE_S)
            self.stop_workers()
        if truth.down_s is None:
            raise LabError("green never took a write")
        return self._report(began_s, truth.down_s, connections)

    def snapshot(self) -> Snapshot | None:
        """What the monitor publishes now."""
        return Reader(self._files()).refresh().snapshot

    def monitor_pid(self) -> int:
        """The process id of the monitor.

        Raises:
            LabError: There is none.
        """
        try:
            return SegmentMap(self._files()).header.pid
        except (FileNotFoundError, bgpool.SegmentError) as error:
            raise LabError(f"no monitor: {error}") from None

    def stop_workers(self) -> None:
        """Have every worker end after its transaction, and take its figures in."""
        for worker in self.crew:
            worker.stop()
        for worker in self.crew:
            worker.wait(STOP_TIMEOUT_S)

    def _direct(self) -> None:
        """Run the director beside us, so that an interrupt is heard at once."""
        failures: list[BaseException] = []

        def direct() -> None:
            try:
                self.director.run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=direct, name="bgpool-director", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
        if failures:
            raise failures[0]

    def _options(self) -> dict[str, Any]:
        usual = {
            "bg_id": "demo",
            "bg_resolver": self.pair.resolver,
            "bg_run_dir": self.run_dir,
            "bg_interval_increased_ms": 500,
            "min_size": self.threads,
            "max_size": self.threads,
        }
        return usual | self.pool_options

    def _files(self) -> RunFiles:
        return RunFiles.of(self.run_dir, str(self._options()["bg_id"]))

    def _is_ready(self) -> bool:
        snapshot = self.snapshot()
        return snapshot is not None and snapshot.ready

    def _report(self, began_s: float, down_s: float, connections: int) -> Report:
        acknowledged: list[Key] = [key for worker in self.crew for key in worker.acknowledged]
        unknown: list[Key] = [key for worker in self.crew for key in worker.unknown]
        return Report(
            verdict=ledger.judge(self.pair, acknowledged, unknown),
            errors=sum(len(worker.errors) for worker in self.crew),
            error_examples=_examples(self.crew),
            longest_gap_s=max(worker.longest_gap_s(began_s) for worker in self.crew),
            down_s=down_s,
            monitoring_connections=connections,
            snapshot=self.snapshot(),
        )


def _examples(crew: Sequence[Worker]) -> tuple[str, ...]:
    return tuple(f"worker {worker.number}: {error}" for worker in crew for error in worker.errors)[:20]


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
