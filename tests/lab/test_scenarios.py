"""Every scenario of the catalogue, by name, on real servers."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import ModuleType
from typing import get_args
from unittest.mock import Mock

import pytest

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.lab.director import Director
from bgpool.lab.errors import LabError
from bgpool.lab.ledger import Verdict
from bgpool.lab.mysql.programs import find_family
from bgpool.lab.report import Report, Stray
from bgpool.lab.scenarios import (
    CATALOGUE,
    Outcome,
    catalogue_of,
    evidence,
    find,
    hosts,
    names,
    play,
    rollbacks,
    topologies,
    upgrades,
)
from bgpool.lab.scenarios.scenario import FAST, Scenario, findings
from bgpool.lab.server import Shut
from bgpool.lab.server_factories import Tls

CHAPTERS = (topologies, evidence, rollbacks, upgrades, hosts, names)
#: What ``make test`` plays: one scenario for each kind of evidence, of rollback, of lost host and of name, and on MySQL
#: those whose metadata or transactions are its own; a rollback on MySQL is played in tests/lab/test_once.py, tokens and
#: the names of certificates in tests/lab/test_entrances.py.
#: ``make test-full`` plays every scenario on every engine.
QUICK = {
    Engine.POSTGRESQL: {
        "aurora", "metadata-deleted", "evidence-dns-alone", "rollback-from-in-progress", "connections-cut",
        "black-hole-green", "monitor-killed", "alias",
    },
    Engine.MYSQL: {"aurora", "long-transactions"},
}  # fmt: skip
#: Played in every way of shutting blue and of TLS; those of ``make test``.
SHUT_SCENARIOS = ("rds", "metadata-frozen", "rollback-from-in-progress")
QUICK_SHUTTING = {("rds", "open", "offered"), ("rds", "offline", "offered")}
#: What the load of other tests may add to a release: in seconds, and as a part of its bound.
LOAD_S, LOAD_PART = 0.4, 0.2
_outcomes: dict[tuple[Engine, str], Outcome] = {}


def played(name: str, engine: Engine) -> Outcome:
    """What the scenario came to; each is played once."""
    if (engine, name) not in _outcomes:
        scenario = find(name, engine)
        # The tests play three at a time on two cores. DNS, which a release must not wait for, moves 0.8 s later.
        scenario = dataclasses.replace(scenario, release_s=loaded_s(scenario))
        _outcomes[engine, name] = play(scenario, engine)
    return _outcomes[engine, name]


def loaded_s(scenario: Scenario) -> float:
    """The bound of its release, beside other tests."""
    return scenario.release_s * (1 + LOAD_PART) + LOAD_S


def each(chapter: ModuleType) -> pytest.MarkDecorator:
    """Every scenario of a chapter on every engine that it is for, green being of blue's version."""
    cases = [
        pytest.param(
            scenario.name,
            engine,
            id=f"{scenario.name}-{engine.value}",
            marks=() if scenario.name in QUICK[engine] else pytest.mark.full,
        )
        for engine in Engine
        for scenario in chapter.SCENARIOS
        if scenario.name in catalogue_of(engine)
    ]
    return pytest.mark.parametrize(("name", "engine"), cases)


def assert_clean(name: str, engine: Engine) -> None:
    outcome = played(name, engine)
    assert outcome.findings == ()
    assert outcome.report.verdict.acknowledged > 100


# A class for each chapter of the catalogue, so that two of them can be played side by side.


@pytest.mark.lab
@pytest.mark.slow
class TestTopologies:
    @each(topologies)
    def test_scenario(self, name: str, engine: Engine) -> None:
        assert_clean(name, engine)


@pytest.mark.lab
@pytest.mark.slow
class TestEvidence:
    @each(evidence)
    def test_scenario(self, name: str, engine: Engine) -> None:
        assert_clean(name, engine)

    @pytest.mark.parametrize("name", ["metadata-frozen", "metadata-deleted", "metadata-absent", "metadata-error"])
    def test_metadata_that_tell_nothing_are_not_waited_for(self, name: str) -> None:
        # Today's peers pay until DNS moves, 0.8 s later here, or a timeout of minutes. What released the callers is
        # in the findings of each scenario, and so is when: before DNS moved, with the load of other tests allowed for.
        scenario = find(name)
        assert scenario.evidence == ("green promoted",)
        assert loaded_s(scenario) < FAST.blue_dns_moved_s - FAST.green_promoted_s


@pytest.mark.lab
@pytest.mark.slow
class TestRollbacks:
    @each(rollbacks)
    def test_scenario(self, name: str, engine: Engine) -> None:
        assert_clean(name, engine)


@pytest.mark.lab
@pytest.mark.slow
class TestUpgrades:
    @each(upgrades)
    def test_scenario(self, name: str, engine: Engine) -> None:
        assert_clean(name, engine)


@pytest.mark.lab
@pytest.mark.slow
class TestHosts:
    @each(hosts)
    def test_scenario(self, name: str, engine: Engine) -> None:
        assert_clean(name, engine)


@pytest.mark.lab
@pytest.mark.slow
class TestNames:
    @each(names)
    def test_scenario(self, name: str, engine: Engine) -> None:
        assert_clean(name, engine)


