"""The life of a monitor without any pool, and of a monitor that is not the only one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpool.core.events import Order
from bgpool.dsn import parse
from bgpool.errors import Error
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.lookup import Lookup
from bgpool.monitor.process import run_monitor
from bgpool.segment.orders import pack, unpack
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.reader import Reader
from bgpool.segment.table import Table

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> MonitorConfig:
    """A deployment without servers: a closed port on loopback."""
    place, settings, _ = parse("postgresql://app:s3cret@127.0.0.1:1/app", {"bg_id": "lonely"})
    return MonitorConfig.of(place, settings, tmp_path / "run")


def test_a_monitor_ends_when_no_pool_uses_its_bg_id(config: MonitorConfig, tmp_path: Path) -> None:
    assert run_monitor(config, linger_s=0.3)
    files = RunFiles.of(tmp_path / "run", "lonely")
    assert not files.segment.exists()
    # The next monitor starts in the same way.
    assert run_monitor(config, linger_s=0.3)


def test_a_monitor_stays_while_an_operator_holds_callers(config: MonitorConfig, tmp_path: Path) -> None:
    """If the operator stops the application for the maintenance and starts it again, the hold is still in effect."""
    files = RunFiles.of(tmp_path / "run", "lonely")
    prepare_run_dir(files.directory)
    began_ns = time.monotonic_ns()
    Table(files).order[0] = word = pack(Order.HOLD, 1, began_ns)
    assert run_monitor(config, linger_s=0.1)
    given = unpack(word)
    assert given is not None
    assert time.monotonic_ns() > given.until_ns


def test_the_configuration_passes_the_pipe_and_hides_the_password(config: MonitorConfig) -> None:
    assert MonitorConfig.load(config.dump()) == config
    assert config.params["password"] == "s3cret"
    assert "s3cret" not in repr(config)


def test_a_monitor_that_lost_a_thread_fails(config: MonitorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lookup, "run", lambda _self: None)
    with pytest.raises(Error, match="bgpool-lookup ended unexpectedly"):
        run_monitor(config)
    monkeypatch.undo()
    assert run_monitor(config, linger_s=0.1), "the failed monitor does not block the next one"


COMMAND = [sys.executable, "-c", "from bgpool.cli import main; main()", "monitor", "-"]


@contextlib.contextmanager
def foreground(dsn: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run bgpool monitor in a separate process, which has read *dsn*; kill it at the end."""
    with subprocess.Popen(
        [*COMMAND, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as monitor:
        try:
            assert monitor.stdin is not None
            monitor.stdin.write(f"{dsn}\n")
            monitor.stdin.flush()
            yield monitor
        finally:
            monitor.kill()


def line_of(monitor: subprocess.Popen[str]) -> str:
    """Return the next line that is not about the run directory."""
    assert monitor.stdout is not None
    line = monitor.stdout.readline()
    return monitor.stdout.readline() if "created run directory" in line else line


def test_in_the_foreground_the_dsn_is_used(tmp_path: Path) -> None:
    dsn = f"postgresql://app:s3cret@127.0.0.1:1/app?bg_id=ledger&bg_run_dir={tmp_path / 'run'}"
    with foreground(dsn) as monitor:
        assert "monitor of bg_id 'ledger' started" in line_of(monitor)


def test_in_the_foreground_a_run_directory_is_accepted(tmp_path: Path) -> None:
    with foreground("postgresql://app@127.0.0.1:1/app", "--run-dir", str(tmp_path / "run")) as monitor:
        assert "monitor of bg_id '1' started" in line_of(monitor)
        assert (tmp_path / "run" / "1.segment").exists()


def test_in_the_foreground_a_second_monitor_is_refused(tmp_path: Path) -> None:
    dsn = f"postgresql://app:s3cret@127.0.0.1:1/app?bg_run_dir={tmp_path / 'run'}"
    with foreground(dsn) as first:
        assert "monitor of bg_id '1' started, term 1" in line_of(first)
        second = subprocess.run(COMMAND, input=f"{dsn}\n", capture_output=True, text=True, timeout=120)
        assert second.returncode == 1
        assert "another monitor of bg_id '1' is running" in second.stderr
        assert Reader(RunFiles.of(tmp_path / "run", "1")).refresh().snapshot is not None
        first.terminate()
        assert first.wait(10) == 0
        assert first.stdout is not None
        assert "s3cret" not in first.stdout.read()
