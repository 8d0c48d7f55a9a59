"""The optional hooks: workers open their connections before their first request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpool.segment.presence import workers
from tests.servers.harness import START_S, Batch, Server, Stage

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One pair for all tests; a test ends its server."""
    with Stage() as stage:
        yield stage


def assert_connected(stage: Stage, server: Server, processes: int, busy_limit_ms: int) -> None:
    """Check that *processes* workers have connections without any request, and know their server's time limit."""
    deadline = time.monotonic() + START_S
    while sum(row.usage.idle > 0 for row in workers(stage.files)) < processes:
        assert server.process.poll() is None, server.name
        assert time.monotonic() < deadline, (server.name, workers(stage.files))
        time.sleep(0.1)
    assert {row.usage.busy_limit_ms for row in workers(stage.files) if row.usage.idle} == {busy_limit_ms}
    server.tell_to_stop()
    server.stop()
    while workers(stage.files):
        assert time.monotonic() < deadline, (server.name, workers(stage.files))
        time.sleep(0.1)


@pytest.mark.parametrize("preload", [[], pytest.param(["--preload"], marks=pytest.mark.full)], ids=["", "preloaded"])
def test_gunicorn_workers_start_connected(stage: Stage, preload: list[str], tmp_path: Path) -> None:
    configuration = tmp_path / "gunicorn.conf.py"
    configuration.write_text("from bgpool.integrations.gunicorn import post_worker_init\n")
    command = ["{bin}/gunicorn", "-c", str(configuration), "-b", "127.0.0.1:{port}", "-w", "2", *preload]
    assert_connected(
        stage, stage.serve(" ".join(["gunicorn", *preload]), [*command, "tests.servers.app:wsgi"]), 2, 30_000
    )


@pytest.mark.parametrize("lazy", [[], pytest.param(["--lazy-apps"], marks=pytest.mark.full)], ids=["", "lazy"])
def test_uwsgi_workers_start_connected(stage: Stage, lazy: list[str]) -> None:
    command = ["{bin}/uwsgi", "--http-socket", "127.0.0.1:{port}", "--master", "--die-on-term", "--processes", "2"]
    command += ["--harakiri", "40"]
    module = ["--enable-threads", "--need-app", "--module", "tests.servers.hooks:wsgi"]
    assert_connected(stage, stage.serve(" ".join(["uwsgi", *lazy]), [*command, *lazy, *module]), 2, 40_000)


@pytest.mark.full
def test_celery_workers_start_connected(stage: Stage) -> None:
    command = ["{bin}/celery", "-A", "tests.servers.tasks:celery", "worker", "-c", "2", "--without-gossip"]
    assert_connected(stage, stage.serve("celery", command, Batch, {"APP_HOOK": "1"}), 2, 0)
