"""A simulation of switchovers: bgpool's own core, a model of everything around it, and a clock that jumps.

outcome = simulate(4711, trace=print)
assert not outcome.violations
"""

from __future__ import annotations

from bgpool.lab.simulation.fleet import FleetOutcome, simulate_fleet, simulate_fleets
from bgpool.lab.simulation.run import Outcome, script_of, simulate, simulate_many

__all__ = [
    "FleetOutcome",
    "Outcome",
    "script_of",
    "simulate",
    "simulate_fleet",
    "simulate_fleets",
    "simulate_many",
]
