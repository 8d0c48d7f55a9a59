"""How long old blue is asked what became of a COMMIT, on a clock of the test's own."""

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
    """Waits that take no time but their own."""

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
    """What becomes of asking, where *answer* is given the seconds that one question may take."""

    async def ask(seconds: float) -> Outcome:
        return answer(seconds)

    return finish(until_told(ask, clock, lambda: max(0.0, unit_s - clock.now_s)))


@pytest.mark.parametrize("shut_s", [0.0, 14.9], ids=["at once", "shut at first"])
def test_a_server_that_is_gone_is_not_tried_for_longer_than_said(clock: Clock, shut_s: float) -> None:
    """The network of a server that was deleted takes packets and says nothing: each connect lasts its time limit."""

    def answer(seconds: float) -> Outcome:
        if clock.now_s < shut_s:
            clock.now_s += 0.001
            raise psycopg.OperationalError("connection refused")
        clock.now_s += min(CONNECT_TIMEOUT_S, seconds)
        raise psycopg.errors.ConnectionTimeout("connection timeout expired")

    assert asked(clock, answer) is Outcome.UNKNOWN
    assert clock.now_s == pytest.approx(OLD_BLUE_S, abs=0.5)


def test_a_unit_s_own_time_ends_it_sooner(clock: Clock) -> None:
    def answer(seconds: float) -> Outcome:
        clock.now_s += min(CONNECT_TIMEOUT_S, seconds)
        raise psycopg.errors.ConnectionTimeout("connection timeout expired")

    assert asked(clock, answer, unit_s=3.0) is Outcome.UNKNOWN
    assert clock.now_s == pytest.approx(3.0, abs=0.1)


def test_a_server_that_shuts_again_while_it_is_at_the_commit_has_its_time_anew(clock: Clock) -> None:
    def answer(seconds: float) -> Outcome:
        assert seconds > 0
        clock.now_s += 0.001
        if clock.now_s < 20:
            return Outcome.PENDING
        if clock.now_s < 23:
            raise psycopg.OperationalError("connection refused")
        return Outcome.COMMITTED

    assert asked(clock, answer) is Outcome.COMMITTED
