"""The findings of checks, and the lists that checks are registered in.

A check is a function from a subject (the case, a server, the endpoints of a side) to a verdict, with a name and a
question. To add one, write the function and decorate it:

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
    """The result of a check. The value is its name in the output."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of a check.

    Attributes:
        text: The finding in one line; for a check that was not made, the reason.
        remedy: The remedy in one line, with statements and parameters to paste; empty if there is nothing to do.
    """

    result: Result
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, with its question and its subject.

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
    """The check ends, because something that it needs is not available. Raised by functions that checks call."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.text)
        self.verdict: Final = verdict


class Checks(Generic[S]):
    """The checks of one kind of subject, in the order of their registration."""

    def __init__(self) -> None:
        self._checks: Final[list[tuple[str, str, Callable[[S], Verdict]]]] = []

    def check(self, name: str, question: str) -> Callable[[Callable[[S], Verdict]], Callable[[S], Verdict]]:
        """Return a decorator that registers a check."""

        def add(function: Callable[[S], Verdict]) -> Callable[[S], Verdict]:
            self._checks.append((name, question, function))
            return function

        return add

    def run(self, subject: S, where: str) -> list[Finding]:
        """Run all checks on *subject*; an error in one does not affect the others."""
        findings = []
        for name, question, function in self._checks:
            try:
                verdict = function(subject)
            except EarlyVerdict as early:
                verdict = early.verdict
            except Exception as error:
                # Without the error's text, which may contain secrets.
                verdict = failed(f"the check itself failed: {type(error).__name__}", "report this as a bug of bgpool")
            findings.append(Finding(where, name, question, verdict.result, verdict.text, verdict.remedy))
        return findings


def ok(text: str) -> Verdict:
    """Return the verdict that all is well."""
    return Verdict(Result.OK, text)


def warning(text: str, remedy: str) -> Verdict:
    """Return the verdict that a switchover works, but not as well as possible."""
    return Verdict(Result.WARNING, text, remedy)


def failed(text: str, remedy: str) -> Verdict:
    """Return the verdict that a prerequisite is missing."""
    return Verdict(Result.FAILED, text, remedy)


def not_checked(why: str) -> Verdict:
    """Return the verdict that nothing is known."""
    return Verdict(Result.NOT_CHECKED, why)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 if a check failed, else 0."""
    return int(any(finding.result is Result.FAILED for finding in findings))
