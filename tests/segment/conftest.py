"""A segment in a directory of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgpool.core.fleet import FleetRole, FleetView
from bgpool.core.observations import Observation, Parameters, Visibility
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Notice, Snapshot, TimelineEntry
from bgpool.segment.paths import RunFiles, prepare_run_dir

Fork = Callable[[Callable[[], object]], int]


@pytest.fixture
def fork() -> Iterator[Fork]:
    """Runs a function in a child; children that are left are killed."""
    pids: list[int] = []

    def start(function: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                function()
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
        return pid

    yield start
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    directory = tmp_path / "run"
    prepare_run_dir(directory)
    return RunFiles.of(directory, "orders")


@pytest.fixture
def snapshot() -> Snapshot:
    """One with something in every field."""
    return Snapshot(
        bg_id="orders",
        phase=Phase.POST,
        epoch=3,
        ready=True,
        target_max_connections=100,
        pinned=True,
        source_reading=Phase.IN_PROGRESS,
        hosts=(Host("blue", 5432, Role.SOURCE, ("10.0.0.1",)), Host("green", 5432, Role.TARGET, ("::1", "10.0.0.2"))),
        twins=(("blue", "green"),),
        deadline_ns=123,
        timeline=(TimelineEntry(1, 2, "CREATED"),),
        observations=(Observation(Parameters("app", "orders.c0abc", 5432, "orders"), Visibility.REFUSED, 6, 2),),
        notices=(Notice(1, 20, "bgpool.switchover", "ready", "ready"),),
        fleet=FleetView(FleetRole.DIRECT, "web-2", 30, 5, "the bus is silent", 2),
    )
