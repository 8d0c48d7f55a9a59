"""Arguments of create_engine mean the same as with SQLAlchemy's own dialects: each case with both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pymysql
import pytest
import sqlalchemy
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import JSON, String, cast, create_engine, engine_from_config, func, literal, select, text
from sqlalchemy.engine import make_url

import bgpool.testing
from bgpool.core.engine import Engine
from bgpool.core.limits import MYSQL_READ_TIMEOUT_S, MYSQL_WRITE_TIMEOUT_S
from bgpool.lab import Pair

STOCK = {Engine.POSTGRESQL: "postgresql+psycopg", Engine.MYSQL: "mysql+pymysql"}
OURS = {Engine.POSTGRESQL: "postgresql+bgpool", Engine.MYSQL: "mysql+bgpool"}


class Place(NamedTuple):
    """The destination of engines: a server, and a deployment in CREATED."""

    pair: Pair
    run_dir: str


class Case(NamedTuple):
    """The arguments of a user.

    Attributes:
        query: The query of the URL.
        connect_args, options: Arguments of create_engine.
    """

    query: dict[str, str]
    connect_args: dict[str, Any]
    options: dict[str, Any]


def case(query: dict[str, str] | None = None, connect_args: dict[str, Any] | None = None, **options: Any) -> Case:
    return Case(query or {}, connect_args or {}, options)


def dumps(value: object) -> str:
    return json.dumps({"by": "the user's", "value": value})


POSTGRESQL = {
    "nothing": case(),
    "name": case({"application_name": "ledger"}),
    "options": case({"options": "-c search_path=pg_catalog -c statement_timeout=4321"}),
    "network": case({"connect_timeout": "3", "keepalives_idle": "7", "tcp_user_timeout": "9000", "sslmode": "disable"}),
    "node": case({"target_session_attrs": "read-write"}),
    "encoding": case(client_encoding="latin1"),
    "encoding, twice": case({"client_encoding": "utf8"}, client_encoding="latin1"),
    "encoding of the driver": case(None, {"client_encoding": "latin1"}),
    "connect_args": case({"application_name": "of the URL"}, {"application_name": "ledger", "connect_timeout": 3}),
    "driver": case(None, {"prepare_threshold": None, "cursor_factory": psycopg.ClientCursor}),
    "autocommit": case(None, {"autocommit": True}),
    "isolation": case(isolation_level="SERIALIZABLE"),
    "isolation, none": case(isolation_level="AUTOCOMMIT"),
    "types": case(json_serializer=dumps, json_deserializer=len, use_native_hstore=False, native_inet_types=False),
    "pool": case(
        pool_size=3, max_overflow=1, pool_timeout=2, pool_recycle=1800, pool_pre_ping=True, pool_use_lifo=True,
        pool_reset_on_return="rollback", pool_logging_name="ledger",
    ),
    "engine": case(echo=False, hide_parameters=True, logging_name="ledger", execution_options={"stream_results": True}),
    "no pool": case(poolclass=sqlalchemy.NullPool),
}  # fmt: skip
MYSQL = {
    "nothing": case(),
    "charset": case({"charset": "latin1"}),
    "collation": case({"charset": "utf8mb4", "collation": "utf8mb4_bin"}),
    "timeouts": case({"connect_timeout": "3", "read_timeout": "4", "write_timeout": "6"}),
    "no TLS": case({"ssl_disabled": "true"}),
    "flags of the driver": case(None, {"client_flag": 8, "local_infile": 1, "compress": False}),
    "flags": case({"client_flag": "65536", "local_infile": "1", "use_unicode": "1"}),
    "texts": case({"sql_mode": "ANSI_QUOTES", "init_command": "SET time_zone = '+03:00'", "program_name": "ledger"}),
    "connect_args": case(
        {"charset": "latin1"},
        {"charset": "utf8mb4", "init_command": "SET @x = 1", "max_allowed_packet": 1 << 20, "ssl_disabled": True},
    ),
    "cursors": case(None, {"cursorclass": pymysql.cursors.SSCursor}),
    "conversions": case(None, {"conv": {**pymysql.converters.conversions, 3: str}}),
    "autocommit": case(None, {"autocommit": True}),
    "isolation": case(isolation_level="READ COMMITTED"),
    "isolation, none": case(isolation_level="AUTOCOMMIT"),
    "types": case(json_serializer=dumps, json_deserializer=len),
    "pool": case(pool_size=3, max_overflow=1, pool_timeout=2, pool_recycle=1800, pool_pre_ping=True),
    "no pool": case(poolclass=sqlalchemy.NullPool),
}


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    pair = request.getfixturevalue("mysql_pair" if request.param is Engine.MYSQL else "postgres_pair")
    with bgpool.testing.deployment(blue=pair.blue.address, green=pair.green.address, bg_id="parameters") as deployment:
        yield Place(pair, str(deployment.run_dir))


def make(place: Place, drivers: dict[Engine, str], case: Case) -> sqlalchemy.Engine:
    url = make_url(place.pair.direct_dsn(place.pair.blue)).set(drivername=drivers[place.pair.engine])
    own = {"bg_run_dir": place.run_dir, "bg_id": "parameters"} if drivers is OURS else {}
    url = url.update_query_dict({**case.query, **own})
    return create_engine(url, connect_args=dict(case.connect_args), **case.options)


def facts(engine: sqlalchemy.Engine) -> dict[str, Any]:
    """Return what a user can see of an engine and of its connections."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        of_engine = _of_postgresql if engine.name == "postgresql" else _of_mysql
        return {
            "name": engine.name,
            "driver": engine.driver,
            "echo": engine.echo,
            "hide_parameters": engine.hide_parameters,
            "logging_name": engine.logging_name,
            "execution_options": dict(connection.get_execution_options()),
            "isolation_level": connection.get_isolation_level(),
            "default_isolation_level": connection.default_isolation_level,
            "server_version_info": engine.dialect.server_version_info,
            "statement cache": engine.dialect.supports_statement_cache,
            "json": connection.scalar(select(cast(literal({"a": [1]}, JSON), String(80)))),
            "json, read": connection.scalar(select(literal({"a": [1]}, JSON))),
            **_of_pool(engine.pool),
            **of_engine(connection, driver),
        }


