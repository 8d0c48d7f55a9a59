"""A worker reports every thread that hung or died, and its own end; no database is needed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bgpool.lab import worker as worker_module
from bgpool.lab.ledger import Key
from bgpool.lab.waiting import wait_until
from bgpool.lab.worker import Worker
from tests.waiting import PATIENCE_S

#: The number of the call in which the fake pool fails, after some successful calls.
FATAL_N = 4
LEAVE_S = 2.0


class FakePool:
    """A pool that answers every call, except that it applies *fate* to the calls of thread 1 from FATAL_N on."""

    _receipts = None

    def __init__(self, fate: Callable[[], object]) -> None:
        self.fate = fate

    @contextlib.contextmanager
    def connection(self) -> Iterator[FakePool]:
        yield self

    @contextlib.contextmanager
    def cursor(self) -> Iterator[FakePool]:
        yield self

    def execute(self, _: str, key: Key) -> None:
        thread, n = key[1:]
        if thread == 1 and n >= FATAL_N:
            self.fate()

    def stats(self) -> Any:
        return SimpleNamespace(phase=None, held=0)

    def close(self, timeout: float) -> None:
        pass


def fail() -> None:
    raise RuntimeError("a bug in the pool")


def hang() -> None:
    threading.Event().wait()


Start = Callable[[Callable[[], object]], Worker]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Fork a worker of two threads on a fake pool."""
    jobs = worker_module._Jobs(lambda _: "10.0.0.2", "", tells_commits=True)
    monkeypatch.setitem(cast(dict[Any, Any], worker_module._JOBS), FakePool, jobs)
    monkeypatch.setattr(worker_module, "LEAVE_S", LEAVE_S)
    started = []

    def start(fate: Callable[[], object]) -> Worker:
        started.append(Worker(0, cast(Any, FakePool(fate)), 2, []))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


def wait_answered(worker: Worker, thread: int, n: int) -> None:
    wait_until(lambda: len(worker.write_times()[thread]) >= n, timeout_s=PATIENCE_S, what="answers")


def test_a_worker_that_ends_on_request_has_no_errors(start: Start) -> None:
    worker = start(lambda: None)
    wait_answered(worker, 1, FATAL_N)
    worker.stop()
    worker.wait(PATIENCE_S)
    assert (worker.errors, worker.unknown) == ([], [])


def test_an_exception_not_from_the_driver_is_an_error_and_the_thread_continues(start: Start) -> None:
    worker = start(fail)
    wait_until(lambda: len(worker.errors) >= 3, timeout_s=PATIENCE_S, what="errors")
    worker.stop()
    worker.wait(PATIENCE_S)
    assert set(worker.errors) == {"RuntimeError('a bug in the pool')"}
    assert worker.unknown[:2] == [(0, 1, FATAL_N), (0, 1, FATAL_N + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("fate", [hang, sys.exit], ids=["hangs", "dies"])
def test_a_thread_that_never_comes_back_is_an_error_and_an_unknown_row(
    start: Start, fate: Callable[[], object]
) -> None:
    worker = start(fate)
    wait_answered(worker, 1, FATAL_N - 1)
    lost_s = worker.write_times()[1][-1]
    wait_answered(worker, 0, 100)
    stopped_s = time.monotonic()
    worker.stop()
    worker.wait(PATIENCE_S)
    assert worker.errors == [f"thread 1: call {FATAL_N} never came back"]
    assert worker.unknown == [(0, 1, FATAL_N)]
    # The call lasts until the worker is stopped, and the other thread's answers do not hide it.
    assert worker.longest_call_s >= stopped_s - lost_s
    assert worker.longest_gap_s(lost_s) >= stopped_s - lost_s


@pytest.mark.slow
def test_the_gap_does_not_end_with_the_last_answer(start: Start) -> None:
    worker = start(hang)
    wait_answered(worker, 1, FATAL_N - 1)
    lost_s = worker.write_times()[1][-1]
    wait_answered(worker, 0, 50)
    running_s = worker.longest_gap_s(lost_s)
    assert worker.write_times()[0][-1] - lost_s <= running_s < 60.0
    # The same after the thread's last answer: a thread without any answer since then does not have an infinite gap.
    wait_answered(worker, 0, 100)
    assert running_s < worker.longest_gap_s(lost_s + 0.001) < 60.0


@pytest.mark.parametrize("status", [3, -signal.SIGKILL])
def test_a_worker_that_crashes_is_an_error(start: Start, status: int) -> None:
    worker = start((lambda: os._exit(status)) if status > 0 else (lambda: os.kill(os.getpid(), -status)))
    wait_until(lambda: not worker.is_reporting, timeout_s=PATIENCE_S, what="the crash")
    worker.stop()
    worker.wait(PATIENCE_S)
    assert f"ended with exit status {status}" in worker.errors
    assert f"thread 1: call {FATAL_N} never came back" in worker.errors
    assert (0, 1, FATAL_N) in worker.unknown


def test_a_worker_that_was_killed_on_purpose_is_no_error(start: Start) -> None:
    worker = start(lambda: None)
    wait_answered(worker, 1, FATAL_N)
    os.kill(worker.pid, signal.SIGKILL)
    worker.kill()
    worker.stop()
    worker.wait(PATIENCE_S)
    assert (worker.errors, worker.unknown) == ([], [])
