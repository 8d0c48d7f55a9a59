"""Exactly once: one switchover or failover of each kind in ``make test``, more of them in ``make test-full``.

For fifty and more run ``bgpool lab once``.
"""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from bgpool.cli.app import app
from bgpool.core.engine import Engine
from bgpool.lab import ledger
from bgpool.lab.errors import LabError
from bgpool.lab.once import Draw, Journal, Part, Result, Run, draw, play, play_all
from bgpool.lab.once.draws import Failure, Story

SEED = int(os.environ.get("BGPOOL_SEED", "0")) or int.from_bytes(os.urandom(4), "little")
MAJOR = {"upgrade": "major"}
#: Kills of the worker with tasks while COMMITs are held, and afterwards; a kill of the monitor before green is
#: promoted.
KILLS: dict[str, Any] = {"worker_kills": (0.0, 1.1), "monitor_kill": 0.4}


def case(engine: Engine, story: Any, hold: Any, *, major: bool = False, full: bool = True, **more: Any) -> Any:
    """Return a case; it is part of ``make test`` unless it is *full*."""
    name = f"{engine.value}{'-major' if major else ''}-{story}-{hold}".replace(" ", "-")
    options = MAJOR if major else {}
    return pytest.param(engine, options, Draw(0, story, hold, **more), id=name, marks=pytest.mark.full if full else ())


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("engine", "options", "drawn"),
    [
        case(Engine.POSTGRESQL, "frozen metadata", "standby", major=True, full=False, **KILLS),
        case(Engine.MYSQL, "rollback under way", "lock", full=False, worker_kills=(0.1,)),
        case(Engine.POSTGRESQL, "killed", "standby", full=False, worker_kills=(0.2,)),
        case(Engine.POSTGRESQL, "healthy", "trigger", **KILLS),
        case(Engine.POSTGRESQL, "rollback under way", "trigger", **KILLS),
        case(Engine.POSTGRESQL, "black hole", "standby", major=True, **KILLS),
        case(Engine.MYSQL, "healthy", "delay", **KILLS),
        case(Engine.MYSQL, "frozen metadata", "lock", **KILLS),
        case(Engine.MYSQL, "killed", "unanswered"),
        case(Engine.MYSQL, "network lost", "delay"),
    ],
)
def test_every_unit_is_applied_exactly_once(engine: Engine, options: dict[str, Any], drawn: Draw) -> None:
    if drawn.is_failover and engine is Engine.MYSQL and not _is_mariadb():
        pytest.skip("the lab has semi-synchronous replication of MariaDB alone")
    result = play(drawn, engine, options)
    assert result.findings == (), result
    assert result.receipts.units >= 8, result
    assert result.kills >= len(drawn.worker_kills), result
    assert bool(result.receipts.again + result.receipts.already) is bool(drawn.worker_kills), result
    # MySQL's lock of backups also holds INSERTs, so that few units are between their INSERT and their COMMIT.
    if drawn.hold != "lock" or _is_mariadb():
        assert result.open_commits >= 4, result
        # Without a receipt, the outcome of these units is unknown, except on PostgreSQL in a switchover.
        assert bool(result.without.unknown) is (engine is Engine.MYSQL or drawn.is_failover), result


@pytest.mark.lab
@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_claim_without_a_query_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def claim(*_: object) -> bool:
        return True

    monkeypatch.setattr("bgpool.pools.mysql.unit.MysqlUnit.ainsert", claim)
    result = play(Draw(0, "healthy", "delay"), Engine.MYSQL)
    assert result.doubled > 0, result
    assert result.findings != ()


def _is_mariadb() -> bool:
    from bgpool.lab.server_factories import find_servers

    return "MariaDB" in find_servers(Engine.MYSQL)


@pytest.mark.lab
@pytest.mark.full
@pytest.mark.timeout(400)
@pytest.mark.parametrize("failover", [False, True], ids=["switchovers", "failovers"])
def test_units_of_random_seeds_are_applied_exactly_once(failover: bool, tmp_path: Path) -> None:
    run = Run(Engine.POSTGRESQL, seed=SEED, count=8, failover=failover)
    for result in play_all(run, Journal(tmp_path / "journal")):
        assert result.findings == (), result


