"""The example's settings with Django's own engine: the setup without bgpool."""

from __future__ import annotations

import os
from typing import Any, Final

import psycopg
import pymysql
from shop.settings import *  # noqa:F403  # a settings file in Django's way
from shop.settings import DATABASES

from bgpool.resolver import make_resolver

pymysql.install_as_MySQLdb()

_resolver: Final = make_resolver(os.environ["BGPOOL_RESOLVER"])

_database = DATABASES["default"]
_mysql = _database["ENGINE"].endswith("mysql")
_database["ENGINE"] = f"django.db.backends.{'mysql' if _mysql else 'postgresql'}"
_database["OPTIONS"] = {name: value for name, value in _database["OPTIONS"].items() if not name.startswith("bg_")}
_database["CONN_HEALTH_CHECKS"] = True
if os.environ.get("APP_POOL"):
    # As many as a worker has threads, so that none of them waits for another's.
    _database["OPTIONS"]["pool"] = {"min_size": 4, "max_size": 4}
    _database["CONN_MAX_AGE"] = 0
else:
    _database["CONN_MAX_AGE"] = None


# The lab's names are not in the DNS: each connect resolves them, like the system resolver.
_connect_postgres: Any = vars(psycopg.Connection)["connect"].__func__
_connect_mysql = pymysql.connections.Connection.__init__


def _connect(cls: type[Any], conninfo: str = "", /, **params: Any) -> Any:
    if "host" in params:
        params["hostaddr"] = _resolver.resolve(params["host"])[0]
    return _connect_postgres(cls, conninfo, **params)


def _init(self: Any, **params: Any) -> None:
    _connect_mysql(self, **{**params, "host": _resolver.resolve(params["host"])[0]})


psycopg.Connection.connect = classmethod(_connect)  # type: ignore[assignment,method-assign]  # in its place
psycopg.connect = psycopg.Connection.connect
pymysql.connections.Connection.__init__ = _init  # type: ignore[method-assign]  # in its place
