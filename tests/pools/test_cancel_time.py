"""The time until a cancelled caller continues, also if the server is silent."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from bgpool.core.events import Resolved
from bgpool.core.limits import CANCEL_TIMEOUT_S
from bgpool.core.phase import Phase, Role
from bgpool.lab import Pair
from bgpool.lab.ledger import INSERT_SQL
from bgpool.monitor.probe import now
from bgpool.pools.postgres.async_pool import AsyncPool
from bgpool.testing import Deployment
from tests.pools.cancelling import new_pool, quiet
from tests.waiting import quickest, until

pytestmark = pytest.mark.lab

#: The maximum time for a turn of a busy loop.
AT_ONCE_S = 0.05


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture
def make(postgres_pair: Pair, deployment: Deployment) -> Iterator[Callable[..., AsyncPool]]:
    """Return a maker of pools of one connection."""
    yield lambda **options: new_pool(postgres_pair, deployment.run_dir, **options)
    # On the server, a cut session keeps sleeping.
    postgres_pair.blue.cut_clients()


async def _cancelled(
    steps: Awaitable[Any], is_there: Callable[[], object], then: Callable[[], object] = lambda: None
) -> float:
    """Return the time that *steps* took to end after their cancellation, which happens once *is_there* is true.

    *then* is called directly after the cancellation.
    """
    task = asyncio.ensure_future(steps)
    await until(is_there)
    assert not task.done()
    began = time.monotonic()
    task.cancel()
    then()
    await asyncio.wait({task}, timeout=15)
    assert task.cancelled()
    return time.monotonic() - began


def _at_it(pair: Pair) -> set[int]:
    """Return the sessions that sleep on the server, or that have written and wait for their client."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        " OR state = 'idle in transaction' AND query LIKE 'INSERT%'"
    )
    return {int(row[0]) for row in pair.blue.execute(query)}


async def _sleep(pool: AsyncPool) -> None:
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_sleep(20)")


async def _idle(pool: AsyncPool) -> None:
    async with pool.connection() as connection:
        await connection.execute(INSERT_SQL, (97, 0, 0))
        await asyncio.sleep(20)


async def _idle_unit(pool: AsyncPool) -> None:
    async def work(connection: Any) -> None:
        await connection.execute(INSERT_SQL, (97, 0, 0))
        await asyncio.sleep(20)

    await pool.run(work)


async def _idle_by_hand(pool: AsyncPool) -> None:
    connection = await pool.getconn()
    try:
        await connection.execute(INSERT_SQL, (97, 0, 0))
        await asyncio.sleep(20)
    finally:
        await pool.putconn(connection)


async def _commit(pool: AsyncPool) -> None:
    async def work(connection: Any) -> None:
        await connection.execute("CREATE TEMP TABLE slow (n int)")
        await connection.execute(
            "CREATE FUNCTION pg_temp.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); "
            "RETURN NULL; END $$"
        )
        await connection.execute(
            "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
            "EXECUTE FUNCTION pg_temp.wait()"
        )
        await connection.execute("INSERT INTO slow VALUES (1)")

    await pool.run(work)


def test_a_held_caller_continues_at_once(make: Callable[..., AsyncPool], deployment: Deployment, told: Any) -> None:
    async def main() -> float:
        async with make() as pool:
            deployment.phase(Phase.IN_PROGRESS)
            return await _cancelled(_sleep(pool), lambda: pool.stats().held)

    took_s = quickest(lambda: asyncio.run(main()), AT_ONCE_S)
    told("held", took_s)
    assert took_s < AT_ONCE_S


def test_a_queued_caller_continues_at_once(make: Callable[..., AsyncPool], told: Any) -> None:
    async def main() -> float:
        async with make() as pool, pool.connection():
            return await _cancelled(_sleep(pool), lambda: pool.stats().waiting)

    took_s = quickest(lambda: asyncio.run(main()), AT_ONCE_S)
    told("in the queue", took_s)
    assert took_s < AT_ONCE_S


def test_a_caller_continues_at_once_during_a_connect_to_a_silent_server(
    make: Callable[..., AsyncPool], postgres_pair: Pair, deployment: Deployment, told: Any
) -> None:
    address = postgres_pair.blue.address.rsplit(".", 1)[0] + ".98"
    blue = deployment.snapshot.hosts_of(Role.SOURCE)[0].name

    async def main() -> float:
        with socket.create_server((address, postgres_pair.port)) as silent:
            async with make() as pool:
                return await _cancelled(_sleep(pool), lambda: select.select([silent], [], [], 0)[0])

    deployment.tell(Resolved(now(), {blue: (address,)}))
    deployment.phase(Phase.PREPARATION)
    took_s = quickest(lambda: asyncio.run(main()), AT_ONCE_S)
    told("connecting to a silent server", took_s)
    assert took_s < AT_ONCE_S


def test_a_statement_is_cancelled_by_a_server_that_works(
    make: Callable[..., AsyncPool], postgres_pair: Pair, told: Any
) -> None:
    async def main() -> float:
        before = _at_it(postgres_pair)
        async with make() as pool:
            return await _cancelled(_sleep(pool), lambda: _at_it(postgres_pair) - before)

    took_s = quickest(lambda: asyncio.run(main()), 0.2)
    told("statement on a server that works", took_s)
    assert took_s < 0.2


@pytest.mark.parametrize(
    "use",
    [_sleep, _idle_by_hand, *(pytest.param(use, marks=pytest.mark.full) for use in (_idle, _idle_unit, _commit))],
)
def test_a_silent_server_is_not_waited_for(
    make: Callable[..., AsyncPool], postgres_pair: Pair, told: Any, use: Callable[[AsyncPool], Awaitable[None]]
) -> None:
    """psycopg allows 5 s to cancel the statement and 5 s to end it, and waits for its ROLLBACK without limit."""

    async def main() -> float:
        before = _at_it(postgres_pair)
        async with make() as pool:
            try:
                return await _cancelled(use(pool), lambda: _at_it(postgres_pair) - before, postgres_pair.blue.freeze)
            finally:
                postgres_pair.blue.thaw()

    took_s = quickest(lambda: asyncio.run(main()), CANCEL_TIMEOUT_S + 0.3)
    told(f"{use.__name__} on a silent server", took_s)
    assert took_s < CANCEL_TIMEOUT_S + 0.3


def test_a_cut_ends_the_wait(
    make: Callable[..., AsyncPool], postgres_pair: Pair, deployment: Deployment, told: Any
) -> None:
    async def main() -> float:
        before = _at_it(postgres_pair)
        async with make(bg_drain_timeout_ms=200) as pool:
            try:
                return await _cancelled(_sleep(pool), lambda: _at_it(postgres_pair) - before, silent)
            finally:
                postgres_pair.blue.thaw()
                deployment.roll_back()

    def silent() -> None:
        postgres_pair.blue.freeze()
        deployment.phase(Phase.IN_PROGRESS)

    took_s = quickest(lambda: asyncio.run(main()), 0.2 + 0.15)
    told("statement on a silent server, cut after 0.2 s", took_s)
    assert 0.15 < took_s < 0.2 + 0.15


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Print a figure in the summary."""
    return lambda what, took_s: record_property("told", f"cancelled: {what}: {1000 * took_s:.1f} ms")
