"""After a release a caller opens the first connection itself; a thread continues what the caller does not complete."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from bgpool.pools.postgres.inner import InnerPool
from tests.pools.connecting import Connecting
from tests.waiting import wait_until

NAME = "opened-by-callers"


class Connection:
    """A connection with the parts that psycopg_pool needs for one that is never returned."""

    _pool: Any = None

    def close(self) -> None:
        pass


class Connector(Connecting):
    """Connects in place of a generation."""

    KIND = Connection


Open = Callable[..., InnerPool]


@pytest.fixture
def opened() -> Iterator[Open]:
    pools: list[InnerPool] = []

    def open_lazily(connector: Connector, **options: Any) -> InnerPool:
        pools.append(InnerPool("", name=NAME, connection_class=connector, open=False, **options))
        pools[-1].open_lazily()
        return pools[-1]

    yield open_lazily
    for pool in pools:
        pool.close(2.0)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(NAME)]


def refuse() -> None:
    raise psycopg.OperationalError("not yet")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_caller_opens_the_connection_without_a_thread(opened: Open) -> None:
    connector = Connector()
    pool = opened(connector, min_size=1, max_size=1)
    assert not connector.by
    assert pool.fetch(100.0, 1)
    assert connector.by == [threading.current_thread().name]
    assert 70.0 < connector.limits[0] <= 100.0
    assert not threads()


def test_threads_open_the_others_after_the_first_connection(opened: Open) -> None:
    connector = Connector()
    pool = opened(connector, min_size=3, max_size=3)
    pool.fetch(10.0, 1)
    wait_until(lambda: len(connector.by) == 3)
    assert connector.by[0] == threading.current_thread().name
    assert all(name.startswith(NAME) for name in connector.by[1:])


def test_a_thread_continues_after_a_callers_failure(opened: Open) -> None:
    connector = Connector(refuse)
    pool = opened(connector, min_size=1, max_size=1)
    assert pool.fetch(10.0, 1)
    assert connector.by[1].startswith(NAME)
    assert pool.failure == ""


def test_the_caller_gets_the_interrupt_and_a_thread_continues(opened: Open) -> None:
    connector = Connector(interrupt)
    pool = opened(connector, min_size=1, max_size=1)
    with pytest.raises(KeyboardInterrupt):
        pool.fetch(10.0, 1)
    assert pool.getconn(10.0)


def test_the_number_of_connecting_callers_is_limited(opened: Open) -> None:
    let_go = threading.Event()
    connector = Connector(lambda: let_go.wait(10.0))
    pool = opened(connector, min_size=2, max_size=2)
    first = threading.Thread(target=pool.fetch, args=(10.0, 1))
    first.start()
    wait_until(lambda: connector.by)
    with pytest.raises(PoolTimeout):
        pool.fetch(0.05, 1)
    assert len(connector.by) == 1, "the others follow the first connection"
    let_go.set()
    first.join(10.0)
    assert pool.getconn(10.0)


@pytest.mark.parametrize("way", ["begin", "getconn"])
def test_a_thread_opens_the_connection_without_a_caller(opened: Open, way: str) -> None:
    connector = Connector()
    pool = opened(connector, min_size=1, max_size=1)
    if way == "begin":
        pool.begin()
    assert pool.getconn(10.0)
    assert connector.by[0].startswith(NAME)


def test_opening_again_has_no_effect(opened: Open) -> None:
    """Each released caller requests it, until one of them has noted that it is open."""
    connector = Connector()
    pool = opened(connector, min_size=2, max_size=2)
    pool.open_lazily()
    assert not connector.by
    assert pool.getconn(10.0)
    pool.open_lazily()
    assert pool.getconn(10.0)
    assert all(name.startswith(NAME) for name in connector.by)


def test_an_empty_pool_grows_for_a_caller(opened: Open) -> None:
    pool = opened(Connector(), min_size=0, max_size=1)
    assert pool.fetch(10.0, 1)


def test_a_pool_closed_at_once_leaves_no_thread(opened: Open) -> None:
    pool = opened(Connector(), min_size=2, max_size=2)
    pool.close(1.0)
    pool.begin()
    assert not threads()
