"""SQLAlchemy's pool with pool_pre_ping, on psycopg."""

from __future__ import annotations

from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from benchmarks.clients import POOL_TIMEOUT_S, Config
from bgpool.lab.ledger import INSERT_SQL, Key

__all__ = ["PrePing"]


class PrePing:
    """``with engine.begin()``."""

    def __init__(self, config: Config) -> None:
        """Make the engine; it connects when it is used."""
        self._engine = create_engine(
            config.dsn.replace("postgresql://", "postgresql+psycopg://", 1),
            poolclass=QueuePool,
            pool_size=config.size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,
        )

    def write(self, key: Key) -> None:
        """As the protocol says."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql(INSERT_SQL, key)

    def close(self) -> None:
        """As the protocol says."""
        self._engine.dispose()
