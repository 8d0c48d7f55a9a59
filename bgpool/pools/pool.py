"""A pool behind the gate, for every engine: a driver's pool that is replaced as a whole at each epoch."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, overload

import psycopg_pool

from bgpool.dsn import Dsn
from bgpool.pools.generation import Generation
from bgpool.pools.options import check_unit, check_wait, deadline_of
from bgpool.pools.participant import Participant
from bgpool.pools.receipts import AlreadyApplied
from bgpool.pools.recipe import DriversPool
from bgpool.pools.refusals import REFUSALS, forget_frames
from bgpool.pools.source import BlockingSource, ConnectionSource, PoolStats
from bgpool.pools.units import Unit
from bgpool.pools.waits import finish, settled
from bgpool.settings import Settings

__all__ = ["AnyPool", "Checkout", "Pool", "PoolStats"]

C = TypeVar("C")
R = TypeVar("R")


class AnyPool(ConnectionSource[C]):
    """The shared code of Pool and AsyncPool."""

    KIND = "pool"

    def __init__(self, dsn: Dsn, settings: Settings, participant: Participant, options: Mapping[str, Any]) -> None:
        """Create a pool for *dsn*; *options* are those of the driver's pool.

        Raises:
            ValueError, TypeError: The errors of the driver's pool about its options.
        """
        super().__init__(dsn, settings, participant, options)
        sample = self._recipe.make_inner(object())
        self.timeout = sample.timeout
        self._max_size: Final[int] = sample.max_size

    @property
    def max_size(self) -> int:
        """The maximum number of connections; in an AsyncPool for each loop."""
        return self._max_size

    def _make_inner(self, generation: Generation) -> DriversPool:
        return self._recipe.make_inner(generation)

    async def agetconn(self, timeout: float | None = None) -> C:
        """Return a connection, once the gate admits a checkout: the slow path of getconn()."""
        check_wait("timeout", timeout)
        timeout_s = self.timeout if timeout is None else timeout
        return await self._atake(timeout_s, partial(_alend, timeout_s))

    def _refused(self, error: Exception) -> Exception:
        """Return the caller's error for *error* of the driver's pool, which had no connection on the fast path."""
        ours = self._as_ours(error)
        self._count_failure(ours)
        return ours

    def _arun(
        self,
        fn: Callable[..., Any],
        args: Sequence[object],
        timeout: float | None,
        *,
        idempotent: bool,
        receipt_id: str | None,
    ) -> Coroutine[Any, Any, Any]:
        """Run *fn* as a unit of work; arguments and errors are the same as in run()."""
        if timeout is not None or not callable(fn):
            check_unit("run", fn, timeout)
        timeout_s = self.hold_s + self.timeout if timeout is None else timeout
        if self._receipts is not None or receipt_id is not None:
            self._check_receipts(receipt_id, timeout_s)
        unit: Unit[C, Any] = self._unit_class(
            self._unit_context, None, self, timeout_s, idempotent=idempotent, receipt_id=receipt_id, work=(fn, args)
        )
        return unit.arun()

    @abstractmethod
    def getconn(self, timeout: float | None = None) -> C | Awaitable[C]:
        """Return a connection, which must be returned with putconn; in an AsyncPool a coroutine."""

    @abstractmethod
    def putconn(self, conn: C) -> Awaitable[None] | None:
        """Return a connection to the pool; in an AsyncPool a coroutine."""


class Pool(BlockingSource[C], AnyPool[C]):
    """A pool of a driver's connections that survives Blue/Green switchovers. Created by get_pool.

    It does nothing before the first checkout, so it may be created before a fork and used in parent and child.

    Attributes:
        OPTIONS: The options of the driver's pool that get_pool passes on, each with its check.
        timeout: The default of the longest wait for a connection, in seconds.
    """

    def __enter__(self) -> Pool[C]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- checkout and return -------------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None) -> Checkout[C]:
        """Return a connection for a ``with`` block, whose end commits or rolls back, and returns the connection.

        Args:
            timeout: The longest wait in seconds, hold included; None for the pool's own. Without it, a caller that
                waits for a connection when a switchover begins may be held for the same time again.

        Raises:
            SwitchoverHoldTimeout: Held for the longest time that is allowed.
            GreenHostRejected: The endpoint is green and the switchover is over.
            PoolTimeout: No connection became free in time.
            TooManyRequests: More than max_waiting callers wait already.
            ConfigurationError: *timeout* is no number of seconds.
        """
        return Checkout(self, timeout)

    def getconn(self, timeout: float | None = None) -> C:
        """Return a connection, to be returned with putconn. Arguments and errors are the same as in connection()."""
        word, admitted, take = self._generations.quick
        # Compared as memory: this loads eight bytes each, as word[0] would, and takes half of the time.
        if word == admitted:
            # Reading a clock costs as much as all the rest here. It is read only if the caller has set a timeout.
            deadline = None if timeout is None else deadline_of(timeout)
            try:
                connection = take(timeout)
                connection.bgpool_lent = True
                return connection  # type: ignore[no-any-return]  # a cast() would be a call
            except psycopg_pool.PoolClosed as error:
                # The generation was retired during the wait; the current state is evaluated below.
                forget_frames(error)
                timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            except REFUSALS as error:
                raise self._refused(error) from error
        return finish(self.agetconn(timeout))

    def putconn(self, conn: C) -> None:
        """Return a connection to the pool; it is closed instead of kept if a switchover has made it unfit.

        Does nothing after ``conn.close()``, which returns it itself.

        Raises:
            ValueError: *conn* was not checked out from a pool of this process, or was returned before.
        """
        returned: Any = conn
        try:
            generation = returned.bgpool_generation
        except AttributeError:
            raise ValueError(f"{conn!r} was not checked out from {self!r}") from None
        if generation.awaits:
            raise ValueError(f"{conn!r} belongs to an async pool: return it there, with await")
        if returned.bgpool_lent and generation.live[0] and not returned.bgpool_unfit:
            # Before it is kept, because it may be the next user's from then on.
            returned.bgpool_lent = False
            generation.keep(conn)
        else:
            generation.take_back(conn)

    @abstractmethod
    def end_block(self, conn: C, error: BaseException | None) -> None:
        """End a ``with`` block on *conn*: commit, or roll back after *error*."""

    # -- units of work -------------------------------------------------------------------------------------------

    @overload
    def run(self, fn: Callable[..., R], *args: object, timeout: float | None = ..., idempotent: bool = ...) -> R: ...

    @overload
    def run(
        self,
        fn: Callable[..., R],
        *args: object,
        timeout: float | None = ...,
        idempotent: bool = ...,
        receipt_id: str | None,
    ) -> R | AlreadyApplied: ...

    def run(
        self,
        fn: Callable[..., R],
        *args: object,
        timeout: float | None = None,
        idempotent: bool = False,
        receipt_id: str | None = None,
    ) -> R | AlreadyApplied:
        """Call ``fn(conn, *args)`` in a transaction and commit it; repeat that if a switchover cuts it before COMMIT.

        *fn* may be called several times, and one call is applied. Its effects outside the transaction happen several
        times. It must not end the transaction. To pass keyword arguments, use functools.partial or a lambda.

        Args:
            fn: The function that does the work of one transaction.
            args: Its arguments after the connection.
            timeout: The longest time until the last call begins, in seconds; None for the pool's timeout after the
                longest hold.
            idempotent: True if *fn* may be applied twice. Then it is called again even if it is unknown whether it was
                applied.
            receipt_id: The unit's id, 1 to 200 letters, digits and ``._:@/+=~#-``. A unit is applied once, however
                often and in how many processes it is run with this id. Needs bg_receipts_table. None for an id of its
                own.

        Returns:
            The return value of *fn*; AlreadyApplied(receipt_id) if an earlier run with the same *receipt_id* was
                applied.

        Raises:
            CommitOutcomeUnknown: COMMIT was cut, and the server cannot report its outcome.
            SwitchoverInterrupted: Attempts were cut until the time was used up.
            TypeError: *fn* is an ``async`` or a generator function.
            ConfigurationError: *fn* cannot be called, *timeout* is no number of seconds, or *receipt_id* is no valid id
                or has no table.
            Exception: Any error that *fn* or a checkout raised; the transaction was rolled back.

        Source: docs/units-of-work.md.
        """
        applied: R | AlreadyApplied = finish(
            self._arun(fn, args, timeout, idempotent=idempotent, receipt_id=receipt_id)
        )
        return applied


async def _alend(timeout_s: float, generation: Generation, left_s: float) -> Any:
    """Return a connection of *generation*, for a caller that has *left_s* of *timeout_s* seconds left."""
    if left_s <= 0:
        raise psycopg_pool.PoolTimeout(f"couldn't get a connection after {timeout_s:.2f} sec")
    connection = await settled(generation.lend(left_s))
    connection.bgpool_lent = True
    return connection


class Checkout(Generic[C]):
    """A connection for one ``with`` block."""

    __slots__ = ("_connection", "_pool", "_timeout")

    def __init__(self, pool: Pool[C], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    def __enter__(self) -> C:
        self._connection = connection = self._pool.getconn(self._timeout)
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        try:
            self._pool.end_block(connection, error)
        finally:
            self._pool.putconn(connection)
