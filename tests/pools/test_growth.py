"""The resources of a pool do not grow with the number of switchovers."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.pools.generation import Generation
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import kit_of
from tests.waiting import PATIENCE_S

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ENGINES = tuple(Engine)
ON_ASYNC_POOL = pytest.mark.full

SWITCHOVERS = 30


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 # a number is all that is asked for


def generations() -> int:
    # Not isinstance(), which loads the lazy objects of other libraries.
    return sum(type(thing) is Generation for thing in gc.get_objects())


def use(pool: Pool[Any]) -> None:
    with pool.connection() as conn:
        kit_of(conn).execute(conn, "SELECT 1")


def go_through_a_rollback(deployment: Deployment, pool: Pool[Any]) -> None:
    """Replace every connection: idle ones are drained in IN_PROGRESS, and one in use is cut."""
    conn = pool.getconn()
    deployment.phase(Phase.IN_PROGRESS)
    time.sleep(0.02)
    deployment.roll_back()
    use(pool)
    pool.putconn(conn)


def things() -> tuple[int, int, int]:
    """Return the numbers of descriptors, threads and generations."""
    gc.collect()
    return descriptors(), threading.active_count(), generations()


def settled() -> tuple[int, int, int]:
    """Return these numbers once they are stable for half a second, because some objects may be about to end."""
    found, before = things(), None
    while found != before:
        time.sleep(0.5)
        found, before = things(), found
    return found


def test_generations_threads_and_descriptors_do_not_grow(
    deployment: Deployment, make_pool: Callable[..., Pool[Any]]
) -> None:
    pool = make_pool(bg_drain_timeout_ms=50)
    for _ in range(3):
        go_through_a_rollback(deployment, pool)
    before = settled()
    for _ in range(SWITCHOVERS):
        go_through_a_rollback(deployment, pool)
    most = before[0] + 3, before[1] + 2, before[2] + 1
    deadline = time.monotonic() + PATIENCE_S
    while any(now > limit for now, limit in zip(things(), most, strict=True)):
        assert time.monotonic() < deadline, (before, things())
        time.sleep(0.2)
