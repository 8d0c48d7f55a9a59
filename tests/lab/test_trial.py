"""A trial on real servers detects a hanging thread, and a missing worker, even if nothing else is wrong."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from typing import Any

import pytest

from bgpool.lab import worker as worker_module
from bgpool.lab.ledger import Key
from bgpool.lab.scenarios import find, play
from bgpool.lab.trial import Trial

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.mark.full
def test_a_thread_that_hangs_is_found_in_a_rollback(monkeypatch: pytest.MonkeyPatch) -> None:
    do = worker_module._Jobs.do

    def hang(jobs: Any, job: Any, pool: Any, key: Key) -> Any:
        if key == (1, 1, 20):
            threading.Event().wait()
        return do(jobs, job, pool, key)

    monkeypatch.setattr(worker_module._Jobs, "do", hang)
    monkeypatch.setattr(worker_module, "LEAVE_S", 5.0)
    outcome = play(find("rollback-from-in-progress"))
    found = "\n".join(outcome.findings)
    assert "worker 1: thread 1: call 20 never came back" in found
    assert "a thread never continued" in found
    assert outcome.report.excess_s > 1.0
    assert outcome.report.verdict.clean
    assert outcome.report.missing == 1
    assert not outcome.report.clean


@pytest.mark.full
def test_a_worker_that_is_gone_at_the_end_is_found() -> None:
    def stage(trial: Trial) -> None:
        # After all threads have resumed, so that nothing else shows it.
        trial.director.add("worker gone", 2.4, lambda: os.kill(trial.crew[2].pid, signal.SIGKILL))

    outcome = play(replace(find("rds"), stage=stage))
    (finding,) = outcome.findings
    assert f"worker 2: ended with exit status {-signal.SIGKILL}" in finding
    assert outcome.report.verdict.clean
    assert outcome.report.missing >= 1
    assert not outcome.report.clean
