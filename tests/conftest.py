"""What all tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from bgpool import registry


@pytest.fixture(autouse=True, scope="module")
def no_pool_outlives_its_module() -> Iterator[None]:
    """Later tests of the process would meet its threads, its rows and its log lines, or get it for the same DSN."""
    yield
    for pool in registry.pools():
        pool.close(timeout=0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have recorded as ``told``: a result that is more than passed or failed."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "told":
                terminalreporter.write_line(str(value))


@pytest.fixture
def patient_threads() -> Iterator[None]:
    """Keeps other threads from asking for the interpreter lock during a fork without hooks, which would lose it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)