# -- the drawn variants --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", Engine)
def test_a_seed_gives_one_story_and_fifty_seeds_give_all(engine: Engine) -> None:
    assert draw(7, engine) == draw(7, engine)
    switchovers = [draw(seed, engine) for seed in range(1, 51)]
    assert {one.story for one in switchovers} == set(get_args(Story))
    failovers = [draw(seed, engine, failover=True) for seed in range(1, 51)]
    assert {one.story for one in failovers} == set(get_args(Failure))
    assert all(one.is_failover for one in failovers)
    assert not any(one.is_failover for one in switchovers)


# -- the ledger of a failover --------------------------------------------------------------------------------------


def test_rows_lost_by_replication_are_distinguished_from_lost_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def rows(*numbers: int) -> list[ledger.Row]:
        return [ledger.Row(seq, 0, 0, n, at) for seq, n in enumerate(numbers, 1)]

    held: dict[Any, list[ledger.Row]] = {"survivor": rows(1, 2, 2), "former": rows(1, 2, 3)}
    monkeypatch.setattr(ledger, "read", held.__getitem__)
    survivor: Any = "survivor"
    former: Any = "former"
    verdict = ledger.judge_failover(survivor, former, [(0, 0, n) for n in (1, 2, 3, 4)])
    assert (verdict.abandoned, verdict.lost, verdict.doubled, verdict.split) == (1, 1, 1, 0)
    assert verdict.lost_examples == ((0, 0, 4),)
    assert not verdict.clean
    assert ledger.judge_failover(survivor, None, [(0, 0, 3)]).lost == 1


# -- the journal ---------------------------------------------------------------------------------------------------


def result_of(seed: int, *findings: str) -> Result:
    return Result(seed, "healthy", "", 0, 0, 1, 0, 0, 0, 0, 0, Part(units=1, examples=("x",)), Part(), findings, 1.0)


def test_a_run_resumes_from_its_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    played: list[int] = []

    def fake(drawn: Draw, *_: object) -> Result:
        played.append(drawn.seed)
        if drawn.seed == 2 and played.count(2) == 1:
            raise KeyboardInterrupt
        if drawn.seed == 4:
            raise LabError("no servers")
        return result_of(drawn.seed, *(("lost",) if drawn.seed == 3 else ()))

    monkeypatch.setattr("bgpool.lab.once.run.play", fake)
    journal = Journal(tmp_path / "journal.jsonl")
    run = Run(Engine.POSTGRESQL, "these", count=4)
    with pytest.raises(KeyboardInterrupt):
        list(play_all(run, journal))
    results = list(play_all(run, journal))
    assert played == [1, 2, 2, 3, 4]
    assert [result.seed for result in results if result.findings] == [3, 4]
    assert results[0] == result_of(1)
    # A known result is not run again; results of other servers do not count as known.
    assert list(play_all(run, journal)) == results
    assert played == [1, 2, 2, 3, 4]
    list(play_all(Run(Engine.POSTGRESQL, "others", count=1), journal))
    assert played[-1] == 1
    # Another run that uses the file at the same time may have added the same seed: the last line counts.
    journal.add("these", result_of(3))
    assert not list(play_all(run, journal))[2].findings


def test_a_truncated_line_of_the_journal_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).add("these", result_of(1))
    path.write_text(path.read_text() + '{"title": "these", "seed"')
    with pytest.raises(ValueError, match=r"journal\.jsonl, line 2, is not a line of a journal"):
        Journal(path).results("these")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--failover", "--pair", "major"], "--pair minor is allowed"),
        (["--journal", "JOURNAL"], "line 1, is not a line of a journal"),
        (["--engine", "mysql", "--pair", "major"], "upgrade must be 'minor' for MySQL"),
        (["--count", "0"], "--count"),
    ],
)
def test_a_wrong_call_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text("what?\n")
    outcome = CliRunner().invoke(app, ["lab", "once", *(str(journal) if o == "JOURNAL" else o for o in options)])
    assert outcome.exit_code == 2
    assert said in " ".join(outcome.output.split())


def test_the_seed_that_failed_is_named_with_the_command_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bgpool.lab.once.run.play", lambda drawn, *_: result_of(drawn.seed, *(("lost",) if drawn.seed == 3 else ()))
    )
    outcome = CliRunner().invoke(app, ["lab", "once", "--seed", "2", "--count", "2", "--failover"])
    assert outcome.exit_code == 1
    said = " ".join(outcome.output.split())
    assert "bgpool lab once --engine postgresql --pair minor --failover --seed 3 --count 1" in said
    assert "again" in said
    assert "with receipts 2 units, 0 errors, 0 unknown" in said
