"""SwitchoverAware for psycopg's AsyncConnection: its waits give way to the event loop."""

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
    """Mixed in before a subclass of psycopg's AsyncConnection, or that class itself."""

    # __aexit__ of the connection class, which ours stands before.
    _end_block: Callable[..., Awaitable[None]]
    # The task was cancelled that waits now.
    _interrupted: bool = False

    async def wait(self, gen: Generator[Any, Any, RV], *args: Any, **kwargs: Any) -> RV:
        """Exchange with the server, unless the connection must not be used for that any more."""
        try:
            generation = self.bgpool_generation
        except AttributeError:
            # Still being set up by the connect that makes it; nobody else has it yet.
            return await super().wait(gen, *args, **kwargs)
        if not generation.live[0]:
            await self._before_sending(gen, generation)
        if self.bgpool_in_unit or self._autocommit or self._pipeline is not None:
            self._note_sending(gen)
        # What is asked of a caller's own connection, while no error is being handled, takes its time.
        limit = None if self.bgpool_lent and sys.exc_info()[1] is None else self._limit(gen)
        try:
            return await self._exchange(gen, *args, **kwargs)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and not self.bgpool_cut and not self.bgpool_is_open:
                # For want of an answer to that; no switchover has cut it.
                self._closed = True
            explained = await self._explained(gen, error, generation)
            try:
                if explained is error:
                    raise
                raise explained from error
            finally:
                # Or it would keep itself, with this frame, until the collector comes by.
                del explained
        finally:
            if limit is not None:
                limit.cancel()

    def _limit(self, gen: Generator[Any, Any, Any]) -> asyncio.TimerHandle | None:
        """Limit the time of *gen* where it only clears up after a task that was cancelled, or for the pool.

        A server that is silent would be waited for by a caller who is to end. Without an answer the connection is cut,
        which ends the transaction as well.
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
        """As SwitchoverAware says; a task that was cancelled meanwhile gets a CancelledError, whatever else it met."""
        self._interrupted = False
        try:
            return await super().wait(gen, *args, **kwargs)
        except Exception as error:
            if not self._interrupted:
                raise
            # psycopg before 3.3.9 says what went wrong when it had the server cancel the statement.
            self.pgconn.finish()
            raise asyncio.CancelledError from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As psycopg's, which does nothing to a connection that looks closed.

        Raises:
            InheritedConnection: What would be committed is the parent's.
        """
        await self.bgpool_end_block(kind, error, trace)
        if self.bgpool_is_open and not getattr(self, "_pool", None):
            await self.close()

    async def bgpool_end_block(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit at the end of a pool's block, or roll back after *error*, as the connection's class does.

        Raises:
            InheritedConnection: What would be committed is the parent's.
        """
        if error is None and not self.bgpool_generation.live[0] and self._is_inherited():
            await self.commit()
        await self._end_block(kind, error, trace)

    async def close(self) -> None:
        """Return the connection to its pool with *close_returns*, or else close it and free its slot.

        It is closed to its user either way, and closing it again does nothing. In a fork's child the parent's
        connection is left alone.
        """
        if self._is_inherited():
            keep_forever(self)
        elif self.bgpool_lent:
            # The server may have to be asked first whether it takes writes.
            await whole(self.bgpool_generation.atake_closed(self))
        else:
            self.bgpool_discard()

    def bgpool_discard(self) -> None:
        """As Aware says."""
        self._pool = None
        if not self._closed or self.bgpool_is_open:
            self._closed = True
            self.pgconn.finish()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """As psycopg's.

        Raises:
            InheritedConnection: What would be cancelled is the parent's.
        """
        if self._is_inherited():
            await self.bgpool_generation.await_usable()
        await super().cancel_safe(timeout=timeout)

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        # What psycopg does when a task is cancelled, or a result or a COPY is left in the middle. After that it waits
        # for the end of the statement.
        if self._is_inherited():
            return
        self._interrupted = is_cancelled = isinstance(sys.exc_info()[1], asyncio.CancelledError)
        taken = not self.bgpool_cut and await self._ask_to_cancel(CANCEL_TIMEOUT_S if is_cancelled else timeout)
        if self.bgpool_cut or (is_cancelled and not taken):
            # Nobody ends the statement, and the caller is not to wait for that.
            self.pgconn.finish()
            if is_cancelled:
                raise asyncio.CancelledError

    async def _ask_to_cancel(self, timeout_s: float) -> bool:
        """Ask the server to cancel the statement; whether it has taken that. A cut ends the wait for it."""

        async def ask() -> bool:
            try:
                await self.cancel_safe(timeout=timeout_s)
            except Exception:
                # psycopg logs that the connection is closed.
                return False
            return True

        # A task of its own: who is cancelled at every wait, as by anyio, would never come to ask.
        asking = begin(ask())
        while not asking.done() and not self.bgpool_cut:
            await asyncio.wait({asking}, timeout=POLL_INTERVAL_S)
        return asking.done() and asking.result()

    async def rollback(self) -> None:
        """As psycopg's; after a refused write the server is asked whether it takes any."""
        if self._has_nothing_to_roll_back():
            return
        await super().rollback()
        if self._unsettled:
            async with self.lock:
                await self._settle()


@cache
def async_aware(connection_class: type[psycopg.AsyncConnection[Any]]) -> type[AsyncAware]:
    """*connection_class* with AsyncAware mixed in; it may be written with its type of rows."""
    connection_class = get_origin(connection_class) or connection_class
    bases = (AsyncAware, connection_class)
    names = {"__module__": connection_class.__module__, "_end_block": connection_class.__aexit__}
    return type(connection_class.__name__, bases, names)
