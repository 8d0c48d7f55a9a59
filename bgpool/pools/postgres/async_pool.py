"""AsyncPool: the PostgreSQL pool for asyncio. What it decides is a Pool's; here is what is a task's."""

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
    """A pool of psycopg's AsyncConnections that goes through Blue/Green switchovers. Made by get_async_pool.

    Nothing happens before the first checkout: it may be made at module level, where no event loop runs yet. Each loop
    that uses it has connections of its own, up to max_size.

    Attributes:
        timeout: Longest wait for a connection unless the caller says otherwise, in seconds.
    """

    KIND = "async pool"
    OPTIONS = options.ASYNC_POSTGRES
    _recipe_class = AsyncPostgresRecipe
    _unit_class = PostgresUnit

    async def __aenter__(self) -> AsyncPool:
        try:
            await self.open()
        except BaseException:
            # Cancelled: nobody closes it.
            self.stop()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # -- checkout and return -------------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None) -> AsyncCheckout:
        """A connection for an ``async with`` block, which commits at its end, or rolls back, and returns it.

        Arguments and errors as for Pool.connection.
        """
        return AsyncCheckout(self, timeout)

    async def getconn(self, timeout: float | None = None) -> Connection:
        """A connection, to be given back with putconn. Arguments and errors as for connection()."""
        word, admitted, take = self._here().quick
        # As Pool.getconn.
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
        """Give a connection back; closed instead of kept if a switchover has made it unfit.

        It is given back also where the task is cancelled meanwhile. Does nothing after ``await conn.close()``, which
        gives it back itself.

        Raises:
            ValueError: *conn* was not checked out from an async pool of this process, was given back before, or is of
                another event loop that is not closed.
        """
        returned: Any = conn
        try:
            generation = returned.bgpool_generation
            loop = generation.inner.loop
        except AttributeError:
            raise ValueError(f"{conn!r} was not checked out from {self!r}") from None
        if loop is not asyncio.get_running_loop() and not (loop.is_closed() or generation.inherited):
            # psycopg_pool would wake nobody who waits for it there.
            raise ValueError(f"{conn!r} is of another event loop: give it back there")
        if returned.bgpool_lent and generation.live[0] and not returned.bgpool_unfit:
            # Before it is kept: from then on it may be the next user's.
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
        """Await ``fn(conn, *args)`` in a transaction and commit it; again, when a switchover cut it before that.

        Arguments and errors as for Pool.run, but *fn* is a coroutine function. A unit whose task is cancelled is not
        run again; cancelled during COMMIT, it may have been applied.

        Raises:
            TypeError: *fn* returned nothing that can be awaited.
        """
        applied: R | AlreadyApplied = await self._arun(fn, args, timeout, idempotent=idempotent, receipt_id=receipt_id)
        return applied

    # -- life ----------------------------------------------------------------------------------------------------

    async def close(self, timeout: float = 5.0) -> None:
        """As LoopSource.close; returns once what the pool does in this loop has ended, within *timeout* seconds."""
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
