"""Both commands through a switchover of real servers, under load."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bgpool.lab.scenarios.scenario import FAST
from bgpool.lab.trial import Trial
from tests.cli.conftest import PROGRAM
from tests.pools.callers import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_watched_through_a_switchover(environment: dict[str, str], tmp_path: Path) -> None:
    began: list[subprocess.Popen[bytes]] = []
    log = tmp_path / "watch.log"

    def status(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*PROGRAM, "status", "--run-dir", str(trial.run_dir), *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def begin() -> None:
        wait_until(lambda: status("--ready").returncode == 0, 60)
        command = [*PROGRAM, "watch", "--run-dir", str(trial.run_dir), "--json", "--until-done", "--timeout", "120"]
        with log.open("wb") as file:
            began.append(subprocess.Popen(command, env=environment, stdout=file))
        wait_until(lambda: b'"phase": "CREATED"' in log.read_bytes(), 60)

    options = {"bg_interval_baseline_ms": 500, "bg_interval_high_ms": 50}
    # Prepared for longer than the monitor waits between two looks: every phase is seen.
    schedule = replace(FAST, initiated_s=-2.0)
    with Trial(workers=4, threads=2, schedule=schedule, pool_options=options, on_ready=begin) as trial:
        report = trial.run()
        assert began[0].wait(120) == 0
        (after,) = json.loads(status("--json").stdout)
        assert status("--ready").returncode == 1
    assert report.verdict.clean, report.verdict
    told = [json.loads(line) for line in log.read_text().splitlines()]
    phases = [line["event"] for line in told if line["event"] in ("PREPARATION", "IN_PROGRESS", "POST", "COMPLETED")]
    assert phases == ["PREPARATION", "IN_PROGRESS", "POST", "COMPLETED"]
    assert max(line["held"] for line in told) > 0
    assert max(line["drained"] for line in told) > 0
    assert (after["phase"], after["last_switchover"]["outcome"]) == ("COMPLETED", "completed")
    assert after["last_switchover"]["evidence"] == report.evidence
