"""The time for which old blue is queried for the outcome of a COMMIT, on the test's own clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from bgpool.core.limits import OLD_BLUE_S
from bgpool.pools.postgres.unit import until_told
from bgpool.pools.units import Outcome
from bgpool.pools.waits import finish

CONNECT_TIMEOUT_S = 10.0
UNIT_S = 50.0


class Clock:
    """A clock that advances only by the requested waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now_ns(self) -> int:
        return int(self.now_s * 1e9)

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def asked(clock: Any, answer: Callable[[float], Outcome], unit_s: float = UNIT_S) -> Outcome:
    """Return the outcome if *answer* replies to each query, with the seconds that the query may take."""

    async def ask(seconds: float) -> Outcome:
        return answer(seconds)

    return finish(until_told(ask, clock, lambda: max(0.0, unit_s - clock.now_s)))


@pytest.mark.parametrize("shut_s", [0.0, 14.9], ids=["at once", "shut at first"])
def test_a_server_that_is_gone_is_queried_for_a_limited_time(clock: Clock, shut_s: float) -> None:
    """The network of a deleted server drops packets silently: each connect lasts its whole time limit."""

    def answer(seconds: float) -> Outcome:
        if clock.now_s < shut_s:
            clock.now_s += 0.001
            raise psycopg.OperationalError("connection refused")
        clock.now_s += min(CONNECT_TIMEOUT_S, seconds)
        raise psycopg.errors.ConnectionTimeout("connection timeout expired")

    assert asked(clock, answer) is Outcome.UNKNOWN
    assert clock.now_s == pytest.approx(OLD_BLUE_S, abs=0.5)


def test_the_units_deadline_ends_the_queries_earlier(clock: Clock) -> None:
    def answer(seconds: float) -> Outcome:
        clock.now_s += min(CONNECT_TIMEOUT_S, seconds)
        raise psycopg.errors.ConnectionTimeout("connection timeout expired")

    assert asked(clock, answer, unit_s=3.0) is Outcome.UNKNOWN
    assert clock.now_s == pytest.approx(3.0, abs=0.1)


def test_a_server_that_shuts_down_again_gets_its_full_time(clock: Clock) -> None:
    def answer(seconds: float) -> Outcome:
        assert seconds > 0
        clock.now_s += 0.001
        if clock.now_s < 20:
            return Outcome.PENDING
        if clock.now_s < 23:
            raise psycopg.OperationalError("connection refused")
        return Outcome.COMMITTED

    assert asked(clock, answer) is Outcome.COMMITTED
