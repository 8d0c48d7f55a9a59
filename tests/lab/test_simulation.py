"""Simulated switchovers keep every promise, a seed is all that a run depends on, and a broken core is found out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bgpool.core import machine
from bgpool.core.machine import Signal
from bgpool.core.phase import Phase
from bgpool.core.promotion import green_took_over
from bgpool.core.snapshot import Snapshot
from bgpool.lab.simulation import simulate, simulate_many

FIRST_SEED = int(os.environ.get("BGPOOL_SEED", "0"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.full)])
def test_every_promise_is_kept(count: int) -> None:
    released = rolled_back = acknowledged = 0
    for outcome in simulate_many(count, FIRST_SEED):
        replay = f"bgpool lab simulate --seed {outcome.seed} --trace"
        assert outcome.violations == (), f"seed {outcome.seed} ({outcome.story}); replay: {replay}"
        released += outcome.release_s is not None
        rolled_back += "rollback" in outcome.story
        acknowledged += outcome.acknowledged
    # A model in which nothing happens would keep every promise too.
    assert released > count / 3
    assert rolled_back > count / 10
    assert acknowledged > 50 * count


def test_a_seed_is_all_that_a_run_depends_on() -> None:
    first: list[str] = []
    again: list[str] = []
    assert simulate(7, trace=first.append) == simulate(7, trace=again.append)
    assert first == again
    assert any("phase IN_PROGRESS -> POST" in line for line in first)


def released_on_silence(snapshot: Snapshot, at: Any, rules: Any) -> Snapshot:
    if snapshot.source_read_only is None:
        return machine._signal(snapshot, Signal.TOOK_OVER, at, rules)
    return snapshot


def told_is_promoted(snapshot: Snapshot, at: Any, rules: Any) -> Snapshot:
    return machine._signal(snapshot, Signal.PROMOTED, at, rules)


def never_awaited(snapshot: Snapshot, at: Any, rules: Any) -> Snapshot:
    return machine._signal(snapshot, Signal.TOOK_OVER, at, rules) if green_took_over(snapshot) else snapshot


def never_timed_out(snapshot: Snapshot, *_: Any) -> Snapshot:
    return snapshot


def never_unfit(*_: Any, **__: Any) -> int:
    return 0


_enter = machine._enter


def never_pinned(snapshot: Snapshot, phase: Phase, *rest: Any) -> Snapshot:
    return replace(_enter(snapshot, phase, *rest), pinned=False)


def absent_is_a_rollback(snapshot: Snapshot, event: Any, rules: Any) -> Snapshot:
    return machine._signal(snapshot, Signal.REVERTED, event.at, rules)


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "broken", "promise"),
    [
        ("_look_at_green", released_on_silence, "released before green was promoted"),
        ("_told", told_is_promoted, "released before green was promoted"),
        ("_look_at_green", never_awaited, "released while green followed blue"),
        pytest.param("_check_timers", never_timed_out, "was not left in time", marks=pytest.mark.full),
        ("_makes_unfit", never_unfit, "a connection to old blue was handed out"),
        ("_enter", never_pinned, "a connection to old blue was handed out"),
        ("_metadata_absent", absent_is_a_rollback, "never released"),
    ],
    ids=[
        "release on silence",
        "metadata at once",
        "no wait for a subscription",
        "no timer",
        "no epoch",
        "no pin",
        "absent is a rollback",
    ],
)
def test_a_broken_core_is_found_out(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[..., Any], promise: str
) -> None:
    monkeypatch.setattr(machine, name, broken)
    for outcome in simulate_many(300, 0):
        if any(promise in violation for violation in outcome.violations):
            return
    pytest.fail(f"300 simulations did not notice: {promise}")
