"""AsyncPool: the PostgreSQL pool for asyncio. It shares its decisions with Pool; this module has the tasks' code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar, overload

import psycopg
import psycopg_pool

from bgpool.pools import options
from bgpool.pools.loop_source import LoopSource
from bgpool.pools.loops import running_loop, whole
from bgpool.pools.pool import AnyPool
from bgpool.pools.postgres.async_recipe import AsyncPostgresRecipe
from bgpool.pools.postgres.unit import PostgresUnit
from bgpool.pools.receipts import AlreadyApplied
from bgpool.pools.refusals import REFUSALS, forget_frames

__all__ = ["AsyncCheckout", "AsyncPool"]

R = TypeVar("R")

Connection = psycopg.AsyncConnection[Any]


class AsyncPool(LoopSource[Connection], AnyPool[Connection]):
    """A pool of psycopg's AsyncConnections that survives Blue/Green switchovers. Created by get_async_pool.

    It does nothing before the first checkout, so it may be created at module level, before an event loop runs. Each
    loop that uses it has connections of its own, up to max_size.

    Attributes:
        timeout: The default of the longest wait for a connection, in seconds.
    """

    KIND = "async pool"
    OPTIONS = options.ASYNC_POSTGRES
    _recipe_class = AsyncPostgresRecipe
    _unit_class = PostgresUnit

    async def __aenter__(self) -> AsyncPool:
        try:
            await self.open()
        except BaseException:
            # It was cancelled, and no other code would close the pool.
            self.stop()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # -- checkout and return -------------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None) -> AsyncCheckout:
        """Return a connection for an ``async with`` block, which commits at its end, or rolls back, and returns it.

        Arguments and errors are the same as in Pool.connection.
        """
        return AsyncCheckout(self, timeout)

    async def getconn(self, timeout: float | None = None) -> Connection:
        """Return a connection, to be returned with putconn. Arguments and errors are the same as in connection()."""
        word, admitted, take = self._here().quick
        # See Pool.getconn.
        if word == admitted:
            deadline = None if timeout is None else options.deadline_of(timeout)
            try:
                connection = await take(timeout)
                connection.bgpool_lent = True
                return connection  # type: ignore[no-any-return]  # a cast() would be a call
            except psycopg_pool.PoolClosed as error:
                forget_frames(error)
                timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            except REFUSALS as error:
                raise self._refused(error) from error
        return await self.agetconn(timeout)

    async def putconn(self, conn: Connection) -> None:
        """Return a connection to the pool; it is closed instead of kept if a switchover has made it unfit.

        It is returned even if the task is cancelled during this. Does nothing after ``await conn.close()``, which
        returns it itself.

        Raises:
            ValueError: *conn* was not checked out from an async pool of this process, was returned before, or belongs
                to another event loop that is not closed.
        """
        returned: Any = conn
        try:
            generation = returned.bgpool_generation
            loop = generation.inner.loop
        except AttributeError:
            raise ValueError(f"{conn!r} was not checked out from {self!r}") from None
        if loop is not asyncio.get_running_loop() and not (loop.is_closed() or generation.inherited):
            # psycopg_pool would not wake any task that waits for it there.
            raise ValueError(f"{conn!r} belongs to another event loop: return it there")
        if returned.bgpool_lent and generation.live[0] and not returned.bgpool_unfit:
            # Before it is kept, because it may be the next user's from then on.
            returned.bgpool_lent = False
            await generation.keep(conn)
        else:
            await whole(generation.atake_back(conn))

    # -- units of work -------------------------------------------------------------------------------------------

    @overload
    async def run(
        self, fn: Callable[..., Awaitable[R]], *args: object, timeout: float | None = ..., idempotent: bool = ...
    ) -> R: ...

    @overload
    async def run(
        self,
        fn: Callable[..., Awaitable[R]],
        *args: object,
        timeout: float | None = ...,
        idempotent: bool = ...,
        receipt_id: str | None,
    ) -> R | AlreadyApplied: ...

    async def run(
        self,
        fn: Callable[..., Awaitable[R]],
        *args: object,
        timeout: float | None = None,
        idempotent: bool = False,
        receipt_id: str | None = None,
    ) -> R | AlreadyApplied:
        """Await ``fn(conn, *args)`` in a transaction and commit it; repeat that if a switchover cuts it before COMMIT.

        Arguments and errors are the same as in Pool.run, but *fn* is a coroutine function. A unit whose task is
        cancelled is not repeated; if it was cancelled during COMMIT, it may have been applied.

        Raises:
            TypeError: *fn* returned an object that cannot be awaited.
        """
        applied: R | AlreadyApplied = await self._arun(fn, args, timeout, idempotent=idempotent, receipt_id=receipt_id)
        return applied

    # -- life ----------------------------------------------------------------------------------------------------

    async def close(self, timeout: float = 5.0) -> None:
        """Like LoopSource.close; return when the pool's tasks in this loop have ended, within *timeout* seconds."""
        running_loop()
        deadline = options.deadline_of(timeout)
        inner: list[Any] = [one.current.inner for one in self._generations_by_loop() if one.current is not None]
        tasks = {task for one in inner for task in one.tasks()} - {asyncio.current_task()}
        await super().close(timeout)
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, deadline - time.monotonic()))


class AsyncCheckout:
    """A connection for one ``async with`` block."""

    __slots__ = ("_connection", "_pool", "_timeout")

    def __init__(self, pool: AsyncPool, timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    async def __aenter__(self) -> Connection:
        self._connection: Any = await self._pool.getconn(self._timeout)
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        try:
            await connection.bgpool_end_block(kind, error, trace)
        finally:
            await self._pool.putconn(connection)
