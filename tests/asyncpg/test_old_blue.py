"""Old blue is queried for asyncpg's units, too: by psycopg, in a thread, with the pool's own login."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bgpool.lab import Pair
from bgpool.pools.postgres.outcome import TRACE_LINEAGE, Trace
from bgpool.pools.postgres.unit import ask_old_blue
from bgpool.pools.units import Outcome
from tests.asyncpg.conftest import Opened, Run

pytestmark = pytest.mark.lab


@pytest.mark.usefixtures("deployment")
def test_old_blue_knows_the_outcome_of_an_asyncpg_transaction(opened: Opened, pair: Pair, run: Run) -> None:
    async def traced(connection: Any) -> Trace:
        await connection.execute("INSERT INTO ledger (worker, thread, n) VALUES (79, 1, 1)")
        xid, lsn, taken_at, lineage = await connection.fetchrow(TRACE_LINEAGE)
        return Trace(xid, lsn, taken_at, pair.blue.address, lineage)

    async def main() -> None:
        async with opened() as pool:
            connector: Any = pool.connector

            def ask(trace: Trace) -> Any:
                return connector._gate.waits.call(lambda: ask_old_blue(connector._recipe, trace, lambda: 3.0))

            async with pool.acquire() as connection:
                async with connection.transaction():
                    committed = await traced(connection)
                assert await ask(committed) is Outcome.COMMITTED
                rolled_back = connection.transaction()
                await rolled_back.start()
                gone = await traced(connection)
                # In the meantime another task of the loop runs: it ends the transaction for which the query waits.
                asyncio.get_running_loop().call_later(0.2, lambda: ended.append(asyncio.ensure_future(end())))

                async def end() -> None:
                    await rolled_back.rollback()

                ended: list[Any] = []
                assert await ask(gone) is Outcome.NOT_COMMITTED
                await ended[0]

    run(main())
