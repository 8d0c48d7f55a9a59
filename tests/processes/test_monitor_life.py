"""After any failure of a monitor the next one takes over; there is never more than one, and none remains at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bgpool
from bgpool.cli.order import give
from bgpool.core.events import Order
from bgpool.core.limits import MONITOR_SHORT_LIFE_S
from bgpool.errors import SegmentError
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import workers
from bgpool.segment.reader import Reader, SegmentMap

pytestmark = pytest.mark.slow

WaitUntil = Callable[..., None]
#: The promised times to replace a monitor that was killed, and one that hangs, in seconds.
TAKEOVER_S, HANG_S = 2.0, 5.0
#: No process listens here: the database is gone.
DSN = "postgresql://app:s3cret@127.0.0.1:1/app"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def files(run: Path) -> Iterator[RunFiles]:
    files = RunFiles.of(run, "life")
    yield files
    for pid in monitors(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def pool(run: Path, files: RunFiles, wait_until: WaitUntil) -> Iterator[bgpool.Pool[Any]]:
    """A process that uses the bg_id, with its monitor, which watches."""
    pool = bgpool.get_pool(DSN, bg_id="life", bg_run_dir=run)
    pool.open()
    wait_until(lambda: lives(files))
    yield pool
    pool.close(1.0)


def monitors(run: Path) -> list[int]:
    """Return the processes that hold the lock of a tenure open, without zombies and without this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(link.startswith(f"{run}/") and ".term-" in link for link in links(process / "fd")):
                found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]


def links(descriptors: Path) -> Iterator[str]:
    """Return the targets of open descriptors, without those that are closed at the same time."""
    for fd in descriptors.iterdir():
        with contextlib.suppress(OSError):
            yield os.path.realpath(fd)


def holder(files: RunFiles) -> int:
    """Return the process that writes the segment."""
    return SegmentMap(files).header.pid


def lives(files: RunFiles) -> bool:
    """Return whether a monitor has a current heartbeat."""
    reader = Reader(files)
    reader.check_path()
    return not reader.monitor_is_silent()


def took_over(files: RunFiles, old: int) -> Callable[[], bool]:
    def check() -> bool:
        with contextlib.suppress(SegmentError, FileNotFoundError):
            return holder(files) != old and lives(files)
        return False

    return check


