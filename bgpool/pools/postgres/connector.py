"""The PostgreSQL connector: what of a connector is psycopg's."""

from __future__ import annotations

from typing import Any

import psycopg

from bgpool.pools import options
from bgpool.pools.connector import Connector
from bgpool.pools.postgres.recipe import PostgresRecipe
from bgpool.pools.postgres.unit import PostgresUnit

__all__ = ["PostgresConnector"]


class PostgresConnector(Connector[psycopg.Connection[Any]]):
    """Opens psycopg connections that go through Blue/Green switchovers. Made by get_connector."""

    OPTIONS = options.POSTGRES_CONNECTOR
    _recipe_class = PostgresRecipe
    _unit_class = PostgresUnit
