"""Simulated fleets act as each host's own queries would make it act, and the checks detect broken members."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bgpool.core import duty, member
from bgpool.lab.simulation import simulate_fleet, simulate_fleets

FIRST_SEED = int(os.environ.get("BGPOOL_SEED", "0"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.full)])
def test_every_host_acts_only_on_its_own_evidence(count: int) -> None:
    released = faults = fallbacks = 0
    for ended in simulate_fleets(count, 20, FIRST_SEED):
        replay = f"bgpool lab simulate --fleet 20 --seed {ended.seed} --trace"
        assert ended.violations == (), f"seed {ended.seed} ({ended.story}); replay: {replay}"
        released += ended.lag_s is not None
        faults += ended.faults
        fallbacks += ended.fallbacks
    # A model in which nothing happens would keep every promise, too.
    assert released > count / 3
    assert faults > count / 2
    assert fallbacks


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_thousand_hosts() -> None:
    for ended in simulate_fleets(2, 1000, FIRST_SEED):
        assert ended.violations == (), f"seed {ended.seed} ({ended.story})"


def test_a_run_depends_only_on_its_seed() -> None:
    first: list[str] = []
    again: list[str] = []
    assert simulate_fleet(7, 8, trace=first.append) == simulate_fleet(7, 8, trace=again.append)
    assert first == again
    assert any("phase IN_PROGRESS -> POST" in line for line in first)


def an_hour(*_: Any) -> int:
    return 3600 * 10**9


def at_once(*_: Any) -> int:
    return 0


def always_ours(*_: Any) -> bool:
    return True


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("module", "name", "broken", "promise"),
    [
        (member, "silence_ns", an_hour, "longer than on its own"),
        (member.Member, "pace_ns", property(at_once), "times in"),
        (duty, "_is_out_of_time", lambda _: False, "in the end"),
        (member, "_names_ours", always_ours, "names that"),
    ],
    ids=["no silence", "no pace", "wrong clocks lead", "any name"],
)
def test_a_broken_member_is_detected(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, broken: Any, promise: str
) -> None:
    monkeypatch.setattr(module, name, broken)
    for ended in simulate_fleets(60, 20):
        if any(promise in violation for violation in ended.violations):
            return
    pytest.fail(f"60 simulations did not notice: {promise}")
