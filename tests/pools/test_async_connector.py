"""A connector for asyncio opens connections for an owner that keeps them in event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.errors import ConfigurationError, PoolClosed, SwitchoverHoldTimeout, SwitchoverInterrupted
from bgpool.lab import Pair
from bgpool.pools.postgres.async_connector import AsyncPostgresConnector
from bgpool.testing import Deployment
from tests.pools.conftest import maker
from tests.waiting import until

ENGINES = (Engine.POSTGRESQL,)

MakeConnector = Callable[..., AsyncPostgresConnector]

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("kit")]


@pytest.fixture
def make_connector(pair: Pair, tmp_path: Path) -> Iterator[MakeConnector]:
    yield from maker({Engine.POSTGRESQL: AsyncPostgresConnector}, pair, tmp_path, {})


def test_held_callers_leave_the_loop_alone_and_cancelled_ones_leave_nothing(
    make_connector: MakeConnector, deployment: Deployment, pair: Pair
) -> None:
    connector = make_connector()

    async def main() -> None:
        await connector.await_admitted()
        deployment.phase(Phase.IN_PROGRESS)
        held = [asyncio.create_task(connector.await_admitted()) for _ in range(60)]
        opening = asyncio.create_task(connector.aconnect())
        await until(lambda: connector.stats().held == 61)
        for task in held[:59]:
            task.cancel()
        await asyncio.wait(held[:59])
        assert connector.stats().held == 2
        deployment.release()
        await held[59]
        connection = await opening
        assert connection.info.hostaddr == pair.green.address
        assert connector.stats().held == 0
        await connection.close()
        assert connector.stats().size == 0

    asyncio.run(main())


def test_idle_connections_are_cut_at_once_and_others_after_the_grace(
    make_connector: MakeConnector, deployment: Deployment
) -> None:
    connector = make_connector(bg_drain_timeout_ms=3000)

    async def main() -> None:
        busy, idle = await connector.aconnect(), await connector.aconnect()
        connector.in_use = lambda connection: connection is busy
        await busy.execute("SELECT 1")
        deployment.phase(Phase.IN_PROGRESS)
        cut: Any = idle
        await until(lambda: cut.bgpool_cut)
        assert not connector.is_fit(idle)
        await busy.execute("SELECT 1")
        deployment.release()
        with pytest.raises(SwitchoverInterrupted):
            await busy.execute("SELECT pg_sleep(60)")
        for connection in (busy, idle):
            await connection.close()

    asyncio.run(main())


def test_a_connection_is_fit_in_its_own_loop_alone(make_connector: MakeConnector) -> None:
    connector = make_connector()
    found: list[Any] = []

    async def first() -> None:
        found.append(await connector.aconnect())
        assert connector.is_fit(found[0])

    async def second() -> None:
        connection = await connector.aconnect()
        assert connector.is_fit(connection)
        assert not connector.is_fit(found[0])
        await found[0].close()
        await connection.close()

    asyncio.run(first())
    asyncio.run(second())
    assert connector.stats().size == 0
    assert connector.usage().served == 2


def test_a_hold_ends_at_its_timeout_and_a_closed_connector_is_refused(
    make_connector: MakeConnector, deployment: Deployment
) -> None:
    connector = make_connector(bg_connect_timeout_ms=100)
    with pytest.raises(ConfigurationError, match="host: a connector goes to one endpoint"):
        asyncio.run(connector.aconnect(host="elsewhere"))
    with pytest.raises(ConfigurationError, match="inside of a running event loop"):
        connector.await_admitted().send(None)
    deployment.phase(Phase.IN_PROGRESS)
    with pytest.raises(SwitchoverHoldTimeout):
        asyncio.run(connector.aconnect())
    connector.stop()
    with pytest.raises(PoolClosed):
        asyncio.run(connector.aconnect())
