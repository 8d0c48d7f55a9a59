"""SQLAlchemy's pools behind the gate: a checkout is held before it takes a place in the pool."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import event, exc
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    ConnectionPoolEntry,
    NullPool,
    Pool,
    PoolProxiedConnection,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from bgpool.errors import ConfigurationError
from bgpool.logs import log_fields
from bgpool.pools.connector import AnyConnector
from bgpool.pools.loops import running_loop

__all__ = ["GATED", "STALE", "gate", "most_connections"]

_logger: Final = logging.getLogger("bgpool.pool")


# `Any`, because SQLAlchemy's types do not show that these pools have bgpool's dialect. The code avoids calls, because
# each costs a tenth of the total.


def _connect(pool: Any) -> PoolProxiedConnection:
    """Like SQLAlchemy's, after the hold; the pool's own timeout begins then.

    Raises:
        SwitchoverHoldTimeout: The caller was held for bg_connect_timeout_ms.
        GreenHostRejected: The endpoint is green and the switchover is over.
    """
    pool._dialect.bgpool_connector.wait_admitted()
    return Pool.connect(pool)


def _connect_queued(pool: Any) -> PoolProxiedConnection:
    """The same for a pool with a queue. A caller that is queued when a switchover begins queues again after it.

    Raises:
        SwitchoverHoldTimeout, GreenHostRejected: See _connect.
    """
    dialect = pool._dialect
    dialect.bgpool_connector.wait_admitted()
    try:
        return Pool.connect(pool)
    except exc.TimeoutError:
        if not dialect.bgpool_switched_within(pool._timeout):
            raise
    return _connect(pool)


def _refreshed(pool: Any, entry: ConnectionPoolEntry) -> ConnectionPoolEntry:
    """Return *entry*, which *pool* will hand out; a stale connection is removed, so that the entry gets a new one.

    A *checkout* event would also work, but costs more than all the rest, and SQLAlchemy allows it two attempts.
    """
    dialect = pool._dialect
    connector: AnyConnector[Any] = dialect.bgpool_connector
    try:
        connector.checkouts += 1
        connection = entry.dbapi_connection
        if connection is not None and not connector.is_fit(connection):
            dialect.bgpool_replaced_at = time.monotonic()
            entry.invalidate()
    except BaseException:
        # An error of the user's listener, or an interrupt: no user has it yet who would return it.
        pool._do_return_conn(entry)
        raise
    return entry


def _logger_of(kind: type[Pool]) -> str:
    """Return SQLAlchemy's logger name of *kind*. A gated pool keeps it, for users who set its level."""
    return f"{kind.__module__}.{kind.__name__}"


# Each has one base class, and its instances have no attributes of their own: a pool's class can be changed to it.


class GatedQueuePool(QueuePool):
    """A QueuePool behind the gate."""

    _sqla_logger_namespace = _logger_of(QueuePool)

    connect = _connect_queued

    def _do_get(self) -> ConnectionPoolEntry:
        return _refreshed(self, QueuePool._do_get(self))


class GatedAsyncAdaptedQueuePool(AsyncAdaptedQueuePool):
    """An AsyncAdaptedQueuePool behind the gate."""

    _sqla_logger_namespace = _logger_of(AsyncAdaptedQueuePool)
    #: The event loop of the tasks that use it. Its queue supports only one.
    bgpool_loop: asyncio.AbstractEventLoop | None = None

    def connect(self) -> PoolProxiedConnection:
        """See GatedQueuePool.

        Raises:
            ConfigurationError: Another event loop uses the pool at the same time. It could wait forever for a
                connection that the first loop returns.
        """
        loop = running_loop()
        if loop is not self.bgpool_loop:
            if self.bgpool_loop is not None and self.bgpool_loop.is_running():
                raise ConfigurationError(
                    "the engine is used in two event loops at the same time, and its pool belongs to one: make an "
                    "engine for each loop, or give poolclass=NullPool"
                )
            self.bgpool_loop = loop
        return _connect_queued(self)

    def _do_get(self) -> ConnectionPoolEntry:
        return _refreshed(self, AsyncAdaptedQueuePool._do_get(self))