@pytest.mark.lab
@pytest.mark.slow
class TestShutting:
    """Every way of shutting blue, by every way of TLS."""

    @pytest.mark.parametrize(
        ("name", "shut", "tls"),
        [
            pytest.param(*case, id="-".join(case), marks=() if case in QUICK_SHUTTING else pytest.mark.full)
            for case in itertools.product(SHUT_SCENARIOS, get_args(Shut), get_args(Tls))
        ],
    )
    def test_mysql(self, name: str, shut: Shut, tls: Tls) -> None:
        scenario = find(name, Engine.MYSQL)
        scenario = dataclasses.replace(scenario, release_s=loaded_s(scenario))
        options = {"shut": shut, "tls": tls}
        if shut not in find_family().ways:
            with pytest.raises(LabError, match=f"cannot be shut by '{shut}'"):
                play(scenario, Engine.MYSQL, options)
            return
        outcome = play(scenario, Engine.MYSQL, options)
        assert outcome.findings == ()
        assert outcome.report.verdict.acknowledged > 100


def test_every_chapter_is_played() -> None:
    for engine, names_of_quick in QUICK.items():
        assert names_of_quick <= catalogue_of(engine).keys()
    assert list(CATALOGUE) == [scenario.name for chapter in CHAPTERS for scenario in chapter.SCENARIOS]


def test_the_catalogue_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "lab.md").read_text(encoding="utf-8")
    for name, scenario in CATALOGUE.items():
        assert f"| `{name}` | {scenario.told} |" in text


def test_names_are_told_where_one_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"'rdz'.*rds, rds-replicas"):
        find("rdz")
    with pytest.raises(ValueError, match="no scenario 'target-session-attrs' for mysql"):
        find("target-session-attrs", Engine.MYSQL)


def good() -> Report:
    return Report(
        verdict=Verdict(acknowledged=10, lost=0, doubled=0, split=0, landed=0, unexplained=0),
        undecided=0,
        errors=0,
        missing=0,
        error_examples=(),
        calls=10,
        longest_call_s=1.0,
        longest_gap_s=1.0,
        down_s=0.9,
        evidence="metadata",
        release_s=0.1,
        resume_s=0.2,
        strays=(),
        monitoring_connections=2,
        snapshot=Snapshot("1", Phase.COMPLETED),
    )


def test_a_good_report_has_no_findings() -> None:
    assert findings(Scenario("x", ""), good()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": Verdict(acknowledged=10, lost=1, doubled=0, split=0, landed=0, unexplained=0)},
        {"verdict": Verdict(acknowledged=10, lost=0, doubled=1, split=0, landed=0, unexplained=0)},
        {"verdict": Verdict(acknowledged=10, lost=0, doubled=0, split=1, landed=0, unexplained=0)},
        {"verdict": Verdict(acknowledged=10, lost=0, doubled=0, split=0, landed=0, unexplained=0, half=1)},
        {"undecided": 7},
        {"errors": 1},
        {"longest_call_s": 11.1},
        {"evidence": "timer"},
        {"release_s": 0.26},
        {"release_s": None},
        {"resume_s": 1.3},
        {"resume_s": None},
        {"strays": (Stray(0, "x", "127.0.0.1", 0.1),)},
        {"monitoring_connections": 3},
        {"snapshot": None},
        {"snapshot": Snapshot("1", Phase.POST)},
        {"snapshot": Snapshot("1", Phase.COMPLETED, rolled_back=True)},
    ],
    ids=str,
)
def test_what_is_wrong_is_found(changes: dict[str, object]) -> None:
    report = dataclasses.replace(good(), **changes)  # type: ignore[arg-type]  # any field of a report
    assert len(findings(Scenario("x", ""), report)) == 1


def test_errors_that_a_scenario_excuses_are_no_finding_and_others_are() -> None:
    scenario = Scenario("x", "", excused=("UniqueViolation",))
    report = dataclasses.replace(good(), errors=3, error_counts={"UniqueViolation": 3})
    assert findings(scenario, report) == []
    (finding,) = findings(scenario, dataclasses.replace(report, errors=4))
    assert finding.startswith("1 callers saw an error")


def test_a_rollback_that_released_or_held_on_is_found() -> None:
    scenario, report = Scenario("x", "", evidence=()), dataclasses.replace(good(), evidence="", release_s=None)
    assert findings(scenario, report) == []
    assert len(findings(scenario, good())) == 1
    assert findings(scenario, dataclasses.replace(report, resume_s=None)) == ["a thread never went on"]
    assert len(findings(scenario, dataclasses.replace(report, resume_s=1.3))) == 1


def test_a_black_hole_cuts_nobody() -> None:
    pair = Mock(tls=False)
    director = Director(pair, FAST)
    hosts.black_hole_blue(Mock(pair=pair, director=director))
    for step in sorted(director.steps, key=lambda step: step.at_s):
        if FAST.writes_stopped_s < step.at_s < FAST.green_promoted_s:
            step.action()
    pair.green.wait_replayed.assert_called_once()
    pair.blue.freeze.assert_called_once_with()
    pair.blue.cut_clients.assert_not_called()
