"""Cancels a coroutine when it yields to the event loop: at the k-th time, or repeatedly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg

from bgpool.dsn import parse
from bgpool.lab import Pair
from bgpool.lab.ledger import Key
from bgpool.lab.pair import ROLE
from bgpool.pools.participant import Participant
from bgpool.pools.postgres.async_connector import AsyncPostgresConnector
from bgpool.pools.postgres.async_pool import AsyncPool
from tests.waiting import PATIENCE_S

__all__ = ["HOW", "Cancelled", "Scene", "end_sessions", "new_connector", "new_pool", "quiet", "until"]

T = TypeVar("T")

#: The moments of a task's cancellation: when it has just begun to wait; when its wait has just ended; once more at its
#: next wait; at every wait from then on, like anyio.
HOW: Final = ("early", "late", "twice", "always")

_numbers: Final = itertools.count(1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the driver: pytest keeps log records, and with them connections and their sockets."""
    logger = logging.getLogger("psycopg")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


def new_pool(pair: Pair, run_dir: Path, **options: Any) -> AsyncPool:
    """Return an async pool that follows the segment in *run_dir* and starts no monitor."""
    return _new(AsyncPool, pair, run_dir, {"min_size": 1, "max_size": 1, "timeout": 20.0} | options)


def new_connector(pair: Pair, run_dir: Path) -> AsyncPostgresConnector:
    """Return such a connector."""
    return _new(AsyncPostgresConnector, pair, run_dir, {})


def _new(kind: Callable[..., T], pair: Pair, run_dir: Path, options: Mapping[str, Any]) -> T:
    place, settings, left = parse(pair.dsn, {"bg_resolver": pair.resolver, **options})
    participant = Participant(settings.bg_id, run_dir, lambda _files: None)
    return kind(place, settings, participant, left)


class Cancelled:
    """A coroutine *steps*, whose task is cancelled the *at*-th time that it yields, counted from 1.

    Attributes:
        waits: The number of times that it yielded.
        hit: True if the task was cancelled.
        on_hit: Called just before the cancellation.
    """

    def __init__(self, steps: Coroutine[Any, Any, Any], how: str, at: int, on_hit: Callable[[], object]) -> None:
        self._steps = steps
        self._how = how
        self._at = at
        self.waits = 0
        self.hit = False
        self.on_hit = on_hit

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        error: BaseException | None = None
        while True:
            try:
                waiter = self._steps.send(None) if error is None else self._steps.throw(error)
            except StopIteration as end:
                return end.value
            error = None
            self.waits += 1
            if self._is_due():
                self._cancel(task, waiter)
            try:
                yield waiter
            except BaseException as thrown:
                error = thrown

    def _cancel(self, task: asyncio.Task[Any], waiter: Any) -> None:
        if not self.hit:
            self.on_hit()
        self.hit = True
        if self._how == "late" and waiter is not None:
            # The callback runs before the task wakes: the task is cancelled although its wait has succeeded.
            waiter.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()

    def _is_due(self) -> bool:
        last = {"twice": self._at + 1, "always": self.waits}.get(self._how, self._at)
        return self._at <= self.waits <= last

    async def end(self, limit_s: float = PATIENCE_S, after_s: float | None = None) -> Any:
        """Return the result or exception of the coroutine in its own task, which is also cancelled after *after_s*."""

        async def run() -> Any:
            return await self

        task = asyncio.create_task(run())
        if after_s is not None:
            asyncio.get_running_loop().call_later(after_s, task.cancel)
        await asyncio.wait({task}, timeout=limit_s)
        assert task.done(), f"the task did not end: {task}"
        # The coroutine may not even have begun.
        self._steps.close()
        if task.cancelled():
            return asyncio.CancelledError()
        # Drop the frames, which hold connections.
        error = task.exception()
        return task.result() if error is None else error.with_traceback(None)


