"""``"ENGINE": "bgpool.integrations.django.mysql"``, on PyMySQL.

Django's engine imports mysqlclient when it is loaded. Where that is not installed, PyMySQL takes its name; where it is,
nothing of it is used.
"""

from __future__ import annotations

import pymysql

try:
    import MySQLdb  # noqa:F401  # Django's engine imports it
except ImportError:
    pymysql.install_as_MySQLdb()
