"""``postgresql+bgpool://`` for create_async_engine: what differs from the dialects for threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg

from bgpool.core.engine import Engine
from bgpool.integrations.sqlalchemy.dialect import BgpoolDialect, drivers_of
from bgpool.integrations.sqlalchemy.greenlets import PSYCOPG, GreenletConnector
from bgpool.integrations.sqlalchemy.postgresql import BgpoolPostgresDialect
from bgpool.pools import fork

__all__ = ["AsyncBgpoolDialect", "AsyncBgpoolPostgresDialect"]


class AsyncBgpoolDialect(BgpoolDialect):
    """Mixed in before SQLAlchemy's dialect of a driver for asyncio."""

    supports_statement_cache = True
    bgpool_connectors: ClassVar[Mapping[Engine, type[GreenletConnector[Any]]]]
    #: SQLAlchemy ends a connection so that it cannot await for: one that is collected, or whose task was cancelled.
    has_terminate = True

    def bgpool_connect(self, params: Mapping[str, Any]) -> Any:
        """As BgpoolDialect says, in SQLAlchemy's adapter for the driver."""
        # Always so with an engine.
        assert self.bgpool_connector is not None
        return self.loaded_dbapi.connect(**params, async_creator_fn=self.bgpool_connector.aconnect)

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close *dbapi_connection* without waiting; the parent's of a fork is left alone."""
        connection = drivers_of(dbapi_connection)
        generation = getattr(connection, "bgpool_generation", None)
        if generation is None:
            super().do_terminate(dbapi_connection)  # type: ignore[no-untyped-call]  # SQLAlchemy has no types
        elif generation.inherited:
            fork.keep_forever(connection)
        else:
            generation.replace(connection)


class AsyncBgpoolPostgresDialect(AsyncBgpoolDialect, BgpoolPostgresDialect, PGDialectAsync_psycopg):
    """SQLAlchemy's PGDialectAsync_psycopg on connections of bgpool's."""

    supports_statement_cache = True
    bgpool_connectors = PSYCOPG
