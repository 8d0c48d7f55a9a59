"""A process of `benchmarks.units`: units of work, and plain blocks, with the bgpool that it imports.

The first line of standard input contains its orders, because they contain a password. Each further line requests one
round. The process exits at the end of standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import bgpool
from bgpool import testing

__all__ = ["DEPLOYMENT", "PLAIN", "RUN", "TASKS", "THREADS"]

#: The roles of a process: the monitor of a deployment, or a writer with threads or tasks.
DEPLOYMENT: Final = "deployment"
THREADS: Final = "threads"
TASKS: Final = "tasks"
#: The two ways to write a row.
PLAIN: Final = "with pool.connection()"
RUN: Final = "pool.run"

_INSERT: Final = "INSERT INTO units (n) VALUES (1)"
_FIRST: Final = 50

#: Writes a number of rows, each in a transaction, and returns the time of each in ns.
Way = Callable[[int], list[int]]


def main() -> None:
    """Carry out the orders."""
    orders = json.loads(sys.stdin.readline())
    if orders["role"] == DEPLOYMENT:
        with testing.deployment(orders["run_dir"], **orders["names"]):
            _say("ready")
            sys.stdin.read()
        return
    with _ways(orders) as ways:
        for way in ways.values():
            way(_FIRST)
        _say("ready")
        for line in sys.stdin:
            order = json.loads(line)
            _say(_round(ways[order["way"]], order["calls"], orders["threads"]))


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _round(way: Way, calls: int, threads: int) -> dict[str, float]:
    """Return the median time of a transaction, and this process's CPU time for each transaction, in µs."""
    times: list[int] = []
    crew = [threading.Thread(target=lambda: times.extend(way(calls))) for _ in range(threads - 1)]
    began = time.process_time_ns()
    for thread in crew:
        thread.start()
    times += way(calls)
    for thread in crew:
        thread.join()
    cpu_us = (time.process_time_ns() - began) / 1000 / calls / threads
    return {"median_us": statistics.median(times) / 1000, "cpu_us": cpu_us}


@contextlib.contextmanager
def _ways(orders: dict[str, Any]) -> Iterator[dict[str, Way]]:
    dsn, options = orders["dsn"], orders["options"]
    if orders["role"] == THREADS:
        write = _write_mysql if dsn.startswith("mysql") else _write_postgres
        with bgpool.get_pool(dsn, **options) as pool:
            if orders["one_core"]:
                with pool.connection() as connection:
                    _share_core(connection)
            yield {PLAIN: _plain(pool, write), RUN: _run(pool, write)}
        return
    loop = asyncio.new_event_loop()
    try:
        tasks = bgpool.get_async_pool(dsn, **options)

        async def share_core() -> None:
            async with tasks.connection() as connection:
                _share_core(connection)

        if orders["one_core"]:
            loop.run_until_complete(share_core())
        yield {
            PLAIN: lambda calls: loop.run_until_complete(_aplain(tasks, calls)),
            RUN: lambda calls: loop.run_until_complete(_arun(tasks, calls)),
        }
        loop.run_until_complete(tasks.close())
    finally:
        loop.close()


def _share_core(connection: Any) -> None:
    """Pin this process and the server's process, if it has one, to one core.

    Otherwise the system's choice of cores would change the figures more than the difference that is measured.
    """
    backend = [connection.info.backend_pid] if hasattr(connection, "info") else []
    core = min(os.sched_getaffinity(0))
    for pid in (0, *backend):
        os.sched_setaffinity(pid, {core})


# Written out for each way, because the interpreter cannot specialise a function that sees several types.


def _write_postgres(connection: Any) -> None:
    connection.execute(_INSERT)


def _write_mysql(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_INSERT)


async def _awrite(connection: Any) -> None:
    await connection.execute(_INSERT)


def _plain(pool: Any, write: Callable[[Any], None]) -> Way:
    def way(calls: int) -> list[int]:
        times, clock = [], time.perf_counter_ns
        for _ in range(calls):
            began = clock()
            with pool.connection() as connection:
                write(connection)
            times.append(clock() - began)
        return times

    return way


def _run(pool: Any, write: Callable[[Any], None]) -> Way:
    def way(calls: int) -> list[int]:
        times, clock = [], time.perf_counter_ns
        for _ in range(calls):
            began = clock()
            pool.run(write)
            times.append(clock() - began)
        return times

    return way


async def _aplain(pool: Any, calls: int) -> list[int]:
    times, clock = [], time.perf_counter_ns
    for _ in range(calls):
        began = clock()
        async with pool.connection() as connection:
            await _awrite(connection)
        times.append(clock() - began)
    return times


async def _arun(pool: Any, calls: int) -> list[int]:
    times, clock = [], time.perf_counter_ns
    for _ in range(calls):
        began = clock()
        await pool.run(_awrite)
        times.append(clock() - began)
    return times


if __name__ == "__main__":
    main()
