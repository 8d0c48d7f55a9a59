"""The result of a trial: the ledger's verdict, and the measurements of the application's threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot, TimelineEntry
from bgpool.lab.ledger import Verdict
from bgpool.lab.worker import Worker

__all__ = ["Report", "Stray", "release_of", "strays"]

MOST_EXAMPLES: Final = 20
#: The time between the monitor's recorded release and its visibility to a worker, in seconds.
PUBLISH_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Stray:
    """A connection to the wrong side that was handed out: after the release to old blue, before it to green."""

    worker: int
    endpoint: str
    address: str
    after_release_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a trial. Times are in seconds.

    Attributes:
        verdict: The ledger's verdict.
        undecided: The number of units of work whose COMMIT has an outcome that the server could not tell, which is no
            fault.
        errors: The number of failed calls, threads that never returned, and workers that crashed.
        missing: The number of threads that never returned, and workers that crashed.
        error_examples: The first few errors, by worker.
        error_counts: The number of errors of each kind: the name of the exception's class.
        calls: The number of calls that were answered.
        longest_call_s: The longest time that a caller waited, whatever the outcome.
        longest_gap_s: The longest time that a writing thread was without an acknowledged write, up to the end.
        down_s: The longest outage for a client that knows both addresses: from the last write that one side accepted to
            the next that either did.
        evidence: The evidence that released the callers, as named in the timeline; empty if there was no release.
        release_s: The time from the evidence to the release.
        resume_s: The time from the evidence, or from the rollback, to the first answer of the last thread.
        strays: Connections to the wrong side.
        monitoring_connections: The largest number that was open on both servers together, while the deployment was
            watched.
        snapshot: The last snapshot published; its timeline is the summary.
    """

    verdict: Verdict
    undecided: int
    errors: int
    missing: int
    error_examples: tuple[str, ...]
    calls: int
    longest_call_s: float
    longest_gap_s: float
    down_s: float
    evidence: str
    release_s: float | None
    resume_s: float | None
    strays: tuple[Stray, ...]
    monitoring_connections: int
    snapshot: Snapshot | None
    error_counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """True if no row is wrong, and no thread or worker is missing."""
        return self.verdict.clean and not self.missing

    @property
    def excess_s(self) -> float:
        """The part of the longest gap that the database did not cause."""
        return self.longest_gap_s - self.down_s


def release_of(snapshot: Snapshot | None) -> TimelineEntry | None:
    """Return the entry of the release in the timeline of *snapshot*."""
    entries = snapshot.timeline if snapshot is not None else ()
    return next((entry for entry in reversed(entries) if entry.event == Phase.POST.name), None)


def resume_s(crew: Iterable[Worker], evidence_s: float) -> float | None:
    """Return the time from *evidence_s* to the first answer of the last thread; None if a thread got none."""
    firsts = [
        next((ended_s for ended_s in times if ended_s > evidence_s), None)
        for worker in crew
        for times in worker.write_times()
    ]
    return None if not firsts or None in firsts else max(first for first in firsts if first is not None) - evidence_s


def strays(
    crew: Sequence[Worker], old_blue: set[str], green: set[str], drained_s: float, released_s: float
) -> list[Stray]:
    """Return connections to *old_blue* (addresses) after *released_s*, or to *green* from *drained_s* until it."""
    found = []
    for worker in crew:
        for call in worker.calls:
            after_s = call.checked_out_s - released_s
            late = call.address in old_blue and after_s > PUBLISH_S and call.began_s > released_s
            early = call.address in green and drained_s < call.checked_out_s and after_s < -PUBLISH_S
            if late or early:
                found.append(Stray(worker.number, worker.endpoint, call.address, after_s))
    return found