def _of_pool(pool: Any) -> dict[str, Any]:
    names = ("_max_overflow", "_timeout", "_recycle", "_pre_ping", "_reset_on_return", "logging_name")
    kind = next(kind for kind in type(pool).__mro__ if kind.__module__.startswith("sqlalchemy."))
    size = pool.size() if isinstance(pool, sqlalchemy.QueuePool) else None
    return {"pool": kind, "size": size, **{name: getattr(pool, name, None) for name in names}}


def _of_postgresql(connection: sqlalchemy.Connection, driver: Any) -> dict[str, Any]:
    names = (
        "application_name", "search_path", "statement_timeout", "client_encoding", "transaction_isolation",
    )  # fmt: skip
    return {
        **{name: connection.scalar(select(func.current_setting(name))) for name in names},
        "prepare_threshold": driver.prepare_threshold,
        "cursor_factory": driver.cursor_factory,
        "autocommit": driver.autocommit,
        "inet": connection.scalar(text("SELECT CAST('10.0.0.1' AS inet)")),
        "json of the server": connection.scalar(text("SELECT CAST('{}' AS json)")),
        "parameters": {name: driver.info.get_parameters().get(name) for name in _LIBPQ},
    }


#: The defaults of bgpool (it bounds the wait on a dead network) are not among these.
_LIBPQ = ("host", "port", "user", "dbname", "connect_timeout", "sslmode", "options", "application_name")


def _of_mysql(connection: sqlalchemy.Connection, driver: Any) -> dict[str, Any]:
    variables = (
        "character_set_client", "collation_connection", "sql_mode", "autocommit", "time_zone", "local_infile",
    )  # fmt: skip
    attributes = (
        "charset", "encoding", "use_unicode", "cursorclass", "client_flag", "connect_timeout",
        "max_allowed_packet", "sql_mode", "init_command", "_local_infile", "ssl",
    )  # fmt: skip
    return {
        **{name: connection.exec_driver_sql(f"SELECT @@{name}").scalar() for name in variables},
        **{name: getattr(driver, name) for name in attributes},
        "program_name": driver._connect_attrs.get("program_name"),
        "longs": connection.exec_driver_sql("SELECT CAST(7 AS SIGNED), @x").one(),
        "autocommit of the driver": driver.get_autocommit(),
        # bgpool's own where the user says nothing: every wait has an end.
        "read_timeout": _unless(MYSQL_READ_TIMEOUT_S, driver._read_timeout),
        "write_timeout": _unless(MYSQL_WRITE_TIMEOUT_S, driver._write_timeout),
    }


def _unless(default: int, value: int | None) -> int | None:
    return None if value == default else value


CASES = [
    pytest.param(engine, case, id=f"{engine.value}, {name}")
    for engine, cases in ((Engine.POSTGRESQL, POSTGRESQL), (Engine.MYSQL, MYSQL))
    for name, case in cases.items()
]


@pytest.mark.lab
@pytest.mark.parametrize(("place", "case"), CASES, indirect=["place"], scope="module")
def test_same_as_with_the_stock_dialect(place: Place, case: Case) -> None:
    seen = []
    for drivers in (STOCK, OURS):
        engine = make(place, drivers, case)
        try:
            seen.append(facts(engine))
        finally:
            engine.dispose()
    assert seen[1] == seen[0]


#: Settings as from an ini file: every value is text.
SETTINGS = {
    "pool_size": "3",
    "max_overflow": "1",
    "pool_timeout": "2",
    "pool_recycle": "1800",
    "echo": "false",
    "isolation_level": "SERIALIZABLE",
}


def test_engine_from_config() -> None:
    pools = []
    for url in ("postgresql+psycopg://app@127.0.0.1/app", "postgresql+bgpool://app@127.0.0.1/app?bg_id=parameters"):
        settings = {"url": url, **SETTINGS}
        engine = engine_from_config({f"sqlalchemy.{name}": value for name, value in settings.items()}, "sqlalchemy.")
        pools.append(_of_pool(engine.pool))
    assert pools[1] == pools[0]
    assert pools[1]["size"] == 3


@pytest.mark.parametrize("engine", list(Engine), ids=lambda engine: str(engine.value))
def test_flask_sqlalchemy_and_its_binds(engine: Engine) -> None:
    app, db = Flask(__name__), SQLAlchemy()
    writer, reader = (f"{OURS[engine]}://app@{host}/app?bg_id=parameters" for host in ("127.0.0.1", "127.0.0.3"))
    app.config["SQLALCHEMY_DATABASE_URI"] = writer
    app.config["SQLALCHEMY_BINDS"] = {"reader": {"url": reader, "pool_size": 7}}
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "pool_size": 3,
        "max_overflow": 0,
        "connect_args": {"connect_timeout": 3},
    }
    db.init_app(app)
    with app.app_context():
        assert {key: _of_pool(made.pool)["size"] for key, made in db.engines.items()} == {None: 3, "reader": 7}
        assert {made.dialect.driver for made in db.engines.values()} == {STOCK[engine].partition("+")[2]}
        # What monitoring and debugging tools show of a URL.
        assert "bg_id=parameters" in str(db.engine.url)
