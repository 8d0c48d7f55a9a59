"""Runs SQLAlchemy's tests in a separate pytest, and compares the outcome of each test with two dialects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy

from tests.sqlalchemy.suite import plugin

__all__ = ["Run", "lost", "run"]

REPOSITORY: Final = Path(__file__).parents[3]

REFUSED: Final = {
    "::test_multiple_host_real_connect[": "ConfigurationError: create_engine: host: the URL names several",
    "::test_recycle_pool_no_race": "ConfigurationError: create_engine(pool=…) makes the connections itself",
    "::test_ensure_version_is_qualified": "ConfigurationError: a do_connect listener returned a connection of its own",
    "::test_pool_classes[instantiate-": "ConfigurationError: create_async_engine(pool=…) makes the connections itself",
    "::test_async_creator_": "ConfigurationError: create_async_engine(async_creator=…) makes the connections itself",
    # bgpool's dialect ends connections that no task can await; SQLAlchemy's dialect for psycopg does not yet.
    "::test_dialect_supports_terminate": "Unexpected success",
    # Of a pool's name, which the plugin has changed.
    "::test_cant_use_async_pool_w_create_engine": "Pool class GatedAsyncAdaptedQueuePool",
}
"""Tests, by a part of their names, of what bgpool refuses on purpose, or does, and the sentence that is said."""


@dataclass(frozen=True)
class Run:
    """The outcome of the tests.

    Attributes:
        dialect: The name of the dialect's class.
        phase: The deployment's phase in the process at the end; empty with SQLAlchemy's own dialects.
        outcomes: By test: ``passed``, ``skipped``, ``refused`` (by bgpool, on purpose) or ``failed``, and why.
    """

    dialect: str
    phase: str
    outcomes: Mapping[str, tuple[str, str]]

    def of(self, outcome: str) -> set[str]:
        """The tests with this outcome."""
        return {test for test, (became, _) in self.outcomes.items() if became == outcome}

    def __str__(self) -> str:
        counts = Counter(outcome for outcome, _ in self.outcomes.values())
        told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "refused", "skipped"))
        return f"SQLAlchemy {sqlalchemy.__version__}, {self.dialect}: {told}"


def run(
    tree: Path,
    url: str,
    selection: Sequence[str],
    scratch: Path,
    *,
    options: Sequence[str] = (),
    timeout_s: float,
) -> Run:
    """Run *selection* of SQLAlchemy's tests.

    Args:
        tree: The sdist.
        url: The URL of the database.
        selection: Files, folders or tests, by their path in the tree.
        scratch: A directory for the run's files.
        options: More options of pytest.
        timeout_s: The time limit, in seconds.

    Raises:
        AssertionError: The run did not end.
    """
    told = scratch / "outcomes.json"
    told.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pytest", "-p", plugin.__name__, "-p", "no:cacheprovider", "-p", "no:xdist",
        "-o", "addopts=", "--quiet", "--tb=short", "--timeout=60", "--dropfirst", "--dburi", url, *options, *selection,
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH", ""))))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "BGPOOL_"))}
    # PYTHONNOUSERSITE: their conftest then leaves the installed SQLAlchemy where it is, and does not take the sdist's.
    given = {plugin.OUTCOMES: str(told), "PYTHONPATH": path, "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        command, cwd=tree, env=inherited | given, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    finished = done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and told.exists()
    assert finished, f"pytest ended with {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    read = json.loads(told.read_text(encoding="utf-8"))
    outcomes = {test: _judged(test, outcome, reason) for test, (outcome, reason) in read.pop("outcomes").items()}
    return Run(**read, outcomes=outcomes)


def _judged(test: str, outcome: str, reason: str) -> tuple[str, str]:
    refused = outcome == "failed" and any(name in test and said in reason for name, said in REFUSED.items())
    return "refused" if refused else outcome, reason


def lost(plain: Run, ours: Run, again: Callable[[Sequence[str]], tuple[Run, Run]]) -> dict[str, str]:
    """Return the tests that pass with SQLAlchemy's dialect but not with bgpool's, each with its outcome.

    Args:
        plain: The run with SQLAlchemy's dialect.
        ours: The run with bgpool's dialect.
        again: Runs a selection with both dialects. Tests that fail intermittently with any dialect are run again, with
            all
            tests of their file: a test may depend on those before it.
    """
    suspects = plain.of("passed") - ours.of("passed") - ours.of("refused")
    if suspects:
        plain, ours = again(sorted({test.partition("::")[0] for test in suspects}))
        suspects &= plain.of("passed") - ours.of("passed")
    return {test: "\n".join(ours.outcomes.get(test, ("not run", ""))) for test in sorted(suspects)}
