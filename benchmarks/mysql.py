"""What a MySQL pool costs beside DBUtils' PooledDB, and who waits for whom while a connection is slow to open."""

from __future__ import annotations

import contextlib
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pymysql
from dbutils.pooled_db import PooledDB

import bgpool
from benchmarks.result import Column, Result, Table, Value
from benchmarks.rounds import compare
from bgpool.lab import Pair
from bgpool.mysql import BoundedConnection

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "MySQL: beside PooledDB"
QUESTION: Final = (
    "What does a checkout cost beside DBUtils' PooledDB, and who waits for whom while a connection is slow to open? "
    "Both pools talk to one MariaDB server. Checkouts are measured in alternating rounds; slow connects through a "
    "relay of TCP that keeps the first client waiting."
)
THREADS: Final = 8
SLOW_S: Final = 2.0
SETTLE_S: Final = 1.5

_COLUMNS: Final = (
    Column("what", "what", is_key=True),
    Column("theirs_us", "PooledDB, µs", 1),
    Column("bgpool_us", "bgpool, µs", 1),
    Column("ratio", "ratio", 2),
)
_WAIT_COLUMNS: Final = (
    Column("pool", "pool", is_key=True),
    Column("first_s", "first through, s", 3),
    Column("second_last_s", "last but one, s", 3),
    Column("last_s", "last, s", 3),
)


class SlowDoor:
    """Passes connections on to a server, the first one after *slow_s* seconds."""

    def __init__(self, address: str, port: int, server: tuple[str, int], slow_s: float) -> None:
        self._listener = socket.create_server((address, port))
        self._server = server
        self._delays = [slow_s]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                delay_s = self._delays.pop() if self._delays else 0.0
                threading.Thread(target=self._serve, args=(client, delay_s), daemon=True).start()

    def _serve(self, client: socket.socket, delay_s: float) -> None:
        time.sleep(delay_s)
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as backend:
            other = {client: backend, backend: client}
            while True:
                for sock in select.select([client, backend], [], [])[0]:
                    data = sock.recv(65536)
                    if not data:
                        return
                    other[sock].sendall(data)


def waits(use: Callable[[], object]) -> list[float]:
    """When each of eight threads that start together was through, in seconds, in order."""
    began, found = time.monotonic(), []

    def work() -> None:
        use()
        found.append(time.monotonic() - began)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return sorted(round(wait, 3) for wait in found)


def ask(connection: Any) -> None:
    """One statement."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def pooled_db(pair: Pair, address: str, port: int, **options: Any) -> PooledDB:
    """DBUtils' pool on the same server, as its users have it."""
    return PooledDB(
        pymysql, maxconnections=THREADS, blocking=True, ping=1, host=address, port=port, user="app",
        password=pair.app_password, database="app", **options,
    )  # fmt: skip


def slow_connects(pair: Pair, run_dir: Path) -> dict[str, list[float]]:
    """Who waits for how long while the first connection takes SLOW_S."""
    results: dict[str, list[float]] = {}
    door_address = pair.blue.address.rsplit(".", 1)[0] + ".99"

    def with_theirs(pool: PooledDB) -> None:
        with contextlib.closing(pool.connection()) as connection:
            ask(connection)

    def with_ours(pool: Any) -> None:
        with pool.connection() as connection:
            ask(connection)

    for name in ("PooledDB", "bgpool"):
        door = SlowDoor(door_address, pair.port, (pair.blue.address, pair.port), SLOW_S)
        try:
            if name == "PooledDB":
                theirs = pooled_db(pair, door_address, pair.port)
                results[name] = waits(partial(with_theirs, theirs))
                theirs.close()
            else:
                dsn = f"mysql://app:{pair.app_password}@{door_address}:{pair.port}/app"
                with bgpool.get_pool(dsn, bg_run_dir=run_dir, min_size=0, max_size=THREADS) as ours:
                    results[name] = waits(partial(with_ours, ours))
        finally:
            door.close()
    return results


def run(*, quick: bool) -> Result:
    """One repetition: a pair of pools on one server, then who waits for whom."""
    rounds, calls = (3, 50) if quick else (20, 1000)
    with tempfile.TemporaryDirectory() as directory, Pair(engine="mysql") as pair:
        run_dir = Path(directory) / "run"
        theirs = pooled_db(pair, pair.blue.address, pair.port)
        ours = bgpool.get_pool(pair.dsn, bg_resolver=pair.resolver, bg_run_dir=run_dir, min_size=1, max_size=8)
        params: dict[str, Any] = {
            "host": pair.blue.address, "port": pair.port, "user": "app", "password": pair.app_password,
            "database": "app",
        }  # fmt: skip

        def checkout_theirs() -> None:
            theirs.connection().close()

        def checkout_ours() -> None:
            ours.putconn(ours.getconn())

        def statement_theirs() -> None:
            with contextlib.closing(theirs.connection()) as connection:
                ask(connection)

        def statement_ours() -> None:
            with ours.connection() as connection:
                ask(connection)

        time.sleep(SETTLE_S)
        rows: list[Mapping[str, Value]] = [
            {"what": name, **compare(a, b, rounds=rounds, calls=count)}
            for name, a, b, count in (
                ("checkout and return", checkout_theirs, checkout_ours, calls),
                ("with one statement in it", statement_theirs, statement_ours, calls),
                (
                    "a connect, beside PyMySQL's",
                    lambda: pymysql.connect(**params).close(),
                    lambda: BoundedConnection(**params).close(),
                    max(1, calls // 100),
                ),
            )
        ]
        ours.close()
        theirs.close()
        through = slow_connects(pair, run_dir)
    waits_title = f"{THREADS} threads that each want a connection, while the first takes {SLOW_S:g} s to open"
    return Result(
        (
            Table("checkout", "Beside DBUtils' PooledDB with ping=1 on the same server", _COLUMNS, tuple(rows)),
            Table(
                "slow_connect",
                waits_title,
                _WAIT_COLUMNS,
                tuple(
                    {"pool": name, "first_s": w[0], "second_last_s": w[-2], "last_s": w[-1]}
                    for name, w in through.items()
                ),
                ranked_by=("second_last_s",),
                rivals="pool",
            ),
        )
    )
