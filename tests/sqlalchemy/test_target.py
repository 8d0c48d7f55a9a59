"""SQLAlchemy's URL and connect_args mean the same as with the plain dialect, or are refused with an alternative."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg.rows
import pymysql.cursors
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool

import bgpool.auth
from bgpool.dsn import Dsn, parse
from bgpool.errors import ConfigurationError
from bgpool.integrations.sqlalchemy import target
from bgpool.integrations.sqlalchemy.dialect import BgpoolDialect
from bgpool.integrations.sqlalchemy.gated import GATED
from bgpool.settings import Settings

SECRET = "s3cret"
PG = f"postgresql+bgpool://app:{SECRET}@db.example.com:5433/ledger"
MY = f"mysql+bgpool://app:{SECRET}@db.example.com:3307/ledger"


def dialect_of(url: str | URL, **connect_args: Any) -> BgpoolDialect:
    """The dialect of an engine for *url* and *connect_args*."""
    dialect = create_engine(url, connect_args=connect_args).dialect
    assert isinstance(dialect, BgpoolDialect)
    return dialect


def read(url: str | URL, **connect_args: Any) -> tuple[Dsn, Settings]:
    """Return the parts of the connector for *url* and *connect_args*."""
    connector = dialect_of(url, **connect_args).bgpool_connector
    assert connector is not None
    assert SECRET not in repr(connector)
    return connector._recipe.dsn, connector._settings


def plain(url: str) -> Mapping[str, Any]:
    """The driver's parameters of an engine for *url*, before its listeners have changed any."""
    return dialect_of(url)._static


# -- what works --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "connect_args", "host", "port", "params"),
    [
        (PG, {}, "db.example.com", 5433, {"user": "app", "password": SECRET, "dbname": "ledger"}),
        ("postgresql+bgpool://app@[2001:db8::1]:6432/x", {}, "2001:db8::1", 6432, {"dbname": "x"}),
        ("postgresql+bgpool://app@/x?host=/run/pg&port=6432", {}, "/run/pg", 6432, {}),
        ("postgresql+bgpool://app@/x?host=db:6432", {}, "db", 6432, {}),
        ("postgresql+bgpool://", {"host": "db", "dbname": "x"}, "db", 5432, {"dbname": "x"}),
        (PG, {"host": "other", "password": "another"}, "other", 5433, {"password": "another"}),
        (f"{PG}?connect_timeout=5&sslmode=require", {}, "db.example.com", 5433, {"sslmode": "require"}),
        (f"{PG}?options=-c%20search_path%3Da&application_name=shop", {}, "db.example.com", 5433,
         {"options": "-c search_path=a", "application_name": "shop"}),
        (f"{PG}?target_session_attrs=read-write&load_balance_hosts=random", {}, "db.example.com", 5433,
         {"target_session_attrs": "read-write"}),
        (PG, {"keepalives_idle": 30, "client_encoding": "utf8"}, "db.example.com", 5433, {"keepalives_idle": 30}),
        (MY, {}, "db.example.com", 3307, {"user": "app", "password": SECRET, "database": "ledger", "client_flag": 2}),
        ("mysql+bgpool://app@[::1]/x", {}, "::1", 3306, {"database": "x"}),
        ("mysql+bgpool://app:a@/x?unix_socket=/run/my.sock", {}, "", 3306, {"unix_socket": "/run/my.sock"}),
        ("mysql+bgpool://app:a@localhost/x", {"unix_socket": "/run/my.sock"}, "", 3306,
         {"unix_socket": "/run/my.sock"}),
        (MY, {"passwd": "another", "db": "other"}, "db.example.com", 3307,
         {"password": "another", "database": "other"}),
        (f"{MY}?charset=latin1&use_unicode=1", {}, "db.example.com", 3307, {"charset": "latin1", "use_unicode": True}),
        (f"{MY}?autocommit=true&local_infile=1&compress=false&client_flag=8", {}, "db.example.com", 3307,
         {"autocommit": True, "local_infile": True, "client_flag": 10}),
        (MY, {"local_infile": 1, "connect_timeout": 5, "read_timeout": "7", "init_command": "SET @a = 1",
              "compress": False, "sql_mode": "ANSI"}, "db.example.com", 3307,
         {"local_infile": True, "connect_timeout": 5, "read_timeout": 7, "init_command": "SET @a = 1"}),
        (MY, {"cursorclass": pymysql.cursors.DictCursor, "conv": {}}, "db.example.com", 3307,
         {"cursorclass": pymysql.cursors.DictCursor, "conv": {}}),
    ],
)  # fmt: skip
def test_it_leads_where_the_plain_dialect_does(
    url: str, connect_args: dict[str, Any], host: str, port: int, params: Mapping[str, Any]
) -> None:
    dsn, settings = read(url, **connect_args)
    assert (dsn.host, dsn.port) == (host, port)
    assert {name: dsn.params[name] for name in params} == params
    assert settings.bg_id == "1"


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_passwords_with_special_characters(scheme: str) -> None:
    password = "p@s/s:w?r%d#+ "
    as_object = URL.create(f"{scheme}+bgpool", "a@b", password, "db", 1234, "x")
    for url in (as_object, as_object.render_as_string(hide_password=False)):
        dsn, _ = read(url)
        assert (dsn.params["user"], dsn.params["password"]) == ("a@b", password)


