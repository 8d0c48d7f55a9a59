"""``mysql+bgpool://``: SQLAlchemy's dialect for PyMySQL, through switchovers."""

from __future__ import annotations

from sqlalchemy.dialects.mysql.pymysql import MySQLDialect_pymysql

from bgpool.core.engine import Engine
from bgpool.integrations.sqlalchemy.dialect import BgpoolDialect

__all__ = ["BgpoolMysqlDialect"]


class BgpoolMysqlDialect(BgpoolDialect, MySQLDialect_pymysql):
    """SQLAlchemy's MySQLDialect_pymysql on connections of bgpool's."""

    # What libraries compare it with: it is PyMySQL to them.
    driver = "pymysql"
    supports_statement_cache = True
    bgpool_engine = Engine.MYSQL
