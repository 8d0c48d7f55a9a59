"""What a trial came to: the ledger's verdict, and what the application's threads went through."""

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
#: Between the moment that the monitor notes for a release and the one at which a worker can see it, in seconds.
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
    """What a trial came to. Times are in seconds.

    Attributes:
        verdict: The ledger's.
        undecided: Units of work of whose COMMIT the server could not tell what became of it, which is no fault.
        errors: Calls that an application saw fail, threads that never came back, and workers that crashed.
        missing: Threads that never came back, and workers that crashed.
        error_examples: The first few of them, by worker.
        error_counts: How many there were of each kind: the name of the exception's class.
        calls: Calls that were answered.
        longest_call_s: The longest that a caller waited, whatever became of it.
        longest_gap_s: Longest time that a writing thread was without an acknowledged write, up to the end.
        down_s: The longest outage for a client that knows both addresses: from the last write that one side took to
            the next that either did.
        evidence: What released the callers, as the timeline has it; empty if nothing did.
        release_s: From the moment that the evidence was there to the release.
        resume_s: From the same moment, or from the rollback, to the first answer of the last thread.
        strays: Connections to the wrong side.
        monitoring_connections: Most that were open on both servers together, while the deployment was watched.
        snapshot: The last one published; its timeline is the summary.
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
        """Whether no row is wrong and nobody is missing."""
        return self.verdict.clean and not self.missing

    @property
    def excess_s(self) -> float:
        """The part of the longest gap that the database did not cause."""
        return self.longest_gap_s - self.down_s


def release_of(snapshot: Snapshot | None) -> TimelineEntry | None:
    """The entry of the release in the timeline of *snapshot*."""
    entries = snapshot.timeline if snapshot is not None else ()
    return next((entry for entry in reversed(entries) if entry.event == Phase.POST.name), None)


def resume_s(crew: Iterable[Worker], evidence_s: float) -> float | None:
    """From *evidence_s* to the first answer of the last thread; None if a thread got none."""
    firsts = [
        next((ended_s for ended_s in times if ended_s > evidence_s), None)
        for worker in crew
        for times in worker.write_times()
    ]
    return None if not firsts or None in firsts else max(first for first in firsts if first is not None) - evidence_s


def strays(
    crew: Sequence[Worker], old_blue: set[str], green: set[str], drained_s: float, released_s: float
) -> list[Stray]:
    """Connections handed out to *old_blue* (addresses) after *released_s*, or to *green* between *drained_s* and it."""
    found = []
    for worker in crew:
        for call in worker.calls:
            after_s = call.checked_out_s - released_s
            late = call.address in old_blue and after_s > PUBLISH_S and call.began_s > released_s
            early = call.address in green and drained_s < call.checked_out_s and after_s < -PUBLISH_S
            if late or early:
                found.append(Stray(worker.number, worker.endpoint, call.address, after_s))
    return found
