"""What a process says of its checkouts: by the driver's own count, over all generations, at no cost to a checkout."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)

MakePool = Callable[..., Pool[Any]]


def use(pool: Pool[Any], times: int) -> None:
    for _ in range(times):
        with pool.connection():
            pass


def test_checkouts_are_counted_over_generations(make_pool: MakePool, deployment: Deployment) -> None:
    pool = make_pool()
    assert pool.usage().served == 0
    use(pool, 3)
    assert pool.usage().served == 3
    pool.drain()
    assert pool.usage().served == 3
    use(pool, 2)
    assert pool.usage().served == 5
    # A switchover that went back: blue again, on new connections.
    deployment.phase(Phase.IN_PROGRESS)
    deployment.roll_back()
    use(pool, 4)
    assert pool.usage().served == 9
    assert pool.usage().failed == 0


def test_refusals_are_counted_apart(make_pool: MakePool, deployment: Deployment) -> None:
    pool = make_pool(max_size=1)
    with pool.connection():
        with pytest.raises(bgpool.PoolTimeout), pool.connection(timeout=0.05):
            pass
        # psycopg_pool forgets who gave up waiting when the next connection comes back.
        assert pool.usage().failed == 1
    usage = pool.usage()
    assert (usage.served, usage.failed) == (1, 1)
    deployment.phase(Phase.IN_PROGRESS)
    with pytest.raises(bgpool.SwitchoverHoldTimeout), pool.connection(timeout=0.05):
        pass
    usage = pool.usage()
    assert (usage.served, usage.failed) == (1, 2)


def test_nothing_is_logged_for_a_checkout(
    make_pool: MakePool, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    use(pool, 1)
    deployment.phase(Phase.PREPARATION)
    caplog.set_level(logging.DEBUG, "bgpool")
    use(pool, 20)
    assert [record for record in caplog.records if record.name.startswith("bgpool")] == []


def test_in_quiet_times_nothing_is_asked_but_the_word(
    make_pool: MakePool, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    pool.putconn(pool.getconn())

    def gated(_: float) -> None:
        raise AssertionError("the quick way is shut")

    monkeypatch.setattr(pool, "_getconn_gated", gated)
    pool.putconn(pool.getconn())
    deployment.phase(Phase.PREPARATION)
    with pytest.raises(AssertionError, match="shut"):
        pool.getconn()
