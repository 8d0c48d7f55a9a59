"""``postgresql+bgpool://``: SQLAlchemy's dialect for psycopg, through switchovers."""

from __future__ import annotations

from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from bgpool.core.engine import Engine
from bgpool.integrations.sqlalchemy.dialect import BgpoolDialect

__all__ = ["BgpoolPostgresDialect"]


class BgpoolPostgresDialect(BgpoolDialect, PGDialect_psycopg):
    """SQLAlchemy's PGDialect_psycopg on connections of bgpool's."""

    # What libraries compare it with: it is psycopg to them.
    driver = "psycopg"
    supports_statement_cache = True
    bgpool_engine = Engine.POSTGRESQL
