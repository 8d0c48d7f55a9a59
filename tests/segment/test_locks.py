"""Locks: one holder, released by the kernel, never by or for a forked child."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from bgpool.errors import SegmentError
from bgpool.pools.fork import notice
from bgpool.segment import locks, paths
from bgpool.segment.locks import Lock, is_held, try_lock
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import SegmentMap

Fork = Callable[[Callable[[], object]], int]


def test_one_holder_at_a_time(files: RunFiles) -> None:
    assert not is_held(files.relay)
    assert not files.relay.exists(), "to ask makes no file"
    lock = try_lock(files.relay)
    assert lock is not None
    assert try_lock(files.relay) is None
    assert is_held(files.relay)
    lock.release()
    lock.release()
    assert not is_held(files.relay)
    again = try_lock(files.relay)
    assert again is not None
    del again
    assert not is_held(files.relay), "an unreferenced lock is released"


def test_filelock_and_bgpool_locks_exclude_each_other(files: RunFiles) -> None:
    """A monitor is elected by filelock; workers and commands ask with the system call."""
    theirs = FileLock(str(files.relay), mode=0o600)
    with theirs:
        assert is_held(files.relay)
        assert try_lock(files.relay) is None
    ours = try_lock(files.relay)
    assert ours is not None
    with pytest.raises(Timeout):
        theirs.acquire(timeout=0)
    ours.release()
    theirs.acquire(timeout=0)
    theirs.release()


def test_a_look_does_not_keep_another_from_looking(files: RunFiles) -> None:
    files.relay.touch(mode=0o600)
    looking = Lock(files.relay)
    assert looking.take(os.O_RDONLY, fcntl.LOCK_SH)
    assert not is_held(files.relay)
    looking.release()


@pytest.mark.usefixtures("patient_threads")
@pytest.mark.parametrize("hooks", [True, False], ids=["with hooks", "without hooks"])
def test_a_child_holds_nothing_and_keeps_nothing_alive(files: RunFiles, hooks: bool) -> None:
    """A child forked by C code runs no hooks; its first use of a pool notices that."""
    lock = try_lock(files.relay)
    assert lock is not None
    ready, told = os.pipe()
    child = os.fork() if hooks else ctypes.PyDLL(None).fork()
    if child == 0:
        if not hooks:
            notice()
        os.write(told, b"!")
        signal.pause()
        os._exit(0)
    try:
        os.read(ready, 1)
        assert is_held(files.relay), "the child has not released its parent's lock"
        lock.release()
        assert not is_held(files.relay), "the child does not keep it"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_child_that_is_forked_while_the_file_is_opened_keeps_nothing_alive(
    files: RunFiles, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, go = threading.Event(), threading.Event()
    open_checked = paths.open_checked

    def slow(path: Path, flags: int) -> int:
        fd = open_checked(path, flags)
        if threading.current_thread() is thread:
            opened.set()
            go.wait(10)
        return fd

    monkeypatch.setattr(locks, "open_checked", slow)
    taken: list[Lock | None] = []
    thread = threading.Thread(target=lambda: taken.append(try_lock(files.relay)))
    thread.start()
    assert opened.wait(10)
    ready, told = os.pipe()

    def live_on() -> None:
        os.write(told, b"!")
        signal.pause()

    child = fork(live_on)
    os.read(ready, 1)
    go.set()
    thread.join()
    (lock,) = taken
    assert lock is not None
    lock.release()
    assert not is_held(files.relay)
    os.kill(child, 0)


def test_a_child_that_is_forked_while_the_file_is_closed_keeps_nothing_alive(
    files: RunFiles, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = try_lock(files.relay)
    assert lock is not None
    ready, told = os.pipe()

    def live_on() -> None:
        os.write(told, b"!")
        signal.pause()

    def slow(fd: int, close: Callable[[int], None] = os.close) -> None:
        monkeypatch.undo()
        fork(live_on)
        close(fd)

    monkeypatch.setattr(os, "close", slow)
    lock.release()
    os.read(ready, 1)
    assert not is_held(files.relay)


_WORKER = """
import collections, importlib, os, sys, threading, time, warnings
import bgpool, bgpool.testing, bgpool.metrics, bgpool.metrics.deployment
from pathlib import Path
for path in (Path(bgpool.__file__).parent / "integrations").glob("[a-z]*.py"):
    try:
        importlib.import_module(f"bgpool.integrations.{path.stem}")
    except ModuleNotFoundError as error:
        assert not error.name.startswith("bgpool"), error
dsn = "postgresql://app:x@127.0.0.1:1/app?connect_timeout=2"
pool = bgpool.get_pool(dsn, bg_run_dir=sys.argv[1], min_size=0, max_size=1)
pool.open()
try:
    with pool.connection(timeout=0.2):
        pass
except bgpool.PoolTimeout:
    pass
while bgpool.status(run_dir=sys.argv[1]).monitor.state != "alive":
    time.sleep(0.02)
warnings.simplefilter("ignore", DeprecationWarning)
errors, go = collections.Counter(), threading.Event()
def fork_and_wait():
    go.wait()
    for _ in range(int(sys.argv[2])):
        try:
            if not (pid := os.fork()):
                os._exit(0)
            os.waitpid(pid, 0)
        except RuntimeError as error:
            errors[str(error)] += 1
threads = [threading.Thread(target=fork_and_wait) for _ in range(8)]
for thread in threads:
    thread.start()
go.set()
for thread in threads:
    thread.join()
print(sorted({"filelock"} & set(sys.modules)), sum(errors.values()), *errors)
"""


def test_a_worker_does_not_import_filelock_and_forks_from_threads_as_it_likes(tmp_path: Path) -> None:
    """filelock's audit hook refuses a fork while another thread is inside one."""
    run_dir = tmp_path / "run"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _WORKER, str(run_dir), "20"], capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.returncode) == ("[] 0\n", 0), done.stderr
    finally:
        with contextlib.suppress(FileNotFoundError, SegmentError, ProcessLookupError):
            os.kill(SegmentMap(RunFiles.of(run_dir, "1")).header.pid, signal.SIGKILL)
