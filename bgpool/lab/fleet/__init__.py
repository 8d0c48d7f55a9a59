"""A fleet in the lab: real monitors of many hosts on one machine, one bus, and a switchover that is judged.

    result = play(Plan(hosts=8))
    assert not findings_of(result), result

Each host is a run directory of its own with a monitor of its own. Some worker processes have pools for several hosts
each. The hosts' queries are counted in the servers' own logs.
"""

from __future__ import annotations

from bgpool.lab.fleet.plan import BUS_FAULTS, PHASES, BusFault, Fault, Plan
from bgpool.lab.fleet.play import play
from bgpool.lab.fleet.results import Result, findings_of, heard_findings

__all__ = ["BUS_FAULTS", "PHASES", "BusFault", "Fault", "Plan", "Result", "findings_of", "heard_findings", "play"]
