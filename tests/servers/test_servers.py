"""bgpool under widely used servers: without hooks, no row is lost, and one monitor serves all workers.

The servers of the quick run go through one switchover together. The full run takes the other servers, each of them a
variant of one of those, through separate switchovers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import pytest

from tests.servers.harness import Batch, Quota, Result, Script, Stage

pytestmark = [pytest.mark.lab, pytest.mark.slow]

_GUNICORN = ["{bin}/gunicorn", "-b", "127.0.0.1:{port}", "-w", "2", "--graceful-timeout", "5", "--timeout", "60"]
_UWSGI = [
    "{bin}/uwsgi", "--http-socket", "127.0.0.1:{port}", "--master", "--die-on-term", "--processes", "2", "--need-app",
    "--disable-logging", "--module", "tests.servers.app:wsgi",
]  # fmt: skip

GUNICORN = {
    "sync": [*_GUNICORN, "tests.servers.app:wsgi"],
    "sync, preloaded": [*_GUNICORN, "--preload", "tests.servers.app:wsgi"],
    "gthread": [*_GUNICORN, "-k", "gthread", "--threads", "2", "tests.servers.app:wsgi"],
    "gthread, preloaded": [*_GUNICORN, "-k", "gthread", "--threads", "2", "--preload", "tests.servers.app:wsgi"],
    "gevent": [*_GUNICORN, "-k", "gevent", "tests.servers.app:wsgi"],
    "gevent, preloaded": [*_GUNICORN, "-k", "gevent", "--preload", "tests.servers.app:wsgi"],
    # Each worker is replaced after a dozen requests: no worker lives through more than a part of the switchover.
    "sync, recycled": [
        *_GUNICORN,
        "--preload",
        "--max-requests",
        "10",
        "--max-requests-jitter",
        "5",
        "tests.servers.app:wsgi",
    ],
    "uvicorn": [*_GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "tests.servers.app:asgi"],
}
UWSGI = {
    "threads": [*_UWSGI, "--enable-threads"],
    "threads, lazy": [*_UWSGI, "--enable-threads", "--lazy-apps"],
    "no threads": _UWSGI,
    "no threads, lazy": [*_UWSGI, "--lazy-apps"],
    # A server with threads in the master needs Python's fork hooks, see docs/servers.md.
    "threads, warm master": [*_UWSGI, "--enable-threads", "--py-call-uwsgi-fork-hooks"],
    "no threads, warm master": [*_UWSGI, "--py-call-osafterfork"],
}
WEB = {**GUNICORN, **UWSGI}
#: These query the database at import. With a preloading server, the master has connections, threads and a watcher.
WARM = ("sync, preloaded", "gthread, preloaded", "threads, warm master", "no threads, warm master")

_CELERY = [
    "{bin}/celery", "-A", "tests.servers.tasks:celery", "worker", "-c", "2", "-Q", "queue", "-l", "WARNING",
    "--without-gossip", "--without-mingle", "--without-heartbeat", "-n", "w{number}@127.0.0.1",
]  # fmt: skip
CELERY = {
    "prefork": [*_CELERY, "-P", "prefork"],
    "prefork, recycled": [*_CELERY, "-P", "prefork", "--max-tasks-per-child", "1"],
    "threads": [*_CELERY, "-P", "threads"],
    "gevent": [*_CELERY, "-P", "gevent"],
    "solo": [*_CELERY, "-P", "solo"],
}
CHILDREN = {
    method: ["{bin}/python", "-m", "tests.servers.children", method, "{number}"]
    for method in ("fork", "spawn", "forkserver")
}
BATCHES: Mapping[str, tuple[list[str], type[Batch]]] = {
    **{name: (command, Batch) for name, command in CELERY.items()},
    **{name: (command, Script) for name, command in CHILDREN.items()},
}
# All tasks are sent before the worker starts, because it would otherwise read files that are being written.
SEND = "from tests.servers import tasks; tasks.send({number})"

#: The quick run: each way in which a server creates its processes, threads or greenlets, and ends them. The quick tests
#: of the frameworks cover Celery's prefork with permanent children, and gthread.
QUICK_WEB = (
    "sync", "gthread, preloaded", "gevent, preloaded", "sync, recycled", "uvicorn",
    "threads", "no threads", "threads, warm master",
)  # fmt: skip
QUICK_BATCHES = ("prefork, recycled", "fork", "forkserver")


#: The work that each server does before the load ends.
QUOTAS: Mapping[str, Quota] = {
    **dict.fromkeys(WEB, Quota(rows=100, processes=2)),
    "sync, recycled": Quota(rows=30, processes=4),
    **dict.fromkeys(CELERY, Quota(rows=100, processes=1)),
    "prefork": Quota(rows=100, processes=2),
    "prefork, recycled": Quota(rows=30, processes=10),
    # The parent writes, too.
    **dict.fromkeys(CHILDREN, Quota(rows=100, processes=3)),
}
#: The time that gunicorn and Celery take to replace a worker: most of a second.
RECYCLED_S = 1.0


def assert_good(result: Result, name: str) -> None:
    server = result.servers[name]
    assert server.load.errors == [], server.output
    load = server.load
    assert server.quota.is_met(load), f"{server.quota}: {len(load.acknowledged)} by {load.pids}\n{server.output}"
    # The bound for a loaded CI machine; docs/servers.md has the measured values.
    assert result.excess_s(name) < 4.0 + ("recycled" in name) * RECYCLED_S
    assert server.exit_status == 0, f"{name} did not end in time: {server.output}"
    # With uvloop, which uvicorn uses if it is installed, the listener is already closed when gunicorn closes it.
    assert not re.search(r"Traceback|Error(?! while closing socket)|couldn't stop", server.output), server.output


def assert_one_monitor_for_all(result: Result, gone: tuple[str, ...] = ()) -> None:
    """Check that one monitor serves all workers; workers of the servers in *gone* may exit at any time."""
    assert result.verdict.clean, result.verdict
    assert result.connections == 2
    assert len({row.pid for row in result.rows}) == len(result.rows)
    there = {str(row.pid) for row in result.rows}
    served = {name: server.load.pids for name, server in result.servers.items() if name not in gone}
    assert all(pids <= there for pids in served.values())
    assert result.snapshot is not None
    # A worker that has just started may not have acted on any change.
    assert all(row.usage.sequence > 0 for row in result.rows if str(row.pid) in set().union(*served.values()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Create a test for each server of the class."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", metafunc.cls.names)


class Web:
    names: ClassVar[tuple[str, ...]]

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls) -> Result:
        with Stage() as stage:
            for name in cls.names:
                warm = {"APP_WARM_UP": "1"} if name in WARM else {}
                stage.serve(name, WEB[name], environment=warm, quota=QUOTAS[name])
            return stage.switch_over()

    def test_goes_through(self, result: Result, name: str) -> None:
        assert_good(result, name)

    def test_one_monitor_for_all(self, result: Result) -> None:
        assert_one_monitor_for_all(result, gone=("sync, recycled",))


class TestWeb(Web):
    names = QUICK_WEB


@pytest.mark.full
class TestMoreWeb(Web):
    names = tuple(name for name in WEB if name not in QUICK_WEB)


class Batches:
    names: ClassVar[tuple[str, ...]]

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls) -> Result:
        with Stage() as stage:
            for name in cls.names:
                command, kind = BATCHES[name]
                stage.serve(name, command, kind, before=SEND if name in CELERY else "", quota=QUOTAS[name])
            return stage.switch_over()

    def test_goes_through(self, result: Result, name: str) -> None:
        assert_good(result, name)

    def test_one_monitor_for_all(self, result: Result) -> None:
        assert result.verdict.clean, result.verdict
        assert result.connections == 2


class TestBatches(Batches):
    names = QUICK_BATCHES


@pytest.mark.full
class TestMoreBatches(Batches):
    names = tuple(name for name in BATCHES if name not in QUICK_BATCHES)
