"""The cost of a checkout in quiet times, compared with the bare pool underneath."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psycopg_pool
from sqlalchemy import URL, make_url

import bgpool
from benchmarks import alchemy_costs, django_costs
from benchmarks.machine import measured_on
from benchmarks.result import Column, Result, Table, Value
from benchmarks.rounds import compare
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.lab import Director, Pair
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.reader import Reader
from bgpool.segment.writer import Writer

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "Checkout in quiet times"
QUESTION: Final = (
    "What does a checkout and return cost compared with the bare pool underneath, and a statement compared with the "
    "bare connection? What does a SQLAlchemy engine cost on bgpool's dialect compared with the plain dialect, and "
    "Django on bgpool's engine compared with its own? "
    "All pools talk to one server. Apart from the statements, nothing is sent. Rounds of both alternate, and the "
    "figures are medians over the rounds."
)
READY_S: Final = 15.0
#: A publication closes the fast path for a moment, and the monitor publishes often until it has the inventory.
SETTLE_S: Final = 1.5

_COLUMNS: Final = (
    Column("what", "what", is_key=True),
    Column("theirs_us", "bare pool, µs", 3),
    Column("bgpool_us", "bgpool, µs", 3),
    Column("excess_us", "excess, µs", 3),
    Column("ratio", "ratio", 2),
)
_SEGMENT_COLUMNS: Final = (Column("what", "what", is_key=True), Column("ns", "ns", 0))


def run(*, quick: bool) -> Result:
    """Run one repetition: two pools on one server, and a segment without pools."""
    rounds, calls = (4, 500) if quick else (40, 5000)
    with tempfile.TemporaryDirectory() as directory, _pools(Path(directory) / "run") as (pair, ours, bare):
        figures = {name: compare(a, b, rounds=rounds, calls=calls) for name, a, b in _ways(bare, ours)}
        with _two_connections(bare, ours) as (theirs, mine):
            statements = compare(_statement(theirs), _statement(mine), rounds=rounds, calls=max(1, calls // 10))
        figures["one statement on a connection"] = statements
        with alchemy_costs.engines(*_urls(pair), _options(pair, Path(directory) / "run")) as engines:
            alchemy = tuple(alchemy_costs.rows(*engines, rounds=rounds, calls=calls))
        with django_costs.all_ways(pair, _options(pair, Path(directory) / "run")) as ways:
            time.sleep(SETTLE_S)
            django = tuple(django_costs.rows(ways, rounds=rounds, calls=calls))
    rows = tuple({"what": name, **figure} for name, figure in figures.items())
    notes = (
        "A statement: a wrapper would add its cost here. The server's processes run on the client's core during the "
        "measurement.",
        "The bare pool's own with block is a generator, and bgpool's is a class. This explains a ratio below 1.",
        measured_on(),
    )
    return Result(
        (
            Table("checkout", "Checkout and return, compared with psycopg_pool", _COLUMNS, rows, notes=notes),
            Table(
                "alchemy",
                "Checkout and return of a SQLAlchemy engine, compared with QueuePool on psycopg's dialect",
                alchemy_costs.COLUMNS,
                alchemy,
                notes=("Both engines pool like QueuePool, with one open connection.",),
            ),
            Table(
                "django",
                "A cursor, a request and a transaction of Django, compared with its own engine",
                django_costs.COLUMNS,
                django,
                notes=django_costs.NOTES,
            ),
            Table("segment", "Operations on the segment", _SEGMENT_COLUMNS, _segment_rows(calls)),
        )
    )


@contextlib.contextmanager
def _pools(run_dir: Path) -> Iterator[tuple[Pair, Any, Any]]:
    """Yield bgpool's pool in a deployment that is ready, and psycopg_pool's pool."""
    with Pair() as pair:
        Director(pair).create_deployment()
        bare = psycopg_pool.ConnectionPool(pair.direct_dsn(pair.blue), min_size=2, open=True)
        ours = bgpool.get_pool(pair.dsn, min_size=2, **_options(pair, run_dir))
        try:
            bare.wait()
            deadline = time.monotonic() + READY_S
            while ours.stats().phase is not Phase.CREATED:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the deployment was not seen within {READY_S:g} s: {ours.stats()}")
                ours.putconn(ours.getconn())
                time.sleep(0.05)
            time.sleep(SETTLE_S)
            yield pair, ours, bare
        finally:
            ours.close()
            bare.close()


def _options(pair: Pair, run_dir: Path) -> dict[str, Any]:
    return {"bg_resolver": pair.resolver, "bg_run_dir": run_dir}


def _urls(pair: Pair) -> tuple[URL, URL]:
    """Return the URL of the plain dialect, with an address, and that of the dialect for bgpool, with a name."""
    plain, ours = make_url(pair.direct_dsn(pair.blue)), make_url(pair.dsn)
    return plain.set(drivername="postgresql+psycopg"), ours.set(drivername="postgresql+bgpool")


def _ways(bare: Any, ours: Any) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """Yield each way to check out and return a connection, for the bare pool and for bgpool's.

    Each is written out for both pools, because the interpreter cannot specialise a function that sees two types.
    """

    def get_put_bare() -> None:
        bare.putconn(bare.getconn())

    def get_put_ours() -> None:
        ours.putconn(ours.getconn())

    yield "getconn, putconn", get_put_bare, get_put_ours

    def with_bare() -> None:
        with bare.connection():
            pass

    def with_ours() -> None:
        with ours.connection():
            pass

    yield "with pool.connection()", with_bare, with_ours


def _statement(connection: Any) -> Callable[[], object]:
    return lambda: connection.execute("SELECT 1")


@contextlib.contextmanager
def _two_connections(bare: Any, ours: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a connection of each pool, with this process and the servers' processes pinned to one core.

    Otherwise the system's choice of cores would change the figures more than the difference that is measured.
    """
    connections = bare.getconn(), ours.getconn()
    cores = os.sched_getaffinity(0)
    try:
        for pid in (0, *(connection.info.backend_pid for connection in connections)):
            os.sched_setaffinity(pid, {min(cores)})
        for connection in connections:
            connection.autocommit = True
        yield connections
    finally:
        os.sched_setaffinity(0, cores)
        for pool, connection in zip((bare, ours), connections, strict=True):
            connection.autocommit = False
            pool.putconn(connection)


