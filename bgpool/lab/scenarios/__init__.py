"""The catalogue of switchovers: one scenario for each kind of real one, run on real servers and judged by a ledger.

for scenario in CATALOGUE.values():
    outcome = play(scenario)
    assert not outcome.findings, outcome.findings
"""

from __future__ import annotations

from bgpool.core.engine import Engine
from bgpool.lab.scenarios import evidence, hosts, names, rollbacks, topologies, upgrades
from bgpool.lab.scenarios.scenario import Outcome, Scenario, play

__all__ = ["CATALOGUE", "Outcome", "Scenario", "catalogue_of", "find", "play"]

#: Every scenario by its name, in the recommended order of reading.
CATALOGUE: dict[str, Scenario] = {
    scenario.name: scenario
    for chapter in (topologies, evidence, rollbacks, upgrades, hosts, names)
    for scenario in chapter.SCENARIOS
}


def catalogue_of(engine: Engine, upgrade: str = "minor") -> dict[str, Scenario]:
    """Return the scenarios that run on servers of *engine*, on a pair of that *upgrade*."""
    return {
        name: scenario
        for name, scenario in CATALOGUE.items()
        if engine in scenario.engines and upgrade in scenario.upgrades
    }


def find(name: str, engine: Engine = Engine.POSTGRESQL, upgrade: str = "minor") -> Scenario:
    """Return the scenario called *name* that runs on servers of *engine*, on a pair of that *upgrade*.

    Raises:
        ValueError: There is none; the text lists the names that exist.
    """
    catalogue = catalogue_of(engine, upgrade)
    try:
        return catalogue[name]
    except KeyError:
        of = engine.value if upgrade == "minor" else f"a {upgrade} upgrade of {engine.value}"
        raise ValueError(f"no scenario {name!r} for {of}: there are {', '.join(catalogue)}") from None
