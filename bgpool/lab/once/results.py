"""The result of one switchover or failover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from bgpool.lab.ledger import Verdict
from bgpool.lab.worker import Worker

__all__ = ["Part", "Result", "part_of"]

MOST_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Part:
    """The outcomes of some workers' units.

    Attributes:
        units: The number of units that were answered.
        unknown: The number of units that ended with CommitOutcomeUnknown.
        errors: The number of units that ended with another error, threads that never returned, and workers that
            crashed.
        again, already: The number of tasks of killed workers that were run again: applied, and found applied.
        examples: The first errors.
    """

    units: int = 0
    unknown: int = 0
    errors: int = 0
    again: int = 0
    already: int = 0
    longest_call_s: float = 0.0
    examples: tuple[str, ...] = ()

    def __add__(self, other: Part) -> Part:
        return Part(
            self.units + other.units,
            self.unknown + other.unknown,
            self.errors + other.errors,
            self.again + other.again,
            self.already + other.already,
            max(self.longest_call_s, other.longest_call_s),
            (*self.examples, *other.examples)[:MOST_EXAMPLES],
        )


def part_of(crew: Sequence[Worker]) -> Part:
    """Return the outcomes of the units of *crew*, which has ended."""
    errors = [f"worker {worker.number}: {error}" for worker in crew for error in worker.errors]
    return Part(
        units=sum(len(worker.calls) for worker in crew),
        unknown=sum(worker.undecided for worker in crew),
        errors=len(errors),
        again=sum(len(worker.applied) for worker in crew),
        already=sum(len(worker.already) for worker in crew),
        longest_call_s=max((worker.longest_call_s for worker in crew), default=0.0),
        examples=tuple(errors[:MOST_EXAMPLES]),
    )


@dataclass(frozen=True, slots=True)
class Result:
    """One switchover or failover.

    Attributes:
        seed, story, hold: The values that were drawn.
        open_commits: The number of the application's COMMITs that were under way when they were cut.
        kills: The number of workers and monitors that were killed.
        lost, doubled, split, half: The numbers of rows, of all workers; see `Verdict`.
        abandoned: The number of acknowledged rows that only the former primary has: its replication lost them.
        receipts, without: The workers whose units leave receipts, and the others.
        findings: Descriptions of everything that is wrong.
        took_s: The duration of the whole run, in seconds.
    """

    seed: int
    story: str
    hold: str
    open_commits: int
    kills: int
    rows: int
    lost: int
    doubled: int
    split: int
    half: int
    abandoned: int
    receipts: Part
    without: Part
    findings: tuple[str, ...]
    took_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the line of the journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Result:
        """Return the result of a line that `to_json` returned.

        Raises:
            KeyError, TypeError: It is no such line.
        """
        values = {field.name: line[field.name] for field in fields(cls)}
        parts = {
            name: Part(**{**values[name], "examples": tuple(values[name]["examples"])})
            for name in ("receipts", "without")
        }
        return cls(**{**values, **parts, "findings": tuple(values["findings"])})


def findings_of(verdict: Verdict, receipts: Part, without: Part, *, is_failover: bool, may_ask: bool) -> list[str]:
    """Return descriptions of everything that is wrong.

    Args:
        verdict: The ledger's verdict.
        receipts, without: The outcomes of the units.
        is_failover: True if units without receipts may fail, because no client runs them again.
        may_ask: True if servers can tell the outcome of a COMMIT also without receipts.
    """
    found = []
    if not verdict.clean:
        found.append(f"rows: {verdict}")
    if receipts.errors:
        found.append(f"{receipts.errors} callers with receipts saw an error: {receipts.examples}")
    if receipts.unknown:
        found.append(f"{receipts.unknown} units with receipts have an unknown outcome")
    if without.errors and not is_failover:
        found.append(f"{without.errors} callers without receipts saw an error: {without.examples}")
    if without.unknown and may_ask:
        found.append(f"{without.unknown} units without receipts have an unknown outcome")
    return found