def _segment_rows(calls: int) -> tuple[Mapping[str, Value], ...]:
    """Return the ns to find that nothing was published, to read a snapshot, and to decode it."""
    hosts = (
        Host("db.c0.eu-west-1.rds.amazonaws.com", 5432, Role.SOURCE, ("10.0.0.1",)),
        Host("db-green-abc123.c0.eu-west-1.rds.amazonaws.com", 5432, Role.TARGET, ("10.0.0.2",)),
    )
    snapshot = Snapshot("1", Phase.CREATED, 3, ready=True, hosts=hosts, twins=((hosts[0].name, hosts[1].name),))
    with tempfile.TemporaryDirectory() as directory:
        files = RunFiles.of(Path(directory) / "run", "1")
        prepare_run_dir(files.directory)
        writer = Writer(files, 1, snapshot)
        reader = Reader(files)
        word = reader.refresh().word
        admitted = memoryview(bytearray(word.tobytes())).cast("Q")
        unchanged = _ns(lambda: word == admitted, calls * 10)
        refresh = _ns(reader.refresh, calls * 4)
        changed = []
        for number in range(200):
            writer.publish(replace(snapshot, epoch=4 + number % 2))
            began = time.perf_counter_ns()
            reader.refresh()
            changed.append(time.perf_counter_ns() - began)
        changed.sort()
    return (
        {"what": "the check of a checkout: the word is unchanged", "ns": unchanged},
        {"what": "a reading, nothing published since", "ns": refresh},
        {"what": "a reading of a new snapshot, decoded", "ns": changed[len(changed) // 2]},
    )


def _ns(call: Callable[[], object], calls: int) -> float:
    """Return the ns of one call, less those of an empty function."""

    def nothing() -> None:
        pass

    def took(what: Callable[[], object]) -> int:
        began = time.perf_counter_ns()
        for _ in range(calls):
            what()
        return time.perf_counter_ns() - began

    return max(0.0, min(took(call) - took(nothing) for _ in range(5)) / calls)
