"""asyncpg in whole switchovers of real servers: units do not fail, and no row is lost or doubled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from bgpool.integrations import asyncpg as bg
from bgpool.lab import Director, Pair, ledger
from bgpool.lab.ledger import Key
from bgpool.lab.scenarios.evidence import metadata_frozen
from bgpool.lab.scenarios.scenario import FAST
from tests.asyncpg.conftest import Run
from tests.pools.callers import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

INSERT = "INSERT INTO ledger (worker, thread, n) VALUES ($1, $2, $3)"
#: The number of tasks that run units, and of those with plain blocks.
TASKS = 8


class Stage:
    """The parts that a scenario changes."""

    def __init__(self, pair: Pair, director: Director) -> None:
        self.pair, self.director = pair, director


class Application:
    """Tasks in the loop of a thread that write rows, and the errors that they received."""

    def __init__(self, pool_of: Callable[[], bg.Pool], run: Run) -> None:
        self.acknowledged: list[Key] = []
        self.unknown: list[Key] = []
        self.errors: dict[str, list[BaseException]] = {"unit": [], "block": []}
        self.pool: Any = None
        self._over = False
        self._pool_of, self._run = pool_of, run
        self._thread = threading.Thread(target=lambda: self._run(self._main()), daemon=True)
        self._thread.start()

    async def _main(self) -> None:
        async with self._pool_of() as self.pool:
            ways = {"unit": self._unit, "block": self._block}
            await asyncio.gather(
                *(
                    self._write(kind, way, (n, task))
                    for n, (kind, way) in enumerate(ways.items())
                    for task in range(TASKS)
                )
            )
            assert all(holder._in_use is None for holder in self.pool._holders)
            assert self.pool.connector.stats().held == 0
        self.pool.connector.stop()

    async def _write(self, kind: str, way: Callable[[Key], Any], who: tuple[int, int]) -> None:
        n = 0
        while not self._over:
            n += 1
            key = (*who, n)
            try:
                await way(key)
                self.acknowledged.append(key)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                self.errors[kind].append(error)
                if not isinstance(error, bg.SwitchoverInterrupted):
                    self.unknown.append(key)
            await asyncio.sleep(0.005)

    async def _unit(self, key: Key) -> None:
        async def insert(connection: Any) -> None:
            await connection.execute(INSERT, *key)

        await bg.run(self.pool, insert)

    async def _block(self, key: Key) -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(INSERT, *key)

    def end(self) -> None:
        self._over = True
        self._thread.join(20)
        assert not self._thread.is_alive()


def play(alter: Callable[[Stage], None], run: Run, directory: Path) -> None:
    with Pair() as pair:
        ledger.create(pair)
        director = Director(pair, FAST)
        alter(Stage(pair, director))
        director.create_deployment()
        own: dict[str, Any] = {"bg_run_dir": str(directory), "bg_resolver": pair.resolver, "bg_id": "asyncpg",
                               "bg_interval_baseline_ms": 500, "bg_interval_high_ms": 50}  # fmt: skip
        application = Application(lambda: bg.create_pool(pair.dsn, **own, min_size=2, max_size=TASKS), run)
        wait_until(lambda: application.pool is not None and bool(application.acknowledged))
        reader = application.pool.connector.participant.reader
        wait_until(lambda: (seen := reader.refresh().snapshot) is not None and seen.ready)
        director.run()
        before = len(application.acknowledged)
        wait_until(lambda: len(application.acknowledged) > before + 100)
        application.end()
        verdict = ledger.judge(pair, application.acknowledged, application.unknown)
    assert verdict.clean, verdict
    assert application.errors["unit"] == []
    # At most those that were in flight.
    assert len(application.errors["block"]) <= TASKS, application.errors["block"]


def test_goes_through(tmp_path: Path) -> None:
    play(lambda _: None, asyncio.run, tmp_path / "run")  # type: ignore[arg-type]  # of coroutines alone


@pytest.mark.full
@pytest.mark.parametrize("alter", [lambda _: None, metadata_frozen], ids=["healthy", "frozen"])
def test_goes_through_in_every_loop(run: Run, tmp_path: Path, alter: Callable[[Stage], None]) -> None:
    play(alter, run, tmp_path / "run")
