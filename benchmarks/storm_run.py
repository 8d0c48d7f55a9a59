"""One storm: workers with pools of eight, a switchover under them, and the observations of green and the workers."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import psycopg_pool

import bgpool
from benchmarks import hosts
from benchmarks.arrivals import SETTINGS, attempts
from benchmarks.forked_workers import ForkedWorkers, WorkerReporter
from benchmarks.run_dir import RunDir
from benchmarks.storm_figures import Storm
from bgpool import get_pool
from bgpool.lab import Director, LabError, Pair, Schedule, ledger
from bgpool.lab.ledger import INSERT_SQL
from bgpool.lab.pair import MONITOR_ROLE, ROLE
from bgpool.lab.report import release_of
from bgpool.lab.waiting import wait_until

__all__ = ["CASES", "CLIENTS", "SCHEDULE", "THREADS", "Case", "Client", "Size", "measure"]

THREADS: Final = 8
BG_ID: Final = "storm"

#: The names move before old blue accepts clients again. Otherwise a client that uses DNS alone would stay there.
SCHEDULE: Final = Schedule(
    initiated_s=-2.0,
    writes_stopped_s=0.4,
    connections_dropped_s=0.6,
    caught_up_s=0.9,
    green_promoted_s=2.5,
    names_changed_s=3.0,
    blue_dns_moved_s=3.5,
    old_blue_open_s=5.0,
    green_dns_gone_s=5.5,
    completed_s=6.0,
)

START_TIMEOUT_S: Final = 90.0
READY_TIMEOUT_S: Final = 60.0
BACK_TIMEOUT_S: Final = 30.0
CALL_TIMEOUT_S: Final = 30.0
#: The time for attempts under way to end, once all threads are back.
LAST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a storm.

    Attributes:
        calls_per_s: The calls of all threads together, per second, while all of them work.
        before_s: The time during which the throughput before the switchover is measured.
    """

    workers: int = 64
    calls_per_s: float = 400.0
    before_s: float = 4.0
    schedule: Schedule = SCHEDULE

    @property
    def pause_s(self) -> float:
        """Return the pause between two calls of a thread."""
        return self.workers * THREADS / self.calls_per_s


@dataclass(frozen=True, slots=True)
class Case:
    """The load before the switchover: *busy* threads of each worker worked, on as many connections."""

    name: str
    busy: int


CASES: Final = (Case("8 of 8 connections held", THREADS), Case("1 of 8 connections held", 1))

