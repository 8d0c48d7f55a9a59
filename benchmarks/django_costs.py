"""The cost of a cursor, a request and a transaction on bgpool's Django engines, compared with Django's own engines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connections, transaction
from sqlalchemy import make_url

from benchmarks.clients import djangos, ours_django
from benchmarks.result import Column, Value
from benchmarks.rounds import compare
from bgpool.core.engine import Engine
from bgpool.lab import Pair

__all__ = ["COLUMNS", "NOTES", "Way", "all_ways", "rows"]

COLUMNS: Final = (
    Column("what", "what", is_key=True),
    Column("theirs_us", "Django's engine, µs", 3),
    Column("bgpool_us", "bgpool's engine, µs", 3),
    Column("excess_us", "excess, µs", 3),
    Column("ratio", "ratio", 2),
)
NOTES: Final = (
    "A request: the steps of Django on a connection at the beginning and the end of a request, and one cursor between. "
    "With a pool Django takes a connection and returns it; without a pool it keeps its own.",
)
_POOL: Final[Mapping[str, int]] = {"min_size": 1, "max_size": 1}


@dataclass(frozen=True)
class Way:
    """An operation of an application.

    Attributes:
        what: The name in the table.
        theirs: The operation on Django's own engine.
        mine: The operation on bgpool's engine.
        part: The fraction of a round's calls, smaller for a slow operation.
    """

    what: str
    theirs: Callable[[], object]
    mine: Callable[[], object]
    part: float


@contextlib.contextmanager
def all_ways(pair: Pair, bg_options: Mapping[str, Any]) -> Iterator[Sequence[Way]]:
    """Yield every operation, with open connections. bgpool's may not know the deployment yet."""
    with contextlib.ExitStack() as stack:
        aliases = [stack.enter_context(_databases(pair, bg_options, {}, CONN_MAX_AGE=None))]
        # Django's own engine for MySQL has no pool.
        if pair.engine is Engine.POSTGRESQL:
            aliases.append(stack.enter_context(_databases(pair, bg_options, {"pool": _POOL}, CONN_MAX_AGE=0)))
        kept, *pooled = aliases
        yield [
            _way("cursor() on a kept connection", _cursor, kept, 1.0),
            _way("a request with one cursor(), CONN_MAX_AGE", _request, kept, 1.0),
            *(_way('a request with one cursor(), OPTIONS["pool"]', _request, pool, 0.5) for pool in pooled),
            _way("atomic() with nothing in it", _empty, kept, 0.1),
            _way("atomic() with one INSERT", _insert, kept, 0.05),
        ]


def rows(ways: Sequence[Way], *, rounds: int, calls: int) -> list[Mapping[str, Value]]:
    """Return the figures of each of *ways*, in alternating rounds of both engines."""
    with _one_core():
        return [
            {"what": way.what, **compare(way.theirs, way.mine, rounds=rounds, calls=max(1, int(calls * way.part)))}
            for way in ways
        ]


@contextlib.contextmanager
def _databases(
    pair: Pair, bg_options: Mapping[str, Any], options: Mapping[str, Any], **more: Any
) -> Iterator[tuple[str, str]]:
    """Yield the aliases of two databases on blue: Django's own engine with an address, bgpool's with a name."""
    plain, named = make_url(pair.direct_dsn(pair.blue)), make_url(pair.dsn)
    of_its = {"bg_id": "bench", **bg_options, **options}
    databases = (
        djangos.database_of(plain, djangos.ENGINES[plain.drivername], options, **more),
        djangos.database_of(named, ours_django.ENGINES[named.drivername], of_its, **more),
    )
    with contextlib.ExitStack() as stack:
        aliases: list[str] = []
        for database in databases:
            aliases.append(djangos.add_database(database))
            stack.callback(djangos.remove_database, aliases[-1])
            connections[aliases[-1]].cursor().close()
        yield aliases[0], aliases[1]


def _way(what: str, way: Callable[[str], Callable[[], object]], aliases: tuple[str, str], part: float) -> Way:
    theirs, mine = aliases
    return Way(what, way(theirs), way(mine), part)


def _cursor(alias: str) -> Callable[[], object]:
    cursor = connections[alias].cursor

    def take() -> None:
        cursor().close()

    return take


def _request(alias: str) -> Callable[[], object]:
    wrapper = connections[alias]
    cursor, look_after = wrapper.cursor, wrapper.close_if_unusable_or_obsolete

    def serve() -> None:
        # The calls that a request's signals make on each connection, without the signals.
        look_after()
        cursor().close()
        look_after()

    return serve


def _empty(alias: str) -> Callable[[], object]:
    def transact() -> None:
        with transaction.atomic(using=alias):
            pass

    return transact


def _insert(alias: str) -> Callable[[], object]:
    wrapper = connections[alias]
    with wrapper.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS bench_django (n INTEGER)")

    def insert() -> None:
        with transaction.atomic(using=alias), wrapper.cursor() as cursor:
            cursor.execute("INSERT INTO bench_django (n) VALUES (1)")

    return insert


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Pin this process and its PostgreSQL server processes to one core. MySQL's servers have threads.

    Otherwise the system's choice of cores would change the figures more than the difference that is measured.
    """
    cores = os.sched_getaffinity(0)
    try:
        for pid in (0, *_backends()):
            os.sched_setaffinity(pid, {min(cores)})
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _backends() -> Iterator[int]:
    for wrapper in connections.all(initialized_only=True):
        if wrapper.vendor == "postgresql":
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                yield cursor.fetchone()[0]
            wrapper.close_if_unusable_or_obsolete()