def allowance_s() -> float:
    """Return this machine's addition to a promised time: twice the time to start an interpreter, beyond 0.5 s."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import bgpool.monitor.process"], check=True, timeout=60)
    return 2 * max(0.0, time.monotonic() - began - 0.5)


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_a_killed_monitor_is_replaced(run: Path, files: RunFiles, wait_until: WaitUntil, number: int) -> None:
    # Let the monitor live long enough: the end of a younger one is followed by a pause.
    time.sleep(MONITOR_SHORT_LIFE_S)
    old, term = holder(files), SegmentMap(files).header.term
    before_s = allowance_s()
    os.kill(old, number)
    killed = time.monotonic()
    wait_until(took_over(files, old))
    took_s = time.monotonic() - killed
    assert took_s < TAKEOVER_S + max(before_s, allowance_s())
    assert SegmentMap(files).header.term == term + 1
    assert monitors(run) == [holder(files)]


@pytest.mark.usefixtures("pool")
def test_a_stopped_monitor_is_replaced_and_does_no_harm_later(
    run: Path, files: RunFiles, wait_until: WaitUntil
) -> None:
    old = holder(files)
    before_s = allowance_s()
    os.kill(old, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        wait_until(took_over(files, old))
        took_s = time.monotonic() - stopped
        new, content = holder(files), files.segment.stat().st_ino
        assert sorted(monitors(run)) == sorted([old, new])
    finally:
        os.kill(old, signal.SIGCONT)
    assert took_s < HANG_S + max(before_s, allowance_s())
    wait_until(lambda: monitors(run) == [new])
    assert (holder(files), files.segment.stat().st_ino) == (new, content), (
        "the old monitor wrote only into its own file"
    )


@pytest.mark.usefixtures("pool")
def test_a_monitor_without_memory_is_replaced_or_lives_on(run: Path, files: RunFiles, wait_until: WaitUntil) -> None:
    """A monitor that cannot allocate memory may continue or exit, but workers have a monitor with a heartbeat."""
    old = holder(files)
    if sys.platform == "linux":
        resource.prlimit(old, resource.RLIMIT_AS, (1, 1))
    time.sleep(1.0)
    wait_until(lambda: lives(files))
    # A monitor that cannot even exit is fenced off by its term.
    assert holder(files) in monitors(run)
    assert set(monitors(run)) <= {old, holder(files)}


@pytest.mark.usefixtures("pool")
def test_a_deleted_run_directory_is_made_again(run: Path, files: RunFiles, wait_until: WaitUntil) -> None:
    old = holder(files)
    for path in [*run.iterdir(), run]:
        path.rmdir() if path.is_dir() else path.unlink()
    wait_until(took_over(files, old))
    wait_until(lambda: [row.pid for row in workers(files)] == [os.getpid()])
    wait_until(lambda: monitors(run) == [holder(files)])


def test_a_monitor_is_independent_of_its_starter(
    run: Path, files: RunFiles, tmp_path: Path, wait_until: WaitUntil
) -> None:
    mine = (tmp_path / "mine").open("w")
    fcntl.flock(mine, fcntl.LOCK_EX)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    os.set_inheritable(listener.fileno(), True)
    os.set_inheritable(mine.fileno(), True)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pool = bgpool.get_pool(DSN, bg_id="life", bg_run_dir=run)
    try:
        pool.open()
        wait_until(lambda: lives(files))
    finally:
        signal.signal(signal.SIGTERM, before)
    process = Path(f"/proc/{holder(files)}")
    links = {fd.name: str(fd.readlink()) for fd in (process / "fd").iterdir()}
    assert {links["0"], links["1"], links["2"]} == {"/dev/null"}
    assert not any(str(tmp_path / "mine") in link for link in links.values())
    assert f"socket:[{os.fstat(listener.fileno()).st_ino}]" not in links.values()
    parent, group, session = (process / "stat").read_text().rpartition(")")[2].split()[1:4]
    assert int(parent) != os.getpid()
    assert session != str(os.getsid(0))
    assert group == session
    # Certificates and password files may be given by relative paths.
    assert (process / "cwd").readlink() == Path.cwd()
    # Signals that the starter ignored are not ignored by the monitor.
    pid = holder(files)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: pid not in monitors(run))
    pool.close(1.0)
    listener.close()
    mine.close()


@pytest.mark.full
def test_two_hundred_workers_have_one_monitor(run: Path, files: RunFiles, wait_until: WaitUntil) -> None:
    pool = bgpool.get_pool(DSN, bg_id="life", bg_run_dir=run, num_workers=1)
    ready, go = os.pipe()
    pids = []
    for _ in range(200):
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(ready, 1)
            pool.open()
            signal.pause()
            os._exit(0)
        pids.append(pid)
    os.close(ready)
    os.close(go)
    try:
        wait_until(lambda: lives(files), 40)
        wait_until(lambda: {row.pid for row in workers(files)} == set(pids), 40)
        assert SegmentMap(files).header.term == 1
        assert monitors(run) == [holder(files)]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
    assert workers(files) == ()
    # No monitor remains when all workers are gone.
    wait_until(lambda: monitors(run) == [], 20)
    assert not files.segment.exists()


def test_workers_that_live_briefly_have_one_monitor(run: Path, files: RunFiles) -> None:
    """Like workers of a server that recycles them; the first may exit while it starts the monitor."""
    pool = bgpool.get_pool(DSN, bg_id="life", bg_run_dir=run)
    seen: set[int] = set()
    # At least as many workers as a busy machine starts in a second, and more until the monitor has started.
    deadline, count = time.monotonic() + 60.0, 0
    while count < 40 or (not seen and time.monotonic() < deadline):
        count += 1
        pid = os.fork()
        if pid == 0:
            pool.open()
            time.sleep(0.1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with contextlib.suppress(FileNotFoundError, SegmentError):
            seen.add(holder(files))
    assert len(seen) == 1
    assert SegmentMap(files).header.term == 1


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.1])
def test_a_starter_that_dies_at_once_stops_no_other(
    run: Path, files: RunFiles, wait_until: WaitUntil, after_s: float
) -> None:
    pool = bgpool.get_pool(DSN, bg_id="life", bg_run_dir=run)
    pid = os.fork()
    if pid == 0:
        pool.open()
        time.sleep(after_s)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    pool.open()
    wait_until(lambda: lives(files))
    assert len(monitors(run)) == 1
    pool.close(1.0)


def test_a_hanging_starter_is_bypassed(
    run: Path, files: RunFiles, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgpool.monitor.spawn.MONITOR_START_S", 0.5)
    run.mkdir(mode=0o700)
    hung = files.spawning.open("w")
    files.spawning.chmod(0o600)
    fcntl.flock(hung, fcntl.LOCK_EX)
    pool = bgpool.get_pool(DSN, bg_id="life", bg_run_dir=run)
    pool.open()
    wait_until(lambda: lives(files))
    pool.close(1.0)
    hung.close()


def test_changes_of_the_wall_clock_have_no_effect(
    run: Path, files: RunFiles, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """In worker and monitor, the wall clock jumps by days, back and forth, at every reading."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import itertools, time
        real, jumps = time.time_ns, itertools.cycle([0, 86_400, -86_400, 10**8])
        time.time_ns = lambda: real() + next(jumps) * 10**9
        time.time = lambda: time.time_ns() / 1e9
        """)
    )
    script = f"""
