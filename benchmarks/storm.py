"""A storm of connections after a switchover: how many a green server is asked for at once, and how soon all is well."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import psycopg_pool

import bgpool
from benchmarks import hosts
from benchmarks.arrivals import SETTINGS, Attempt, attempts, most_at_once
from benchmarks.fleet import Call, Fleet, Post
from benchmarks.hosts import Names
from benchmarks.result import Column, Plot, Result, Table, Value
from benchmarks.run_dir import RunDir
from bgpool import get_pool
from bgpool.lab import Director, LabError, Pair, Schedule, ledger
from bgpool.lab.ledger import INSERT_SQL
from bgpool.lab.pair import MONITOR_ROLE, ROLE
from bgpool.lab.report import release_of
from bgpool.lab.waiting import wait_until

__all__ = ["QUESTION", "TITLE", "run"]

TITLE = "A storm of connections"
QUESTION = (
    "How many connections is green asked for once callers are let go, with 64 workers whose pools have room for eight "
    "each, and how soon is the application's throughput back? Counted in the server's own log, for the application's "
    "role alone."
)

THREADS: Final = 8
BG_ID: Final = "storm"
BIN_MS: Final = 100
#: What is drawn of the time after the way was open, in ms.
DRAWN_MS: Final = 3000
#: Throughput is back when so much of what it was before is reached, in a window of BIN_MS.
FULL: Final = 0.9

#: The names move before old blue lets anybody in again: a client that goes by DNS alone would stay there.
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
#: For attempts at hand to come to something, once everybody is back.
LAST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """How large a storm is.

    Attributes:
        calls_per_s: Of all threads together, while all of them work.
        before_s: How long the throughput of before is measured.
    """

    workers: int = 64
    calls_per_s: float = 400.0
    before_s: float = 4.0
    schedule: Schedule = SCHEDULE

    @property
    def pause_s(self) -> float:
        """Between two calls of a thread."""
        return self.workers * THREADS / self.calls_per_s


@dataclass(frozen=True, slots=True)
class Case:
    """What the pools were doing before: *busy* threads of each worker worked, on as many connections."""

    name: str
    busy: int


CASES: Final = (Case("8 of 8 connections held", THREADS), Case("1 of 8 connections held", 1))

AnyPool = bgpool.Pool[Any] | psycopg_pool.ConnectionPool[Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the clients are.

    Attributes:
        names: What they see as the system's hosts file; None where they cannot be made to.
    """

    pair: Pair
    run_dir: Path
    names: Path | None


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody's pool.

    Attributes:
        make: A pool for a worker, after the fork, with a least size.
        idle: How many connections it has to hand out.
        opens: The director's step from which on it can find green, where nothing is told of a release.
        needs_names: It asks the system for addresses.
    """

    name: str
    make: Callable[[Place, int], AnyPool]
    idle: Callable[[Any], int]
    opens: str
    needs_names: bool


def run(*, quick: bool) -> Result:
    """One storm for each case and client."""
    size = Size(4, 100.0, 1.0, replace(SCHEDULE, scale=0.5)) if quick else Size()
    rows: list[Mapping[str, Value]] = []
    bins: list[Mapping[str, Value]] = []
    missing = hosts.available()
    for case in CASES:
        for client in CLIENTS:
            if client.needs_names and missing:
                continue
            storm = _storm(case, client, size)
            keys: Mapping[str, Value] = {"case": case.name, "client": client.name}
            rows.append({**keys, **storm.figures()})
            bins += [{**keys, **row} for row in storm.bins()]
    notes = (f"psycopg_pool was left out: {missing}",) if missing else ()
    return Result((_summary(rows, notes), _timeline(bins)), _PLOTS)


# -- one storm ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Storm:
    """What was seen. *opened_s* and *began_s* (IN_PROGRESS) are on the monotonic clock, *wall_s* is what to add."""

    size: Size
    held_before: int
    began_s: float
    opened_s: float
    wall_s: float
    calls: Sequence[Call]
    attempts: Sequence[Attempt]

    def figures(self) -> dict[str, Value]:
        """The measured columns of the summary."""
        by_thread, workers = self._firsts_s(), self.size.workers
        firsts = [min(mine) for n in range(workers) if (mine := [at for (w, _), at in by_thread.items() if w == n])]
        busiest = max((int(row["attempts"]) for row in self._binned() if row["attempts"]), default=0)
        return {
            "held_before": self.held_before,
            "most_at_once": most_at_once(self.attempts),
            "busiest": busiest,
            "attempts": len(self.attempts),
            "refused": sum(not each.ok for each in self.attempts),
            "errors": sum(not call.ok for call in self.calls if call.ended_s > self.began_s),
            "first_median_s": statistics.median_low(firsts) if len(firsts) * 2 > workers else None,
            "first_last_s": max(firsts) if len(firsts) == workers else None,
            "every_thread_s": max(by_thread.values()) if len(by_thread) == workers * THREADS else None,
            "full_s": self._full_s(),
        }

    def bins(self) -> list[dict[str, int]]:
        """Attempts by the time at which they came, in ms from the moment at which the way was open."""
        return [row for row in self._binned() if 0 <= row["at_ms"] < DRAWN_MS]

    def _binned(self) -> list[dict[str, int]]:
        at_ms = [1000 * (each.received_s - self.wall_s - self.opened_s) // BIN_MS * BIN_MS for each in self.attempts]
        return [
            {
                "at_ms": start,
                "attempts": at_ms.count(start),
                "at_once": most_at_once(
                    each for each, at in zip(self.attempts, at_ms, strict=True) if at <= start
                    and 1000 * (each.ended_s - self.wall_s - self.opened_s) >= start
                ),
            }
            for start in sorted({*range(0, DRAWN_MS, BIN_MS), *map(int, at_ms)})
        ]  # fmt: skip

    def _firsts_s(self) -> dict[tuple[int, int], float]:
        """When each thread that came back had its first success, by worker and thread."""
        firsts: dict[tuple[int, int], float] = {}
        for call in self.calls:
            if call.ok and call.ended_s > self.opened_s:
                firsts.setdefault((call.worker, call.thread), call.ended_s - self.opened_s)
        return firsts

    def _full_s(self) -> float | None:
        """When the window of BIN_MS that ends then was the first with as many successes as before."""
        window_s = BIN_MS / 1000
        times = [call.ended_s for call in self.calls if call.ok]
        since_s = self.began_s - self.size.before_s
        before = sum(since_s <= at < self.began_s for at in times) / (self.size.before_s / window_s)
        after = [at for at in times if at > self.opened_s]
        needed = max(1, round(FULL * before))
        for first, last in zip(after, after[needed - 1 :], strict=False):
            if last - first <= window_s:
                return last - self.opened_s
        return None


def _storm(case: Case, client: Client, size: Size) -> Storm:
    """A pair of its own, a switchover, and what came of it."""
    with RunDir() as run_dir, Pair(settings={**SETTINGS, "max_connections": "800"}) as pair:
        ledger.create(pair)
        names = Names(pair.directory) if not hosts.available() else None
        director = Director(pair, size.schedule)
        if names is not None:
            names.publish(pair.hosts.read())
            director.on_event.append(lambda _: names.publish(pair.hosts.read()))
        place = Place(pair, run_dir.path, names.path if names is not None else None)
        with Fleet(size.workers, partial(_live, place=place, client=client, case=case, pause_s=size.pause_s)) as fleet:
            fleet.wait_ready(START_TIMEOUT_S)
            director.create_deployment()
            if client.name == "bgpool":
                run_dir.wait_ready(BG_ID, timeout_s=READY_TIMEOUT_S)
            time.sleep(size.before_s)
            held_before = pair.application_connections("blue")
            released_s = _direct(director, fleet, run_dir, size.workers * (THREADS - case.busy))
            opened_s = director.event(client.opens).monotonic_s if released_s is None else released_s
            with contextlib.suppress(LabError):
                # Whoever does not come back has no time in the table.
                wait_until(lambda: _all_back(fleet, size, opened_s), timeout_s=BACK_TIMEOUT_S, what="", poll_s=0.2)
            until_s = time.time()
            time.sleep(LAST_S)
            calls = fleet.calls()
        lines = pair.green.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    began = director.event("in_progress")
    # Nobody but the application is without a name: the others' roles are told as soon as they come.
    mine = [each for each in attempts(lines) if each.user in (ROLE, "") and began.wall_s < each.received_s < until_s]
    wall_s = began.wall_s - began.monotonic_s
    return Storm(size, held_before, began.monotonic_s, opened_s, wall_s, calls, tuple(mine))


def _live(post: Post, *, place: Place, client: Client, case: Case, pause_s: float) -> None:
    """A worker: a pool, and THREADS threads, some of which wait until they are let go."""
    if place.names is not None:
        hosts.enter(place.names)
    # Failed attempts are counted, not told.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    pool = client.make(place, case.busy)
    wait_until(lambda: client.idle(pool) >= case.busy, timeout_s=START_TIMEOUT_S, what="connections", poll_s=0.05)
    for thread in range(THREADS):
        is_busy = thread < case.busy
        threading.Thread(target=_work, args=(post, pool, thread, pause_s, is_busy), daemon=True).start()
    post.ready()


def _work(post: Post, pool: AnyPool, thread: int, pause_s: float, is_busy: bool) -> None:
    """A thread: a row, a pause, and so on."""
    if is_busy:
        time.sleep(random.uniform(0, pause_s))
    else:
        post.wait_turn()
    for n in itertools.count():
        began_s = time.monotonic()
        ok = True
        try:
            with pool.connection() as connection:
                connection.execute(INSERT_SQL, (post.number, thread, n))
        except (psycopg.Error, psycopg_pool.PoolTimeout):
            ok = False
        post.note(thread, began_s, time.monotonic(), ok=ok)
        time.sleep(pause_s)


def _direct(director: Director, fleet: Fleet, run_dir: RunDir, more_threads: int) -> float | None:
    """Run the switchover, in whose outage *more_threads* come; when bgpool let callers go, if it did."""
    at = director.schedule
    come_s = (at.caught_up_s + at.green_promoted_s) / 2
    director.add("threads_come", come_s, lambda: fleet.let_go(more_threads))
    director.run()
    release = release_of(run_dir.snapshot(BG_ID))
    return release.mono_ns / 1e9 if release is not None else None


def _all_back(fleet: Fleet, size: Size, opened_s: float) -> bool:
    return len({(call.worker, call.thread) for call in fleet.calls() if call.ok and call.ended_s > opened_s}) == (
        size.workers * THREADS
    )


# -- clients -----------------------------------------------------------------------------------------------------------


def _bgpool(place: Place, least: int) -> bgpool.Pool[Any]:
    pool: bgpool.Pool[Any] = get_pool(
        place.pair.dsn,
        bg_id=BG_ID,
        bg_resolver="system" if place.names is not None else place.pair.resolver,
        bg_run_dir=place.run_dir,
        bg_interval_baseline_ms=1000,
        bg_interval_increased_ms=500,
        # So that what comes as the application's role is the application.
        monitoring={"user": MONITOR_ROLE, "password": place.pair.lab_password},
        min_size=least,
        max_size=THREADS,
        timeout=CALL_TIMEOUT_S,
    )
    pool.open()
    return pool


def _psycopg_pool(place: Place, least: int) -> psycopg_pool.ConnectionPool[Any]:
    return psycopg_pool.ConnectionPool(
        place.pair.dsn, min_size=least, max_size=THREADS, timeout=CALL_TIMEOUT_S, open=True
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


# -- tables ------------------------------------------------------------------------------------------------------------

_KEYS: Final = (Column("case", "Before", is_key=True), Column("client", "Client", is_key=True))


def _summary(rows: Sequence[Mapping[str, Value]], notes: tuple[str, ...]) -> Table:
    return Table(
        "storm",
        "What green is asked for, and how soon all is well",
        (
            *_KEYS,
            Column("held_before", "Connections held before"),
            Column("most_at_once", "Most being opened at once"),
            Column("busiest", f"Most attempts in {BIN_MS} ms"),
            Column("attempts", "Attempts"),
            Column("refused", "Attempts that failed"),
            Column("errors", "Errors callers saw"),
            Column("first_median_s", "First success, median worker (s)", 3),
            Column("first_last_s", "First success, last worker (s)", 3),
            Column("every_thread_s", "First success, last thread (s)", 3),
            Column("full_s", "Full throughput (s)", 3),
        ),
        tuple(rows),
        ranked_by=("full_s", "most_at_once"),
        rivals="client",
        notes=(
            "Times count from the moment at which a client could find green: for bgpool the release of its callers, for"
            " psycopg_pool, which goes by DNS alone, the move of the names a second after green was open.",
            f"Full throughput: {FULL:.0%} of the successes per {BIN_MS} ms of before.",
            "With 1 of 8 held, one thread of each worker worked before and eight wait when callers are let go.",
            "Attempts are counted up to the end of the switchover, and until every thread was back.",
            *notes,
        ),
    )


def _timeline(bins: Sequence[Mapping[str, Value]]) -> Table:
    columns = (
        *_KEYS,
        Column("at_ms", "From the release (ms)", is_key=True),
        Column("attempts", f"Attempts per {BIN_MS} ms"),
        Column("at_once", "Being opened at once"),
    )
    return Table("attempts", "Connection attempts on green", columns, tuple(bins), shown=False)


_PLOTS: Final = tuple(
    Plot(
        f"storm-{case.busy}",
        f"Connection attempts per {BIN_MS} ms on green: {case.name} before",
        "attempts",
        "lines",
        "at_ms",
        "attempts",
        series="client",
        where={"case": case.name},
    )
    for case in CASES
)
