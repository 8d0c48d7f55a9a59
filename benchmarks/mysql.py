"""MySQL pools compared with DBUtils' PooledDB on each server: costs, waits for a slow connection, and a switchover."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pymysql
from dbutils.pooled_db import PooledDB
from sqlalchemy import make_url

import bgpool
from benchmarks import alchemy_costs, django_costs, mysql_switchover
from benchmarks.machine import measured_on
from benchmarks.result import Column, Result, Table, Value
from benchmarks.rounds import medians
from bgpool.core.engine import Engine
from bgpool.integrations.dbutils import PooledDB as OurPooledDB
from bgpool.lab import Pair
from bgpool.lab.program_paths import PATH, VARIABLES
from bgpool.lab.server_factories import find_servers
from bgpool.mysql import BoundedConnection

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "MySQL: beside PooledDB"
QUESTION: Final = (
    "What does a checkout cost compared with DBUtils' PooledDB? Which callers wait while a connection is slow to open? "
    "What do callers see of a switchover? All pools of a row talk to one server: the installed one, or the one that "
    "BGPOOL_LAB_MYSQL names. Checkouts are measured in alternating rounds. Slow connections go through a TCP proxy "
    "that delays the first client."
)
THREADS: Final = 8
SLOW_S: Final = 2.0
SETTLE_S: Final = 1.5

_SERVER: Final = Column("server", "server", is_key=True)
_COLUMNS: Final = (
    _SERVER,
    Column("what", "what", is_key=True),
    Column("theirs_us", "DBUtils, µs", 1),
    Column("bgpool_us", "bgpool, µs", 1),
    Column("interface_us", "bgpool's PooledDB, µs", 1),
    Column("ratio", "bgpool / DBUtils", 2),
)
_SWITCHOVER_COLUMNS: Final = (
    _SERVER,
    Column("client", "client", is_key=True),
    Column("errors", "errors callers saw", 0),
    Column("back_s", "last thread back, s", 3),
    Column("lost", "rows lost", 0),
    Column("doubled", "doubled", 0),
    Column("split", "only on old blue", 0),
)
_WAIT_COLUMNS: Final = (
    _SERVER,
    Column("pool", "pool", is_key=True),
    Column("first_s", "first through, s", 3),
    Column("second_last_s", "last but one, s", 3),
    Column("last_s", "last, s", 3),
)


class SlowProxy:
    """A proxy that passes connections on to a server, the first one after *slow_s* seconds."""

    def __init__(self, address: str, port: int, server: tuple[str, int], slow_s: float) -> None:
        self._listener = socket.create_server((address, port))
        self._server = server
        self._delays = [slow_s]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop accepting connections."""
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
    """Return the waits of eight threads that start together, in seconds, in ascending order."""
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
    """Execute one statement."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def pooled_db(pair: Pair, address: str, port: int, **options: Any) -> PooledDB:
    """Return DBUtils' pool on the same server, with the usual parameters."""
    return PooledDB(
        pymysql, maxconnections=THREADS, blocking=True, ping=1, host=address, port=port, user="app",
        password=pair.app_password, database="app", **options,
    )  # fmt: skip


def slow_connects(pair: Pair, run_dir: Path) -> dict[str, list[float]]:
    """Return the waits of all threads while the first connection takes SLOW_S, by pool."""
    results: dict[str, list[float]] = {}
    proxy_address = pair.blue.address.rsplit(".", 1)[0] + ".99"

    def with_theirs(pool: PooledDB) -> None:
        with contextlib.closing(pool.connection()) as connection:
            ask(connection)

    def with_ours(pool: Any) -> None:
        with pool.connection() as connection:
            ask(connection)

    for name in ("PooledDB", "bgpool"):
        proxy = SlowProxy(proxy_address, pair.port, (pair.blue.address, pair.port), SLOW_S)
        try:
            if name == "PooledDB":
                theirs = pooled_db(pair, proxy_address, pair.port)
                results[name] = waits(partial(with_theirs, theirs))
                theirs.close()
            else:
                dsn = f"mysql://app:{pair.app_password}@{proxy_address}:{pair.port}/app"
                with bgpool.get_pool(dsn, bg_run_dir=run_dir, min_size=0, max_size=THREADS) as ours:
                    results[name] = waits(partial(with_ours, ours))
        finally:
            proxy.close()
    return results


