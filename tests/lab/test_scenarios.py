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
#: The scenarios of ``make test``: one for each kind of evidence, of rollback, of lost host and of name, and on MySQL
#: those with metadata or transactions of its own. A rollback on MySQL is in tests/lab/test_once.py; tokens and the
#: names of certificates are in tests/lab/test_entrances.py. ``make test-full`` runs every scenario on every engine.
QUICK = {
    Engine.POSTGRESQL: {
        "aurora", "metadata-deleted", "evidence-dns-alone", "rollback-from-in-progress", "connections-cut",
        "black-hole-green", "monitor-killed", "alias",
    },
    Engine.MYSQL: {"aurora", "long-transactions"},
}  # fmt: skip
#: Scenarios that are run with every way of shutting blue and of TLS; and those of ``make test``.
SHUT_SCENARIOS = ("rds", "metadata-frozen", "rollback-from-in-progress")
QUICK_SHUTTING = {("rds", "open", "offered"), ("rds", "offline", "offered")}
#: The time that the load of other tests may add to a release: in seconds, and as a part of its bound.
LOAD_S, LOAD_PART = 0.4, 0.2
_outcomes: dict[tuple[Engine, str], Outcome] = {}


def played(name: str, engine: Engine) -> Outcome:
    """Return the result of the scenario; each is run once."""
    if (engine, name) not in _outcomes:
        scenario = find(name, engine)
        # Three tests run at a time on two cores. DNS, which a release must not wait for, moves 0.8 s later.
        scenario = dataclasses.replace(scenario, release_s=loaded_s(scenario))
        _outcomes[engine, name] = play(scenario, engine)
    return _outcomes[engine, name]


def loaded_s(scenario: Scenario) -> float:
    """Return the bound of the scenario's release, when other tests run at the same time."""
    return scenario.release_s * (1 + LOAD_PART) + LOAD_S


def each(chapter: ModuleType) -> pytest.MarkDecorator:
    """Return every scenario of a chapter on each of its engines, with green of blue's version."""
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


# One class for each chapter of the catalogue, so that two chapters can run side by side.


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
    def test_callers_do_not_wait_for_uninformative_metadata(self, name: str) -> None:
        # Without bgpool, this takes until DNS moves, 0.8 s later here, or a timeout of minutes. The findings of each
        # scenario include the evidence for the release and its time: before DNS moved, with an allowance for the load
        # of other tests.
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
    """Every way of shutting blue, combined with every way of TLS."""

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
        assert f"| `{name}` | {scenario.description} |" in text


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
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
def test_each_defect_of_a_report_is_a_finding(changes: dict[str, object]) -> None:
    report = dataclasses.replace(good(), **changes)  # type: ignore[arg-type]  # any field of a report
    assert len(findings(Scenario("x", ""), report)) == 1


def test_only_errors_that_the_scenario_does_not_excuse_are_findings() -> None:
    scenario = Scenario("x", "", excused=("UniqueViolation",))
    report = dataclasses.replace(good(), errors=3, error_counts={"UniqueViolation": 3})
    assert findings(scenario, report) == []
    (finding,) = findings(scenario, dataclasses.replace(report, errors=4))
    assert finding.startswith("1 callers saw an error")


def test_a_rollback_that_released_or_kept_holding_is_a_finding() -> None:
    scenario, report = Scenario("x", "", evidence=()), dataclasses.replace(good(), evidence="", release_s=None)
    assert findings(scenario, report) == []
    assert len(findings(scenario, good())) == 1
    assert findings(scenario, dataclasses.replace(report, resume_s=None)) == ["a thread never continued"]
    assert len(findings(scenario, dataclasses.replace(report, resume_s=1.3))) == 1


def test_a_black_hole_cuts_no_connections() -> None:
    pair = Mock(tls=False)
    director = Director(pair, FAST)
    hosts.black_hole_blue(Mock(pair=pair, director=director))
    for step in sorted(director.steps, key=lambda step: step.at_s):
        if FAST.writes_stopped_s < step.at_s < FAST.green_promoted_s:
            step.action()
    pair.green.wait_replayed.assert_called_once()
    pair.blue.freeze.assert_called_once_with()
    pair.blue.cut_clients.assert_not_called()