def test_without_a_host_it_is_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.com")
    monkeypatch.setenv("PGPORT", "6432")
    dsn, _ = read("postgresql+bgpool://")
    assert (dsn.host, dsn.port) == ("db.example.com", 6432)
    assert read("mysql+bgpool://app@/x")[0].host == "localhost"


def test_bgpool_s_own_parameters_may_be_in_either_place() -> None:
    url = f"{PG}?bg_id=Ledger&bg_drain_timeout_ms=10&blue-green-monitoring-user=watcher"
    dsn, settings = read(url, bg_id="Orders", monitoring={"password": "another"}, bg_drop_blue_connections=False)
    # As with every other parameter.
    assert (settings.bg_id, settings.bg_drain_timeout_ms, settings.bg_drop_blue_connections) == ("orders", 10, False)
    assert (dsn.monitoring["user"], dsn.monitoring["password"]) == ("watcher", "another")
    alias = "ledger.c0abc.eu-west-1.rds.amazonaws.com"
    assert read(f"{MY}?endpoint={alias}")[1].endpoint == alias


@pytest.mark.parametrize(("url", "name"), [(PG, "password"), (MY, "password"), (MY, "passwd")])
def test_a_password_may_be_a_callable(url: str, name: str) -> None:
    tokens = bgpool.auth.RdsIam("eu-west-1")
    dsn, _ = read(url, **{name: tokens})
    assert dsn.password == tokens
    assert dsn.monitoring_password == tokens
    assert "password" not in dsn.params


@pytest.mark.parametrize(
    ("query", "connect_args", "proved"),
    [
        ("ssl_ca=ca.pem", {}, True),
        ("ssl_ca=ca.pem&ssl_check_hostname=false", {}, False),
        ("ssl_ca=ca.pem&ssl_verify_identity=true", {}, True),
        ("", {"ssl": {"ca": "ca.pem"}}, True),
        ("", {"ssl_ca": "ca.pem"}, False),
        ("", {"ssl": {"cert": "c.pem", "key": "k.pem"}}, False),
        ("ssl_disabled=false", {}, False),
    ],
)
def test_whether_mysql_proves_its_name_is_known_to_the_monitor(
    query: str, connect_args: dict[str, Any], proved: bool
) -> None:
    dsn, _ = read(f"{MY}?{query}", **connect_args)
    assert dsn.names_matter is proved
    tls = {name: value for name, value in dsn.params.items() if name.startswith("ssl")}
    assert {name: dsn.monitoring[name] for name in tls} == tls


