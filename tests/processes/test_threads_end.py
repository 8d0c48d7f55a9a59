"""A monitor that has left leaves no threads or descriptors: its process may continue with others."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bgpool.dsn import parse
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.process import run_monitor

pytestmark = pytest.mark.slow

WaitUntil = Callable[..., None]
NewThreads = Callable[[], list[str]]
MONITORS = 50


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def config_of(directory: Path, bg_id: str, port: int = 1, host: str = "127.0.0.1") -> MonitorConfig:
    dsn = f"postgresql://app:s3cret@{host}:{port}/app"
    place, settings, _ = parse(dsn, {"bg_id": bg_id})
    config = MonitorConfig.of(place, settings, directory / "run")
    return replace(config, params={**config.params, "connect_timeout": "2"})


def descriptors() -> int:
    gc.collect()
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.fixture
def new_threads() -> NewThreads:
    """Return a function that lists new threads of this library: other tests of the process may leave some."""
    before = set(threading.enumerate())

    def since() -> list[str]:
        return sorted(
            thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("bgpool-")
        )

    return since


def test_threads_and_descriptors_of_fifty_monitors_end(
    tmp_path: Path, wait_until: WaitUntil, new_threads: NewThreads
) -> None:
    # Let the process do its one-time initialization first.
    run_monitor(config_of(tmp_path, "first"), linger_s=0.1)
    wait_until(lambda: not new_threads())
    before = descriptors()
    configs = [config_of(tmp_path, f"monitor-{number}") for number in range(MONITORS)]
    runs = [threading.Thread(target=run_monitor, args=(config,), kwargs={"linger_s": 0.3}) for config in configs]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60.0)
    wait_until(lambda: not new_threads())
    assert descriptors() == before


def test_a_connecting_thread_ends_with_its_attempt(
    tmp_path: Path, silent_server: int, wait_until: WaitUntil, new_threads: NewThreads
) -> None:
    before = descriptors()
    began = time.monotonic()
    run_monitor(config_of(tmp_path, "connecting", silent_server), linger_s=0.3)
    assert time.monotonic() - began < 10.0
    assert set(new_threads()) <= {"bgpool-probe-blue"}
    wait_until(lambda: not new_threads())
    assert descriptors() == before


def test_a_thread_in_the_resolver_ends_with_the_resolution(
    tmp_path: Path, wait_until: WaitUntil, new_threads: NewThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def stall(*_args: object, **_options: object) -> list[object]:
        released.wait(60.0)
        raise socket.gaierror(socket.EAI_AGAIN, "stalled")

    monkeypatch.setattr(socket, "getaddrinfo", stall)
    config = config_of(tmp_path, "stalled", host="db.example")
    began = time.monotonic()
    run_monitor(config, linger_s=0.5)
    assert time.monotonic() - began < 30.0
    assert set(new_threads()) <= {"bgpool-probe-blue", "bgpool-lookup-1"}
    released.set()
    wait_until(lambda: not new_threads())
