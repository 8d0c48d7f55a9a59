"""A MySQL pool over TLS: a cut, or another library's error in OpenSSL's queue, ends only the cut connection."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.lab.mysql_proxy import MysqlProxy
from bgpool.lab.tls_proxy import Authority
from bgpool.pools.mysql.pool import MysqlPool
from tests.openssl import is_spoiled, spoil

pytestmark = pytest.mark.lab

ENGINES = (Engine.MYSQL,)

MakePool = Callable[..., MysqlPool]

#: A statement that takes the server a moment, so that its client waits.
SLOW = "SELECT SLEEP(0.02)"


@pytest.fixture(scope="module")
def relay(mysql_pair: Pair) -> Iterator[MysqlProxy]:
    """A TLS proxy in front of blue."""
    address = mysql_pair.blue.address
    with socket.create_server((address, 0)) as taken:
        port = int(taken.getsockname()[1])
    relay = MysqlProxy("tls", address=address, port=port, backend_port=mysql_pair.blue.port)
    yield relay
    relay.close()


@pytest.fixture
def dsn(relay: MysqlProxy, mysql_pair: Pair, tmp_path: Path) -> str:
    """The application's DSN, through the proxy."""
    authority = Authority(tmp_path)
    address = relay.backend[0]
    relay.context = authority.context([address])
    login = urlsplit(mysql_pair.dsn).netloc.split("@")[0]
    port = relay._listener.getsockname()[1]
    return f"mysql://{login}@{address}:{port}/app?ssl_ca={authority.ca_file}&ssl_verify_identity=true"


def cut(relay: MysqlProxy) -> None:
    """Cut all connections, like a failover."""
    for session in tuple(relay._sessions):
        session.cut()


def test_another_librarys_error_fails_no_checkout(make_pool: MakePool, dsn: str) -> None:
    pool = make_pool(dsn)
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute(SLOW)
    spoil()
    with pool.connection() as connection:
        with connection.cursor() as cursor:
            cursor.execute(SLOW)
            spoil()
            cursor.execute(SLOW)
        with connection.cursor(pymysql.cursors.SSCursor) as cursor:
            cursor.execute(f"{SLOW}, REPEAT('x', 20000) UNION ALL {SLOW}, REPEAT('x', 20000)")
            for _ in cursor:
                spoil()
        spoil()
    assert pool.stats().driver["connections_num"] == 1


def test_threads_continue_after_a_cut(make_pool: MakePool, dsn: str, relay: MysqlProxy) -> None:
    pool = make_pool(dsn, min_size=4, max_size=4)
    failed: list[Exception] = []
    spoiled: list[bool] = []
    ready, again = threading.Barrier(5), threading.Barrier(5)

    def select(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(SLOW)

    def work() -> None:
        with contextlib.suppress(pymysql.MySQLError), pool.connection() as connection:
            select(connection)
            ready.wait()
            again.wait()
            select(connection)
        spoiled.append(is_spoiled())
        for _ in range(5):
            try:
                pool.run(select)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait(30)
    cut(relay)
    again.wait(30)
    for thread in threads:
        thread.join()
    assert (failed, spoiled) == ([], [False] * 4)


GREENLETS = """
import gevent.monkey
gevent.monkey.patch_all()
import sys, threading
import bgpool
from bgpool import sockets
from tests.openssl import spoil

failed, lent, ended = [], [], threading.Event()

def select(connection):
    lent.append(connection)
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(0.02), REPEAT('x', 200000)")
        cursor.fetchall()

def work():
    for _ in range(5):
        try:
            pool.run(select)
        except Exception as error:
            failed.append(error)

def disturb():
    while not ended.wait(0.001):
        spoil()

with bgpool.get_pool(sys.argv[1], min_size=4, max_size=4) as pool:
    workers = [threading.Thread(target=work) for _ in range(4)]
    for thread in workers:
        thread.start()
    disturber = threading.Thread(target=disturb)
    disturber.start()
    while len(lent) < 4:
        ended.wait(0.005)
    fd = lent[-1].fileno()
    sockets.cut(fd, sockets.identity(fd))
    for thread in workers:
        thread.join()
    ended.set()
    disturber.join()
print(len(failed), *map(repr, failed))
"""


def test_greenlets_share_a_thread_and_no_errors(dsn: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("no gevent")
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "BGPOOL_RUN_DIR": str(tmp_path), "BGPOOL_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GREENLETS, dsn],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # No error if the connection was between two units.
    assert done.stdout[:2].strip() in ("0", "1"), done.stdout + done.stderr
