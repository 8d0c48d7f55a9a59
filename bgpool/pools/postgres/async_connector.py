"""The async PostgreSQL connector: the parts that are specific to psycopg."""

from __future__ import annotations

from typing import Any

import psycopg

from bgpool.pools import options
from bgpool.pools.connector import AsyncConnector
from bgpool.pools.postgres.async_recipe import AsyncPostgresRecipe
from bgpool.pools.postgres.unit import PostgresUnit

__all__ = ["AsyncPostgresConnector"]


class AsyncPostgresConnector(AsyncConnector[psycopg.AsyncConnection[Any]]):
    """psycopg's AsyncConnections that survive Blue/Green switchovers, opened for an owner."""

    OPTIONS = options.ASYNC_POSTGRES_CONNECTOR
    _recipe_class = AsyncPostgresRecipe
    _unit_class = PostgresUnit
