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


# The dialect of these pools is one of ours, which SQLAlchemy does not say. Each call is a tenth of the whole price.


def _connect(pool: Any) -> PoolProxiedConnection:
    """As SQLAlchemy's, after the hold; the pool's own timeout begins then.

    Raises:
        SwitchoverHoldTimeout: Held for bg_connect_timeout_ms.
        GreenHostRejected: The endpoint is green and the switchover is over.
    """
    pool._dialect.bgpool_connector.wait_admitted()
    return Pool.connect(pool)


def _connect_queued(pool: Any) -> PoolProxiedConnection:
    """The same of a pool with a queue. A caller that a switchover meets in the queue waits there again after it.

    Raises:
        SwitchoverHoldTimeout, GreenHostRejected: As _connect.
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
    """*entry*, which *pool* is about to hand out; without its connection where that is stale, so that it gets another.

    A *checkout* event would do, but costs more than all the rest; and SQLAlchemy allows it two attempts.
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
        # A listener of the user's, or an interrupt: nobody has it yet who would return it.
        pool._do_return_conn(entry)
        raise
    return entry


def _logger_of(kind: type[Pool]) -> str:
    """What SQLAlchemy calls the logger of *kind*. A gated pool keeps it, for users who set its level."""
    return f"{kind.__module__}.{kind.__name__}"


# Each has one base, and its instances no attribute of their own: a pool can be made one of them.


class GatedQueuePool(QueuePool):
    """A QueuePool behind the gate."""

    _sqla_logger_namespace = _logger_of(QueuePool)

    connect = _connect_queued

    def _do_get(self) -> ConnectionPoolEntry:
        return _refreshed(self, QueuePool._do_get(self))


class GatedAsyncAdaptedQueuePool(AsyncAdaptedQueuePool):
    """An AsyncAdaptedQueuePool behind the gate."""

    _sqla_logger_namespace = _logger_of(AsyncAdaptedQueuePool)
    #: Whose tasks use it. Its queue knows of no other.
    bgpool_loop: asyncio.AbstractEventLoop | None = None

    def connect(self) -> PoolProxiedConnection:
        """As GatedQueuePool's.

        Raises:
            ConfigurationError: Another event loop uses it at the same time, which could wait for ever for what the
                first one returns.
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
        """As SQLAlchemy's, after the hold; a thread is not held for what it is using already."""
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

#: Why SQLAlchemy logs that it replaces a connection.
STALE: Final = "the connection is from before a switchover, or lost"

#: Classes of users' own that were warned of.
_warned: Final[set[type[Pool]]] = set()


def gate(pool: Pool, connector: AnyConnector[Any]) -> None:
    """Have *pool* held before a checkout takes a place in it, and give out nothing stale.

    A class that is not SQLAlchemy's own may do anything in its place: there a *checkout* event does both.
    """
    kind = type(pool)
    if kind in GATED:
        # For good: recreate() makes another one of the same class.
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
    """Hold, and have a connection replaced that is stale, before its user gets it."""
    connector: Any = proxy._pool._dialect.bgpool_connector
    connector.wait_admitted()
    if not connector.is_fit(connection):
        raise exc.DisconnectionError(STALE)
    connector.checkouts += 1


def most_connections(pool: Pool) -> int:
    """How many connections *pool* may have at a time; 0 where it has no limit, or says none."""
    if isinstance(pool, QueuePool):
        return 0 if pool._max_overflow < 0 else pool.size() + pool._max_overflow
    if isinstance(pool, SingletonThreadPool):
        return pool.size
    return int(isinstance(pool, (StaticPool, AssertionPool)))
