"""After a switchover a server gets no more concurrent connects than each pool's number of connections before."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.pools.generation import connects_at_once
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import Kit, kit_of

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ENGINES = tuple(Engine)
CALLERS = 8


class Door:
    """Counts concurrent connects, and delays each for a moment; a pool's one trial of green is not counted.

    Attributes:
        most: The maximum of concurrent connects. The first ones wait for *expected* others, for 10 s at most.
    """

    def __init__(self, pool: Pool[Any], monkeypatch: pytest.MonkeyPatch, expected: int = 1) -> None:
        self.most = self.inside = 0
        self._expected, self._are_inside = expected, threading.Event()
        self._lock = threading.Lock()
        self._open = pool._recipe.open
        monkeypatch.setattr(pool._recipe, "open", self._count)

    def _count(self, *args: Any) -> Any:
        if threading.current_thread().name == "bgpool-login":
            return self._open(*args)
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.most == self._expected:
                self._are_inside.set()
        try:
            self._are_inside.wait(10.0)
            time.sleep(0.05)
            return self._open(*args)
        finally:
            with self._lock:
                self.inside -= 1


def crowd(pool: Pool[Any], deployment: Deployment) -> list[float]:
    """Run callers that are held until a rollback and then each keep a connection for a while; return their times."""
    took: list[float] = []

    def call() -> None:
        began = time.monotonic()
        with pool.connection(timeout=60) as conn:
            kit_of(conn).execute(conn, "SELECT 1")
            time.sleep(0.4)
        took.append(time.monotonic() - began)

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    deployment.wait_held(CALLERS, timeout_s=30.0)
    deployment.roll_back()
    for caller in callers:
        caller.join(60)
    return took


@pytest.mark.parametrize("held", [1, 2])
def test_a_pool_opens_no_more_at_once_than_it_held(
    deployment: Deployment, make_pool: Callable[..., Pool[Any]], monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    pool = make_pool(min_size=0, max_size=CALLERS)
    lent = [pool.getconn() for _ in range(held)]
    for conn in lent:
        pool.putconn(conn)
    deployment.phase(Phase.IN_PROGRESS)
    door = Door(pool, monkeypatch)
    assert len(crowd(pool, deployment)) == CALLERS
    assert door.most <= held


def test_a_pool_that_held_nothing_is_not_slowed(
    kit: Kit, deployment: Deployment, make_pool: Callable[..., Pool[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(min_size=0, max_size=CALLERS)
    deployment.phase(Phase.IN_PROGRESS)
    # psycopg_pool opens one connection at a time, independent of the number of waiting callers.
    at_once = CALLERS if kit.engine is Engine.MYSQL else 1
    door = Door(pool, monkeypatch, at_once)
    assert len(crowd(pool, deployment)) == CALLERS
    assert door.most == at_once


@pytest.mark.parametrize(
    ("held", "workers", "cores", "at_once"),
    [
        (8, 1, 2, 4),  # a single process has all cores
        (8, 2, 2, 2),
        (8, 4, 2, 1),
        (8, 64, 2, 1),  # one at a time: two cores cannot do more
        (8, 64, 64, 2),
        (1, 1, 64, 1),  # green gets no more connects than blue had connections
        (0, 1, 2, 1),  # a pool without connections may still open one
    ],
)
def test_the_share_of_a_pool_depends_on_workers_and_cores(
    held: int, workers: int, cores: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert connects_at_once(held, workers) == at_once
