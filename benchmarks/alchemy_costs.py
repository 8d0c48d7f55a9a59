"""The cost of a checkout and of a statement with an engine on bgpool's dialect, compared with the plain dialect."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL

from benchmarks.result import Column, Value
from benchmarks.rounds import compare

__all__ = ["COLUMNS", "engines", "rows"]

COLUMNS: Final = (
    Column("what", "what", is_key=True),
    Column("theirs_us", "plain dialect, µs", 3),
    Column("bgpool_us", "bgpool's dialect, µs", 3),
    Column("excess_us", "excess, µs", 3),
    Column("ratio", "ratio", 2),
)
_SELECT: Final = text("SELECT 1")
#: The query for the server's process of a connection. MySQL's servers have threads, which cannot be identified.
_BACKEND_PID: Final[Mapping[str, str]] = {"postgresql": "SELECT pg_backend_pid()"}


@contextlib.contextmanager
def engines(theirs: URL, mine: URL, bg_options: Mapping[str, Any]) -> Iterator[tuple[Engine, Engine]]:
    """Yield one engine of each kind, with one open connection. bgpool's may not know the deployment yet."""
    both = (
        create_engine(theirs, pool_size=1, max_overflow=0),
        create_engine(mine, pool_size=1, max_overflow=0, connect_args=dict(bg_options)),
    )
    try:
        for engine in both:
            engine.raw_connection().close()
        yield both
    finally:
        for engine in both:
            engine.dispose()


def rows(theirs: Engine, mine: Engine, *, rounds: int, calls: int) -> list[Mapping[str, Value]]:
    """Return the figures of a checkout and of a statement, in alternating rounds of both engines."""
    with _one_core(theirs, mine):
        return [
            {"what": what, **compare(way(theirs), way(mine), rounds=rounds, calls=max(1, int(calls * part)))}
            for what, way, part in (
                ("checkout and return: engine.raw_connection().close()", _checkout, 1.0),
                ("SELECT 1: with engine.connect() as connection", _select, 0.1),
            )
        ]


def _checkout(engine: Engine) -> Callable[[], object]:
    raw_connection = engine.raw_connection

    def checkout() -> None:
        raw_connection().close()

    return checkout


def _select(engine: Engine) -> Callable[[], object]:
    connect = engine.connect

    def select() -> None:
        with connect() as connection:
            connection.execute(_SELECT).scalar_one()

    return select


@contextlib.contextmanager
def _one_core(*all_of: Engine) -> Iterator[None]:
    """Pin this process and the servers' processes to one core.

    Otherwise the system's choice of cores would change the figures more than the difference that is measured.
    """
    cores = os.sched_getaffinity(0)
    try:
        for pid in (0, *_backends(all_of)):
            os.sched_setaffinity(pid, {min(cores)})
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _backends(all_of: tuple[Engine, ...]) -> Iterator[int]:
    for engine in all_of:
        query = _BACKEND_PID.get(engine.dialect.name)
        if query is not None:
            with engine.connect() as connection:
                yield connection.execute(text(query)).scalar_one()
