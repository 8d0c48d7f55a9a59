"""The suite of real monitors, in a process of its own.

Its monitors run in threads, so that a test can inspect them. A monitor's threads end only with its process: in this
process hundreds of them would remain, and disturb tests that count threads and fork.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(600)]

SUITE = Path(__file__).with_name("monitors_suite.py")


@pytest.mark.parametrize("part", ["not full", pytest.param("full", marks=pytest.mark.full)])
def test_the_suite_passes(part: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", part, str(SUITE)]
    done = subprocess.run(
        command, cwd=SUITE.parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=580
    )
    assert done.returncode == 0, done.stdout[-20_000:]
