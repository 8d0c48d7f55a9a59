"""asyncpg's pool behind the gate: a checkout is held before it takes a place, and nothing old is handed out."""

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

#: What the set-up of a connection ends with that a switchover cuts; nobody has it yet.
_LOST: Final = (SwitchoverInterrupted, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)
#: What asyncpg says at a return of a connection that is being lost meanwhile.
_LOST_AT_RELEASE: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


class Pool(asyncpg.Pool):
    """asyncpg's Pool, whose connections go through Blue/Green switchovers. Made by create_pool.

    Attributes:
        connector: Makes its connections; pools with the same DSN share one.
    """

    def __init__(self, connector: AsyncpgConnector, init: Callable[[Any], Awaitable[None]] | None, **options: Any):
        """A pool of *connector*'s connections; the options are those of asyncpg's."""
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
            # Kept from now on, and idle until somebody takes it.
            connection.bgpool_lent = connection.bgpool_busy = False

        super().__init__(connect=connect, init=set_up, **options)
        connector.set_owner_size(self, options["max_size"])

    async def _acquire(self, timeout: float | None) -> Any:
        """A connection; acquire() comes here, and all of the pool's own fetch(), execute() and so on."""
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
            # It gives its place back.
            proxy._con.terminate()

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """As asyncpg's; a connection that a switchover has made unfit is closed, and its loss is no error any more."""
        raw = getattr(connection, "_con", None)
        if raw is None or connection._holder._pool is not self:
            await super().release(connection, timeout=timeout)
            return
        self._check_loop()
        if raw.bgpool_unfit:
            # As asyncpg has it for all that follows: a cancelled release goes on.
            await asyncio.shield(self._release_unfit(connection, timeout))
        else:
            await self._release(connection, timeout)

    async def _release_unfit(self, connection: Any, timeout: float | None) -> None:
        """Release it, once it is known whether the server takes writes."""
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
            # Its user is done: whatever was to be committed has been.
            if not raw.is_closed():
                raise

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "this asyncpg pool belongs to another event loop: make one in each loop, and after a fork in each child"
            )
