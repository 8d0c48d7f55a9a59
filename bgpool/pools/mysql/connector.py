"""The MySQL connector: what of a connector is PyMySQL's."""

from __future__ import annotations

from bgpool.pools import options
from bgpool.pools.connector import Connector
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.recipe import MysqlRecipe
from bgpool.pools.mysql.unit import MysqlUnit

__all__ = ["MysqlConnector"]


class MysqlConnector(Connector[MysqlConnection]):
    """Opens PyMySQL connections that go through Blue/Green switchovers. Made by get_connector."""

    OPTIONS = options.MYSQL_CONNECTOR
    _recipe_class = MysqlRecipe
    _unit_class = MysqlUnit
