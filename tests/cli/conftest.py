"""A run directory with a hand on its segment, and real processes that hold rows. No server, and no DSN."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bgpool.core.events import Instant
from bgpool.core.observations import Observation, Parameters, Visibility
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.snapshot import EPOCH_OF_DECISION, Host, Snapshot, TimelineEntry
from bgpool.segment import history
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import Presence
from bgpool.segment.reader import Reader
from bgpool.segment.table import Usage
from bgpool.segment.writer import Superseded, Writer
from tests.pools.callers import wait_until

BLUE, GREEN = "ledger.c0abc.eu-west-1.rds.amazonaws.com", "ledger-green-x1y2z3.c0abc.eu-west-1.rds.amazonaws.com"


class Hand:
    """Publishes snapshots, writes heartbeats and keeps the history like a monitor.

    Attributes:
        files: The files of the deployment.
        snapshot: The last published snapshot.
        writer: The writer of its segment.
    """

    def __init__(self, directory: Path, bg_id: str) -> None:
        prepare_run_dir(directory)
        self.files = RunFiles.of(directory, bg_id)
        self.snapshot = Snapshot(
            bg_id,
            Phase.CREATED,
            ready=True,
            source_reading=Phase.CREATED,
            target_reading=Phase.CREATED,
            source_read_only=False,
            target_read_only=True,
            hosts=(Host(BLUE, 5432, Role.SOURCE, ("10.0.0.1",)), Host(GREEN, 5432, Role.TARGET, ("10.0.0.2",))),
            twins=((BLUE, GREEN),),
            observations=(
                Observation(Parameters("app", BLUE, 5432, "reports"), Visibility.MISSING, 1),
                Observation(Parameters("app", BLUE, 5432, "ledger"), Visibility.SEEN, 2),
            ),
        )
        self.writer = Writer(self.files, 3, self.snapshot)

    def publish(self, **changes: Any) -> None:
        """Change the snapshot."""
        self.snapshot = replace(self.snapshot, **changes)
        self.writer.publish(self.snapshot)

    def enter(self, phase: Phase, evidence: str = "", *, event: str = "", **changes: Any) -> None:
        """Go to *phase* as a switchover does, with a row in the summary, and a record once it has ended."""
        at = Instant(time.monotonic_ns(), time.time_ns())
        begins = phase is Phase.PREPARATION
        entry = TimelineEntry(at.mono_ns, at.wall_ns, event or phase.name, evidence)
        self.publish(
            phase=phase,
            epoch=self.snapshot.epoch + EPOCH_OF_DECISION * (phase is Phase.IN_PROGRESS),
            deadline_ns=at.mono_ns + 60 * 10**9 if phase in SWITCHING else 0,
            timeline=(*(() if begins else self.snapshot.timeline), entry),
            rolled_back=phase is Phase.CREATED,
            **changes,
        )
        history.keep(self.files, self.snapshot)

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Write heartbeats within the block."""
        over = threading.Event()

        def beat() -> None:
            # A monitor that was replaced by another one stops its heartbeat.
            with contextlib.suppress(Superseded):
                while not over.wait(0.05):
                    self.writer.beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The run directory."""
    return tmp_path / "run"


@pytest.fixture
def hand(run_dir: Path) -> Iterator[Hand]:
    """A deployment that is ready, and a monitor that is alive."""
    hand = Hand(run_dir, "ledger")
    with hand.alive():
        yield hand


#: Starts a worker, with its usage and whether it continues to write it and to apply snapshots; returns its pid.
StartWorker = Callable[..., int]


@pytest.fixture
def start_worker(run_dir: Path) -> Iterator[StartWorker]:
    """Forks processes that hold rows, and ends them."""
    pids: list[int] = []

    def start(*, bg_id: str = "ledger", applies: bool = True, **usage: int) -> int:
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _work(RunFiles.of(run_dir, bg_id), Usage(**{"taking_part": 1, **usage}), tell, applies=applies)
            finally:
                os._exit(1)
        pids.append(pid)
        os.close(tell)
        assert os.read(told, 1) == b"!", "the worker never began"
        os.close(told)
        return pid

    yield start
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _work(files: RunFiles, usage: Usage, tell: int, *, applies: bool) -> None:
    """Do the work of a participant's watcher on its row."""
    presence, reader = Presence(files), Reader(files)
    first = True
    while first or os.getppid() > 1:
        reader.check_path()
        reading = reader.refresh()
        if first or applies:
            usage = usage._replace(sequence=reading.sequence)
        presence.write(usage)
        if first:
            os.write(tell, b"!")
        first = False
        reading.wait_changed(0.1)


Command = Callable[..., "subprocess.CompletedProcess[str]"]

#: The console script, wherever the package is.
PROGRAM = [sys.executable, "-c", "from bgpool.cli import main; main()"]


@pytest.fixture
def environment() -> dict[str, str]:
    """Nothing that would tell a command where a database or a run directory is, or how wide a terminal."""
    hidden = ("PG", "MYSQL", "BGPOOL", "XDG_RUNTIME_DIR", "COLUMNS", "FORCE_COLOR", "TTY_", "NO_COLOR")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


@pytest.fixture
def bgpool_command(run_dir: Path, environment: dict[str, str]) -> Command:
    """Runs the command line on the test's run directory."""

    def command(name: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        given = [*PROGRAM, name, "--run-dir", str(run_dir), *arguments]
        return subprocess.run(given, env={**environment, **more}, capture_output=True, text=True, timeout=60)

    return command


@pytest.fixture
def until_ready(bgpool_command: Command) -> Callable[[], None]:
    """Waits until the hand's heartbeat and the workers' rows are seen, however slow the machine is."""
    return lambda: wait_until(lambda: bgpool_command("status", "--ready").returncode == 0, 60)
