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
    """SQLAlchemy's PGDialect_psycopg on connections of bgpool's."""

    # What libraries compare it with: it is psycopg to them.
    driver = "psycopg"
    supports_statement_cache = True
    bgpool_engine = Engine.POSTGRESQL

    # create_engine hands over what it finds here by name, as in BgpoolDialect.
    def __init__(
        self,
        executemany_mode: object = None,
        executemany_batch_page_size: object = None,
        executemany_values_page_size: object = None,
        use_batch_mode: object = None,
        **kwargs: Any,
    ) -> None:
        """A dialect. The named arguments are those of SQLAlchemy's dialect for psycopg2, to refuse them.

        Raises:
            ConfigurationError: One of them is given, or as BgpoolDialect.
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
        """The dialect of create_async_engine."""
        from bgpool.integrations.sqlalchemy.async_dialect import AsyncBgpoolPostgresDialect  # it is based on this one

        return AsyncBgpoolPostgresDialect

    def do_ping(self, dbapi_connection: Any) -> bool:
        """As SQLAlchemy's, which asks in autocommit, and leaves there what looks closed once it has answered."""
        before = dbapi_connection.autocommit
        try:
            return bool(super().do_ping(dbapi_connection))  # type: ignore[no-untyped-call]  # SQLAlchemy has no types
        finally:
            # The raw state: one that a switchover has drained meanwhile may be good again after a rollback.
            status = drivers_of(dbapi_connection).pgconn.status
            if dbapi_connection.autocommit != before and status == ConnStatus.OK:
                dbapi_connection.autocommit = before