async def until(condition: Callable[[], bool], what: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait for *condition*; fail with *what* when the time is up."""
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        assert waited_s < timeout_s, what()
        if waited_s > 0.2:
            # Objects in reference cycles keep their sockets until they are collected.
            gc.collect()
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.002)


def end_sessions(monitor: psycopg.Connection[Any]) -> None:
    """End the sessions that earlier tests have left on the server, some of them in a long statement."""
    sql = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s AND pid <> pg_backend_pid()"
    monitor.execute(sql, (ROLE,))


@dataclass
class Scene:
    """The state that must be the same before and after a cancelled operation.

    Attributes:
        pair: The servers.
        pool: A pool whose connections are all open; None for operations that make their own.
        monitor: The test's own connection to blue.
        things: The number of the loop's tasks, and of the process's file descriptors, before the operation.
        key: The key of the row that the current operation writes.
        calls: The number of calls of the operation's unit.
    """

    pair: Pair
    pool: AsyncPool | None
    monitor: psycopg.Connection[Any]
    things: tuple[int, int] = (0, 0)
    key: Key = (98, 0, 0)
    calls: int = field(default=0)

    def __post_init__(self) -> None:
        self.note()

    def note(self) -> None:
        """Record the current state as the expected one."""
        if self.pool is not None:
            # The watcher takes the right to log for the host, which opens a file, when it first needs it.
            self.pool.participant.speaks_for_host()
        self.things = _things()

    def next(self) -> None:
        """Begin another operation."""
        self.key, self.calls = (98, 0, next(_numbers)), 0

    def sessions(self) -> list[str]:
        """Return the states of the pool's sessions on the server."""
        sql = "SELECT state FROM pg_stat_activity WHERE usename = %s AND pid <> pg_backend_pid()"
        return [state for (state,) in self.monitor.execute(sql, (ROLE,))]

    def rows(self) -> int:
        """Return how many times the row is in the ledger."""
        sql = "SELECT count(*) FROM ledger WHERE (worker, thread, n) = (%s, %s, %s)"
        row = self.monitor.execute(sql, self.key).fetchone()
        assert row is not None
        return int(row[0])

    async def settle(self) -> None:
        """Wait until everything is as before, and check that every connection of the pool works."""
        pool = self.pool
        size = pool.max_size if pool is not None else 0
        if pool is None:
            # A pool is in reference cycles with its segment's file, which stays open until they are collected.
            gc.collect()
        else:
            # After drain() there is no connection until a caller requests one.
            async with pool.connection(PATIENCE_S):
                pass

        def is_as_before() -> bool:
            if any(now > before for now, before in zip(_things(), self.things, strict=True)):
                return False
            if pool is not None:
                stats = pool.stats()
                if (stats.held, stats.waiting, stats.idle) != (0, 0, size):
                    return False
            return self.sessions() == ["idle"] * size

        def shown() -> str:
            tasks = [str(task) for task in asyncio.all_tasks()]
            files = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
            sql = "SELECT pid, state, wait_event, now() - state_change, query FROM pg_stat_activity WHERE usename = %s"
            rows = self.monitor.execute(sql, (ROLE,)).fetchall()
            # The first column shows whether a session's process is stopped.
            sessions = [(Path(f"/proc/{row[0]}/stat").read_text(encoding="utf-8")[:40], *row) for row in rows]
            return f"{_things()}, not {self.things}; {pool and pool.stats()}; {sessions}; {tasks}; {files}"

        await until(is_as_before, shown)
        if pool is None:
            return
        taken = [await pool.getconn(PATIENCE_S) for _ in range(size)]
        for connection in taken:
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert connection.info.pipeline_status == psycopg.pq.PipelineStatus.OFF
            async with connection.transaction():
                await connection.execute("SELECT 1")
            await connection.execute("SELECT 1")
            await connection.commit()
            await pool.putconn(connection)


def _things() -> tuple[int, int]:
    return len(asyncio.all_tasks()), sum(1 for _ in Path("/proc/self/fd").iterdir())
