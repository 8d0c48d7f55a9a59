"""SwitchoverAware for psycopg's Connection: its waits block the thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

import psycopg

from bgpool.pools.fork import keep_forever
from bgpool.pools.postgres.connection import SwitchoverAware
from bgpool.pools.waits import finish

if TYPE_CHECKING:
    _Base = psycopg.Connection[Any]
else:
    _Base = object

__all__ = ["BlockingAware", "aware"]

RV = TypeVar("RV")


class BlockingAware(SwitchoverAware, _Base):
    """Mixed in before a subclass of psycopg's Connection, or that class itself."""

    # __exit__ of the connection class, which ours stands before.
    _end_block: Callable[..., None]

    def wait(self, gen: Generator[Any, Any, RV], *args: Any, **kwargs: Any) -> RV:
        """Exchange with the server, unless the connection must not be used for that any more."""
        try:
            generation = self.bgpool_generation
        except AttributeError:
            # Still being set up by the connect that makes it; nobody else has it yet.
            return super().wait(gen, *args, **kwargs)
        if not generation.live[0]:
            finish(self._before_sending(gen, generation))
        if self.bgpool_in_unit or self._autocommit or self._pipeline is not None:
            self._note_sending(gen)
        try:
            # The common call is the cheaper one.
            return super().wait(gen, *args, **kwargs) if args or kwargs else super().wait(gen)
        except BaseException as error:
            explained = finish(self._explained(gen, error, generation))
            try:
                if explained is error:
                    raise
                raise explained from error
            finally:
                # Or it would keep itself, with this frame, until the collector comes by.
                del explained

    async def _exchange(self, gen: Generator[Any, Any, RV]) -> RV:
        """As SwitchoverAware says."""
        return super().wait(gen)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As psycopg's, which does nothing to a connection that looks closed.

        Raises:
            InheritedConnection: What would be committed is the parent's.
        """
        self.bgpool_end_block(kind, error, trace)
        if self.bgpool_is_open and not getattr(self, "_pool", None):
            self.close()

    def bgpool_end_block(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit at the end of a pool's block, or roll back after *error*, as the connection's class does.

        Raises:
            InheritedConnection: What would be committed is the parent's.
        """
        if error is None and not self.bgpool_generation.live[0] and self._is_inherited():
            self.commit()
        self._end_block(kind, error, trace)

    def close(self) -> None:
        """Return the connection to its pool with *close_returns*, or else close it and free its slot.

        It is closed to its user either way, and closing it again does nothing. In a fork's child the parent's
        connection is left alone.
        """
        if self._is_inherited():
            keep_forever(self)
        elif self.bgpool_lent:
            self.bgpool_generation.take_closed(self)
        else:
            self.bgpool_discard()

    def bgpool_discard(self) -> None:
        """As Aware says."""
        # Or psycopg would return it to the pool.
        self._pool = None
        try:
            super().close()
        finally:
            # psycopg leaves one that looks closed as it is.
            if self.bgpool_is_open:
                self._closed = True
                self.pgconn.finish()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """As psycopg's.

        Raises:
            InheritedConnection: What would be cancelled is the parent's.
        """
        if self._is_inherited():
            self.bgpool_generation.wait_usable()
        super().cancel_safe(timeout=timeout)

    def _try_cancel(self, *, timeout: float = 5.0) -> None:
        # What psycopg does when a result, or a COPY, is left in the middle.
        if not self._is_inherited():
            super()._try_cancel(timeout=timeout)

    def rollback(self) -> None:
        """As psycopg's; after a refused write the server is asked whether it takes any."""
        if self._has_nothing_to_roll_back():
            # As psycopg finds, too, once it has taken a lock and made a generator: SQLAlchemy asks at every return.
            return
        super().rollback()
        if self._unsettled:
            with self.lock:
                finish(self._settle())


@cache
def aware(connection_class: type[psycopg.Connection[Any]]) -> type[BlockingAware]:
    """*connection_class* with BlockingAware mixed in; it may be written with its type of rows."""
    connection_class = get_origin(connection_class) or connection_class
    bases = (BlockingAware, connection_class)
    names = {"__module__": connection_class.__module__, "_end_block": connection_class.__exit__}
    return type(connection_class.__name__, bases, names)
