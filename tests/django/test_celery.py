"""A Celery task that is started again after its worker process was killed, with its id as the receipt's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bgpool.core.engine import Engine
from bgpool.lab import ledger
from tests.django.test_programs import CELERY, environment
from tests.pools.test_receipts import TABLE, create
from tests.servers.harness import Batch, Stage

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.full]

SEND = "from tests.django.programs import once; once.send({number})"
WAIT_S = 60.0


def come_to(notes: Path) -> list[str]:
    """Return the outcomes of a task's runs, once there are two or the time is up."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
        if len(found) >= 2 or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@pytest.mark.parametrize("engine", list(Engine), ids=lambda engine: engine.value)
def test_a_task_whose_worker_was_killed_right_after_commit_is_applied_once(engine: Engine) -> None:
    with Stage(engine) as stage:
        create(stage.pair)
        settings = environment(stage, {"APP_OPTIONS": f"&bg_receipts_table={TABLE}"})
        command = [part.replace("programs.tasks", "programs.once") for part in CELERY]
        server = stage.serve("celery", command, Batch, settings, before=SEND)
        assert isinstance(server, Batch)
        found = [come_to(server.notes / f"of 1.{slot}.1") for slot in range(2)]
        stage.stop()
        # The function was called once, and the second run received that result.
        assert found == [["called", "True"]] * 2, server.output
        assert server.output.count("SIGKILL") >= 2, server.output
        keys = [row.key for row in ledger.read(stage.pair.blue) if row.key[0] == 1]
        assert sorted(keys) == [(1, 0, 1), (1, 1, 1)]
