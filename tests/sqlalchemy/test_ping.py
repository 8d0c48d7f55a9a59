"""pool_pre_ping, and a switchover that begins while the connection is being asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import text

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.engines import Kit

pytestmark = pytest.mark.lab

ENGINES = (Engine.POSTGRESQL,)


class Asked(psycopg.Cursor[Any]):
    """Calls a function once the server has answered the ping."""

    meanwhile: Callable[[], None] | None = None

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute, like psycopg."""
        answer = super().execute(*args, **kwargs)
        if self.connection.autocommit and (meanwhile := Asked.meanwhile):
            Asked.meanwhile = None
            meanwhile()
        return answer


@pytest.fixture
def begin(deployment: Deployment) -> Callable[[sqlalchemy.Engine], None]:
    """Begins a switchover during the next ping of an engine."""

    def begin(engine: sqlalchemy.Engine) -> None:
        with engine.connect() as connection:
            drivers: Any = connection.connection.dbapi_connection

        def meanwhile() -> None:
            deployment.phase(Phase.IN_PROGRESS)
            for _ in range(3000):
                if drivers.closed:
                    return
                threading.Event().wait(0.01)
            raise AssertionError("the connection was not drained")

        Asked.meanwhile = meanwhile

    return begin


def test_what_was_asked_as_it_began_is_replaced_after_it(
    kit: Kit,
    pair: Pair,
    make_engine: Callable[..., Any],
    deployment: Deployment,
    begin: Callable[[sqlalchemy.Engine], None],
) -> None:
    engine = make_engine(pool_pre_ping=True, connect_args={"cursor_factory": Asked})
    begin(engine)
    threading.Timer(0.3, deployment.release).start()
    with engine.connect() as connection:
        drivers: Any = connection.connection.dbapi_connection
        assert not drivers.autocommit
        assert connection.scalar(text("SELECT 1")) == 1, "no error: nothing was under way"
        assert kit.where(drivers) == pair.green.address


def test_what_was_asked_as_it_began_is_in_no_autocommit_after_a_rollback(
    kit: Kit, make_engine: Callable[..., Any], deployment: Deployment, begin: Callable[[sqlalchemy.Engine], None]
) -> None:
    assert kit.engine is Engine.POSTGRESQL
    engine = make_engine(pool_pre_ping=True, connect_args={"cursor_factory": Asked})
    begin(engine)
    threading.Timer(0.3, deployment.roll_back).start()
    for _ in range(2):
        with engine.connect() as connection:
            drivers: Any = connection.connection.dbapi_connection
            assert not drivers.autocommit
            connection.execute(text("SELECT 1"))
            assert drivers.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


def test_an_answer_leaves_no_connection_in_autocommit(
    kit: Kit, make_engine: Callable[..., Any], deployment: Deployment, begin: Callable[[sqlalchemy.Engine], None]
) -> None:
    assert kit.engine is Engine.POSTGRESQL
    engine = make_engine(connect_args={"cursor_factory": Asked})
    with engine.connect() as connection:
        begin(engine)
        drivers: Any = connection.connection.dbapi_connection
        assert engine.dialect.do_ping(drivers)
        assert drivers.closed
        assert not drivers.autocommit
        deployment.roll_back()
