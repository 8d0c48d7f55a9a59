"""Every scenario of the catalogue, by name, on real servers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest

from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.lab.ledger import Verdict
from bgpool.lab.report import Report, Stray
from bgpool.lab.scenarios import CATALOGUE, Outcome, evidence, find, hosts, names, play, rollbacks, topologies
from bgpool.lab.scenarios.scenario import Scenario, findings

CHAPTERS = (topologies, evidence, rollbacks, hosts, names)
_outcomes: dict[str, Outcome] = {}


def played(name: str) -> Outcome:
    """What the scenario came to; each is played once."""
    if name not in _outcomes:
        _outcomes[name] = play(find(name))
    return _outcomes[name]


def each(chapter: ModuleType) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [scenario.name for scenario in chapter.SCENARIOS])


def assert_clean(name: str) -> None:
    outcome = played(name)
    assert outcome.findings == ()
    assert outcome.report.verdict.acknowledged > 100


# A class for each chapter of the catalogue, so that two of them can be played side by side.


@pytest.mark.lab
@pytest.mark.slow
class TestTopologies:
    @each(topologies)
    def test_scenario(self, name: str) -> None:
        assert_clean(name)


@pytest.mark.lab
@pytest.mark.slow
class TestEvidence:
    @each(evidence)
    def test_scenario(self, name: str) -> None:
        assert_clean(name)

    @pytest.mark.parametrize("name", ["metadata-frozen", "metadata-deleted", "metadata-absent", "metadata-error"])
    def test_metadata_that_tell_nothing_cost_no_more_than_healthy_ones(self, name: str) -> None:
        # Today's peers pay until DNS moves, 0.8 s later here, or a timeout of minutes.
        assert played(name).report.excess_s < played("rds").report.excess_s + 0.25


@pytest.mark.lab
@pytest.mark.slow
class TestRollbacks:
    @each(rollbacks)
    def test_scenario(self, name: str) -> None:
        assert_clean(name)


@pytest.mark.lab
@pytest.mark.slow
class TestHosts:
    @each(hosts)
    def test_scenario(self, name: str) -> None:
        assert_clean(name)


@pytest.mark.lab
@pytest.mark.slow
class TestNames:
    @each(names)
    def test_scenario(self, name: str) -> None:
        assert_clean(name)


def test_every_chapter_is_played() -> None:
    assert list(CATALOGUE) == [scenario.name for chapter in CHAPTERS for scenario in chapter.SCENARIOS]


def test_the_catalogue_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "lab.md").read_text(encoding="utf-8")
    for name, scenario in CATALOGUE.items():
        assert f"| `{name}` | {scenario.story} |" in text


def test_names_are_told_where_one_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"'rdz'.*rds, rds-replicas"):
        find("rdz")


def good() -> Report:
    return Report(
        verdict=Verdict(acknowledged=10, lost=0, doubled=0, split=0, landed=0, unexplained=0),
        errors=0,
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


def test_a_rollback_that_released_is_found() -> None:
    scenario = Scenario("x", "", evidence=())
    assert len(findings(scenario, good())) == 1
    assert findings(scenario, dataclasses.replace(good(), evidence="")) == []
