"""``mysql+bgpool://`` and ``mariadb+bgpool://``: SQLAlchemy's dialects for PyMySQL, through switchovers."""

from __future__ import annotations

from sqlalchemy.dialects.mysql.mariadb import MariaDBDialect
from sqlalchemy.dialects.mysql.pymysql import MySQLDialect_pymysql

from bgpool.core.engine import Engine
from bgpool.integrations.sqlalchemy.dialect import BgpoolDialect

__all__ = ["BgpoolMariadbDialect", "BgpoolMysqlDialect"]


class BgpoolMysqlDialect(BgpoolDialect, MySQLDialect_pymysql):
    """SQLAlchemy's MySQLDialect_pymysql on connections of bgpool's."""

    # What libraries compare it with: it is PyMySQL to them.
    driver = "pymysql"
    supports_statement_cache = True
    bgpool_engine = Engine.MYSQL


class BgpoolMariadbDialect(BgpoolDialect, MariaDBDialect, MySQLDialect_pymysql):
    """The same of ``mariadb+pymysql://``, which is for MariaDB alone."""

    driver = "pymysql"
    supports_statement_cache = True
    bgpool_engine = Engine.MYSQL
