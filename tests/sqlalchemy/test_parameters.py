"""Parameters of URL and connect_args on real servers: a session is as with SQLAlchemy's own dialect."""

from __future__ import annotations

from typing import Any

import pymysql.converters
import pymysql.cursors
import pytest
import sqlalchemy
from pymysql.constants import FIELD_TYPE
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from tests.engines import Kit

pytestmark = pytest.mark.lab

#: The URL's query, connect_args, other arguments of create_engine, and what tells whether they were heeded.
WAYS: dict[Engine, list[tuple[dict[str, str], dict[str, Any], dict[str, Any], str]]] = {
    Engine.POSTGRESQL: [
        ({"application_name": "shop"}, {}, {}, "SHOW application_name"),
        ({"options": "-c statement_timeout=7s -c search_path=pg_catalog"}, {}, {}, "SHOW statement_timeout"),
        ({"connect_timeout": "5", "target_session_attrs": "read-write"}, {}, {}, "SHOW transaction_read_only"),
        ({}, {"autocommit": True}, {}, "SELECT 1"),
        ({}, {"client_encoding": "latin1"}, {}, "SHOW client_encoding"),
        ({"client_encoding": "utf8"}, {}, {"client_encoding": "latin1"}, "SHOW client_encoding"),
        ({}, {}, {"isolation_level": "SERIALIZABLE"}, "SHOW transaction_isolation"),
        ({}, {}, {"json_deserializer": bytes.decode}, "SELECT '{}'::json"),
    ],
    Engine.MYSQL: [
        ({"charset": "latin1"}, {}, {}, "SELECT @@character_set_client"),
        ({"charset": "utf8mb4", "use_unicode": "1"}, {}, {}, "SELECT @@character_set_client"),
        ({"init_command": "SET @shop = 7"}, {}, {}, "SELECT @shop"),
        ({}, {"init_command": "SET @shop = 8", "connect_timeout": 5, "read_timeout": 9}, {}, "SELECT @shop"),
        ({"sql_mode": "ANSI"}, {}, {}, "SELECT @@sql_mode"),
        ({}, {"local_infile": 1, "compress": False}, {}, "SELECT 1"),
        ({}, {"cursorclass": pymysql.cursors.SSCursor}, {}, "SELECT 1"),
        ({}, {"conv": {**pymysql.converters.conversions, FIELD_TYPE.LONG: str}}, {}, "SELECT 1"),
        ({}, {"client_flag": 8}, {}, "SELECT 1"),
        ({"ssl_disabled": "true"}, {}, {}, "SHOW STATUS LIKE 'Ssl_cipher'"),
        ({}, {}, {"isolation_level": "SERIALIZABLE"}, "SHOW VARIABLES LIKE 't%isolation'"),
    ],
}


def seen(
    url: URL, query: dict[str, str], connect_args: dict[str, Any], options: dict[str, Any], question: str
) -> tuple[object, ...]:
    """What *question* is answered, and what the driver's connection is like."""
    engine = sqlalchemy.create_engine(url.update_query_dict(query), connect_args=connect_args, **options)
    try:
        with engine.connect() as connection:
            drivers: Any = connection.connection.driver_connection
            mode = drivers.get_autocommit() if hasattr(drivers, "get_autocommit") else drivers.autocommit
            flags = getattr(drivers, "client_flag", 0), getattr(drivers, "cursorclass", None)
            return [tuple(row) for row in connection.execute(text(question))], mode, *flags
    finally:
        engine.dispose()


def test_a_session_is_as_with_the_plain_dialect(kit: Kit, pair: Pair) -> None:
    plain = make_url(pair.direct_dsn(pair.blue))
    driver = "pymysql" if kit.engine is Engine.MYSQL else "psycopg"
    for way in WAYS[kit.engine]:
        ours, theirs = (seen(plain.set(drivername=f"{plain.drivername}+{name}"), *way) for name in ("bgpool", driver))
        assert ours == theirs, way
