"""The PostgreSQL pool: the parts that are specific to psycopg."""

from __future__ import annotations

from typing import Any

import psycopg

from bgpool.pools import options
from bgpool.pools.pool import Pool
from bgpool.pools.postgres.recipe import PostgresRecipe
from bgpool.pools.postgres.unit import PostgresUnit

__all__ = ["PostgresPool"]


class PostgresPool(Pool[psycopg.Connection[Any]]):
    """A pool of psycopg connections that survives Blue/Green switchovers. Created by get_pool."""

    OPTIONS = options.POSTGRES
    _recipe_class = PostgresRecipe
    _unit_class = PostgresUnit

    def end_block(self, conn: psycopg.Connection[Any], error: BaseException | None) -> None:
        """See Pool."""
        aware: Any = conn
        aware.bgpool_end_block(type(error) if error is not None else None, error, None)
