"""Exactly once: switchovers and failovers of real servers with COMMITs in flight, judged by the ledger.

    for result in play_all(Run(Engine.POSTGRESQL, count=50)):
        assert not result.findings, result

In each switchover, half of the application's threads leave receipts and the others do not. The events follow from a
seed; see `bgpool.lab.once.draws`.
"""

from __future__ import annotations

from bgpool.lab.once.draws import Draw, draw
from bgpool.lab.once.play import play
from bgpool.lab.once.results import Part, Result
from bgpool.lab.once.run import Journal, Run, play_all

__all__ = ["Draw", "Journal", "Part", "Result", "Run", "draw", "play", "play_all"]
