"""AsyncPool: the PostgreSQL pool for asyncio. What it decides is a Pool's; here is what is a task's.

Everything that belongs to an event loop, connections among it, is made in the loop that asks for it first, and ends
with that loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import psycopg
import psycopg_pool

from bgpool.core.routing import Action, Purpose
from bgpool.pools import fork, options
from bgpool.pools.loops import running_loop, whole
from bgpool.pools.participant import Participant
from bgpool.pools.pool import AnyPool
from bgpool.pools.postgres.async_recipe import AsyncPostgresRecipe
from bgpool.pools.postgres.unit import PostgresUnit, apply_unit
from bgpool.pools.refusals import REFUSALS, forget_frames
from bgpool.pools.succession import Succession
from bgpool.pools.units import Unit
from bgpool.pools.waits import Waits
from bgpool.segment.table import Usage

__all__ = ["AsyncCheckout", "AsyncPool"]

R = TypeVar("R")

Connection = psycopg.AsyncConnection[Any]


class AsyncPool(AnyPool[Connection]):
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

    def _reset(self) -> None:
        super()._reset()
        # The loop that was here last, and its connections: the common case is one compare.
        self._last: tuple[asyncio.AbstractEventLoop | None, Succession | None] = (None, None)
        self._loops: dict[asyncio.AbstractEventLoop, Succession] = {}
        # What the loops have counted that are closed.
        self._before = Usage()

    async def __aenter__(self) -> AsyncPool:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # -- one succession for each loop ----------------------------------------------------------------------------

    @staticmethod
    def _waits_of(participant: Participant) -> Waits:
        """As ConnectionSource says."""
        return participant.loops

    def _here(self) -> Succession:
        """As ConnectionSource says: those of the running loop."""
        loop = running_loop()
        last, succession = self._last
        if last is loop and succession is not None:
            return succession
        with self._lock:
            self._bury_closed()
            succession = self._loops.get(loop)
            if succession is None:
                succession = Succession(self._recipe, self._make_inner, self.participant.count_workers)
                self._loops[loop] = succession
            self._last = (loop, succession)
        return succession

    def _successions(self) -> Sequence[Succession]:
        """As ConnectionSource says."""
        return list(self._loops.values())

    def _bury_closed(self) -> None:
        """Under the lock: end what belongs to loops that are closed."""
        for loop in [loop for loop in self._loops if loop.is_closed()]:
            succession = self._loops.pop(loop)
            succession.close(0)
            was = succession.usage()
            self._before = Usage.merged((self._before, was._replace(in_use=0, idle=0, waiting=0)))
            self._last = (None, None)

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
            deadline = None if timeout is None else time.monotonic() + timeout
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
            ValueError: *conn* was not checked out from a pool of this process, or was given back before.
        """
        returned: Any = conn
        try:
            generation = returned.bgpool_generation
        except AttributeError:
            raise ValueError(f"{conn!r} was not checked out from {self!r}") from None
        if returned.bgpool_lent and generation.live[0] and not returned.bgpool_unfit:
            # Before it is kept: from then on it may be the next user's.
            returned.bgpool_lent = False
            await generation.keep(conn)
        else:
            await whole(generation.atake_back(conn))

    # -- units of work -------------------------------------------------------------------------------------------

    async def run(
        self, fn: Callable[..., Awaitable[R]], *args: object, timeout: float | None = None, idempotent: bool = False
    ) -> R:
        """Await ``fn(conn, *args)`` in a transaction and commit it; again, when a switchover cut it before that.

        Arguments and errors as for Pool.run, but *fn* is a coroutine function. A unit whose task is cancelled is not
        run again; cancelled during COMMIT, it may have been applied.

        Raises:
            TypeError: *fn* returned nothing that can be awaited.
        """

        async def call(connection: Connection) -> R:
            awaitable = fn(connection, *args)
            if not isinstance(awaitable, Awaitable):
                raise TypeError(
                    f"{fn!r} returned {awaitable!r}: a unit of work of an async pool is a coroutine function"
                )
            return await awaitable

        return await self._arun(call, timeout=timeout, idempotent=idempotent)

    async def aapply_unit(
        self, unit: Unit[Connection, R], connection: Connection, fn: Callable[[Connection], Awaitable[R]]
    ) -> R:
        """As AnyPool says."""
        return await apply_unit(unit, connection, connection.transaction(), fn)

    # -- following the segment -----------------------------------------------------------------------------------

    def tick(self) -> float:
        """As ConnectionSource's; and what loops have left behind that are closed is closed as well."""
        with self._lock:
            self._bury_closed()
        return super().tick()

    def usage(self) -> Usage:
        """As ConnectionSource's."""
        return Usage.merged((self._before, super().usage()))

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to connect, and to watch the deployment, now instead of at the first checkout. Waits for nothing."""
        fork.notice()
        await self._ajoin()
        reading = self.participant.reader.refresh()
        if self._gate.decide(reading, Purpose.CHECKOUT).action in (Action.PASS, Action.ROUTE):
            self._here().adopt(reading)

    async def close(self, timeout: float = 5.0) -> None:
        """Close idle connections and refuse further checkouts; those in use are closed when returned.

        Callers who are held get PoolClosed.

        Args:
            timeout: Longest wait for these callers, in seconds.
        """
        fork.notice()
        await self._gate.aclose(timeout)
        self._end()
        # What was begun in this loop takes one turn of it.
        await asyncio.sleep(0)

    def start(self) -> None:
        """As ConnectionSource says: watches the deployment. Connections are opened in a loop."""
        fork.notice()
        self._join()

    def stop(self, timeout: float = 5.0) -> None:  # noqa:ARG002  # nothing is waited for
        """As ConnectionSource says."""
        fork.notice()
        self._gate.closed = True
        self._gate.waits.wake()
        self._end()

    def _end(self) -> None:
        for succession in self._successions():
            succession.close(0)
        self.participant.leave(self)


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
