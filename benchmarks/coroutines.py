"""The cost of bgpool for an event loop: while callers are held and released, at a checkout, and at rest."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg_pool

import bgpool
from benchmarks.coroutines_held import LOOPS, WAYS, measure_held
from benchmarks.machine import measured_on
from benchmarks.result import Column, Result, Table, Value
from bgpool.core.phase import Phase
from bgpool.lab import Director, Pair

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "asyncio"
QUESTION: Final = (
    "How soon do coroutines continue after the release was published, and what do they cost while they wait? What does "
    "a checkout of an AsyncPool cost compared with psycopg_pool's AsyncConnectionPool? Is a loop in which no caller "
    "waits ever woken? Each is measured on asyncio's own loop and on uvloop."
)
CALLERS: Final = (1, 200, 1000)
READY_S: Final = 15.0
#: The monitor publishes often until it has the inventory of the deployment.
SETTLE_S: Final = 1.5

_HELD: Final = (
    Column("loop", "loop", is_key=True),
    Column("callers", "held callers", is_key=True),
    Column("way", "way", is_key=True),
    Column("median_ms", "median caller, ms", 2),
    Column("last_ms", "last caller, ms", 2),
    Column("waiting_ms", "CPU while they wait, ms per s", 1),
)
_CHECKOUT: Final = (
    Column("loop", "loop", is_key=True),
    Column("what", "what", is_key=True),
    Column("theirs_us", "AsyncConnectionPool, µs", 3),
    Column("bgpool_us", "AsyncPool, µs", 3),
    Column("excess_us", "excess, µs", 3),
    Column("ratio", "ratio", 2),
)
_QUIET: Final = (
    Column("loop", "loop", is_key=True),
    Column("pool", "pool in it", is_key=True),
    Column("wakeups", "wake-ups", 0),
)

Round = Callable[[int], Awaitable[float]]
OpenPool = Callable[[], contextlib.AbstractAsyncContextManager[Any]]


def run(*, quick: bool) -> Result:
    """Run one repetition."""
    held = tuple(
        {"loop": loop, "callers": count, "way": way, **measure_held(loop, way, count, times=1 if quick else 3)}
        for loop in LOOPS
        for count in (CALLERS[:2] if quick else CALLERS)
        for way in WAYS
    )
    checkouts: list[Mapping[str, Value]] = []
    quiet: list[Mapping[str, Value]] = []
    seconds = 1 if quick else 5
    with tempfile.TemporaryDirectory() as directory, Pair() as pair:
        Director(pair).create_deployment()
        for loop, run_in in LOOPS.items():
            rows = run_in(_checkouts(pair, Path(directory) / "run", *((4, 200) if quick else (40, 2000))))
            checkouts += [{"loop": loop, **row} for row in rows]
            for pool, open_pool in _pools(pair, Path(directory) / "run"):
                quiet.append({"loop": loop, "pool": pool, "wakeups": run_in(_wakeups(open_pool, seconds))})
    return Result(
        (
            Table(
                "held",
                "From the publication of the release to the coroutines that waited for it",
                _HELD,
                held,
                notes=(
                    "The coroutines wait at the gate of a deployment in IN_PROGRESS, in one loop. Another process "
                    "publishes POST. There is no database: the figures measure the segment, the wake-up and the "
                    "decision.",
                    "The other ways are available to an application without an async pool. With to_thread the loop's "
                    "executor has one thread for each caller. By default it has four more threads than there are "
                    "cores, and at most 32, so that a hold fills it.",
                    measured_on(),
                ),
            ),
            Table(
                "acheckout",
                "Checkout and return, compared with psycopg_pool's AsyncConnectionPool",
                _CHECKOUT,
                tuple(checkouts),
                notes=(
                    "The deployment is in CREATED. Rounds of both pools alternate in one loop.",
                    "An idle connection is taken and returned without psycopg_pool's lock, which a single turn of the "
                    "loop does not need. This explains a ratio below 1.",
                ),
            ),
            Table(
                "quiet",
                f"Wake-ups of the loop's thread by the kernel during {seconds} s without any request",
                _QUIET,
                tuple(quiet),
                notes=("The timer that ends the measurement is one of them.",),
            ),
        )
    )


def _pools(pair: Pair, run_dir: Path) -> Iterator[tuple[str, OpenPool]]:
    """Yield the loops to compare: with no pool, with psycopg_pool's, and with bgpool's in a monitored deployment."""
    yield "none", contextlib.nullcontext
    yield "AsyncConnectionPool", lambda: _bare(pair)
    yield "AsyncPool", lambda: _ours(pair, run_dir)


async def _wakeups(open_pool: OpenPool, seconds: float) -> int:
    async with open_pool():
        # By then both pools have finished the work that follows their opening.
        await asyncio.sleep(SETTLE_S)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        await asyncio.sleep(seconds)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before


async def _checkouts(pair: Pair, run_dir: Path, rounds: int, calls: int) -> list[Mapping[str, Value]]:
    async with _bare(pair) as bare, _ours(pair, run_dir) as ours:
        return [
            {"what": what, **await _compare(theirs, mine, rounds=rounds, calls=calls)}
            for what, theirs, mine in _ways(bare, ours)
        ]


@contextlib.asynccontextmanager
async def _bare(pair: Pair) -> AsyncIterator[Any]:
    pool = psycopg_pool.AsyncConnectionPool(pair.direct_dsn(pair.blue), min_size=2, open=False)
    async with pool:
        await pool.wait()
        yield pool


@contextlib.asynccontextmanager
async def _ours(pair: Pair, run_dir: Path) -> AsyncIterator[Any]:
    """Yield bgpool's pool in a deployment that is ready."""
    async with bgpool.get_async_pool(pair.dsn, min_size=2, bg_resolver=pair.resolver, bg_run_dir=run_dir) as pool:
        deadline = time.monotonic() + READY_S
        while pool.stats().phase is not Phase.CREATED:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the deployment was not seen within {READY_S:g} s: {pool.stats()}")
            await pool.putconn(await pool.getconn())
            await asyncio.sleep(0.05)
        await asyncio.sleep(SETTLE_S)
        yield pool


def _ways(bare: Any, ours: Any) -> Iterator[tuple[str, Round, Round]]:
    """Yield each way to check out and return a connection, for the bare pool and for bgpool's.

    The functions take a number of calls and return the microseconds of one. Each is written out for both pools, because
    the interpreter cannot specialise a function that sees two types.
    """

    async def get_put_bare(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            await bare.putconn(await bare.getconn())
        return (time.perf_counter() - began) / calls * 1e6

    async def get_put_ours(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            await ours.putconn(await ours.getconn())
        return (time.perf_counter() - began) / calls * 1e6

    yield "getconn, putconn", get_put_bare, get_put_ours

    async def with_bare(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            async with bare.connection():
                pass
        return (time.perf_counter() - began) / calls * 1e6

    async def with_ours(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            async with ours.connection():
                pass
        return (time.perf_counter() - began) / calls * 1e6

    yield "async with pool.connection()", with_bare, with_ours


async def _compare(theirs: Round, mine: Round, *, rounds: int, calls: int) -> dict[str, Value]:
    """Compare like benchmarks.rounds.compare."""
    await mine(calls), await theirs(calls)
    pairs = [(await theirs(calls), await mine(calls)) for _ in range(rounds)]
    theirs_us, mine_us = statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
    return {
        "theirs_us": theirs_us,
        "bgpool_us": mine_us,
        "excess_us": statistics.median(b - a for a, b in pairs),
        "ratio": mine_us / theirs_us,
    }
