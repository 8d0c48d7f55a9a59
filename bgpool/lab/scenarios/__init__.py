"""The catalogue of switchovers: what real ones do, one scenario for each, on real servers, judged by a ledger.

for scenario in CATALOGUE.values():
    outcome = play(scenario)
    assert not outcome.findings, outcome.findings
"""

from __future__ import annotations

from bgpool.lab.scenarios import evidence, hosts, names, rollbacks, topologies
from bgpool.lab.scenarios.scenario import Outcome, Scenario, play

__all__ = ["CATALOGUE", "Outcome", "Scenario", "find", "play"]

#: Every scenario by its name, in the order in which they are best read.
CATALOGUE: dict[str, Scenario] = {
    scenario.name: scenario
    for chapter in (topologies, evidence, rollbacks, hosts, names)
    for scenario in chapter.SCENARIOS
}


def find(name: str) -> Scenario:
    """The scenario called *name*.

    Raises:
        ValueError: There is none; the text lists what there is.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise ValueError(f"no scenario {name!r}: there are {', '.join(CATALOGUE)}") from None
