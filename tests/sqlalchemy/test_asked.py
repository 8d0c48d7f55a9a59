"""Attributes of an engine's dialect that libraries read: they are SQLAlchemy's, and the engine does not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.engine import URL

MakeEngine = Callable[..., sqlalchemy.Engine]


@pytest.mark.lab
def test_connect_args_of_another_url(make_engine: MakeEngine, url: URL) -> None:
    engine = make_engine()
    other = url.set(host="other.example", username="somebody")
    _, asked = engine.dialect.create_connect_args(other)
    assert (asked["host"], asked["user"]) == ("other.example", "somebody")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


@pytest.mark.lab
def test_a_ping_of_what_is_closed_fails_with_the_drivers_error(make_engine: MakeEngine) -> None:
    engine = make_engine()
    connection: Any = engine.raw_connection()
    connection.detach()
    assert engine.dialect.do_ping(connection.dbapi_connection)
    connection.dbapi_connection.close()
    with pytest.raises(engine.dialect.loaded_dbapi.Error):
        engine.dialect.do_ping(connection.dbapi_connection)


@pytest.mark.lab
def test_a_proxy_is_rolled_back_by_its_own_method(make_engine: MakeEngine) -> None:
    proxy = make_engine().raw_connection()
    with mock.patch.object(proxy, "rollback", wraps=proxy.rollback) as rollback:
        proxy.close()
    assert rollback.mock_calls == [mock.call()]


def test_mariadbs_url() -> None:
    engine = sqlalchemy.create_engine("mariadb+bgpool://app@127.0.0.1/app?bg_id=ledger")
    plain = sqlalchemy.create_engine("mariadb+pymysql://app@127.0.0.1/app")
    assert (engine.dialect.name, engine.dialect.driver) == (plain.dialect.name, plain.dialect.driver)
    assert engine.dialect.is_mariadb  # type: ignore[attr-defined]  # MySQLDialect's
    assert type(engine.pool).__name__ == "GatedQueuePool"
