"""postgresql+bgpool:// and mysql+bgpool://: held before a slot is taken, routed, and nothing stale is handed out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from bgpool.core.phase import Phase
from bgpool.lab import Pair
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
