"""Password callables that cache a password, hang, or end their thread, and the effects on a pool."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import bgpool
from bgpool.auth import PasswordMaker
from bgpool.core.engine import Engine
from bgpool.core.plan import Target
from bgpool.dsn import parse
from bgpool.lab import Pair
from bgpool.monitor.process import SESSIONS
from bgpool.monitor.session import SessionError
from bgpool.pools.pool import Pool
from tests.pools.callers import wait_until

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., Pool[Any]]


@pytest.fixture
def dsn(pair: Pair) -> str:
    """Return blue's DSN, without a password."""
    return pair.direct_dsn(pair.blue).replace(f":{pair.app_password}@", "@")


class Keeper:
    """Keeps a wrong password, and returns the right one after a call of forget()."""

    def __init__(self, pair: Pair) -> None:
        self._right = pair.app_password
        self._kept = "stale"
        self.told = 0

    def __call__(self, *_: object) -> str:
        return self._kept

    def forget(self) -> bool:
        self.told += 1
        stale, self._kept = self._kept == "stale", self._right
        return stale


def test_a_refused_password_is_forgotten_and_another_tried_at_once(make_pool: MakePool, pair: Pair, dsn: str) -> None:
    keeper = Keeper(pair)
    pool = make_pool(dsn, password=keeper, max_size=1)
    with pool.connection():
        assert pool.stats().driver.get("connections_errors", 0) == 0, (
            "the right password was tried within the same attempt"
        )
    assert keeper.told == 1


def test_the_monitor_forgets_a_refused_password_too(pair: Pair, dsn: str) -> None:
    keeper = Keeper(pair)
    place = parse(dsn, {"password": keeper})[0]

    def connect() -> None:
        target = Target(place.host, place.port, (pair.blue.address,))
        SESSIONS[place.engine](place.monitoring, target, PasswordMaker(keeper)).close()

    with pytest.raises(SessionError):
        connect()
    connect()
    assert keeper.told == 1


def test_an_unreachable_server_is_no_reason_to_forget(make_pool: MakePool, pair: Pair, dsn: str) -> None:
    keeper = Keeper(pair)
    with pytest.raises(bgpool.PoolTimeout):
        make_pool(dsn.replace(f":{pair.port}", ":1"), password=keeper).getconn(0.2)
    assert keeper.told == 0


def test_a_hanging_callable_is_reported_and_does_not_block_the_pool(
    make_pool: MakePool, pair: Pair, dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bgpool.auth.PASSWORD_TIMEOUT_S", 0.1)
    go_on = threading.Event()

    def hang(*_: object) -> str:
        go_on.wait(10.0)
        return pair.app_password

    pool = make_pool(dsn, password=hang, min_size=4, max_size=4)
    with pytest.raises(bgpool.PoolTimeout, match=r"the password callable failed for app@.*has not returned"):
        pool.getconn(0.4)
    assert pool.usage().stuck_passwords == 1
    assert sum(thread.name == "bgpool-password" for thread in threading.enumerate()) == 1
    assert caplog.text.count("the password callable has not returned for app@") == 1
    go_on.set()
    with pool.connection():
        assert pool.usage().stuck_passwords == 0


def test_a_callable_that_ends_its_thread_does_not_end_the_pool(make_pool: MakePool, pair: Pair, dsn: str) -> None:
    exits = threading.Semaphore(4)

    def leave(*_: object) -> str:
        if exits.acquire(blocking=False):
            raise SystemExit
        return pair.app_password

    with make_pool(dsn, password=leave, max_size=1).connection():
        pass
    assert not exits.acquire(blocking=False)


def test_a_callable_prepares_while_its_pool_is_opened(make_pool: MakePool, pair: Pair, dsn: str) -> None:
    class Slow:
        prepared: tuple[object, ...] = ()

        def __call__(self, *_: object) -> str:
            return pair.app_password

        def prepare(self, *place: object) -> None:
            self.prepared = place

    slow = Slow()
    with make_pool(dsn, password=slow).connection():
        pass
    wait_until(lambda: slow.prepared == (pair.blue.address, pair.port, "app"))
