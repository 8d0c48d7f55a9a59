"""``postgresql+bgpool://``: SQLAlchemy's dialect for psycopg, through switchovers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.pq import ConnStatus
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from bgpool.core.engine import Engine
from bgpool.errors import ConfigurationError
from bgpool.integrations.sqlalchemy.dialect import BgpoolDialect, drivers_of

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = ["BgpoolPostgresDialect"]


class BgpoolPostgresDialect(BgpoolDialect, PGDialect_psycopg):
    """SQLAlchemy's PGDialect_psycopg on bgpool's connections."""

    # Libraries compare this name; for them the driver is psycopg.
    driver = "psycopg"
    supports_statement_cache = True
    bgpool_engine = Engine.POSTGRESQL

    # create_engine passes the parameters that it finds in this signature by name, as for BgpoolDialect.
    def __init__(
        self,
        executemany_mode: object = None,
        executemany_batch_page_size: object = None,
        executemany_values_page_size: object = None,
        use_batch_mode: object = None,
        **kwargs: Any,
    ) -> None:
        """Create a dialect. The named arguments are those of SQLAlchemy's dialect for psycopg2; they are refused.

        Raises:
            ConfigurationError: One of them is given, or see BgpoolDialect.
        """
        psycopg2s = {
            "executemany_mode": executemany_mode,
            "executemany_batch_page_size": executemany_batch_page_size,
            "executemany_values_page_size": executemany_values_page_size,
            "use_batch_mode": use_batch_mode,
        }
        for name, value in psycopg2s.items():
            if value is not None:
                raise ConfigurationError(
                    f"create_engine({name}=…) is for psycopg2, and this is psycopg 3, which sends the statements of an "
                    "executemany in one pipeline: leave it out; insertmanyvalues_page_size= sizes INSERT … RETURNING"
                )
        super().__init__(**kwargs)

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> Any:  # noqa:ARG003  # of any URL the same
        """Return the dialect of create_async_engine."""
        from bgpool.integrations.sqlalchemy.async_dialect import AsyncBgpoolPostgresDialect  # it is based on this one

        return AsyncBgpoolPostgresDialect

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Like SQLAlchemy's, which pings in autocommit, but reset that also if the connection then looks closed."""
        before = dbapi_connection.autocommit
        try:
            return bool(super().do_ping(dbapi_connection))  # type: ignore[no-untyped-call]  # SQLAlchemy has no types
        finally:
            # The raw state: a connection that a switchover has drained in the meantime may be usable again after a
            # rollback.
            status = drivers_of(dbapi_connection).pgconn.status
            if dbapi_connection.autocommit != before and status == ConnStatus.OK:
                dbapi_connection.autocommit = before