class GatedNullPool(NullPool):
    """A NullPool behind the gate."""

    _sqla_logger_namespace = _logger_of(NullPool)

    connect = _connect

    def _do_get(self) -> ConnectionPoolEntry:
        return _refreshed(self, NullPool._do_get(self))


class GatedStaticPool(StaticPool):
    """A StaticPool behind the gate."""

    _sqla_logger_namespace = _logger_of(StaticPool)

    connect = _connect

    def _do_get(self) -> ConnectionPoolEntry:
        return _refreshed(self, StaticPool._do_get(self))


class GatedAssertionPool(AssertionPool):
    """An AssertionPool behind the gate."""

    _sqla_logger_namespace = _logger_of(AssertionPool)

    connect = _connect

    def _do_get(self) -> ConnectionPoolEntry:
        return _refreshed(self, AssertionPool._do_get(self))


class GatedSingletonThreadPool(SingletonThreadPool):
    """A SingletonThreadPool behind the gate."""

    _sqla_logger_namespace = _logger_of(SingletonThreadPool)

    def connect(self) -> PoolProxiedConnection:
        """Like SQLAlchemy's, after the hold; a thread is not held for a connection that it already uses."""
        using = getattr(self._fairy, "current", None)
        if using is None or using() is None:
            dialect: Any = self._dialect
            dialect.bgpool_connector.wait_admitted()
        return super().connect()

    def _do_get(self) -> ConnectionPoolEntry:
        return _refreshed(self, super()._do_get())


GATED: Final[Mapping[type[Pool], type[Pool]]] = {
    QueuePool: GatedQueuePool,
    AsyncAdaptedQueuePool: GatedAsyncAdaptedQueuePool,
    NullPool: GatedNullPool,
    StaticPool: GatedStaticPool,
    AssertionPool: GatedAssertionPool,
    SingletonThreadPool: GatedSingletonThreadPool,
}

#: The reason in SQLAlchemy's log for replacing a connection.
STALE: Final = "the connection is from before a switchover, or lost"

#: The users' own pool classes for which a warning was logged.
_warned: Final[set[type[Pool]]] = set()


def gate(pool: Pool, connector: AnyConnector[Any]) -> None:
    """Have *pool* hold checkouts before they take a place in it, and hand out no stale connection.

    A class that is not SQLAlchemy's may override any method: for it a *checkout* event does both.
    """
    kind = type(pool)
    if kind in GATED:
        # This is permanent: recreate() creates another pool of the same class.
        pool.__class__ = GATED[kind]
        return
    if isinstance(pool, tuple(GATED.values())):
        return
    event.listen(pool, "checkout", _check)
    if kind not in _warned:
        _warned.add(kind)
        _logger.warning(
            "[bg_id: %r] %s.%s is not one of SQLAlchemy's own pool classes: a caller that is held in a switchover "
            "takes a place in the pool, and other callers may run into pool_timeout; use one of SQLAlchemy's own",
            connector.bg_id,
            kind.__module__,
            kind.__qualname__,
            extra=log_fields("pool_class_not_gated", bg_id=connector.bg_id, host=connector.name),
        )


def _check(connection: Any, _entry: object, proxy: Any) -> None:
    """Hold the caller, and have a stale connection replaced before its user gets it."""
    connector: Any = proxy._pool._dialect.bgpool_connector
    connector.wait_admitted()
    if not connector.is_fit(connection):
        raise exc.DisconnectionError(STALE)
    connector.checkouts += 1


def most_connections(pool: Pool) -> int:
    """Return the maximum of connections of *pool*; 0 if it has no limit, or does not report one."""
    if isinstance(pool, QueuePool):
        return 0 if pool._max_overflow < 0 else pool.size() + pool._max_overflow
    if isinstance(pool, SingletonThreadPool):
        return pool.size
    return int(isinstance(pool, (StaticPool, AssertionPool)))
