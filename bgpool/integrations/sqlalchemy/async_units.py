"""Units of work with SQLAlchemy's asyncio extension: those of bgpool.integrations.sqlalchemy.units, in greenlets."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias, TypeVar, overload

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.util.concurrency import await_only, greenlet_spawn

from bgpool.integrations.sqlalchemy.attempt import Work
from bgpool.integrations.sqlalchemy.units import (
    GIVEN,
    Runner,
    UnitBackend,
    as_current,
    engine_of,
    new_session,
    refused,
)
from bgpool.pools.options import check_unit
from bgpool.pools.receipts import AlreadyApplied
from bgpool.pools.units import awaitable

__all__ = ["AsyncUnitBackend", "arun"]

R = TypeVar("R")
T = TypeVar("T")

#: The source of a unit's sessions or connections.
AsyncMaker: TypeAlias = "async_sessionmaker[Any] | async_scoped_session[Any] | AsyncEngine"


@overload
async def arun(
    maker: AsyncMaker,
    fn: Callable[..., Awaitable[R]],
    *args: Any,
    timeout: float | None = ...,
    idempotent: bool = ...,
) -> R: ...


@overload
async def arun(
    maker: AsyncMaker,
    fn: Callable[..., Awaitable[R]],
    *args: Any,
    timeout: float | None = ...,
    idempotent: bool = ...,
    receipt_id: str | None,
) -> R | AlreadyApplied: ...


async def arun(
    maker: AsyncMaker,
    fn: Callable[..., Awaitable[R]],
    *args: Any,
    timeout: float | None = None,
    idempotent: bool = False,
    receipt_id: str | None = None,
) -> R | AlreadyApplied:
    """Await ``fn(session, *args)`` in a transaction and commit it; repeat it if a switchover cut it before that.

    The description of run applies here as well. A unit whose task is cancelled is not run again; if it is cancelled
    during COMMIT, it may have been applied.

    Args:
        maker: An async_sessionmaker, or an AsyncEngine, of ``create_async_engine("postgresql+bgpool://…")``; with an
            engine *fn* gets an AsyncConnection. With an async_scoped_session, the new session is the current one while
            *fn* is awaited.
        fn: A coroutine function with the work of one transaction.
        args, timeout, idempotent, receipt_id: See run.

    Returns:
        The result of *fn*; AlreadyApplied(receipt_id) if an earlier run with the same *receipt_id* was applied.

    Raises:
        TypeError: The result of *fn* cannot be awaited.
        Exception: See run.
    """
    check_unit("arun", fn, timeout, GIVEN)
    works = AsyncUnitBackend(maker)
    return await Runner[R](works, fn, args, timeout, idempotent=idempotent, receipt_id=receipt_id).arun()


class AsyncUnitBackend(UnitBackend):
    """The source of a unit's asyncio sessions or connections; runs SQLAlchemy's own code for them in greenlets."""

    def __init__(self, maker: AsyncMaker) -> None:
        """See UnitBackend."""
        if not isinstance(maker, (AsyncEngine, async_sessionmaker, async_scoped_session)):
            raise refused("arun", maker, _advice(maker))
        self.maker: Any = maker

    async def spawn(self, function: Callable[..., T], *args: Any) -> T:
        """See UnitBackend; called in a greenlet."""
        return await greenlet_spawn(function, *args)

    def result(self, fn: Callable[..., object], returned: Any) -> Any:
        """See UnitBackend; awaits the result in a greenlet.

        Raises:
            TypeError: The result cannot be awaited.
        """
        return await_only(awaitable(fn, returned))

    def engine(self) -> Engine:
        """See UnitBackend."""
        maker = self.maker
        if isinstance(maker, AsyncEngine):
            return maker.sync_engine
        return engine_of(maker if isinstance(maker, async_sessionmaker) else maker.session_factory)

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[Work, Any]]:
        """See UnitBackend; called in a greenlet."""
        maker = self.maker
        if isinstance(maker, AsyncEngine):
            with maker.sync_engine.connect() as connection:
                yield connection, AsyncConnection(maker, connection)
            return
        scoped = isinstance(maker, async_scoped_session)
        session: AsyncSession = maker.session_factory() if scoped else maker()
        current = as_current(maker.registry, session) if scoped else contextlib.nullcontext()
        with new_session(session.sync_session) as work, current:
            yield work, session


def _advice(maker: object) -> str:
    """Return the advice for an unsupported *maker*."""
    allowed = "an async_sessionmaker, an async_scoped_session or an AsyncEngine is allowed"
    if isinstance(maker, AsyncSession):
        return f"{allowed}; each attempt needs a new session, so give what makes them"
    if isinstance(maker, AsyncConnection):
        return f"{allowed}; each attempt needs a new connection, so give connection.engine"
    if isinstance(maker, (Engine, sessionmaker, scoped_session)):
        return f"{allowed}; what does not await is for run"
    return allowed
