"""``"ENGINE": "bgpool.integrations.django.mysql"``, on PyMySQL.

Django's engine imports mysqlclient when it is loaded. Where that is not installed, PyMySQL takes its name; where it is,
nothing of it is used.
"""

from __future__ import annotations

import sys

import pymysql
import pymysql.constants.CLIENT
import pymysql.constants.FIELD_TYPE
import pymysql.converters

__all__: list[str] = []


def _install_as_mysqldb() -> None:
    """Have PyMySQL be imported as mysqlclient, each module of it once.

    ``pymysql.install_as_MySQLdb()`` names the package alone: what is imported of it by the other name is loaded again,
    and stands in the package for the first. ``pymysql.err.Error`` is another class then than that of its errors.
    """
    pymysql.install_as_MySQLdb()
    for name, module in list(sys.modules.items()):
        if name.startswith("pymysql."):
            sys.modules[f"MySQLdb{name.removeprefix('pymysql')}"] = module


try:
    import MySQLdb  # Django's engine imports it
except ImportError:
    _install_as_mysqldb()
else:
    if MySQLdb is pymysql:
        # The application has installed it itself.
        _install_as_mysqldb()
