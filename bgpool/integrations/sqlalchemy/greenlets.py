"""Connectors for SQLAlchemy's asyncio extension, whose code does not await, but runs in greenlets.

SQLAlchemy runs the same code for both of its forms. In the asyncio form that code runs in a greenlet. The greenlet
passes each awaitable to its task, and continues with the result. So the dialects, pools and units of this package are
the same as well; only their waits are completed in this way.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import psycopg
from sqlalchemy.util.concurrency import await_only

from bgpool.core.engine import Engine
from bgpool.pools.connector import AsyncConnector
from bgpool.pools.loops import LoopWaits
from bgpool.pools.options import check_wait
from bgpool.pools.participant import Participant
from bgpool.pools.postgres.async_connector import AsyncPostgresConnector
from bgpool.pools.waits import Waits

__all__ = ["PSYCOPG", "GreenletConnector", "GreenletPostgresConnector"]

C = TypeVar("C")


class _Waits(LoopWaits):
    """Waits of tasks, for code in SQLAlchemy's greenlets."""

    finish = staticmethod(await_only)

    def __init__(self, loops: LoopWaits) -> None:
        """Create waits that are woken together with those of *loops*."""
        self.__dict__ = loops.__dict__


class GreenletConnector(AsyncConnector[C]):
    """Mixed in before an async connector: SQLAlchemy's pools call it from their greenlets."""

    @staticmethod
    def _waits_of(participant: Participant) -> Waits:
        """See ConnectionSource."""
        return _Waits(participant.loops)

    def is_fit(self, conn: Any) -> bool:
        """See AsyncConnector; *conn* may be SQLAlchemy's adapter of one."""
        return super().is_fit(getattr(conn, "driver_connection", conn))

    def wait_admitted(self, timeout: float | None = None) -> None:
        """Like await_admitted, for a caller in a greenlet."""
        if timeout is not None:
            check_wait("timeout", timeout)
        word, admitted, _ = self._here().quick
        if word != admitted:
            await_only(self.await_admitted(timeout))


class GreenletPostgresConnector(GreenletConnector[psycopg.AsyncConnection[Any]], AsyncPostgresConnector):
    """Opens psycopg's AsyncConnections for SQLAlchemy's engines."""


#: Like bgpool.registry.CONNECTORS.
PSYCOPG: Final = {Engine.POSTGRESQL: GreenletPostgresConnector}
