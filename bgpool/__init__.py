"""A multiprocess-safe connection pool that carries applications through an RDS/Aurora Blue/Green switchover.

>>> pool = bgpool.get_pool("postgresql://app@ledger.c0.eu-west-1.rds.amazonaws.com/app", bg_id="ledger")
>>> with pool.connection() as conn:
...     conn.execute("SELECT 1")
"""

from __future__ import annotations

import logging

from bgpool import auth
from bgpool._version import __version__
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
from bgpool.pools.mysql.pool import MysqlPool
from bgpool.pools.pool import Pool, PoolStats
from bgpool.pools.postgres.pool import PostgresPool
from bgpool.pools.units import transactional
from bgpool.registry import get_pool

__all__ = [
    "get_pool",
    "transactional",
    "auth",
    "Pool",
    "PostgresPool",
    "MysqlPool",
    "PoolStats",
    "Phase",
    "Error",
    "ConfigurationError",
    "SegmentError",
    "SwitchoverError",
    "SwitchoverHoldTimeout",
    "GreenHostRejected",
    "SwitchoverInterrupted",
    "CommitOutcomeUnknown",
    "InheritedConnection",
    "PoolTimeout",
    "TooManyRequests",
    "PoolClosed",
    "PasswordFailed",
    "__version__",
]

logging.getLogger("bgpool").addHandler(logging.NullHandler())
