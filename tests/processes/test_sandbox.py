"""On kernels and in sandboxes that refuse some system calls, a switchover succeeds, and the refusals are logged."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bgpool.segment import kernel_features
from tests.docs.pages import ROOT
from tests.processes.sandbox import REFUSALS

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([*REFUSALS], id="all"),
        *(pytest.param([name], id=name, marks=pytest.mark.full) for name in REFUSALS),
    ],
)
def test_a_switchover_succeeds_and_the_refusals_are_logged(names: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.processes.sandbox", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["clean"], told
    assert told["acknowledged"] > 200
    # Two workers of two threads: each thread may report the transaction that was cut.
    assert len(told["errors"]) <= 4, told
    # The same bound as in tests/processes/test_switchover.py.
    assert told["excess_s"] < 2.0
    assert told["phase"] == "COMPLETED"
    # The first monitor lives all the time, and it sees the workers.
    assert told["monitors"] == [["alive", 1]]
    assert told["workers"] == 2
    lacking = sorted({lack.name for lack in kernel_features.LACKS.values()} & {*names})
    assert told["lacks"] == lacking
    assert {*lacking} <= {*told["notes"]}
    result, text = told["doctor"]["kernel"]
    assert result == ("warning" if lacking else "ok")
    assert all(name in text for name in lacking)
    assert told["doctor"]["locks"][0] == "ok"
    assert told["doctor"]["wake"][0] == ("warning" if "futex" in lacking else "ok")
