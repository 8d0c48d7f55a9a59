"""The results of a rehearsal, and the findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bgpool.lab.rehearsal.processes import Process
from bgpool.report import Event

__all__ = ["Rehearsed", "Requests", "findings", "how"]


@dataclass(frozen=True, slots=True)
class Requests:
    """The results of a load's clients. Times are in seconds.

    Attributes:
        examples: The first few failures.
        longest_gap_s: The longest time that a client was without an answer.
        excess_s: The part of it that the database did not cause.
    """

    url: str
    answered: int
    failed: int
    examples: tuple[str, ...]
    longest_gap_s: float
    excess_s: float


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The results of an application's rehearsal.

    Attributes:
        servers: The product and version, such as ``PostgreSQL 16.14``.
        outcome: ``completed``, ``rolled back`` or ``not ended``.
        findings: Descriptions of everything that was wrong; empty if the application passed.
        down_s: The longest time for which neither server accepted a write, for a client that knows both addresses.
        events: The events of the summary table.
        processes: Every process that used the deployment's pools.
        monitoring_connections: The largest number that was open on both servers together, before the switchover or
            after it.
        connections_on_blue, connections_on_green: The application's connections at the end, as the servers count them;
            None for a server that did not answer.
        requests: The results of the load; None without a load.
        exit_status: The command's exit status, negative for a signal.
        ended_by_itself: True if it ended without a request.
        killed: True if it did not end on request.
    """

    scenario: str
    engine: str
    flavour: str
    servers: str
    outcome: str
    findings: tuple[str, ...]
    down_s: float
    events: tuple[Event, ...]
    processes: tuple[Process, ...]
    monitoring_connections: int
    connections_on_blue: int | None
    connections_on_green: int | None
    requests: Requests | None
    exit_status: int | None
    ended_by_itself: bool
    killed: bool

    @property
    def went_through(self) -> bool:
        """True if nothing was wrong."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return the output of ``bgpool rehearse --json``: every field, and *went_through*."""
        return {"went_through": self.went_through, **dataclasses.asdict(self)}


def findings(report: Rehearsed, *, wanted: str, here: int, ended_early: int | None) -> tuple[str, ...]:
    """Return everything that is wrong with *report*.

    Args:
        report: The report, without findings of its own.
        wanted: The expected outcome of the scenario.
        here: The number of processes at the end.
        ended_early: The status of a command that ended before callers were released; None if it did not.
    """
    return tuple(_findings(report, wanted, here, ended_early))


def _findings(report: Rehearsed, wanted: str, here: int, ended_early: int | None) -> Iterator[str]:
    if report.outcome != wanted:
        yield f"the outcome of the switchover is '{report.outcome}', expected '{wanted}'"
    if ended_early is not None:
        yield f"the command ended in the middle of the switchover, {how(ended_early)}"
    elif report.ended_by_itself and report.exit_status:
        yield f"the command ended by itself, {how(report.exit_status)}"
    gone = [process.pid for process in report.processes if process.fate == "gone"]
    were = sum(process.fate != "came" for process in report.processes)
    if here < were and not report.ended_by_itself:
        yield f"of {were} processes {here} are left; gone: {', '.join(map(str, gone))}"
    if report.requests is not None and report.requests.failed:
        yield f"failed requests: {report.requests.failed}"
    if not any(process.checkouts or process.most_held for process in report.processes):
        yield "no caller used a pool during or after the switchover: the rehearsal shows nothing"


def how(status: int) -> str:
    """Return the description of the end of a program with exit status *status*."""
    return f"by signal {-status}" if status < 0 else f"with status {status}"
