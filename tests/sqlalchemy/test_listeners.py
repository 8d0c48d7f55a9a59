"""Listeners, adapters and arguments of users' work as with SQLAlchemy's own dialects."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import JSON, Column, Integer, MetaData, Table, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from bgpool.core.engine import Engine
from bgpool.errors import ConfigurationError
from bgpool.lab import Pair
from tests.engines import Kit

pytestmark = pytest.mark.lab

ASYNCIO = True

MakeEngine = Callable[..., sqlalchemy.Engine]


@pytest.mark.parametrize("given", [None, "wrong"])
def test_a_listener_makes_the_password(make_engine: MakeEngine, url: URL, pair: Pair, given: Any) -> None:
    without = URL.create(**{**url._asdict(), "password": None})
    engine = make_engine(url=without, connect_args={} if given is None else {"password": given})
    seen: list[dict[str, Any]] = []

    @event.listens_for(engine, "do_connect")
    def token(_dialect: Any, _entry: Any, _args: list[Any], params: dict[str, Any]) -> None:
        seen.append(dict(params))
        params["password"] = pair.app_password

    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    assert len(seen) == 1
    assert not [name for name in seen[0] if name.startswith("bg_")]


def test_a_connection_of_a_listeners_own_is_refused(make_engine: MakeEngine, kit: Kit, pair: Pair) -> None:
    engine = make_engine()
    dsn = pair.direct_dsn(pair.blue)
    own = engine.dialect.loaded_dbapi.connect(dsn) if kit.in_greenlet else kit.connect(pair)
    event.listen(engine, "do_connect", lambda *_: own)
    with pytest.raises(ConfigurationError, match="do_connect listener"), engine.connect():
        pass


def test_listeners_of_a_pool_run_as_often_as_before(make_engine: MakeEngine) -> None:
    engine = make_engine()
    calls: list[str] = []
    for name in ("first_connect", "connect", "checkout", "checkin"):
        event.listen(engine, name, lambda *_, name=name: calls.append(name))
    for _ in range(2):
        with engine.connect():
            pass
    assert calls == ["first_connect", "connect", "checkout", "checkin", "checkout", "checkin"]


def test_a_checkout_listener_may_refuse_a_connection_as_before(make_engine: MakeEngine, kit: Kit) -> None:
    engine = make_engine()
    with engine.connect() as connection:
        before = kit.session(connection.connection.dbapi_connection)

    def refuse(connection: Any, *_: Any) -> None:
        if kit.session(connection) == before:
            raise sqlalchemy.exc.DisconnectionError

    event.listen(engine, "checkout", refuse)
    with engine.connect() as connection:
        assert kit.session(connection.connection.dbapi_connection) != before


def test_connect_args_win_over_the_url(make_engine: MakeEngine, kit: Kit) -> None:
    name = "application_name" if kit.engine is Engine.POSTGRESQL else "program_name"
    engine = make_engine(connect_args={name: "mine"})
    with engine.connect() as connection:
        drivers: Any = connection.connection.dbapi_connection
        if kit.engine is Engine.POSTGRESQL:
            assert drivers.info.get_parameters()[name] == "mine"
        else:
            assert drivers._connect_attrs[name] == "mine"


def test_json_is_read_and_written_with_the_engines_own_functions(make_engine: MakeEngine) -> None:
    engine = make_engine(
        json_serializer=lambda value: json.dumps({"wrapped": value}), json_deserializer=lambda text: ("read", text)
    )
    table = Table("t", MetaData(), Column("n", Integer), Column("j", JSON), prefixes=["TEMPORARY"])
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), {"n": 1, "j": [1]})
        ((kind, text_of),) = connection.execute(sqlalchemy.select(table.c.j)).scalars()
        table.drop(connection)
    assert kind == "read"
    assert json.loads(text_of) == {"wrapped": [1]}


@pytest.mark.parametrize("name", ["creator", "pool"])
def test_what_would_make_other_connections_is_refused(kit: Kit, make_engine: MakeEngine, name: str) -> None:
    given: Any = (lambda: None) if name == "creator" else sqlalchemy.pool.NullPool(lambda: None)  # type: ignore[arg-type]  # never called
    said = f"create_async_engine.*{name}=…" if kit.in_greenlet else rf"create_engine\({name}=…\)"
    with pytest.raises(ConfigurationError, match=said):
        make_engine(**{name: given})


def test_the_dialect_is_the_drivers_to_libraries_and_hides_the_password(
    make_engine: MakeEngine, kit: Kit, pair: Pair
) -> None:
    engine = make_engine()
    plain = sqlalchemy.create_engine(f"{kit.engine.value}+{engine.driver}://h/d")
    assert (engine.name, engine.driver) == (plain.name, plain.driver)
    assert engine.dialect.supports_statement_cache
    assert isinstance(engine.dialect, type(plain.dialect))
    assert pair.app_password not in repr(engine)
    assert pair.app_password not in repr(engine.dialect.bgpool_connector)  # type: ignore[attr-defined]  # bgpool's


def test_a_refused_login_is_the_drivers_own_error(make_engine: MakeEngine, url: URL, kit: Kit) -> None:
    engine = make_engine(url=url.set(password="wrong"))
    with pytest.raises(OperationalError) as caught, engine.connect():
        pass
    assert isinstance(caught.value.orig, kit.error)
    assert not caught.value.connection_invalidated
