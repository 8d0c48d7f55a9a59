"""What one switchover or failover came to."""

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
    """What became of the units of some workers.

    Attributes:
        units: Those that were answered.
        unknown: Those that ended with CommitOutcomeUnknown.
        errors: Those that ended with another error, threads that never came back, and workers that crashed.
        again, already: Tasks of killed workers that were run again: applied, and found applied.
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
    """What became of the units of *crew*, which has ended."""
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
        seed, story, hold: As it was drawn.
        open_commits: COMMITs of the application that were under way when they were cut.
        kills: Workers and monitors that were killed.
        lost, doubled, split, half: Rows, of all workers; see `Verdict`.
        abandoned: Acknowledged rows that only the former primary has: its replication lost them.
        receipts, without: The workers whose units leave receipts, and the others.
        findings: What is wrong, in words.
        took_s: How long all of it took, in seconds.
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
        """As a line of the journal has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Result:
        """What `to_json` gave.

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
    """What is wrong, in words.

    Args:
        verdict: The ledger's.
        receipts, without: What became of the units.
        is_failover: Units without receipts may fail: nobody runs them again.
        may_ask: Also without receipts, servers can tell what became of a COMMIT.
    """
    found = []
    if not verdict.clean:
        found.append(f"rows: {verdict}")
    if receipts.errors:
        found.append(f"{receipts.errors} callers with receipts saw an error: {receipts.examples}")
    if receipts.unknown:
        found.append(f"of {receipts.unknown} units with receipts nobody can tell what became of them")
    if without.errors and not is_failover:
        found.append(f"{without.errors} callers without receipts saw an error: {without.examples}")
    if without.unknown and may_ask:
        found.append(f"of {without.unknown} units without receipts nobody can tell what became of them")
    return found
