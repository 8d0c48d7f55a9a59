"""SQLAlchemy's pools behind the gate: a checkout is held before it takes a place in the pool."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy.pool import (
    AssertionPool,
    NullPool,
    Pool,
    PoolProxiedConnection,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from bgpool.logs import log_fields
from bgpool.pools.connector import Connector

__all__ = ["gate", "most_connections"]

_logger: Final = logging.getLogger("bgpool.pool")


def _connect(pool: Pool) -> PoolProxiedConnection:
    """As SQLAlchemy's, after the hold; the pool's own timeout begins then.

    Raises:
        SwitchoverHoldTimeout: Held for bg_connect_timeout_ms.
        GreenHostRejected: The endpoint is green and the switchover is over.
    """
    dialect: Any = pool._dialect
    dialect.bgpool_connector.wait_admitted()
    return Pool.connect(pool)


# Each has one base, and no attribute of its own: a pool can be made one of them.


class GatedQueuePool(QueuePool):
    """A QueuePool behind the gate."""

    connect = _connect


class GatedNullPool(NullPool):
    """A NullPool behind the gate."""

    connect = _connect


class GatedStaticPool(StaticPool):
    """A StaticPool behind the gate."""

    connect = _connect


class GatedAssertionPool(AssertionPool):
    """An AssertionPool behind the gate."""

    connect = _connect


class GatedSingletonThreadPool(SingletonThreadPool):
    """A SingletonThreadPool behind the gate."""

    def connect(self) -> PoolProxiedConnection:
        """As SQLAlchemy's, after the hold; a thread is not held for what it is using already."""
        using = getattr(self._fairy, "current", None)
        if using is None or using() is None:
            dialect: Any = self._dialect
            dialect.bgpool_connector.wait_admitted()
        return super().connect()


_GATED: Final[Mapping[type[Pool], type[Pool]]] = {
    QueuePool: GatedQueuePool,
    NullPool: GatedNullPool,
    StaticPool: GatedStaticPool,
    AssertionPool: GatedAssertionPool,
    SingletonThreadPool: GatedSingletonThreadPool,
}

#: Classes of users' own that were warned of.
_warned: Final[set[type[Pool]]] = set()


def gate(pool: Pool, connector: Connector[Any]) -> None:
    """Have *pool* held before a checkout takes a place in it, if it is of one of SQLAlchemy's classes."""
    kind = type(pool)
    if kind in _GATED:
        # For good: recreate() makes another one of the same class.
        pool.__class__ = _GATED[kind]
    elif not isinstance(pool, tuple(_GATED.values())) and kind not in _warned:
        _warned.add(kind)
        _logger.warning(
            "[bg_id: %r] %s.%s is no pool class of SQLAlchemy's own: a caller that is held in a switchover takes a "
            "place in it meanwhile, and the others may run into pool_timeout",
            connector.bg_id,
            kind.__module__,
            kind.__qualname__,
            extra=log_fields("pool_not_gated", bg_id=connector.bg_id, host=connector.name),
        )


def most_connections(pool: Pool) -> int:
    """How many connections *pool* may have at a time; 0 where it has no limit, or says none."""
    if isinstance(pool, QueuePool):
        return 0 if pool._max_overflow < 0 else pool.size() + pool._max_overflow
    if isinstance(pool, SingletonThreadPool):
        return pool.size
    return int(isinstance(pool, (StaticPool, AssertionPool)))
