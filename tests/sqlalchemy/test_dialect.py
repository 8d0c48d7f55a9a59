"""postgresql+bgpool:// and mysql+bgpool://: held before a slot is taken, routed, and nothing stale is handed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from bgpool.core.events import Order, Ordered
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.monitor.probe import now
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.greenlets import start

pytestmark = pytest.mark.lab

ASYNCIO = True


def where(kit: Kit, connection: sqlalchemy.Connection) -> str:
    return kit.where(connection.connection.dbapi_connection)


def test_held_callers_take_no_slot_and_go_on_to_green(
    kit: Kit, pair: Pair, make_engine: Callable[..., Any], deployment: Deployment
) -> None:
    engine = make_engine(pool_size=3, max_overflow=0, pool_timeout=0.1)
    with engine.connect() as connection:
        assert where(kit, connection) == pair.blue.address
    deployment.phase(Phase.IN_PROGRESS)
    found: list[str] = []

    def ask() -> None:
        with engine.connect() as connection:
            found.append(where(kit, connection))

    joins = [start(ask) for _ in range(3)]
    deployment.wait_held(3)
    assert engine.pool.checkedout() == 0
    deployment.release()
    for join in joins:
        join(20)
    assert found == [pair.green.address] * 3
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_disabled_it_is_a_plain_engine(
    kit: Kit, pair: Pair, make_engine: Callable[..., Any], deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BGPOOL_DISABLE", "1")
    engine = make_engine(bg_connect_timeout_ms=100)
    deployment.phase(Phase.IN_PROGRESS)
    for _ in range(2):
        with engine.connect() as connection:
            assert where(kit, connection) == pair.blue.address


def ordered(order: Order) -> Ordered:
    at = now()
    return Ordered(at, order, at.mono_ns + 60 * 10**9)


def test_an_operators_hold_keeps_the_connections(
    kit: Kit, make_engine: Callable[..., Any], deployment: Deployment
) -> None:
    engine = make_engine()
    with engine.connect() as connection:
        before = kit.session(connection.connection.dbapi_connection)
    deployment.tell(ordered(Order.HOLD))
    found: list[int] = []

    def ask() -> None:
        with engine.connect() as connection:
            found.append(kit.session(connection.connection.dbapi_connection))

    join = start(ask)
    deployment.wait_held(1)
    deployment.tell(ordered(Order.RELEASE))
    join(20)
    assert found == [before]
