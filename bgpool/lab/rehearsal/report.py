"""What a rehearsal came to, and what was wrong with it."""

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
    """What the clients of a load saw. Times are in seconds.

    Attributes:
        examples: What the first few that failed came to.
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
    """What an application went through.

    Attributes:
        servers: What they were, such as ``PostgreSQL 16.14``.
        outcome: ``completed``, ``rolled back`` or ``not ended``.
        findings: What was wrong, in words; nothing if it went through.
        down_s: The longest time for which neither server took a write, for a client that knows both addresses.
        events: The summary table's.
        processes: Every process that used the deployment's pools.
        monitoring_connections: Most that were open on both servers together, before the switchover or after it.
        connections_on_blue, connections_on_green: The application's, as the servers count them at the end; None for a
            server that did not answer.
        requests: None without a load.
        exit_status: The command's, negative for a signal.
        ended_by_itself: It was not told to.
        killed: It did not end when it was told to.
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
        """Whether nothing was wrong."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """What ``bgpool rehearse --json`` prints: every field, and *went_through*."""
        return {"went_through": self.went_through, **dataclasses.asdict(self)}


def findings(report: Rehearsed, *, wanted: str, here: int, ended_early: int | None) -> tuple[str, ...]:
    """What is wrong with *report*.

    Args:
        report: Without findings of its own.
        wanted: The outcome that the scenario has.
        here: How many processes were there at the end.
        ended_early: The status of a command that ended before callers were let go; None if it did not.
    """
    return tuple(_findings(report, wanted, here, ended_early))


def _findings(report: Rehearsed, wanted: str, here: int, ended_early: int | None) -> Iterator[str]:
    if report.outcome != wanted:
        yield f"the switchover was to be {wanted}, and is {report.outcome}"
    if ended_early is not None:
        yield f"the command ended in the middle of the switchover, {how(ended_early)}"
    elif report.ended_by_itself and report.exit_status:
        yield f"the command ended by itself, {how(report.exit_status)}"
    gone = [process.pid for process in report.processes if process.fate == "gone"]
    were = sum(process.fate != "came" for process in report.processes)
    if here < were and not report.ended_by_itself:
        yield f"of {were} processes {here} are left; gone: {', '.join(map(str, gone))}"
    if report.requests is not None and report.requests.failed:
        yield f"{report.requests.failed} requests failed"
    if not any(process.checkouts or process.most_held for process in report.processes):
        yield "no caller used a pool during or after the switchover: nothing was shown"


def how(status: int) -> str:
    """How a program ended that has exit status *status*."""
    return f"by signal {-status}" if status < 0 else f"with status {status}"
