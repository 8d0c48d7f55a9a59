"""SwitchoverAware for psycopg's AsyncConnection: its waits yield to the event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Generator
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

import psycopg

from bgpool.core.limits import CANCEL_TIMEOUT_S, POLL_INTERVAL_S
from bgpool.pools.fork import keep_forever
from bgpool.pools.loops import begin, whole
from bgpool.pools.postgres.classify import clears_up
from bgpool.pools.postgres.connection import SwitchoverAware

if TYPE_CHECKING:
    _Base = psycopg.AsyncConnection[Any]
else:
    _Base = object

__all__ = ["AsyncAware", "async_aware"]

RV = TypeVar("RV")


class AsyncAware(SwitchoverAware, _Base):
    """The mixin in front of a subclass of psycopg's AsyncConnection, or of that class itself."""

    # The __aexit__ of the connection class, which this class overrides.
    _end_block: Callable[..., Awaitable[None]]
    # True if the waiting task was cancelled.
    _interrupted: bool = False

    async def wait(self, gen: Generator[Any, Any, RV], *args: Any, **kwargs: Any) -> RV:
        """Exchange data with the server, unless the connection must no longer be used for that."""
        try:
            generation = self.bgpool_generation
        except AttributeError:
            # The connection is still being opened, and has no user yet.
            return await super().wait(gen, *args, **kwargs)
        if not generation.live[0]:
            await self._before_sending(gen, generation)
        if self.bgpool_in_unit or self._autocommit or self._pipeline is not None:
            self._note_sending(gen)
        # A query on a caller's own connection has no limit, unless an error is being handled.
        limit = None if self.bgpool_lent and sys.exc_info()[1] is None else self._limit(gen)
        try:
            return await self._exchange(gen, *args, **kwargs)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and not self.bgpool_cut and not self.bgpool_is_open:
                # Closed because the server did not answer, not because of a switchover.
                self._closed = True
            explained = await self._explained(gen, error, generation)
            try:
                if explained is error:
                    raise
                raise explained from error
            finally:
                # Otherwise it would refer to itself through this frame, and would live until the garbage collector
                # runs.
                del explained
        finally:
            if limit is not None:
                limit.cancel()

    def _limit(self, gen: Generator[Any, Any, Any]) -> asyncio.TimerHandle | None:
        """Limit the time of *gen* if it only cleans up after a cancelled task, or for the pool.

        Otherwise a caller that must end would wait for a silent server. If the server does not answer, the connection
        is cut, which ends the transaction as well.
        """
        if self.bgpool_lent and not isinstance(sys.exc_info()[1], asyncio.CancelledError):
            return None
        if not clears_up(gen):
            return None
        return asyncio.get_running_loop().call_later(CANCEL_TIMEOUT_S, self._cut)

    def _cut(self) -> None:
        if self.bgpool_is_open:
            self.bgpool_generation.cut(lambda member: member is self)

    async def _exchange(self, gen: Generator[Any, Any, RV], *args: Any, **kwargs: Any) -> RV:
        """See SwitchoverAware; a task that was cancelled gets a CancelledError, even if another error occurred."""
        self._interrupted = False
        try:
            return await super().wait(gen, *args, **kwargs)
        except Exception as error:
            if not self._interrupted:
                raise
            # Versions of psycopg before 3.3.9 then raise the error of their request to cancel the statement.
            self.pgconn.finish()
            raise asyncio.CancelledError from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Like psycopg's, which does nothing to a connection that looks closed.

        Raises:
            InheritedConnection: The transaction to commit is the parent's.
        """
        await self.bgpool_end_block(kind, error, trace)
        if self.bgpool_is_open and not getattr(self, "_pool", None):
            await self.close()

    async def bgpool_end_block(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit at the end of a pool's block, or roll back after *error*, as the connection's class does.

        Raises:
            InheritedConnection: The transaction to commit is the parent's.
        """
        if error is None and not self.bgpool_generation.live[0] and self._is_inherited():
            await self.commit()
        await self._end_block(kind, error, trace)

    async def close(self) -> None:
        """Return the connection to its pool with *close_returns*, or else close it and free its slot.

        For its user it is closed in either case, and a repeated call does nothing. In a fork's child the parent's
        connection is not touched.
        """
        if self._is_inherited():
            keep_forever(self)
        elif self.bgpool_lent:
            # The server may have to be queried first whether it takes writes.
            await whole(self.bgpool_generation.atake_closed(self))
        else:
            self.bgpool_discard()

    def bgpool_discard(self) -> None:
        """See Aware."""
        self._pool = None
        if not self._closed or self.bgpool_is_open:
            self._closed = True
            self.pgconn.finish()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Like psycopg's.

        Raises:
            InheritedConnection: The statement to cancel is the parent's.
        """
        if self._is_inherited():
            await self.bgpool_generation.await_usable()
        await super().cancel_safe(timeout=timeout)

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        # psycopg calls this when a task is cancelled, or when a result or a COPY is not read to its end. After that it
        # waits for the end of the statement.
        if self._is_inherited():
            return
        self._interrupted = is_cancelled = isinstance(sys.exc_info()[1], asyncio.CancelledError)
        taken = not self.bgpool_cut and await self._ask_to_cancel(CANCEL_TIMEOUT_S if is_cancelled else timeout)
        if self.bgpool_cut or (is_cancelled and not taken):
            # The statement does not end, and the caller must not wait for that.
            self.pgconn.finish()
            if is_cancelled:
                raise asyncio.CancelledError

    async def _ask_to_cancel(self, timeout_s: float) -> bool:
        """Ask the server to cancel the statement; return whether it has accepted that. A cut ends the wait for it."""

        async def ask() -> bool:
            try:
                await self.cancel_safe(timeout=timeout_s)
            except Exception:
                # psycopg logs that the connection is closed.
                return False
            return True

        # In a task of its own: a task that is cancelled at every wait, as by anyio, would never send the request.
        asking = begin(ask())
        while not asking.done() and not self.bgpool_cut:
            await asyncio.wait({asking}, timeout=POLL_INTERVAL_S)
        return asking.done() and asking.result()

    async def rollback(self) -> None:
        """Like psycopg's; after a refused write the server is queried whether it takes any."""
        if self._has_nothing_to_roll_back():
            return
        await super().rollback()
        if self._unsettled:
            async with self.lock:
                await self._settle()


@cache
def async_aware(connection_class: type[psycopg.AsyncConnection[Any]]) -> type[AsyncAware]:
    """Return *connection_class* with AsyncAware mixed in; the class may have its row type as a parameter."""
    connection_class = get_origin(connection_class) or connection_class
    bases = (AsyncAware, connection_class)
    names = {"__module__": connection_class.__module__, "_end_block": connection_class.__aexit__}
    return type(connection_class.__name__, bases, names)
