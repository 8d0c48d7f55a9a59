"""The pool under a PostgreSQL pool: psycopg_pool's, with no way back into it that passes by bgpool."""

from __future__ import annotations

from typing import Any

from psycopg_pool import ConnectionPool
from psycopg_pool.pool import AddConnection

__all__ = ["InnerPool"]


class InnerPool(ConnectionPool[Any]):
    """psycopg_pool's pool. Its connections are closed by bgpool's rules, also where psycopg_pool is called directly."""

    #: Takes a usable connection back. The function itself: a method that calls it would cost every return.
    keep = ConnectionPool.putconn

    def putconn(self, conn: Any) -> None:
        """Return *conn* as Pool.putconn does. Django's backend calls ``conn._pool.putconn(conn)``."""
        conn.bgpool_generation.take_back(conn)

    def replace(self, conn: Any) -> None:
        """Free the slot of *conn*, which is closed: open another connection in its place."""
        conn._pool = None
        if not self.closed:
            self.run_task(AddConnection(self))
