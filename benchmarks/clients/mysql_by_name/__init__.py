"""Django's own engine for MySQL, over PyMySQL, with names that are looked up by a resolver of the lab's."""

from __future__ import annotations

import pymysql

# Before Django's engine is imported: it takes this for mysqlclient.
pymysql.install_as_MySQLdb()
