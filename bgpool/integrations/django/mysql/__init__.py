"""``"ENGINE": "bgpool.integrations.django.mysql"``, on PyMySQL.

Django's engine imports mysqlclient when it is loaded. If that is not installed, PyMySQL takes its name; if it is
installed, it is not used.
"""

from __future__ import annotations

import pymysql
import pymysql.constants.CLIENT
import pymysql.constants.FIELD_TYPE
import pymysql.converters

from bgpool.mysql_driver import keep_modules_single

__all__: list[str] = []

try:
    import MySQLdb  # noqa:F401  # Django's engine imports it
except ImportError:
    pymysql.install_as_MySQLdb()
# Also if the application has already done that itself.
keep_modules_single()