AnyPool = bgpool.Pool[Any] | psycopg_pool.ConnectionPool[Any]


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of the clients.

    Attributes:
        names: The file that they see as the system's hosts file; None if that is not possible.
    """

    pair: Pair
    run_dir: Path
    names: Path | None


@dataclass(frozen=True, slots=True)
class Client:
    """A pool that is compared.

    Attributes:
        make: Makes a pool for a worker, after the fork, with a minimum size.
        idle: Returns the number of its idle connections.
        opens: The director's step from which on the pool can find green, for a pool without a release.
        needs_names: True if it resolves names through the system.
    """

    name: str
    make: Callable[[Environment, int], AnyPool]
    idle: Callable[[Any], int]
    opens: str
    needs_names: bool


def measure(case: Case, client: Client, size: Size) -> Storm:
    """Run a switchover of a fresh pair, and return the observations."""
    with RunDir() as run_dir, Pair(settings={**SETTINGS, "max_connections": "800"}) as pair:
        ledger.create(pair)
        director = Director(pair, size.schedule)
        names = hosts.names_of(pair, director) if not hosts.available() else None
        environment = Environment(pair, run_dir.path, names.path if names is not None else None)
        with ForkedWorkers(
            size.workers, partial(_live, environment=environment, client=client, case=case, pause_s=size.pause_s)
        ) as workers:
            workers.wait_ready(START_TIMEOUT_S)
            director.create_deployment()
            if client.name == "bgpool":
                run_dir.wait_ready(BG_ID, timeout_s=READY_TIMEOUT_S)
            time.sleep(size.before_s)
            held_before = pair.application_connections("blue")
            released_s = _direct(director, workers, run_dir, size.workers * (THREADS - case.busy))
            opened_s = director.event(client.opens).monotonic_s if released_s is None else released_s
            with contextlib.suppress(LabError):
                # A thread that does not come back has no time in the table.
                wait_until(lambda: _all_back(workers, size, opened_s), timeout_s=BACK_TIMEOUT_S, what="", poll_s=0.2)
            until_s = time.time()
            time.sleep(LAST_S)
            calls = workers.calls()
        lines = pair.green.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    began = director.event("in_progress")
    # Only the application's attempts lack a role in the log. Other clients send theirs at once.
    mine = [each for each in attempts(lines) if each.user in (ROLE, "") and began.wall_s < each.received_s < until_s]
    wall_s = began.wall_s - began.monotonic_s
    return Storm(
        workers=size.workers,
        threads=THREADS,
        before_s=size.before_s,
        held_before=held_before,
        began_s=began.monotonic_s,
        opened_s=opened_s,
        wall_s=wall_s,
        calls=calls,
        attempts=tuple(mine),
    )


def _live(reporter: WorkerReporter, *, environment: Environment, client: Client, case: Case, pause_s: float) -> None:
    """Be a worker: a pool, and THREADS threads, some of which wait until they are released."""
    if environment.names is not None:
        hosts.enter(environment.names)
    # Failed attempts are counted, not logged.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    pool = client.make(environment, case.busy)
    wait_until(lambda: client.idle(pool) >= case.busy, timeout_s=START_TIMEOUT_S, what="connections", poll_s=0.05)
    for thread in range(THREADS):
        is_busy = thread < case.busy
        threading.Thread(target=_work, args=(reporter, pool, thread, pause_s, is_busy), daemon=True).start()
    reporter.ready()


def _work(reporter: WorkerReporter, pool: AnyPool, thread: int, pause_s: float, is_busy: bool) -> None:
    """Be a thread: write rows with pauses between them."""
    if is_busy:
        time.sleep(random.uniform(0, pause_s))
    else:
        reporter.wait_turn()
    for n in itertools.count():
        began_s = time.monotonic()
        ok = True
        try:
            with pool.connection() as connection:
                connection.execute(INSERT_SQL, (reporter.number, thread, n))
        except (psycopg.Error, psycopg_pool.PoolTimeout):
            ok = False
        reporter.note(thread, began_s, time.monotonic(), ok=ok)
        time.sleep(pause_s)


def _direct(director: Director, workers: ForkedWorkers, run_dir: RunDir, more_threads: int) -> float | None:
    """Run the switchover and release *more_threads* in its outage. Return the time at which bgpool released callers."""
    at = director.schedule
    come_s = (at.caught_up_s + at.green_promoted_s) / 2
    director.add("threads_come", come_s, lambda: workers.release(more_threads))
    director.run()
    release = release_of(run_dir.snapshot(BG_ID))
    return release.mono_ns / 1e9 if release is not None else None


def _all_back(workers: ForkedWorkers, size: Size, opened_s: float) -> bool:
    return len({(call.worker, call.thread) for call in workers.calls() if call.ok and call.ended_s > opened_s}) == (
        size.workers * THREADS
    )


def _bgpool(environment: Environment, least: int) -> bgpool.Pool[Any]:
    pool: bgpool.Pool[Any] = get_pool(
        environment.pair.dsn,
        bg_id=BG_ID,
        bg_resolver="system" if environment.names is not None else environment.pair.resolver,
        bg_run_dir=environment.run_dir,
        bg_interval_baseline_ms=1000,
        bg_interval_increased_ms=500,
        # No other client may use the application's role.
        monitoring={"user": MONITOR_ROLE, "password": environment.pair.lab_password},
        min_size=least,
        max_size=THREADS,
        timeout=CALL_TIMEOUT_S,
    )
    pool.open()
    return pool


def _psycopg_pool(environment: Environment, least: int) -> psycopg_pool.ConnectionPool[Any]:
    return psycopg_pool.ConnectionPool(
        environment.pair.dsn, min_size=least, max_size=THREADS, timeout=CALL_TIMEOUT_S, open=True
    )


CLIENTS: Final = (
    Client("bgpool", _bgpool, lambda pool: int(pool.stats().idle), "green_open", needs_names=False),
    Client(
        "psycopg_pool",
        _psycopg_pool,
        lambda pool: int(pool.get_stats()["pool_available"]),
        "blue_dns_moved",
        needs_names=True,
    ),
)
