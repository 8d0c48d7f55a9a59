"""A program written for DBUtils uses bgpool by a changed import, through a whole switchover of real servers."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pymysql
import pytest

import bgpool
from bgpool.integrations.dbutils import PooledDB
from bgpool.lab import Director, Pair, ledger
from bgpool.lab.ledger import INSERT_SQL, Key
from bgpool.lab.scenarios.scenario import FAST
from tests.pools.callers import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

THREADS = 4


class Writers:
    """Threads that write a row in each transaction, as shown in DBUtils' documentation."""

    def __init__(self, db: PooledDB) -> None:
        self.acknowledged: list[Key] = []
        self.unknown: list[Key] = []
        self.errors: list[Exception] = []
        self._db = db
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _write(self, thread: int) -> None:
        n = 0
        while not self._over.is_set():
            n += 1
            try:
                with self._db.connection() as con, con.cursor() as cursor:
                    con.begin()
                    cursor.execute(INSERT_SQL, (1, thread, n))
                    con.commit()
                self.acknowledged.append((1, thread, n))
            except pymysql.err.OperationalError as error:
                self.errors.append(error)
                if isinstance(error, bgpool.CommitOutcomeUnknown):
                    self.unknown.append((1, thread, n))
                # Without this pause, the number of errors on a busy machine would depend on the speed of this loop
                # until the monitor has been queried.
                time.sleep(0.05)

    def end(self) -> None:
        """Stop the threads."""
        self._over.set()
        for thread in self._threads:
            thread.join(15)
        assert not any(thread.is_alive() for thread in self._threads)


def test_writers_survive_a_switchover(tmp_path: Path) -> None:
    with Pair(engine="mysql") as pair:
        ledger.create(pair)
        director = Director(pair, FAST)
        director.create_deployment()
        own: dict[str, Any] = {"bg_run_dir": tmp_path / "run", "bg_resolver": pair.resolver, "bg_id": "dbutils"}
        db = PooledDB(
            pymysql, mincached=1, maxconnections=THREADS - 1, blocking=True, host=pair.names.blue.primary,
            port=pair.port, user="app", password=pair.app_password, database="app", bg_interval_baseline_ms=500,
            bg_interval_high_ms=50, timeout=10.0, **own,
        )  # fmt: skip
        writers = Writers(db)
        reader = db.pool.participant.reader
        wait_until(lambda: (seen := reader.refresh().snapshot) is not None and seen.ready)
        director.run()
        before = len(writers.acknowledged)
        wait_until(lambda: len(writers.acknowledged) > before + 100)
        writers.end()
        with db.connection() as con:
            assert con.peer == pair.green.address
        db.close()
        verdict = ledger.judge(pair, writers.acknowledged, writers.unknown)
    assert verdict.clean, verdict
    # Callers are held, except for those in a transaction when blue refused their write, or ended their connection.
    assert len(writers.errors) <= 4 * THREADS, writers.errors
    assert all(isinstance(error, bgpool.Error) or error.args[0] == 1290 for error in writers.errors), writers.errors
