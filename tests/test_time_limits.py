"""The time limit of the server around a process: found by the hooks; shown by log, row, status and doctor."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bgpool
from bgpool import registry
from bgpool.doctor import Case, Finding, Result
from bgpool.doctor.case import gunicorn_timeout_s
from bgpool.doctor.parameter_checks import parameter_checks
from bgpool.integrations import begin_worker, gunicorn
from bgpool.pools import worker_timeout
from bgpool.pools.watch import Watch
from bgpool.segment.presence import workers

DSN = "postgresql://app:s3cret@127.0.0.1:1/app"


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run directory, in a process with an unknown server, which starts no monitor."""
    monkeypatch.setenv("BGPOOL_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    monkeypatch.setattr(worker_timeout, "_limit_ms", 0)
    monkeypatch.setattr(Watch, "_start_monitor", lambda _self: None)
    yield tmp_path / "run"
    registry.close_pools(tmp_path / "run", "limits")


def finding(name: str, query: str = "", **options: Any) -> Finding:
    return next(f for f in parameter_checks.run(Case(f"{DSN}?{query}", **options), "") if f.check == name)


# -- the doctor ---------------------------------------------------------------------------------------------------


def test_the_doctor_compares_the_timer_with_aws() -> None:
    found = finding("switchover timeout")
    assert found.result is Result.WARNING
    assert "180 s" in found.text
    assert "300 s" in found.text
    assert "--switchover-timeout 180" in found.remedy
    assert finding("switchover timeout", "bg_switchover_timeout_ms=300000").result is Result.OK


def test_the_doctor_compares_the_hold_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = finding("worker timeout")
    assert (unknown.result, "--worker-timeout" in unknown.text) == (Result.NOT_CHECKED, True)
    found = finding("worker timeout", busy_limit_s=30)
    assert (found.result, "30 s" in found.text, "35 s" in found.remedy) == (Result.WARNING, True, True)
    assert finding("worker timeout", busy_limit_s=0).result is Result.OK
    assert finding("worker timeout", "bg_connect_timeout_ms=20000", busy_limit_s=30).result is Result.OK
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 4")
    assert finding("worker timeout").result is Result.WARNING


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        ("", 30),
        ("-w 4 --bind=0.0.0.0:80 --timeout=60", 60),
        ("-t 90 app:wsgi", 90),
        ("-k gthread -t 90", 0),
        ("--threads 4", 0),
        ("--timeout soon", None),
        ("--name 'unclosed", None),
    ],
)
def test_gunicorns_timeout_from_its_arguments(arguments: str, seconds: float | None) -> None:
    assert gunicorn_timeout_s(arguments) == seconds


# -- hooks --------------------------------------------------------------------------------------------------------


class SyncWorker:
    """The part of gunicorn's worker that the hook uses."""

    def __init__(self, timeout: float, binds: int = 1) -> None:
        self.cfg, self.sockets, self.timeout = SimpleNamespace(timeout=timeout), [object()] * binds, timeout / 2


@pytest.mark.parametrize(
    ("worker", "limit_ms"),
    [
        (SyncWorker(30), 30_000),
        (SyncWorker(30, binds=2), 15_000),
        (SyncWorker(0), 0),
        (SimpleNamespace(cfg=SimpleNamespace(timeout=30)), 0),
    ],
    ids=["sync", "two binds", "no timeout", "threads"],
)
def test_gunicorns_hook_knows_its_timeout(worker: Any, limit_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gunicorn.workers.sync", SimpleNamespace(SyncWorker=SyncWorker))
    gunicorn.post_worker_init(worker)
    assert worker_timeout.busy_limit_ms() == limit_ms


def test_a_worker_that_may_be_killed_while_held_logs_it(
    run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bgpool.get_pool(DSN, "limits", timeout=20, max_size=7)
    with caplog.at_level(logging.WARNING, "bgpool.pool"):
        begin_worker(20)
    # Other tests of this process may have left pools of other deployments.
    lines = [record.getMessage() for record in caplog.records if "busy" in record.getMessage()]
    (line,) = [line for line in lines if line.startswith("[bg_id: 'limits']")]
    assert line.startswith("[bg_id: 'limits'] a caller is held for up to 20 s ")
    assert "ends a worker that is busy for 20 s" in line
    files = registry.participants()[-1].files
    deadline = time.monotonic() + 30
    while not any(row.usage.busy_limit_ms for row in workers(files)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (row,) = workers(files)
    assert (row.usage.hold_limit_ms, row.usage.busy_limit_ms, row.usage.timer_ms) == (20_000, 20_000, 180_000)
    first, second = bgpool.status("limits", run_dir=run_dir).notes
    assert "bg_switchover_timeout_ms is 180 s" in first
    assert "busy for 20 s" in second
    assert finding("worker timeout", "bg_id=limits").result is Result.WARNING
    # The process has read gunicorn's configuration file; the variable tells the arguments alone.
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 4")
    assert Case(f"{DSN}?bg_id=limits").max_size == 7
    assert "busy for 20 s" in finding("worker timeout", "bg_id=limits&bg_connect_timeout_ms=20000").text
