"""The PostgreSQL connector: the parts that are specific to psycopg."""

from __future__ import annotations

from typing import Any

import psycopg

from bgpool.pools import options
from bgpool.pools.connector import Connector
from bgpool.pools.postgres.recipe import PostgresRecipe
from bgpool.pools.postgres.unit import PostgresUnit

__all__ = ["PostgresConnector"]


class PostgresConnector(Connector[psycopg.Connection[Any]]):
    """psycopg connections that survive Blue/Green switchovers, opened for an owner. Created by get_connector."""

    OPTIONS = options.POSTGRES_CONNECTOR
    _recipe_class = PostgresRecipe
    _unit_class = PostgresUnit