import time, bgpool
pool = bgpool.get_pool({DSN!r}, bg_id="life", bg_run_dir={str(run)!r})
pool.open()
deadline = time.monotonic() + 60
while pool.stats().phase is not bgpool.Phase.NOT_CREATED:
    assert time.monotonic() < deadline
    time.sleep(0.05)
time.sleep(3)
assert pool.stats().phase is bgpool.Phase.NOT_CREATED
pool.close(1.0)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    worker = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        wait_until(lambda: lives(files))
        pid = holder(files)
        assert worker.wait(90) == 0
    finally:
        worker.kill()
    assert (holder(files), SegmentMap(files).header.term) == (pid, 1)


# -- an operator's orders ----------------------------------------------------------------------------------------


def is_held(pool: bgpool.Pool[Any]) -> bool:
    """Return whether a checkout is held; without a server, other checkouts fail in another way."""
    with pytest.raises((bgpool.SwitchoverHoldTimeout, bgpool.PoolTimeout)) as caught:
        pool.getconn(timeout=0.05)
    return caught.type is bgpool.SwitchoverHoldTimeout


def test_a_hold_outlasts_the_monitor_that_took_it(
    pool: bgpool.Pool[Any], run: Path, files: RunFiles, wait_until: WaitUntil
) -> None:
    assert give(Order.HOLD, "life", run, 600).done
    assert is_held(pool)
    old, snapshot = holder(files), pool.participant.reader.refresh().snapshot
    os.kill(old, signal.SIGKILL)
    assert is_held(pool)
    wait_until(took_over(files, old))
    after = pool.participant.reader.refresh().snapshot
    assert snapshot is not None
    assert after is not None
    assert (after.hold_until_ns, after.epoch) == (snapshot.hold_until_ns, snapshot.epoch)
    assert is_held(pool)
    # The next monitor receives orders, too.
    assert give(Order.RELEASE, "life", run).done
    assert not is_held(pool)


def test_an_order_that_a_monitor_left_undone_is_done_by_the_next(
    pool: bgpool.Pool[Any], run: Path, files: RunFiles
) -> None:
    old = holder(files)
    os.kill(old, signal.SIGSTOP)
    timer = threading.Timer(0.2, os.kill, (old, signal.SIGKILL))
    timer.start()
    # The old monitor's heartbeat was current until now.
    assert give(Order.HOLD, "life", run, 600).done
    assert holder(files) != old
    assert is_held(pool)