def test_engines_with_the_same_url_share_a_connector() -> None:
    one, two = (dialect_of(f"{PG}?bg_id=shared") for _ in range(2))
    assert one._static["context"] is not two._static["context"]
    assert one.bgpool_connector is two.bgpool_connector


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "connect_args", "text"),
    [
        (f"{PG}?bg_timeout=1", {}, "unknown parameter 'bg_timeout': allowed are bg_id, bg_connect_timeout_ms"),
        (PG, {"bg_timeout": 1}, "unknown parameter 'bg_timeout'"),
        (f"{MY}?bg_timeout=1", {}, "unknown parameter 'bg_timeout'"),
        (f"{PG}?bg_drain_timeout_ms=soon", {}, "bg_drain_timeout_ms='soon'"),
        (f"{PG}?bg_id=a&bg_id=b", {}, "bg_id: it is given 2 times; once is allowed"),
        (f"{PG}?sslmode=prefer&sslmode=require", {}, "sslmode: it is given 2 times"),
        (f"{MY}?sql_mode=ANSI&sql_mode=STRICT", {}, "sql_mode: it is given 2 times"),
        (f"{PG}?host=one:5432&host=two:5432", {}, "host: the URL names several, and one endpoint is allowed"),
        (f"{PG}?host=one,two", {}, "host: the URL names several"),
        (PG, {"host": "one,two"}, "host: the URL names several"),
        (f"{MY}?host=one&host=two", {}, "host: the URL names several"),
        ("mysql+bgpool://app@one,two/x", {}, "host: the URL names several"),
        (f"{PG}?service=ledger", {}, "write host, port and database into the URL"),
        (f"{PG}?connect_timeout=0", {}, "a whole number of seconds above 0 is allowed"),
        (f"{PG}?sslmode=on", {}, "verify-ca or verify-full is allowed"),
        (f"{PG}?ssl=true", {}, "write sslmode=verify-full and sslrootcert=FILE"),
        (PG, {"plugins": "blue_green"}, "plugins is not a parameter here: it is the AWS wrapper's: leave it out"),
        (PG, {"wrapper_dialect": "aurora-pg"}, "wrapper_dialect is not a parameter here"),
        (PG, {"executemany_mode": "values"}, "executemany_mode is not a parameter here: it is an argument of create"),
        (PG, {"connection_factory": object}, "connection_factory is not a parameter here: it is psycopg2's"),
        (PG, {"cursor_factory": dict}, "cursor_factory=builtins.dict: a subclass of psycopg.Cursor"),
        (PG, {"no_such": 1}, "unknown parameter 'no_such': allowed are libpq's connection parameters"),
        (PG, {"autocommit": "yes"}, "autocommit='yes': True or False is allowed"),
        (f"{PG}?pool_size=5", {}, "pool_size is not a parameter here: it is an argument of create_engine"),
        (MY, {"read_default_file": "~/.my.cnf"}, "write user, password, host and port into the URL"),
        (f"{MY}?read_default_group=shop", {}, "write user, password, host and port into the URL"),
        (f"{MY}?ssl_mode=VERIFY_IDENTITY", {}, "ssl_mode=VERIFY_IDENTITY is mysqlclient's, and this is PyMySQL: write"),
        (MY, {"ssl_mode": SECRET}, "ssl_mode is mysqlclient's, and this is PyMySQL: write ssl_ca=FILE"),
        (f"{MY}?compress=true", {}, "compress is not allowed: PyMySQL does not support it"),
        (f"{MY}?ssl=true", {}, "ssl: a dict with ca, "),
        (MY, {"ssl": ssl.create_default_context()}, "ssl: a dict with ca, "),
        (MY, {"cursorclass": dict}, "cursorclass=builtins.dict: a subclass of pymysql.cursors.Cursor"),
        (MY, {"multi_statements": True}, "write client_flag=65536"),
        (MY, {"no_such": 1}, "unknown parameter 'no_such'"),
        ("mysql+bgpool://app@db/x?unix_socket=/run/my.sock", {}, "a host or a socket is allowed, not both"),
        (PG, {"monitoring": SECRET}, "monitoring: a mapping of connection parameters is allowed"),
        (PG, {"password": 5}, "a string or a callable (host, port, user) -> str is allowed"),
        (PG, {"password": lambda *_: SECRET}, "cannot be passed to the monitor's process"),
    ],
)
def test_bad_input_is_one_clear_sentence(url: str, connect_args: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(url, **connect_args)
    said = str(caught.value)
    assert said.startswith("create_engine: ")
    assert text in said
    assert SECRET not in said
    assert "kwargs" not in said
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "name", "text"),
    [
        (PG, "creator", "a token into a do_connect listener or connect_args={'password': …}"),
        (MY, "pool", "give poolclass="),
        (PG, "executemany_mode", "is for psycopg2, and this is psycopg 3"),
        (PG, "executemany_batch_page_size", "is for psycopg2, and this is psycopg 3"),
        (PG, "use_batch_mode", "is for psycopg2, and this is psycopg 3"),
    ],
)
def test_arguments_of_create_engine_that_cannot_be_used(url: str, name: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_engine(url, **{name: object()})
    assert f"create_engine({name}=…)" in str(caught.value)
    assert text in str(caught.value)


def test_those_of_a_dialect_work() -> None:
    engine = create_engine(PG, client_encoding="latin1", json_serializer=str, isolation_level="AUTOCOMMIT")
    assert isinstance(engine.dialect, BgpoolDialect)
    assert engine.dialect._static["client_encoding"] == "latin1"


def test_an_sqlalchemy_below_2_is_reported(tmp_path: Path) -> None:
    (tmp_path / "sqlalchemy").mkdir()
    (tmp_path / "sqlalchemy" / "__init__.py").write_text("__version__ = '1.4.54'")
    found = subprocess.run(
        [sys.executable, "-c", "import bgpool.integrations.sqlalchemy.postgresql"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.stderr.rstrip().endswith("needs SQLAlchemy 2.0 or 2.1, and this is 1.4.54")


# -- what a listener does ----------------------------------------------------------------------------------------


def test_only_what_a_listener_did_is_passed_on() -> None:
    static = plain(PG)
    now = {**static, "password": "token", "application_name": "shop", "row_factory": psycopg.rows.dict_row}
    del now["dbname"]
    found = target.changes(static, [""], now)
    assert found == {
        "context": static["context"],
        "password": "token",
        "application_name": "shop",
        "row_factory": psycopg.rows.dict_row,
        "dbname": None,
    }
    assert target.changes(static, [""], static) == {"context": static["context"]}
    static = plain(MY)
    assert target.changes(static, [""], {**static, "passwd": "token"}) == {"password": "token"}


@pytest.mark.parametrize(
    ("url", "name", "value", "text"),
    [
        (PG, "host", "green", "host: a do_connect listener cannot change where the engine goes"),
        (PG, "port", 1, "port: a do_connect listener"),
        (PG, "hostaddr", "127.0.0.1", "hostaddr: a do_connect listener"),
        (PG, "sslmode", "verify-full", "sslmode: a do_connect listener cannot change it; write it into the URL"),
        (PG, "bg_id", "other", "bg_id: a do_connect listener cannot change it"),
        (PG, "monitoring", {"password": SECRET}, "monitoring: a do_connect listener cannot change it"),
        (MY, "host", "green", "host: a do_connect listener"),
        (MY, "unix_socket", "/run/my.sock", "unix_socket: a do_connect listener"),
        (MY, "ssl", {"ca": "ca.pem"}, "ssl: a do_connect listener cannot change it"),
        (MY, "ssl_ca", "ca.pem", "ssl_ca: a do_connect listener cannot change it"),
    ],
)
def test_a_listener_cannot_lead_elsewhere(url: str, name: str, value: object, text: str) -> None:
    static = plain(url)
    with pytest.raises(ConfigurationError) as caught:
        target.changes(static, [""], {**static, name: value})
    assert text in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_listener_s_connection_string_is_not_ignored() -> None:
    with pytest.raises(ConfigurationError, match="cannot add positional arguments"):
        target.changes({}, ["host=green"], {})


# -- the URL of an engine, given to a command --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "proved"),
    [
        (f"{PG}?bg_id=ledger&sslmode=verify-full", "db.example.com", True),
        (f"{PG.replace('+bgpool', '+psycopg')}?bg_id=ledger&options=-c+work_mem%3D1MB", "db.example.com", False),
        ("postgresql+bgpool://app@/x?host=/run/pg&bg_id=ledger", "/run/pg", False),
        (f"{MY}?bg_id=ledger&ssl_ca=ca.pem&charset=utf8mb4&use_unicode=1", "db.example.com", True),
        (f"{MY}?bg_id=ledger&ssl_ca=ca.pem&ssl_check_hostname=false", "db.example.com", False),
        (f"{MY.replace('+bgpool', '+pymysql')}?bg_id=ledger&ssl_ca=ca.pem", "db.example.com", False),
        (f"{MY.replace('mysql', 'mariadb')}?bg_id=ledger&ssl_ca=ca.pem&use_unicode=1", "db.example.com", True),
        (f"{MY}?bg_id=ledger&client_flag=2&binary_prefix=true&ssl_capath=certs", "db.example.com", True),
    ],
)
def test_commands_take_the_url_of_an_engine(url: str, host: str, proved: bool) -> None:
    dsn, settings, _ = parse(url, {})
    assert (dsn.host, dsn.names_matter, settings.bg_id) == (host, proved, "ledger")
    # Where the dialect goes, too.
    own, _ = read(url.replace("+psycopg", "+bgpool").replace("+pymysql", "+bgpool"))
    same = ("host", "port", "engine", "endpoint")
    assert [getattr(dsn, name) for name in same] == [getattr(own, name) for name in same]
    assert dsn.params.get("options") == own.params.get("options")


@pytest.mark.parametrize("kind", GATED)
def test_a_pool_logs_under_the_name_of_sqlalchemys(kind: type[Pool]) -> None:
    """After dispose() or a fork, lines of ``sqlalchemy.pool`` once came from another logger."""
    make: Any = create_async_engine if kind is AsyncAdaptedQueuePool else create_engine
    engine, plain = (make(url, poolclass=kind) for url in (PG, PG.replace("+bgpool", "+psycopg")))
    engine, plain = getattr(engine, "sync_engine", engine), getattr(plain, "sync_engine", plain)
    for _ in range(2):
        assert engine.pool.logger is plain.pool.logger
        engine.dispose()
