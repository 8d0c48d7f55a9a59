"""A process's counts of checkouts: from the driver's own count, over all generations, at no cost to a checkout."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from bgpool.segment.table import ERRORS
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import Caller, wait_until

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ON_ASYNC_POOL = ()

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
    # A switchover that was rolled back: blue again, on new connections.
    deployment.phase(Phase.IN_PROGRESS)
    deployment.roll_back()
    use(pool, 4)
    assert pool.usage().served == 9
    assert pool.usage().failed == 0


def test_failed_checkouts_are_counted_separately(make_pool: MakePool, deployment: Deployment) -> None:
    pool = make_pool(max_size=1)
    with pool.connection():
        with pytest.raises(bgpool.PoolTimeout), pool.connection(timeout=0.05):
            pass
        # psycopg_pool drops callers that timed out from its queue only when the next connection comes back.
        assert pool.usage().failed == 1
    usage = pool.usage()
    assert (usage.served, usage.failed) == (1, 1)
    deployment.phase(Phase.IN_PROGRESS)
    with pytest.raises(bgpool.SwitchoverHoldTimeout), pool.connection(timeout=0.05):
        pass
    usage = pool.usage()
    assert (usage.served, usage.failed) == (1, 2)


def errors_of(pool: Pool[Any]) -> dict[str, int]:
    usage = pool.usage()
    return {name: count for field, name in ERRORS.items() if (count := getattr(usage, field))}


def test_holds_and_errors_are_counted_by_type(make_pool: MakePool, deployment: Deployment) -> None:
    pool = make_pool(max_size=1)
    with pool.connection(), pytest.raises(bgpool.PoolTimeout):
        pool.getconn(timeout=0.01)
    deployment.phase(Phase.IN_PROGRESS)
    for _ in range(2):
        with pytest.raises(bgpool.SwitchoverHoldTimeout):
            pool.getconn(timeout=0.05)
    usage = pool.usage()
    assert errors_of(pool) == {"PoolTimeout": 1, "SwitchoverHoldTimeout": 2}
    assert (usage.max_size, usage.holds, usage.held, usage.failed) == (1, 2, 0, 3)
    assert 50 <= usage.longest_hold_ms < 60_000
    caller = Caller(lambda: pool.getconn())
    wait_until(lambda: pool.usage().longest_hold_ms > usage.longest_hold_ms + 50)
    assert pool.usage().held == 1, "a current hold counts"
    deployment.roll_back()
    pool.putconn(caller.wait())
    assert errors_of(pool) == {"PoolTimeout": 1, "SwitchoverHoldTimeout": 2}


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("repeats", [True, False])
def test_an_error_that_a_unit_handled_is_not_counted(
    kit: Kit, pair: Pair, make_pool: MakePool, *, repeats: bool
) -> None:
    pool, calls = make_pool(), []

    def cut(conn: Any) -> None:
        calls.append(conn)
        kit.execute(conn, "SELECT 1")
        if len(calls) == 1:
            if not repeats:
                time.sleep(1.5)
            pair.blue.cut_clients()
            kit.execute(conn, "SELECT 1")

    use(pool, 1)
    if repeats:
        pool.run(cut)
        assert errors_of(pool) == {}
        assert pool.usage().repeated >= 1, "the other connection may be dead, too"
    else:
        with pytest.raises(bgpool.SwitchoverInterrupted):
            pool.run(cut, timeout=1.5)
        assert (errors_of(pool), pool.usage().repeated) == ({"SwitchoverInterrupted": 1}, 0)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("sent", [False, True], ids=["", "from-another-process"])
def test_an_error_of_another_pool_that_a_unit_handled_is_subtracted_there(
    kit: Kit, pair: Pair, make_pool: MakePool, *, sent: bool
) -> None:
    """A negative count cannot be written, and a process with such a pool would stop reporting."""
    pool, other = make_pool(), make_pool(min_size=0)
    calls: list[Any] = []

    def cut(conn: Any) -> None:
        calls.append(conn)
        if len(calls) > 1:
            return
        try:
            with other.connection() as elsewhere:
                kit.kill(pair, kit.session(elsewhere))
                kit.execute(elsewhere, "SELECT 1")
        except bgpool.SwitchoverInterrupted as error:
            raise (pickle.loads(pickle.dumps(error)) if sent else error) from None

    pool.run(cut)
    assert (errors_of(pool), pool.usage().repeated) == ({}, 1)
    assert errors_of(other) == ({"SwitchoverInterrupted": 1} if sent else {})


def test_nothing_is_logged_for_a_checkout(
    make_pool: MakePool, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    use(pool, 1)
    deployment.phase(Phase.PREPARATION)
    caplog.set_level(logging.DEBUG, "bgpool")
    use(pool, 20)
    assert [record for record in caplog.records if record.name.startswith("bgpool")] == []


@pytest.mark.threads
def test_without_changes_a_checkout_reads_only_the_sequence(
    make_pool: MakePool, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    pool.putconn(pool.getconn())

    async def gated(*_: object) -> None:
        raise AssertionError("the quick way is shut")

    monkeypatch.setattr(pool, "_atake", gated)
    pool.putconn(pool.getconn())
    deployment.phase(Phase.PREPARATION)
    with pytest.raises(AssertionError, match="shut"):
        pool.getconn()
