"""FastAPI: a connection or a session for each request, committed before the response is sent.

    Conn = Annotated[psycopg.AsyncConnection, bgpool.integrations.fastapi.connection(pool)]

    @app.post("/orders")
    async def place_order(item: str, conn: Conn) -> int:
        ...

FastAPI ends a dependency that yields after the response has been sent. With the COMMIT there, a client would receive a
success before the outcome is known. The dependencies of this module end when the endpoint returns. A COMMIT that fails
is therefore an error of the endpoint: the application's exception handlers receive it, or the client receives 500.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from bgpool.errors import ConfigurationError
from bgpool.pools.options import check_timeout, kind_of
from bgpool.pools.postgres.async_pool import AsyncPool

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

__all__ = ["connection", "session"]

_NEEDED = "bgpool.integrations.fastapi needs FastAPI 0.121 or newer"

try:
    from fastapi import Depends, __version__
except ImportError as error:
    raise ImportError(f"{_NEEDED}: pip install 'bgpool[fastapi]'") from error

if tuple(map(int, __version__.split(".")[:2])) < (0, 121):
    raise ImportError(
        f"{_NEEDED}, and this is {__version__}, which cannot end a dependency before the response is sent; "
        "call pool.run() or pool.connection() in the endpoints instead"
    )


def connection(pool: AsyncPool, *, timeout: float | None = None) -> Any:
    """Return a dependency that gives an endpoint a connection of *pool*, with one transaction for the whole call.

    When the endpoint returns, the transaction is committed and the connection is returned before any part of the
    response is sent. If the endpoint raises, HTTPException included, the transaction is rolled back. The dependencies
    of one request that name the same pool and timeout share one connection.

    While a response streams, and in background tasks, another request may already use the connection: take one from the
    pool there.

    Args:
        pool: A pool of bgpool.get_async_pool.
        timeout: Longest wait for a connection, in seconds; the pool's own by default. A request that waits longer fails
            with PoolTimeout, or SwitchoverHoldTimeout.

    Returns:
        The value of FastAPI's Depends(), for ``Annotated[psycopg.AsyncConnection, ...]``. In tests, its attribute
            ``dependency`` is the key for ``app.dependency_overrides``.

    Raises:
        ConfigurationError: *pool* is not an async pool, or *timeout* is not a number of seconds.
    """
    if not isinstance(pool, AsyncPool):
        raise ConfigurationError(
            f"connection: {kind_of(pool)} is no async pool, which bgpool.get_async_pool makes: "
            "a connection of any other would block the event loop"
        )
    check_timeout("connection: timeout", timeout)
    return Depends(_Connection(pool, timeout), scope="function")


def session(maker: async_sessionmaker[Any]) -> Any:
    """Return a dependency that gives an endpoint an SQLAlchemy session, with one transaction for the whole call.

    It ends like that of ``connection``. Objects that are loaded in it expire at the COMMIT unless *maker* has
    ``expire_on_commit=False``. The response is built from the endpoint's result before that.

    Args:
        maker: An async_sessionmaker, of an engine for ``postgresql+bgpool://`` or any other.

    Returns:
        The value of FastAPI's Depends(), for ``Annotated[AsyncSession, ...]``.

    Raises:
        ConfigurationError: *maker* is not an async_sessionmaker.
    """
    from sqlalchemy.ext.asyncio import async_sessionmaker

    if not isinstance(maker, async_sessionmaker):
        raise ConfigurationError(
            f"session: {kind_of(maker)} is no async_sessionmaker: "
            "a session of any other would block the event loop, or not begin a transaction"
        )
    return Depends(_Session(maker), scope="function")


@dataclass(frozen=True, slots=True)
class _Connection:
    """Equal for the same pool, because FastAPI calls equal dependencies of a request once."""

    pool: AsyncPool
    timeout: float | None

    async def __call__(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with self.pool.connection(self.timeout) as connection:
            yield connection


@dataclass(frozen=True, slots=True)
class _Session:
    maker: async_sessionmaker[Any]

    async def __call__(self) -> AsyncIterator[AsyncSession]:
        async with self.maker.begin() as session:
            yield session
