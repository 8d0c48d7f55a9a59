"""A laboratory: real blue and green servers, PostgreSQL, MySQL or MariaDB, and a director that switches them over.

    with Pair("rds") as pair:   # or Pair("aurora", engine="mysql", readers=2)
        ledger.create(pair)
        director = Director(pair, Schedule(scale=0.3))
        director.create_deployment()
        with TruthProbe(pair) as truth:
            ...                      # start an application on pair.dsn, with bg_resolver=pair.resolver
            director.run()
        verdict = ledger.judge(pair, acknowledged, unknown)
        assert verdict.clean, verdict

All traffic stays on loopback. Nothing is left behind, not even by ``kill -9``.
"""

from __future__ import annotations

from bgpool.lab import ledger, metadata
from bgpool.lab.director import Director, Event, Schedule, Step
from bgpool.lab.errors import LabAbortError, LabError, ProgramsError
from bgpool.lab.ledger import Verdict
from bgpool.lab.metadata import Flavour, ReplicaRow, TopologyRow
from bgpool.lab.names import HostsFile, Names, SideNames
from bgpool.lab.pair import Pair
from bgpool.lab.server import Server
from bgpool.lab.truth import Outage, TruthProbe

__all__ = [
    "Pair",
    "Director",
    "Schedule",
    "Step",
    "Event",
    "TruthProbe",
    "Outage",
    "ledger",
    "Verdict",
    "metadata",
    "Flavour",
    "TopologyRow",
    "ReplicaRow",
    "Server",
    "HostsFile",
    "Names",
    "SideNames",
    "LabError",
    "LabAbortError",
    "ProgramsError",
]
