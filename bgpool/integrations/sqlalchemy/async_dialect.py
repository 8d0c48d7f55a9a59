"""``postgresql+bgpool://`` for create_async_engine: the differences to the dialects for threads."""

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
    """Mixed in before SQLAlchemy's dialect of an asyncio driver."""

    supports_statement_cache = True
    bgpool_connectors: ClassVar[Mapping[Engine, type[GreenletConnector[Any]]]]
    #: SQLAlchemy uses it for connections that it cannot await: one is being collected, or its task was cancelled.
    has_terminate = True

    def bgpool_connect(self, params: Mapping[str, Any]) -> Any:
        """See BgpoolDialect; the connection is in SQLAlchemy's adapter for the driver."""
        # Always true with an engine.
        assert self.bgpool_connector is not None
        return self.loaded_dbapi.connect(**params, async_creator_fn=self.bgpool_connector.aconnect)

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close *dbapi_connection* without waiting; a connection of the parent process is not closed."""
        connection = drivers_of(dbapi_connection)
        generation = getattr(connection, "bgpool_generation", None)
        if generation is None:
            super().do_terminate(dbapi_connection)  # type: ignore[no-untyped-call]  # SQLAlchemy has no types
        elif generation.inherited:
            fork.keep_forever(connection)
        else:
            generation.replace(connection)


class AsyncBgpoolPostgresDialect(AsyncBgpoolDialect, BgpoolPostgresDialect, PGDialectAsync_psycopg):
    """SQLAlchemy's PGDialectAsync_psycopg on bgpool's connections."""

    supports_statement_cache = True
    bgpool_connectors = PSYCOPG
