"""The catalogue of switchovers: what real ones do, one scenario for each, on real servers, judged by a ledger.

for scenario in CATALOGUE.values():
    outcome = play(scenario)
    assert not outcome.findings, outcome.findings
"""

from __future__ import annotations

from bgpool.core.engine import Engine
from bgpool.lab.scenarios import evidence, hosts, names, rollbacks, topologies, upgrades
from bgpool.lab.scenarios.scenario import Outcome, Scenario, play

__all__ = ["CATALOGUE", "Outcome", "Scenario", "catalogue_of", "find", "play"]

#: Every scenario by its name, in the order in which they are best read.
CATALOGUE: dict[str, Scenario] = {
    scenario.name: scenario
    for chapter in (topologies, evidence, rollbacks, upgrades, hosts, names)
    for scenario in chapter.SCENARIOS
}


def catalogue_of(engine: Engine, upgrade: str = "minor") -> dict[str, Scenario]:
    """What is played on servers of *engine*, on a pair of that *upgrade*."""
    return {
        name: scenario
        for name, scenario in CATALOGUE.items()
        if engine in scenario.engines and upgrade in scenario.upgrades
    }


def find(name: str, engine: Engine = Engine.POSTGRESQL, upgrade: str = "minor") -> Scenario:
    """The scenario called *name* that is played on servers of *engine*, on a pair of that *upgrade*.

    Raises:
        ValueError: There is none; the text lists what there is.
    """
    catalogue = catalogue_of(engine, upgrade)
    try:
        return catalogue[name]
    except KeyError:
        of = engine.value if upgrade == "minor" else f"a {upgrade} upgrade of {engine.value}"
        raise ValueError(f"no scenario {name!r} for {of}: there are {', '.join(catalogue)}") from None