def costs(pair: Pair, run_dir: Path, *, rounds: int, calls: int) -> list[dict[str, Value]]:
    """Return the costs of three pools in alternating rounds on one server, and of opening a connection."""
    theirs = pooled_db(pair, pair.blue.address, pair.port)
    own: dict[str, Any] = {"bg_resolver": pair.resolver, "bg_run_dir": run_dir}
    ours = bgpool.get_pool(pair.dsn, min_size=1, max_size=THREADS, **own)
    interface = OurPooledDB(pair.dsn, mincached=1, maxconnections=THREADS, blocking=True, **own)
    params: dict[str, Any] = {
        "host": pair.blue.address, "port": pair.port, "user": "app", "password": pair.app_password, "database": "app",
    }  # fmt: skip

    def return_at_once(pool: Any) -> None:
        pool.connection().close()

    def with_statement(pool: Any, do: Callable[[Any], None]) -> None:
        with pool.connection() as connection:
            do(connection)

    def every(do: Callable[[Any], None]) -> list[Callable[[], object]]:
        return [partial(with_statement, pool, do) for pool in (theirs, ours, interface)]

    try:
        pair.blue.execute("CREATE TABLE IF NOT EXISTS bench (n INT)", database="app")
        time.sleep(SETTLE_S)
        checkout: list[Callable[[], object]] = [partial(return_at_once, theirs), lambda: ours.putconn(ours.getconn()),
                    partial(return_at_once, interface)]  # fmt: skip
        connect = [lambda: pymysql.connect(**params).close(), lambda: BoundedConnection(**params).close()]
        found = [
            _row("checkout and return", checkout, rounds, calls),
            _row("with one statement in it", every(ask), rounds, calls),
            _row("with an INSERT and a COMMIT", every(insert), rounds, max(1, calls // 5)),
            _row("opening a connection, compared with PyMySQL", connect, rounds, max(1, calls // 100)),
        ]
    finally:
        interface.close()
        ours.close()
        theirs.close()
    return found


def alchemy_rows(pair: Pair, run_dir: Path, *, rounds: int, calls: int) -> list[Mapping[str, Value]]:
    """Return the costs of SQLAlchemy's engines on PyMySQL's dialect and on bgpool's, in alternating rounds."""
    theirs = make_url(pair.direct_dsn(pair.blue)).set(drivername="mysql+pymysql")
    mine = make_url(pair.dsn).set(drivername="mysql+bgpool")
    with alchemy_costs.engines(theirs, mine, {"bg_resolver": pair.resolver, "bg_run_dir": run_dir}) as engines:
        time.sleep(SETTLE_S)
        return alchemy_costs.rows(*engines, rounds=rounds, calls=calls)


def django_rows(pair: Pair, run_dir: Path, *, rounds: int, calls: int) -> list[Mapping[str, Value]]:
    """Return the costs on bgpool's Django engine and on Django's own with PyMySQL, in alternating rounds."""
    with django_costs.all_ways(pair, {"bg_resolver": pair.resolver, "bg_run_dir": run_dir}) as ways:
        time.sleep(SETTLE_S)
        return django_costs.rows(ways, rounds=rounds, calls=calls)


def _row(what: str, three: Sequence[Callable[[], object]], rounds: int, calls: int) -> dict[str, Value]:
    theirs_us, bgpool_us, *interface_us = medians(*three, rounds=rounds, calls=calls)
    interface: Value = interface_us[0] if interface_us else None
    return {"what": what, "theirs_us": theirs_us, "bgpool_us": bgpool_us, "interface_us": interface,
            "ratio": bgpool_us / theirs_us}  # fmt: skip


def insert(connection: Any) -> None:
    """Insert a row in its own transaction."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO bench (n) VALUES (1)")
    connection.commit()


def servers() -> dict[str, str]:
    """Return the directory of each server's programs, by product: the installed server, and the one that is named."""
    named = os.environ.get(VARIABLES[Engine.MYSQL])
    return {find_servers(Engine.MYSQL, place): place for place in dict.fromkeys((PATH, named or PATH))}


def run(*, quick: bool) -> Result:
    """Run one repetition on each server."""
    rounds, calls = (3, 50) if quick else (20, 1000)
    load = os.getloadavg()[0]
    tables = ("checkout", "alchemy", "django", "slow_connect", "switchover")
    found: dict[str, list[Mapping[str, Value]]] = {table: [] for table in tables}
    for server, place in servers().items():
        with tempfile.TemporaryDirectory() as directory, Pair(engine="mysql", programs=place) as pair:
            run_dir = Path(directory) / "run"
            rows = costs(pair, run_dir, rounds=rounds, calls=calls)
            found["checkout"] += [{"server": server, **row} for row in rows]
            alchemy = alchemy_rows(pair, run_dir, rounds=rounds, calls=calls)
            found["alchemy"] += [{"server": server, **row} for row in alchemy]
            django = django_rows(pair, run_dir, rounds=rounds, calls=calls)
            found["django"] += [{"server": server, **row} for row in django]
            found["slow_connect"] += [
                {"server": server, "pool": name, "first_s": w[0], "second_last_s": w[-2], "last_s": w[-1]}
                for name, w in slow_connects(pair, run_dir).items()
            ]
        for client in mysql_switchover.CLIENTS:
            with Pair(engine="mysql", programs=place) as pair:
                figures = mysql_switchover.measure(pair, client)
            found["switchover"].append({"server": server, "client": client, **figures})
    notes = (measured_on(), f"The load before was {load:.1f}.")
    waits_title = f"{THREADS} threads that each want a connection, while the first takes {SLOW_S:g} s to open"
    switchover_title = f"A switchover under {mysql_switchover.THREADS} threads that write"
    return Result(
        (
            Table("checkout", "Compared with DBUtils' PooledDB with ping=1 on the same server", _COLUMNS,
                  tuple(found["checkout"]), notes=notes),
            Table("alchemy", "Checkout and return of a SQLAlchemy engine, compared with QueuePool on PyMySQL's dialect",
                  (_SERVER, *alchemy_costs.COLUMNS), tuple(found["alchemy"]), notes=notes),
            Table("django", "A cursor, a request and a transaction of Django, compared with its own engine on PyMySQL",
                  (_SERVER, *django_costs.COLUMNS), tuple(found["django"]), notes=(*notes, *django_costs.NOTES)),
            Table("slow_connect", waits_title, _WAIT_COLUMNS, tuple(found["slow_connect"]),
                  ranked_by=("second_last_s",), rivals="pool", notes=notes),
            Table("switchover", switchover_title, _SWITCHOVER_COLUMNS, tuple(found["switchover"]),
                  ranked_by=("errors", "back_s"), rivals="client", notes=(
                      *notes,
                      "Back: from the moment at which green was open until the last thread had written again. A thread "
                      f"that received an error tries again after {mysql_switchover.PAUSE_S:g} s.",
                      "DBUtils' pool looks up its server's name for each new connection, without a cache.",
                  )),
        )
    )  # fmt: skip
