"""``mysql+bgpool://`` and ``mariadb+bgpool://``: SQLAlchemy's dialects for PyMySQL, through switchovers."""

from __future__ import annotations

from sqlalchemy.dialects.mysql.mariadb import MariaDBDialect
from sqlalchemy.dialects.mysql.pymysql import MySQLDialect_pymysql

from bgpool.core.engine import Engine
from bgpool.integrations.sqlalchemy.dialect import BgpoolDialect

__all__ = ["BgpoolMariadbDialect", "BgpoolMysqlDialect"]


class BgpoolMysqlDialect(BgpoolDialect, MySQLDialect_pymysql):
    """SQLAlchemy's MySQLDialect_pymysql on bgpool's connections."""

    # Libraries compare this name; for them the driver is PyMySQL.
    driver = "pymysql"
    supports_statement_cache = True
    bgpool_engine = Engine.MYSQL


class BgpoolMariadbDialect(BgpoolDialect, MariaDBDialect, MySQLDialect_pymysql):
    """The same for ``mariadb+pymysql://``, which is for MariaDB only."""

    driver = "pymysql"
    supports_statement_cache = True
    bgpool_engine = Engine.MYSQL
