"""The MySQL connector: the parts that are specific to PyMySQL."""

from __future__ import annotations

from bgpool.pools import options
from bgpool.pools.connector import Connector
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.recipe import MysqlRecipe
from bgpool.pools.mysql.unit import MysqlUnit

__all__ = ["MysqlConnector"]


class MysqlConnector(Connector[MysqlConnection]):
    """PyMySQL connections that survive Blue/Green switchovers, opened for an owner. Created by get_connector."""

    OPTIONS = options.MYSQL_CONNECTOR
    _recipe_class = MysqlRecipe
    _unit_class = MysqlUnit
