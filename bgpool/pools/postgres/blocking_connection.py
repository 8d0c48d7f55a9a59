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
    """The mixin in front of a subclass of psycopg's Connection, or of that class itself."""

    # The __exit__ of the connection class, which this class overrides.
    _end_block: Callable[..., None]

    def wait(self, gen: Generator[Any, Any, RV], *args: Any, **kwargs: Any) -> RV:
        """Exchange data with the server, unless the connection must no longer be used for that."""
        try:
            generation = self.bgpool_generation
        except AttributeError:
            # The connection is still being opened, and has no user yet.
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
                # Otherwise it would refer to itself through this frame, and would live until the garbage collector
                # runs.
                del explained

    async def _exchange(self, gen: Generator[Any, Any, RV]) -> RV:
        """See SwitchoverAware."""
        return super().wait(gen)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Like psycopg's, which does nothing to a connection that looks closed.

        Raises:
            InheritedConnection: The transaction to commit is the parent's.
        """
        self.bgpool_end_block(kind, error, trace)
        if self.bgpool_is_open and not getattr(self, "_pool", None):
            self.close()

    def bgpool_end_block(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit at the end of a pool's block, or roll back after *error*, as the connection's class does.

        Raises:
            InheritedConnection: The transaction to commit is the parent's.
        """
        if error is None and not self.bgpool_generation.live[0] and self._is_inherited():
            self.commit()
        self._end_block(kind, error, trace)

    def close(self) -> None:
        """Return the connection to its pool with *close_returns*, or else close it and free its slot.

        For its user it is closed in either case, and a repeated call does nothing. In a fork's child the parent's
        connection is not touched.
        """
        if self._is_inherited():
            keep_forever(self)
        elif self.bgpool_lent:
            self.bgpool_generation.take_closed(self)
        else:
            self.bgpool_discard()

    def bgpool_discard(self) -> None:
        """See Aware."""
        # Otherwise psycopg would return it to the pool.
        self._pool = None
        try:
            super().close()
        finally:
            # psycopg does not close a connection that looks closed.
            if self.bgpool_is_open:
                self._closed = True
                self.pgconn.finish()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Like psycopg's.

        Raises:
            InheritedConnection: The statement to cancel is the parent's.
        """
        if self._is_inherited():
            self.bgpool_generation.wait_usable()
        super().cancel_safe(timeout=timeout)

    def _try_cancel(self, *, timeout: float = 5.0) -> None:
        # psycopg calls this when a result or a COPY is not read to its end.
        if not self._is_inherited():
            super()._try_cancel(timeout=timeout)

    def rollback(self) -> None:
        """Like psycopg's; after a refused write the server is queried whether it takes any."""
        if self._has_nothing_to_roll_back():
            # psycopg finds this, too, but only with a lock and a generator; and SQLAlchemy calls it at every return.
            return
        super().rollback()
        if self._unsettled:
            with self.lock:
                finish(self._settle())


@cache
def aware(connection_class: type[psycopg.Connection[Any]]) -> type[BlockingAware]:
    """Return *connection_class* with BlockingAware mixed in; the class may have its row type as a parameter."""
    connection_class = get_origin(connection_class) or connection_class
    bases = (BlockingAware, connection_class)
    names = {"__module__": connection_class.__module__, "_end_block": connection_class.__exit__}
    return type(connection_class.__name__, bases, names)
