"""A process of `benchmarks.units`: units of work, and plain blocks, of one build of bgpool.

Started with its orders as the first line of standard input, because a password is in them. Each further line asks for
one round; the end of standard input is the end.
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

__all__ = ["DEPLOYMENT", "INSERT"]

#: The role of a process that keeps a deployment instead of using a pool.
DEPLOYMENT: Final = "deployment"
INSERT: Final = "INSERT INTO units (n) VALUES (1)"

#: Does a number of units, and gives the time of each in ns.
Way = Callable[[int], list[int]]


def main() -> None:
    """Do as ordered."""
    orders = json.loads(sys.stdin.readline())
    if orders["what"] == DEPLOYMENT:
        with testing.deployment(orders["run_dir"], **orders["names"]):
            _say({})
            sys.stdin.read()
        return
    with _ways(orders["what"], orders["dsn"], orders["options"]) as ways:
        for way in ways.values():
            way(20)
        _say({})
        for line in sys.stdin:
            order = json.loads(line)
            _say(_round(ways[order["way"]], order["calls"], orders["threads"]))


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _round(way: Way, calls: int, threads: int) -> dict[str, float]:
    """The median of a unit's time, and the CPU time of the process for each, in µs."""
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
def _ways(what: str, dsn: str, options: dict[str, Any]) -> Iterator[dict[str, Way]]:
    if what == "tasks":
        with asyncio.Runner() as runner:
            pool = bgpool.get_async_pool(dsn, **options)
            yield {
                "plain": lambda calls: runner.run(_aplain(pool, calls)),
                "run": lambda calls: runner.run(_arun(pool, calls)),
            }
            runner.run(pool.close())
        return
    with bgpool.get_pool(dsn, **options) as blocking:
        write = _write_mysql if blocking.__class__.__name__ == "MysqlPool" else _write_postgres
        yield {
            "plain": lambda calls: _plain(blocking, write, calls),
            "run": lambda calls: _run(blocking, write, calls),
        }


def _write_postgres(connection: Any) -> None:
    connection.execute(INSERT)


def _write_mysql(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(INSERT)


def _plain(pool: Any, write: Callable[[Any], None], calls: int) -> list[int]:
    times, clock = [], time.perf_counter_ns
    for _ in range(calls):
        began = clock()
        with pool.connection() as connection:
            write(connection)
        times.append(clock() - began)
    return times


def _run(pool: Any, write: Callable[[Any], None], calls: int) -> list[int]:
    times, clock = [], time.perf_counter_ns
    for _ in range(calls):
        began = clock()
        pool.run(write)
        times.append(clock() - began)
    return times


async def _awrite(connection: Any) -> None:
    await connection.execute(INSERT)


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
    # Only the application's part is measured: nobody is to wait for the interpreter's end.
    main()
    sys.stdout.flush()
    os._exit(0)
