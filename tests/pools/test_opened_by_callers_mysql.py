"""After a release a caller opens a MySQL store's first connection itself, within its own time limit."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import pytest

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.errors import PoolTimeout
from bgpool.lab import Pair
from bgpool.lab.waiting import wait_until
from bgpool.mysql import BoundedConnection
from bgpool.pools.mysql.pool import MysqlPool
from bgpool.pools.mysql.store import Store
from bgpool.testing import Deployment
from tests.pools.connecting import Connecting

ENGINES = (Engine.MYSQL,)


class Connection:
    """A connection with the parts that a store needs."""

    bgpool_is_open = True
    bgpool_in_transaction = False
    bgpool_slot: Any = None
    bgpool_idle_since = bgpool_expires_at = 0.0

    def bgpool_clean(self) -> None:
        pass

    def bgpool_discard(self) -> None:
        self.bgpool_is_open = False

    def bgpool_is_readable(self) -> bool:
        return False


class Connector(Connecting):
    """Connects in place of a generation."""

    KIND = Connection


Open = Callable[..., Store]
ME = threading.current_thread().name


@pytest.fixture
def opened() -> Iterator[Open]:
    stores: list[Store] = []

    def open_lazily(connector: Connector, **options: Any) -> Store:
        stores.append(Store(connector, name="by-callers", **options))
        stores[-1].open_lazily()
        return stores[-1]

    yield open_lazily
    for store in stores:
        store.close(2.0)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("by-callers")]


def refuse() -> None:
    raise pymysql.OperationalError(1040, "not yet")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_caller_opens_the_connection_before_any_thread_starts(opened: Open) -> None:
    connector = Connector()
    store = opened(connector, min_size=1, max_size=1)
    assert not connector.by
    connection = store.fetch(10.0, 1)
    assert connector.by == [ME]
    assert connector.limits == [10.0]
    assert not threads()
    store.putconn(connection)
    assert threads() == ["bgpool-keep-by-callers"]
    assert store.fetch(10.0, 1) is connection


def test_threads_open_the_others_after_the_first_connection(opened: Open) -> None:
    connector = Connector()
    store = opened(connector, min_size=3, max_size=3)
    store.fetch(10.0, 1)
    wait_until(lambda: len(connector.by) == 3, timeout_s=10, what="three connections")
    assert connector.by == [ME, "bgpool-open-by-callers", "bgpool-open-by-callers"]


def test_a_thread_continues_after_a_callers_failure(opened: Open) -> None:
    connector = Connector(refuse)
    store = opened(connector, min_size=1, max_size=1)
    lent = store.fetch(10.0, 1)
    assert connector.by == [ME, "bgpool-open-by-callers"]
    assert store.failure == ""
    assert store.get_stats()["connections_errors"] == 1
    assert store.get_stats()["pool_size"] == 1, f"{lent} is there"


def test_a_thread_continues_after_a_callers_failure_with_min_size_0(opened: Open) -> None:
    store = opened(Connector(refuse), min_size=0, max_size=1)
    lent = store.fetch(10.0, 1)
    assert store.get_stats()["pool_size"] == 1, f"{lent} is there"


def test_the_caller_gets_the_interrupt_and_a_thread_continues(opened: Open) -> None:
    store = opened(Connector(interrupt), min_size=1, max_size=1)
    with pytest.raises(KeyboardInterrupt):
        store.fetch(10.0, 1)
    lent = store.getconn(10.0)
    assert store.get_stats()["pool_size"] == 1, f"{lent} is there"


def test_the_number_of_connecting_callers_is_limited(opened: Open) -> None:
    let_go = threading.Event()
    connector = Connector(lambda: let_go.wait(10.0), lambda: let_go.wait(10.0))
    store = opened(connector, min_size=1, max_size=1)
    first = threading.Thread(target=store.fetch, args=(10.0, 1), name="first")
    first.start()
    wait_until(lambda: bool(connector.by), timeout_s=10, what="the first connects")
    with pytest.raises(PoolTimeout, match=r"after 0\.05 sec"):
        store.fetch(0.05, 1)
    assert connector.by == ["first"]
    let_go.set()
    first.join(10.0)


def test_a_users_hooks_for_new_connections_run_in_threads(opened: Open) -> None:
    assert not opened(Connector(), min_size=1, configure=lambda _: None).opened_by_callers
    assert opened(Connector(), min_size=1).opened_by_callers


@pytest.mark.parametrize("greets", [False, True])
def test_a_server_that_stops_answering_is_abandoned_in_time(greets: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            client = listener.accept()[0]
            with client:
                if greets:
                    hello = b"\x0a9.7.4\0" + bytes(4) + b"x" * 8 + b"\0" + b"\x08\xa2\x2d\x02\0\x08\0\x15" + bytes(10)
                    hello += b"y" * 12 + b"\0caching_sha2_password\0"
                    client.sendall(len(hello).to_bytes(3, "little") + b"\0" + hello)
                client.settimeout(10)
                while client.recv(1024):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        began = time.monotonic()
        with pytest.raises(pymysql.OperationalError):
            BoundedConnection(
                host="127.0.0.1", port=port, user="app", password="x", ssl_disabled=True, give_up_at=began + 0.3
            )
        assert time.monotonic() - began < 8.0
        server.join(10)


@pytest.mark.lab
def test_at_a_release_the_caller_opens_the_connection(
    deployment: Deployment, make_pool: Callable[..., MysqlPool], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    by: list[str] = []
    admit = Store._admit

    def admit_and_tell(self: Store, *args: Any) -> None:
        by.append(threading.current_thread().name)
        admit(self, *args)

    pool = make_pool(min_size=1, max_size=1)
    pool.putconn(pool.getconn())
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    monkeypatch.setattr(Store, "_admit", admit_and_tell)
    found: list[object] = []

    def use() -> None:
        with pool.connection() as connection:
            assert connection.peer == pair.green.address
            # The attributes for the handshake alone are removed.
            assert not {"_read_packet", "_write_bytes"} & vars(connection).keys()
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                found.extend(cursor.fetchall())

    caller = threading.Thread(target=use, name="caller")
    caller.start()
    deployment.wait_held()
    deployment.release()
    caller.join()
    assert (by, found) == (["caller"], [(1,)])
