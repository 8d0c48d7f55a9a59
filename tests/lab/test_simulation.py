"""Simulated switchovers keep every promise, a run depends only on its seed, and the checks detect broken code."""

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
from bgpool.lab.simulation import script_of, sessions, simulate, simulate_many
from bgpool.lab.simulation.script import Script
from bgpool.pools.mysql.unit import MysqlUnit
from bgpool.pools.postgres import outcome, unit
from bgpool.pools.postgres.unit import PostgresUnit
from bgpool.pools.receipts import new_id
from bgpool.pools.units import Outcome, Unit

#: The number of seeds that can show a defect; at least one of them must show it.
SEEDS_TO_FIND = 100
FIRST_SEED = int(os.environ.get("BGPOOL_SEED", "0"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.full)])
def test_every_promise_is_kept(count: int) -> None:
    released = rolled_back = acknowledged = already = failovers = 0
    for ended in simulate_many(count, FIRST_SEED):
        replay = f"bgpool lab simulate --seed {ended.seed} --trace"
        assert ended.violations == (), f"seed {ended.seed} ({ended.story}); replay: {replay}"
        released += ended.release_s is not None
        rolled_back += "rollback" in ended.story
        failovers += ended.story.startswith("failovers")
        acknowledged += ended.acknowledged
        already += ended.already
    # A model in which nothing happens would keep every promise, too.
    assert released > count / 3
    assert rolled_back > count / 10
    assert failovers > count / 30
    assert acknowledged > 50 * count
    assert already > 2 * count


@pytest.mark.parametrize(
    "seed", [1475, 8782, 58270], ids=["long functions", "old blue gone, long held", "and connected to"]
)
def test_justified_waits_are_no_violation(seed: int) -> None:
    assert simulate(seed).violations == ()


def test_a_connection_opened_by_name_at_the_timers_end_is_unfit_after_a_release() -> None:
    """In this seed, a worker has not read of a wait for green, and the wait ends with the timer."""
    assert simulate(18014).violations == ()


def test_a_run_depends_only_on_its_seed() -> None:
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
    ("name", "broken", "promise", "first"),
    [
        ("_look_at_green", released_on_silence, "released before green was promoted", 0),
        ("_told", told_is_promoted, "released before green was promoted", 30),
        ("_look_at_green", never_awaited, "released while green followed blue", 0),
        pytest.param("_check_timers", never_timed_out, "was not left in time", 0, marks=pytest.mark.full),
        ("_makes_unfit", never_unfit, "a connection to old blue was handed out", 0),
        ("_enter", never_pinned, "a connection to old blue was handed out", 0),
        ("_metadata_absent", absent_is_a_rollback, "never released", 40),
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
def test_a_broken_core_is_detected(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[..., Any], promise: str, first: int
) -> None:
    """The defect is detected within 300 seeds, soon after the *first*."""
    monkeypatch.setattr(machine, name, broken)
    for ended in simulate_many(300, first):
        if any(promise in violation for violation in ended.violations):
            return
    pytest.fail(f"300 simulations did not notice: {promise}")


# -- units of work -----------------------------------------------------------------------------------------------

_outcome_by = outcome.outcome_by


async def claimed_by_select(unit: Any, connection: Any) -> bool:
    return not await unit.awriter(connection)


async def trusting(trace: Any, _address: str, ask: Any, *, promoted: bool) -> Outcome:  # noqa:ARG001
    """Trust the status from the new primary, even if it is a logical replica with its own transaction ids."""
    (status,) = await ask(outcome._STATUS, trace.xid)
    kinds = {"committed": Outcome.COMMITTED, "aborted": Outcome.NOT_COMMITTED, "in progress": Outcome.PENDING}
    return kinds.get(status, Outcome.UNKNOWN)


async def hasty(*args: Any, **kwargs: Any) -> Outcome:
    """Treat a pending transaction as not committed."""
    found = await _outcome_by(*args, **kwargs)
    return Outcome.NOT_COMMITTED if found is Outcome.PENDING else found


def always(*_: Any) -> bool:
    return True


def named_anew(unit: Any) -> None:
    """Give each attempt its own id."""
    unit._unit = unit._id = new_id()


def asks_postgres(script: Script) -> bool:
    return not script.mysql and not script.receipts


def meets_foreign_ids(script: Script) -> bool:
    return asks_postgres(script) and script.green != "physical" and script.own_ids > 0


def loses_receipts(script: Script) -> bool:
    return bool(script.receipts) and script.table == "not replicated" and not script.rolled_back


def claims_on(script: Script, *, mysql: bool) -> bool:
    return script.sound and not script.tasks and script.mysql is mysql


@pytest.mark.once
@pytest.mark.parametrize(
    ("place", "name", "broken", "fits"),
    [
        (
            PostgresUnit,
            "ainsert",
            claimed_by_select,
            lambda script: claims_on(script, mysql=False),
        ),
        (MysqlUnit, "ainsert", claimed_by_select, lambda script: claims_on(script, mysql=True)),
        (sessions, "outcome_by", trusting, meets_foreign_ids),
        (sessions, "outcome_by", hasty, asks_postgres),
        (PostgresUnit, "decides", always, loses_receipts),
        (Unit, "name_receipt", named_anew, lambda script: script.sound and not script.tasks),
    ],
    ids=["SELECT, PostgreSQL", "SELECT, MySQL", "green's word", "no patience", "no row, no COMMIT", "a new id"],
)
def test_a_broken_unit_of_work_is_detected(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, broken: Any, fits: Callable[[Script], bool]
) -> None:
    monkeypatch.setattr(place, name, broken)
    tried = 0
    for seed in range(2000):
        if not fits(script_of(seed)):
            continue
        tried += 1
        if any("written twice" in text or "is lost" in text for text in simulate(seed).violations):
            print(f"seed {seed}, the {tried}th that fits")
            return
        assert tried < SEEDS_TO_FIND, f"{tried} simulations did not notice"
    pytest.fail("too few seeds fit")


def meets_no_old_blue(script: Script) -> bool:
    return meets_foreign_ids(script) and script.old_blue == "gone" and not script.rolled_back


@pytest.mark.once
def test_a_caller_that_is_never_released_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, an old blue that is gone is queried until the unit's deadline."""
    monkeypatch.setattr(unit, "OLD_BLUE_S", 60.0)
    fit = [seed for seed in range(2000) if meets_no_old_blue(script_of(seed))]
    assert any("a caller waits" in " ".join(simulate(seed).violations) for seed in fit[:SEEDS_TO_FIND])
