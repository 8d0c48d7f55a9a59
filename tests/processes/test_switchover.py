"""Whole switchovers of real servers, under forked workers, with a ledger that judges every row."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Event
from bgpool.lab.report import Report
from bgpool.lab.scenarios.scenario import FAST
from bgpool.lab.trial import Trial

pytestmark = [pytest.mark.lab, pytest.mark.slow]

each_engine = pytest.mark.parametrize(
    "engine",
    [
        pytest.param(Engine.POSTGRESQL, id="postgresql"),
        pytest.param(Engine.MYSQL, id="mysql", marks=pytest.mark.full),
    ],
)

#: The errors of a worker's threads for a transaction that was cut, or that found blue read-only.
CUT = re.compile(
    r"worker \d+: (SwitchoverInterrupted|CommitOutcomeUnknown|OperationalError|AdminShutdown|ReadOnlySqlTransaction)\("
)


def assert_good(report: Report, threads: int = 8) -> None:
    assert report.verdict.clean, report.verdict
    assert report.verdict.acknowledged > 1000
    # No other errors: no thread hung, no worker crashed, and no defect showed.
    assert report.errors <= threads, report.error_examples
    assert all(CUT.match(example) for example in report.error_examples), report.error_examples
    # The demo's bound is 0.25 s. A loaded CI machine gets more, but less than a stuck hold would take.
    assert report.excess_s < 2.0
    assert report.snapshot is not None
    assert report.snapshot.phase is Phase.COMPLETED


@each_engine
def test_a_healthy_switchover_loses_nothing(engine: Engine) -> None:
    with Trial(engine=engine) as trial:
        report = trial.run()
    assert_good(report)
    assert report.monitoring_connections == 2
    assert report.snapshot is not None
    events = [entry.event for entry in report.snapshot.timeline]
    assert events == [
        *("NOT_CREATED", "CREATED", "PREPARATION", "IN_PROGRESS", "POST"),
        *("Green topology changed", "Blue DNS updated", "Green DNS removed", "COMPLETED"),
    ]
    assert not trial.run_dir.exists()


@pytest.mark.full
def test_kill_9_of_workers_loses_nothing_that_was_acknowledged() -> None:
    def kill(event: Event) -> None:
        if event.name == "green_promoted":
            os.kill(trial.crew[0].pid, signal.SIGKILL)
            trial.crew[0].kill()

    with Trial(on_event=[kill]) as trial:
        report = trial.run()
    assert trial.crew[0].acknowledged
    assert_good(report)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary directory whose name leaves room for the servers' Unix sockets, and which they can enter."""
    with tempfile.TemporaryDirectory(prefix="bg") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@each_engine
def test_interrupted_demo_leaves_nothing_behind(short_path: Path, engine: Engine) -> None:
    environment = {**os.environ, "TMPDIR": str(short_path)}
    demo = subprocess.Popen(
        [sys.executable, "-c", "from bgpool.cli import main; main()", "demo", "--engine", engine.value],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "in progress" in line:
                break
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(60) == 130, rest
    finally:
        demo.kill()
        demo.communicate()
    assert list(short_path.iterdir()) == []
    deadline = time.monotonic() + 30
    while _commands_with(str(short_path)):
        assert time.monotonic() < deadline, _commands_with(str(short_path))
        time.sleep(0.1)


def _commands_with(text: str) -> list[str]:
    """Return the command lines and environments of other living processes that contain *text*."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue
            if text.encode() in seen:
                found.append(f"{process.name} {seen[:100]!r}")
    return found


@pytest.mark.full
def test_sixty_four_workers_have_two_monitoring_connections() -> None:
    pool_options = {"bg_interval_baseline_ms": 500, "bg_connect_timeout_ms": 20_000, "timeout": 20.0, "num_workers": 1}
    with Trial(workers=64, threads=1, job="write unit", schedule=FAST, pool_options=pool_options) as trial:
        report = trial.run()
    assert report.verdict.clean, report.verdict
    assert report.errors == 0, report.error_examples
    assert report.strays == ()
    assert report.monitoring_connections == 2
