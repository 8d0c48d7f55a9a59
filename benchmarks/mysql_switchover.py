"""One switchover under threads that write through a MySQL pool, and the errors and delays of these threads."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pymysql
from dbutils.pooled_db import PooledDB as TheirPooledDB
from django.db import Error as DjangosError
from sqlalchemy.exc import DBAPIError

import bgpool
from benchmarks import clients
from benchmarks.clients import Config
from benchmarks.result import Value
from bgpool.integrations.dbutils import PooledDB
from bgpool.lab import Director, Pair, ledger
from bgpool.lab.ledger import INSERT_SQL, Key
from bgpool.lab.scenarios.scenario import FAST
from bgpool.lab.waiting import wait_until
from bgpool.resolver import make_resolver

__all__ = ["CLIENTS", "THREADS", "measure"]

THREADS: Final = 8
#: The pause of the application after an error, before it tries again.
PAUSE_S: Final = 0.05
#: The time after the last step. A thread that is not back by then counts as not back.
AFTER_S: Final = 3.0
_READY_S: Final = 15.0

#: Writes a row in its own transaction, and raises the driver's errors.
Write = Callable[[Key], object]


def _write(connection: Any, key: Key) -> None:
    with connection.cursor() as cursor:
        connection.begin()
        cursor.execute(INSERT_SQL, key)
        connection.commit()


def _theirs(pair: Pair, stack: contextlib.ExitStack) -> Write:
    resolver = make_resolver(pair.resolver)

    def connect(**params: Any) -> Any:
        """Connect by name. The name is looked up each time, as by the system's resolver without a cache."""
        return pymysql.connect(host=resolver.resolve(pair.names.blue.primary)[0], **params)

    connect.dbapi = pymysql  # type: ignore[attr-defined]  # where DBUtils looks for the driver's exceptions
    pool = TheirPooledDB(connect, maxconnections=THREADS, blocking=True, ping=1, **_login(pair))
    stack.callback(pool.close)

    def write(key: Key) -> None:
        with pool.connection() as connection:
            _write(connection, key)

    return write


def _interface(pair: Pair, stack: contextlib.ExitStack) -> Write:
    host = pair.names.blue.primary
    pool = PooledDB(pymysql, maxconnections=THREADS, blocking=True, host=host, **_login(pair), **_bgpool(pair, stack))
    stack.callback(pool.close)
    _wait_ready(pool.pool)

    def write(key: Key) -> None:
        with pool.connection() as connection:
            _write(connection, key)

    return write


def _run(pair: Pair, stack: contextlib.ExitStack) -> Write:
    pool = stack.enter_context(bgpool.get_pool(pair.dsn, max_size=THREADS, **_bgpool(pair, stack)))
    _wait_ready(pool)

    def insert(connection: Any, key: Key) -> None:
        with connection.cursor() as cursor:
            cursor.execute(INSERT_SQL, key)

    return lambda key: pool.run(insert, key)


def _of_framework(client: str, pair: Pair, stack: contextlib.ExitStack) -> Write:
    """Return the write function of a client of the *switchover* benchmark, on MySQL."""
    spec = clients.CLIENTS[client]
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    config = Config(pair.dsn, ("", ""), resolver=pair.resolver, size=THREADS, directory=directory)
    # SQLAlchemy's messages about connections that were cut belong into an application's log.
    logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())
    made = spec.make(config)
    stack.callback(made.close)
    made.write((0, 0, 1))
    wait_until(lambda: spec.has_seen(config), timeout_s=_READY_S, what=f"{client} sees the deployment")
    return made.write


CLIENTS: Final[dict[str, Callable[[Pair, contextlib.ExitStack], Write]]] = {
    "DBUtils' PooledDB": _theirs,
    "bgpool's PooledDB": _interface,
    "bgpool's pool.run": _run,
    **{
        name: partial(_of_framework, name)
        for name in clients.CLIENTS
        # Django's own engine for MySQL has no pool.
        if name.startswith(("SQLAlchemy", "Django")) and name != "Django, pool"
    },
}


def _login(pair: Pair) -> dict[str, Any]:
    return {"port": pair.port, "user": "app", "password": pair.app_password, "database": "app", "connect_timeout": 5}


def _bgpool(pair: Pair, stack: contextlib.ExitStack) -> dict[str, Any]:
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    # Once the deployment exists, it is polled at the default intervals.
    return {"bg_run_dir": Path(directory) / "run", "bg_resolver": pair.resolver, "bg_interval_baseline_ms": 1000}


def _wait_ready(pool: Any) -> None:
    pool.open()
    deadline = time.monotonic() + _READY_S
    while (snapshot := pool.participant.reader.refresh().snapshot) is None or not snapshot.ready:
        if time.monotonic() > deadline:
            raise bgpool.Error("the deployment was not ready in time")
        time.sleep(0.02)


class _Writers:
    """Threads that write, with the time and outcome of each write."""

    def __init__(self, write: Write) -> None:
        self.done: list[tuple[float, Key]] = []
        self.unknown: list[Key] = []
        self.errors = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(write, n), daemon=True) for n in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _work(self, write: Write, thread: int) -> None:
        n = 0
        while not self._over.is_set():
            n += 1
            try:
                write((1, thread, n))
                self.done.append((time.monotonic(), (1, thread, n)))
            except (pymysql.err.Error, DBAPIError, DjangosError):
                # Any error counts: the COMMIT itself may have been cut.
                self.errors += 1
                self.unknown.append((1, thread, n))
                time.sleep(PAUSE_S)
            time.sleep(0.005)

    def end(self) -> None:
        """End the threads."""
        self._over.set()
        for thread in self._threads:
            thread.join(20)

    def back_s(self, since: float) -> float | None:
        """Return the time of the last thread's first success after *since*; None if a thread had none."""
        first = {key[1]: at for at, key in sorted(self.done, reverse=True) if at > since}
        return max(first.values()) - since if len(first) == THREADS else None


def measure(pair: Pair, name: str) -> dict[str, Value]:
    """Measure one switchover of *pair*, which is ready for it, under *name* of CLIENTS."""
    ledger.create(pair)
    director = Director(pair, FAST)
    director.create_deployment()
    with contextlib.ExitStack() as stack:
        writers = _Writers(CLIENTS[name](pair, stack))
        try:
            time.sleep(1.0)
            director.run()
            opened = director.event("green_open").monotonic_s
            time.sleep(AFTER_S)
        finally:
            writers.end()
        verdict = ledger.judge(pair, [key for _, key in writers.done], writers.unknown)
    return {
        "errors": writers.errors,
        "back_s": writers.back_s(opened),
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "split": verdict.split,
    }
