"""postgresql+bgpool:// and mysql+bgpool://: held before a slot is taken, routed, and nothing stale is handed out."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from bgpool import registry
from bgpool.core.events import Order, Ordered
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.monitor.probe import now
from bgpool.testing import Deployment
from tests.engines import Kit

pytestmark = pytest.mark.lab


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

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    deployment.wait_held(3)
    assert engine.pool.checkedout() == 0
    deployment.release()
    for thread in threads:
        thread.join()
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

    thread = threading.Thread(target=ask)
    thread.start()
    deployment.wait_held(1)
    deployment.tell(ordered(Order.RELEASE))
    thread.join()
    assert found == [before]


def test_an_engine_that_is_let_go_leaves_no_connector_behind(
    kit: Kit, url: sqlalchemy.URL, deployment: Deployment
) -> None:
    """Credentials that change in the URL make a new connector each time; the old ones used to stay for ever."""

    def use(number: int) -> None:
        engine = sqlalchemy.create_engine(url.update_query_dict({"bg_connect_timeout_ms": str(20_000 + number)}))
        with engine.connect() as connection:
            where(kit, connection)
        engine.dispose()

    def members() -> int:
        gc.collect()
        here = (one for one in registry.participants() if one.files.directory == deployment.run_dir)
        return sum(len(one.members()) for one in here)

    use(0)
    assert any(one.files.directory == deployment.run_dir for one in registry.participants())
    for number in range(1, 5):
        use(number)
    # The watcher looks at them all now and then, and lets them go before it waits.
    deadline = time.monotonic() + 5
    while members():
        assert time.monotonic() < deadline, registry.pools()
        time.sleep(0.02)
