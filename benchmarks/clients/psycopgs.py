"""psycopg_pool, with its defaults and with its check at every checkout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool

from benchmarks.clients import POOL_TIMEOUT_S, Config
from bgpool.lab.ledger import INSERT_SQL, Key

__all__ = ["Checked", "Plain"]


class Plain:
    """``with pool.connection()``."""

    check: Callable[[Connection[Any]], None] | None = None

    def __init__(self, config: Config) -> None:
        """Make the pool and open it."""
        self._pool = ConnectionPool(
            config.dsn,
            min_size=config.size,
            max_size=config.size,
            timeout=POOL_TIMEOUT_S,
            check=type(self).check,
            open=True,
        )

    def write(self, key: Key) -> None:
        """See Client."""
        with self._pool.connection() as connection:
            connection.execute(INSERT_SQL, key)

    def close(self) -> None:
        """See Client."""
        self._pool.close(timeout=1.0)


class Checked(Plain):
    """psycopg_pool with ``check=ConnectionPool.check_connection``."""

    check = staticmethod(ConnectionPool.check_connection)
