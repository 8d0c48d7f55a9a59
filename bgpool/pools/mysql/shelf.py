"""Where a MySQL pool's idle connections lie: DBUtils' PooledDB, with everything taken out of it that takes time."""

from __future__ import annotations

from typing import Any, Final

from dbutils import steady_db
from dbutils.pooled_db import PooledDB

from bgpool.pools.mysql.connection import MysqlConnection

__all__ = ["Shelf"]


class _Empty(Exception):
    """Nothing is idle."""


class _NeverRaised(Exception):
    """What SteadyDB takes for a reason to reconnect and to send again; an empty tuple would break it."""


def _nothing() -> Any:
    raise _Empty


class _Box:
    """What DBUtils has in the place of a connection: it closes what it is left with, and nothing that was taken out."""

    threadsafety: Final = 1

    def __init__(self, connection: MysqlConnection) -> None:
        self.connection: MysqlConnection | None = connection

    def __call__(self) -> _Box:
        return self

    def close(self) -> None:
        """Close what is in it."""
        if self.connection is not None:
            self.connection.bgpool_discard()


class _NoLock:
    """What DBUtils has in the place of its Condition: a shelf is used under the lock of its store.

    A Condition is entered by Python code. An interrupt in the middle of that leaves it locked, and the pool with it.
    """

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to do."""

    def notify(self) -> None:
        """Nobody waits."""

    notify_all = notify


class Shelf(PooledDB):  # type: ignore[misc]  # DBUtils has no types
    """PooledDB without anything that talks to a server: it keeps connections, the longest idle first."""

    def __init__(self) -> None:
        super().__init__(_nothing, failures=_NeverRaised, ping=0, reset=False)
        self._lock = _NoLock()

    def __len__(self) -> int:
        return len(self._idle_cache)

    def take(self) -> MysqlConnection | None:
        """The one that was idle for longest; None if there is none."""
        try:
            pooled = self.dedicated_connection()
        except _Empty:
            return None
        # Emptied while DBUtils' wrapper lives: at its end it puts back whatever is in the box.
        box: _Box = pooled.dbapi_connection
        connection, box.connection = box.connection, None
        return connection

    def take_all(self) -> list[MysqlConnection]:
        """All of them."""
        return list(iter(self.take, None))

    def put(self, connection: MysqlConnection) -> None:
        """Keep *connection*."""
        self.cache(steady_db.connect(_Box(connection), failures=_NeverRaised, ping=0))

    def cache(self, con: Any) -> None:
        """What put() does. DBUtils does it too, by itself, with the box that was emptied: that is not kept."""
        if con.dbapi_connection.connection is not None:
            super().cache(con)
