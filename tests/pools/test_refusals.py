"""A pool without a usable connection reports the reason, and recovers soon after a connection can be opened again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from tests.pools.callers import Caller, wait_until
from tests.waiting import PATIENCE_S, quickest

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., Pool[Any]]

WRONG = "wr0ng"


def nowhere(pair: Pair) -> str:
    """Return a DSN of a server that refuses connections."""
    dsn = pair.direct_dsn(pair.blue).replace(f":{pair.port}", ":1")
    return dsn.replace(pair.app_password, WRONG)


def refusal(pool: Pool[Any]) -> bgpool.PoolTimeout:
    """Return a caller's error once a connection could not be opened; a busy machine may take longer to try."""
    for _ in range(100):
        with pytest.raises(bgpool.PoolTimeout) as caught:
            pool.getconn(0.3)
        if "none could be opened" in str(caught.value):
            break
    return caught.value


@pytest.mark.usefixtures("deployment")
def test_a_timeout_reports_the_failure_and_the_counts(make_pool: MakePool, pair: Pair) -> None:
    error = refusal(make_pool(nowhere(pair), max_size=3))
    text = str(error)
    assert re.search(r"after 0.\d\d sec: none could be opened: .*refused", text)
    assert re.search(r"\(size \d of 3, 0 idle, 0 in use, 0 others waiting; phase CREATED\)", text)
    assert WRONG not in repr(error)
    assert "\n" not in text


def test_a_timeout_reports_that_all_connections_are_in_use(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    with pool.connection(), pytest.raises(bgpool.PoolTimeout, match=r"all 1 are in use .*1 in use.*phase unknown"):
        pool.getconn(0.05)


def test_a_timeout_reports_a_refused_password(make_pool: MakePool, pair: Pair) -> None:
    pool = make_pool(pair.direct_dsn(pair.blue).replace(pair.app_password, WRONG))
    assert re.search(r"none could be opened: .*(password authentication|Access denied)", str(refusal(pool)))


def test_callers_that_timed_out_are_not_counted_as_waiting(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, max_waiting=1)
    with pool.connection():
        for _ in range(3):
            with pytest.raises(bgpool.PoolTimeout):
                pool.getconn(0.02)
        assert pool.stats().waiting == 0
        caller = Caller(lambda: pool.getconn(PATIENCE_S))
        wait_until(lambda: pool.stats().waiting == 1)
        with pytest.raises(bgpool.TooManyRequests):
            pool.getconn(0.02)
    pool.putconn(caller.wait())


def test_a_pool_recovers_soon_after_connects_succeed(make_pool: MakePool, pair: Pair) -> None:
    words: dict[str, str] = {}
    dsn = pair.direct_dsn(pair.blue).replace(f":{pair.app_password}@", "@")

    def wait_for_one() -> float:
        words["password"] = WRONG
        pool = make_pool(dsn, password=lambda *_: words["password"], min_size=4, max_size=4, timeout=PATIENCE_S)
        caller = Caller(pool.getconn)
        # Long enough for a back-off that begins with 1 s to be within its second pause, of 2 s.
        time.sleep(1.2)
        words["password"] = pair.app_password
        began = time.monotonic()
        pool.putconn(caller.wait())
        took_s = time.monotonic() - began
        wait_until(lambda: pool.stats().idle == 4)
        return took_s

    assert quickest(wait_for_one, 1.4) < 1.4


def test_many_callers_do_not_cause_more_attempts(make_pool: MakePool, pair: Pair) -> None:
    attempts: list[float] = []

    def refused(*_: object) -> str:
        attempts.append(time.monotonic())
        return WRONG

    pool = make_pool(pair.direct_dsn(pair.blue).replace(f":{pair.app_password}@", "@"), password=refused)
    began = time.monotonic()
    callers = [Caller(lambda: pool.getconn(1.5)) for _ in range(8)]
    assert all(isinstance(caller.wait(), bgpool.PoolTimeout) for caller in callers)
    # A few attempts at first, and then one every quarter of a second, for each of three connections.
    assert 2 <= len(attempts) <= 3 * (5 + (time.monotonic() - began) / 0.25)
    time.sleep(0.3)
    before = len(attempts)
    time.sleep(0.4)
    assert len(attempts) - before <= 2, "without waiting callers there are few attempts"
