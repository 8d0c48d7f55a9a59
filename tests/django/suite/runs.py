"""Runs Django's tests in a separate process, and compares the outcome of each test with two engines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import django

from tests.django.suite import DATABASES, OUTCOMES

__all__ = ["MISFITS", "Run", "label", "lost", "run"]

REPOSITORY: Final = Path(__file__).parents[3]

_PRIVATE: Final = "'OpenPool' object has no attribute '_check'"
MISFITS: Final = {
    "backends.postgresql.tests.Tests.test_pooling_health_checks": _PRIVATE,
    "backends.postgresql.tests.Tests.test_pool_check_can_be_overridden": _PRIVATE,
}
"""Tests that cannot pass with our engines, and what they fail with: they look into a private attribute of a pool of
psycopg_pool's, where ours is another pool."""


@dataclass(frozen=True)
class Run:
    """The outcome of the tests.

    Attributes:
        engine: The setting ENGINE.
        phase: The deployment's phase in the process at the end; empty if it took part in no deployment.
        outcomes: By test: ``passed``, ``skipped``, ``misfit`` (see MISFITS) or ``failed``, and why.
    """

    engine: str
    phase: str
    outcomes: Mapping[str, tuple[str, str]]

    def of(self, outcome: str) -> set[str]:
        """The tests with this outcome."""
        return {test for test, (became, _) in self.outcomes.items() if became == outcome}

    def __str__(self) -> str:
        counts = Counter(outcome for outcome, _ in self.outcomes.values())
        told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "misfit", "skipped"))
        where = f", in {self.phase}" if self.phase else ""
        return f"Django {django.__version__}, {self.engine}{where}: {told}"


def run(
    tree: Path,
    databases: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
    scratch: Path,
    *,
    environment: Mapping[str, str],
    timeout_s: float,
) -> Run:
    """Run Django's tests of *labels*.

    Args:
        tree: The sdist.
        databases: The setting DATABASES.
        labels: Names of applications, modules, classes or tests.
        scratch: A directory for the runner's files.
        environment: More environment variables.
        timeout_s: The time limit, in seconds.

    Raises:
        AssertionError: The run did not end.
    """
    told = scratch / "outcomes.json"
    told.unlink(missing_ok=True)
    command = [
        sys.executable, "runtests.py", "--settings", "tests.django.suite.settings", "--parallel", "1", "--noinput",
        "--verbosity", "0", *labels,
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH", ""))))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "BGPOOL_"))}
    given = {OUTCOMES: str(told), DATABASES: json.dumps(databases), "PYTHONPATH": path, **environment}
    done = subprocess.run(
        command, cwd=tree / "tests", env=inherited | given, capture_output=True, text=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip
    finished = done.returncode in (0, 1) and told.exists()
    assert finished, (
        f"it ended with {done.returncode}: {done.stdout[-3000:]}{done.stderr[:9000]} ... {done.stderr[-6000:]}"
    )
    read = json.loads(told.read_text(encoding="utf-8"))
    outcomes = {test: _judged(test, outcome, reason) for test, (outcome, reason) in read.pop("outcomes").items()}
    return Run(**read, outcomes=outcomes)


def _judged(test: str, outcome: str, reason: str) -> tuple[str, str]:
    is_misfit = outcome == "failed" and test in MISFITS and MISFITS[test] in reason
    return "misfit" if is_misfit else outcome, reason


def lost(plain: Run, ours: Run, again: Callable[[Sequence[str]], tuple[Run, Run]]) -> dict[str, str]:
    """Return the tests that pass with Django's engine but not with bgpool's, each with its outcome.

    Args:
        plain: The run with Django's engine.
        ours: The run with bgpool's engine.
        again: Runs applications with both engines. Tests that fail intermittently with any engine are run again, with
            all
            tests of their application: a test may depend on those before it.
    """
    suspects = plain.of("passed") - ours.of("passed") - ours.of("misfit")
    if suspects:
        plain, ours = again(sorted({_application(test) for test in suspects}))
        suspects &= plain.of("passed") - ours.of("passed")
    return {test: "\n".join(ours.outcomes.get(test, ("not run", ""))) for test in sorted(suspects)}


def label(test: str) -> str:
    """Return Django's name for *test*; unittest's is ``setUpClass (application.…)`` if that has failed."""
    return re.sub(r"^\w+ \((.*)\)$", r"\1", test)


def _application(test: str) -> str:
    """The application of *test*."""
    return label(test).partition(".")[0]
