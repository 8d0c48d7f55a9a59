"""The end of a hold: tasks continue in their order, leave turns of the loop to others, and do no work twice."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

import bgpool
import bgpool.testing
from bgpool.core.limits import WAKE_BATCH
from bgpool.core.phase import Phase
from bgpool.core.routing import Purpose
from bgpool.pools import fork
from bgpool.pools.loops import LoopWaits
from tests.pools.test_meaning import make_gate

CALLERS = 500


def test_callers_continue_in_their_order_and_other_tasks_run_in_between(tmp_path: Path) -> None:
    order: list[int] = []
    seen: list[int] = []

    async def caller(gate: Any, number: int) -> None:
        await gate.await_admitted(Purpose.CHECKOUT, timeout_s=60)
        order.append(number)

    async def other() -> None:
        while len(order) < CALLERS:
            seen.append(len(order))
            await asyncio.sleep(0)

    async def main(deployment: bgpool.testing.Deployment) -> None:
        waits = LoopWaits(lambda: True)
        gate = make_gate(deployment, waits)
        callers = [asyncio.create_task(caller(gate, number)) for number in range(CALLERS)]
        while gate.tally.held < CALLERS:
            await asyncio.sleep(0)
        deployment.release()
        waits.wake()
        await asyncio.gather(other(), *callers)

    with bgpool.testing.deployment(tmp_path) as deployment:
        deployment.phase(Phase.IN_PROGRESS)
        asyncio.run(main(deployment))
    assert order == list(range(CALLERS))
    assert max(after - before for before, after in itertools.pairwise(seen)) <= WAKE_BATCH


def test_the_quick_way_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening it takes a page of memory."""
    opened: list[int] = []
    parents_word = fork.parents_word

    def counted(value: int) -> Any:
        opened.append(value)
        return parents_word(value)

    async def main(deployment: bgpool.testing.Deployment) -> None:
        # No server listens there: callers get as far as the queue.
        pool = bgpool.get_async_pool("postgresql://app@127.0.0.1:9/app", bg_run_dir=deployment.run_dir)
        callers = [asyncio.create_task(pool.getconn()) for _ in range(50)]
        await deployment.await_held(50)
        monkeypatch.setattr(fork, "parents_word", counted)
        deployment.release()
        while pool.stats().waiting < 50:
            await asyncio.sleep(0.001)
        assert len(opened) == 1
        for each in callers:
            each.cancel()
        await asyncio.wait(callers)
        await pool.close()

    with bgpool.testing.deployment(tmp_path) as deployment:
        deployment.phase(Phase.IN_PROGRESS)
        asyncio.run(main(deployment))


@pytest.mark.parametrize("error", [KeyError, StopIteration, StopAsyncIteration, asyncio.CancelledError, GeneratorExit])
def test_an_exception_of_a_call_reaches_its_caller(error: type[BaseException]) -> None:
    """A future accepts no StopIteration; Python turns one that leaves a coroutine into a RuntimeError."""

    def fail() -> None:
        raise error

    async def main() -> None:
        await asyncio.wait_for(LoopWaits(lambda: True).call(fail), 30)

    with pytest.raises(RuntimeError if error is StopIteration else error):
        asyncio.run(main())
