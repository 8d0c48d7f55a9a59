"""A multiprocess-safe connection pool that carries applications through an RDS/Aurora Blue/Green switchover.

>>> pool = bgpool.get_pool("postgresql://app@ledger.c0.eu-west-1.rds.amazonaws.com/app", bg_id="ledger")
>>> with pool.connection() as conn:
...     conn.execute("SELECT 1")
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from bgpool._version import __version__

if TYPE_CHECKING:
    from bgpool import auth
    from bgpool.core.phase import Phase
    from bgpool.errors import (
        CommitOutcomeUnknown,
        ConfigurationError,
        Error,
        GreenHostRejected,
        InheritedConnection,
        PasswordFailed,
        PoolClosed,
        PoolTimeout,
        SegmentError,
        SwitchoverError,
        SwitchoverHoldTimeout,
        SwitchoverInterrupted,
        TooManyRequests,
    )
    from bgpool.pools.connector import Connector
    from bgpool.pools.mysql.pool import MysqlPool
    from bgpool.pools.pool import Pool, PoolStats
    from bgpool.pools.postgres.async_pool import AsyncPool
    from bgpool.pools.postgres.pool import PostgresPool
    from bgpool.pools.receipts import AlreadyApplied
    from bgpool.pools.units import transactional
    from bgpool.registry import get_async_pool, get_connector, get_pool
    from bgpool.report import Status, status

__all__ = [
    "get_pool",
    "get_async_pool",
    "get_connector",
    "transactional",
    "status",
    "auth",
    "Pool",
    "PostgresPool",
    "MysqlPool",
    "AsyncPool",
    "Connector",
    "PoolStats",
    "Status",
    "Phase",
    "Error",
    "ConfigurationError",
    "SegmentError",
    "SwitchoverError",
    "SwitchoverHoldTimeout",
    "GreenHostRejected",
    "SwitchoverInterrupted",
    "CommitOutcomeUnknown",
    "AlreadyApplied",
    "InheritedConnection",
    "PoolTimeout",
    "TooManyRequests",
    "PoolClosed",
    "PasswordFailed",
    "__version__",
]

if os.name != "posix":
    raise ImportError(f"bgpool needs a POSIX system (Linux; macOS is untested): os.name is {os.name!r}")

logging.getLogger("bgpool").addHandler(logging.NullHandler())

#: The module of each public name, except for the errors.
_HOMES: Final = {
    "get_pool": "registry",
    "get_async_pool": "registry",
    "get_connector": "registry",
    "transactional": "pools.units",
    "status": "report",
    "Status": "report",
    "auth": "auth",
    "Pool": "pools.pool",
    "Connector": "pools.connector",
    "PoolStats": "pools.source",
    "PostgresPool": "pools.postgres.pool",
    "AsyncPool": "pools.postgres.async_pool",
    "MysqlPool": "pools.mysql.pool",
    "AlreadyApplied": "pools.receipts",
    "Phase": "core.phase",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that a health check or a command that needs no driver loads none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    value = globals()[name] = module if name == "auth" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
