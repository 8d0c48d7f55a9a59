"""An interrupt between any two steps of a MySQL pool loses no slot, no connection and no queued caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest

import bgpool
from bgpool.integrations import dbutils
from bgpool.integrations.dbutils import PooledDB
from bgpool.pools.mysql.slots import Slot, Slots, Waiter
from bgpool.pools.mysql.store import Store


class Connection:
    """A connection with the parts that a handle needs."""

    bgpool_is_open = False

    def close(self) -> None:
        """Do nothing."""


def raised_after(step: Callable[..., object] | None = None) -> Callable[..., Any]:
    """Return a function that runs *step* and is interrupted right after it."""

    def interrupted(*args: Any, **kwargs: Any) -> None:
        if step is not None:
            step(*args, **kwargs)
        raise KeyboardInterrupt

    return interrupted


def connection_of(slots: Slots) -> Any:
    """Return a connection in use, with its slot."""
    slots.closed = False
    claimed: list[Slot] = []
    waiters = list(slots.waiters)
    slots.waiters.append(Waiter())
    slots.claim_needed(claimed)
    slots.waiters.clear()
    slots.waiters.extend(waiters)
    slots.opening.clear()
    return SimpleNamespace(bgpool_slot=claimed.pop())


@pytest.mark.parametrize("answered", [False, True])
def test_a_caller_keeps_its_place_if_the_returning_caller_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    slots = Slots(0, 2)
    first, second = connection_of(slots), connection_of(slots)
    waiters = [Waiter(), Waiter()]
    slots.waiters.extend(waiters)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Waiter, "answer", raised_after(Waiter.answer if answered else None))
        slots.put(first)
    assert slots.put(second)
    got = [waiter.connection for waiter in waiters]
    assert got == ([first, second] if answered else [second, None])
    assert slots.close()[0] == ([] if answered else waiters[1:])


def test_the_slot_of_a_connection_that_vanished_is_free() -> None:
    """The connection's finalizer can be interrupted; Python then continues."""
    slots = Slots(0, 1)
    connection = connection_of(slots)
    assert slots.stats()["pool_size"] == 1
    del connection
    assert slots.stats()["pool_size"] == 0
    assert connection_of(slots).bgpool_slot is not None


def test_a_caller_that_was_interrupted_as_it_joined_the_queue_is_not_in_it() -> None:
    class Queue(deque[Waiter]):
        append = raised_after(deque.append)

    store = Store(object(), min_size=0, max_size=1)
    store._slots.closed = False
    store._slots.waiters = Queue()  # type: ignore[misc]  # Final
    with pytest.raises(KeyboardInterrupt):
        store.getconn(1.0)
    assert store.get_stats()["requests_waiting"] == 0


@pytest.mark.parametrize("where", ["place", "handle", "close"])
def test_an_interrupt_loses_no_slot_of_pooleddb(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    db = PooledDB(pymysql, maxconnections=1, host="127.0.0.1", user="app")
    monkeypatch.setattr(type(db.pool), "getconn", lambda _pool: Connection())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == "place":
            patch.setattr(db, "_take_place", raised_after(db._take_place))
        elif where == "handle":
            patch.setattr(
                dbutils.PooledDedicatedDBConnection,
                "__init__",
                raised_after(dbutils.PooledDedicatedDBConnection.__init__),
            )
        else:
            patch.setattr(dbutils, "_give_back", raised_after())
        db.connection().close()
    held = db.connection()
    with pytest.raises(bgpool.TooManyRequests):
        db.connection()
    held.close()
    db.close()
