"""asyncpg's pool behind the gate: a checkout is held before it takes a place, and no stale connection is handed out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from bgpool.errors import ConfigurationError, SwitchoverInterrupted
from bgpool.integrations.asyncpg.connector import AsyncpgConnector
from bgpool.pools.options import deadline_of

__all__ = ["Pool"]

#: The errors of setting up a connection that a switchover cuts; no user has it yet.
_LOST: Final = (SwitchoverInterrupted, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)
#: The errors of asyncpg when a connection is lost while it is being released.
_LOST_AT_RELEASE: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


class Pool(asyncpg.Pool):
    """asyncpg's Pool, whose connections are carried through Blue/Green switchovers. Created by create_pool.

    Attributes:
        connector: The connector of its connections; pools with the same DSN share one.
    """

    def __init__(self, connector: AsyncpgConnector, init: Callable[[Any], Awaitable[None]] | None, **options: Any):
        """Create a pool of *connector*'s connections; the options are asyncpg's."""
        self.connector: Final = connector
        self._set_up: Final = init

        async def connect(dsn: str | None = None, **kwargs: Any) -> Any:
            if dsn is not None:
                raise ConfigurationError("set_connect_args: a pool goes to one endpoint; make another one")
            connection = await connector.aconnect(**kwargs)
            connection.bgpool_keeps_place = True
            return connection

        async def set_up(connection: Any) -> None:
            if init is not None:
                await init(connection)
            # It is now in the pool, and idle until it is acquired.
            connection.bgpool_lent = connection.bgpool_busy = False

        super().__init__(connect=connect, init=set_up, **options)
        connector.set_owner_size(self, options["max_size"])

    async def _acquire(self, timeout: float | None) -> Any:
        """Acquire a connection, for acquire() and for all of the pool's own methods such as fetch() and execute()."""
        self._check_loop()
        deadline = None if timeout is None else deadline_of(timeout)
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            await self.connector.await_admitted(left_s)
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            before = self.connector.generation()
            try:
                proxy = await super()._acquire(left_s)
            except _LOST:
                if self.connector.generation() is before or self.connector.closed:
                    raise
                continue
            if self.connector.is_fit(proxy._con):
                self.connector.checkouts += 1
                return proxy
            # This frees its place.
            proxy._con.terminate()

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Like asyncpg's. A connection that a switchover made unfit is closed, and its loss is no longer an error."""
        raw = getattr(connection, "_con", None)
        if raw is None or connection._holder._pool is not self:
            await super().release(connection, timeout=timeout)
            return
        self._check_loop()
        if raw.bgpool_unfit:
            # Like asyncpg for all that follows: a cancelled release continues.
            await asyncio.shield(self._release_unfit(connection, timeout))
        else:
            await self._release(connection, timeout)

    async def _release_unfit(self, connection: Any, timeout: float | None) -> None:
        """Release it after determining whether the server accepts writes."""
        try:
            await connection._con.bgpool_asettle_refusal()
        finally:
            await self._release(connection, timeout)

    async def _release(self, connection: Any, timeout: float | None) -> None:
        raw = connection._con
        if not self.connector.is_fit(raw):
            raw._on_release()
            raw.terminate()
            return
        try:
            await super().release(connection, timeout=timeout)
        except _LOST_AT_RELEASE:
            # Its user has finished: all that had to be committed has been.
            if not raw.is_closed():
                raise

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "this asyncpg pool belongs to another event loop: make one in each loop, and after a fork in each child"
            )
