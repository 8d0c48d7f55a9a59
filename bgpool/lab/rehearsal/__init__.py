"""A rehearsal: a user's own application goes through a switchover of real servers and is observed from outside.

    report = rehearse(Plan(("gunicorn", "app:app"), url="http://127.0.0.1:8000/"), output=sys.stderr.fileno())
    assert report.went_through, report.findings

The application receives its DSN through its environment and needs no change.
"""

from __future__ import annotations

from bgpool.lab.rehearsal.plan import SCENARIOS, NotRehearsedError, Plan, UnusablePlanError
from bgpool.lab.rehearsal.processes import Process
from bgpool.lab.rehearsal.report import Rehearsed, Requests
from bgpool.lab.rehearsal.run import rehearse

__all__ = [
    "rehearse",
    "Plan",
    "SCENARIOS",
    "Rehearsed",
    "Process",
    "Requests",
    "NotRehearsedError",
    "UnusablePlanError",
]
