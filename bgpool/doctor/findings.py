"""What a check finds, and the lists that checks are kept in.

A check is a function from a subject (the case, a server, the endpoints of a side) to a verdict, with a name and a
question. To add one is to write the function and decorate it:

>>> @server_checks.check("extension", "Is the extension rds_tools installed?")
... def _extension(server: Server) -> Verdict:
...     return ok("rds_tools 1.7")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

__all__ = [
    "Checks",
    "EarlyVerdict",
    "Finding",
    "Result",
    "Verdict",
    "exit_code",
    "failed",
    "not_checked",
    "ok",
    "warning",
]

S = TypeVar("S")


class Result(Enum):
    """How a check came out; the value is how it is written."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says.

    Attributes:
        text: What was found, in one line; of a check that was not made, why not.
        remedy: What to do, in one line, statements and parameters as they are to be written; empty where nothing is.
    """

    result: Result
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, with what was asked and of whom.

    Attributes:
        where: ``parameters``, ``this host``, ``fleet``, ``deployment``, ``blue``, ``green`` or ``replication``.
        check: The check's name, unique together with *where*.
    """

    where: str
    check: str
    question: str
    result: Result
    text: str
    remedy: str = ""


class EarlyVerdict(Exception):
    """The check is over: what it needed could not be had. Raised by whatever a check calls."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.text)
        self.verdict: Final = verdict


class Checks(Generic[S]):
    """The checks of one kind of subject, in the order in which they were written."""

    def __init__(self) -> None:
        self._checks: Final[list[tuple[str, str, Callable[[S], Verdict]]]] = []

    def check(self, name: str, question: str) -> Callable[[Callable[[S], Verdict]], Callable[[S], Verdict]]:
        """Add the function that is decorated."""

        def add(function: Callable[[S], Verdict]) -> Callable[[S], Verdict]:
            self._checks.append((name, question, function))
            return function

        return add

    def run(self, subject: S, where: str) -> list[Finding]:
        """Put every question to *subject*; what goes wrong with one keeps none of the others."""
        findings = []
        for name, question, function in self._checks:
            try:
                verdict = function(subject)
            except EarlyVerdict as early:
                verdict = early.verdict
            except Exception as error:
                # Not its text: whatever it is, nobody has looked at it for secrets.
                verdict = failed(f"the check itself failed: {type(error).__name__}", "report this as a bug of bgpool")
            findings.append(Finding(where, name, question, verdict.result, verdict.text, verdict.remedy))
        return findings


def ok(text: str) -> Verdict:
    """As it should be."""
    return Verdict(Result.OK, text)


def warning(text: str, remedy: str) -> Verdict:
    """A switchover will do, but not as well as it could."""
    return Verdict(Result.WARNING, text, remedy)


def failed(text: str, remedy: str) -> Verdict:
    """A prerequisite is missing."""
    return Verdict(Result.FAILED, text, remedy)


def not_checked(why: str) -> Verdict:
    """Nothing is known, and nothing guessed."""
    return Verdict(Result.NOT_CHECKED, why)


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if a check failed, else 0."""
    return int(any(finding.result is Result.FAILED for finding in findings))
