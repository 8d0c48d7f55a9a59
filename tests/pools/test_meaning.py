"""The state that a gate derives from a reading: computed once for all callers, and again when a timer expires."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

import bgpool
import bgpool.testing
from bgpool.core.events import Event, Order, Ordered
from bgpool.core.machine import Rules, step
from bgpool.core.phase import Phase
from bgpool.core.routing import Action, Purpose
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import parse
from bgpool.monitor.probe import now
from bgpool.pools import gate
from bgpool.pools.alias import Endpoint
from bgpool.pools.gate import Gate
from bgpool.pools.loops import LoopWaits
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader


def make_gate(deployment: bgpool.testing.Deployment, waits: LoopWaits | None = None) -> Gate:
    place, settings, _ = parse("postgresql://app@127.0.0.1/app", {"bg_connect_timeout_ms": 5000})
    reader = Reader(RunFiles.of(deployment.run_dir, deployment.bg_id))
    options = {} if waits is None else {"waits": waits}
    return Gate(reader, settings, Endpoint(place, settings), **options)  # type: ignore[arg-type]  # only the last one


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Record the events of every step of gates from now on."""
    steps: list[Event] = []

    def counted(snapshot: Snapshot, event: Event, rules: Rules) -> Snapshot:
        steps.append(event)
        return step(snapshot, event, rules)

    monkeypatch.setattr(gate, "step", counted)
    return steps


def test_a_reading_is_evaluated_once_for_all_waiting_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = LoopWaits(lambda: True)

    async def hold_100(deployment: bgpool.testing.Deployment) -> None:
        gate = make_gate(deployment, waits)
        callers = [asyncio.create_task(gate.await_admitted(Purpose.CHECKOUT, timeout_s=60)) for _ in range(100)]
        while gate.tally.held < 100:
            await asyncio.sleep(0)
        assert len(steps) == 1
        deployment.release()
        waits.wake()
        for _, decision in await asyncio.gather(*callers):
            assert decision.action is Action.ROUTE
        assert len(steps) == 2

    with bgpool.testing.deployment(tmp_path) as deployment:
        deployment.phase(Phase.IN_PROGRESS)
        steps = count_steps(monkeypatch)
        asyncio.run(hold_100(deployment))


def test_an_operators_hold_ends_in_time_without_a_monitor(tmp_path: Path) -> None:
    with bgpool.testing.deployment(tmp_path) as deployment:
        gate = make_gate(deployment)
        at = now()
        deployment.tell(Ordered(at, Order.HOLD, at.mono_ns + 300_000_000))
        assert gate.decide(gate._reader.refresh(), Purpose.CHECKOUT).action is Action.HOLD
        gate.wait_admitted(Purpose.CHECKOUT, timeout_s=60)
        assert 0.29 < (time.monotonic_ns() - at.mono_ns) / 1e9 < 30


def test_an_expired_release_holds_again_without_spinning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bgpool.testing.deployment(tmp_path) as deployment:
        gate = make_gate(deployment)
        deployment.phase(Phase.IN_PROGRESS)
        at = now()
        deployment.tell(Ordered(at, Order.RELEASE, at.mono_ns + 1_500_000_000))
        gate.wait_admitted(Purpose.CHECKOUT, timeout_s=60)
        time.sleep(1.6)
        steps = count_steps(monkeypatch)
        with pytest.raises(bgpool.SwitchoverHoldTimeout):
            gate.wait_admitted(Purpose.CHECKOUT, timeout_s=0.2)
        assert len(steps) <= 2


def test_a_caller_held_before_a_fork_continues_in_the_child(tmp_path: Path) -> None:
    """This happens if the child continues its parent's loop, or in a signal handler of a held thread."""
    waits = LoopWaits(lambda: True)

    async def hold(deployment: bgpool.testing.Deployment) -> None:
        gate = make_gate(deployment, waits)
        caller = asyncio.create_task(gate.await_admitted(Purpose.CHECKOUT, timeout_s=60))
        while not gate.tally.held:
            await asyncio.sleep(0)
        gate.reset()
        deployment.release()
        waits.wake()
        assert (await caller)[1].action is Action.ROUTE
        assert (gate.tally.held, gate.tally.usage().longest_hold_ms) == (0, 0)

    with bgpool.testing.deployment(tmp_path) as deployment:
        deployment.phase(Phase.IN_PROGRESS)
        asyncio.run(hold(deployment))
