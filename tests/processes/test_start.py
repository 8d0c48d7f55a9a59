"""The start of a monitor, in any state of the process that starts it and of the application's modules."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bgpool
from bgpool.core.limits import HEARTBEAT_HUNG_S, MONITOR_START_S, RESTART_PAUSE_MAX_S
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.dsn import parse
from bgpool.errors import SegmentError
from bgpool.monitor import python, spawn
from bgpool.monitor.config import MonitorConfig
from bgpool.segment import layout
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.presence import workers
from bgpool.segment.reader import Reader, SegmentMap
from bgpool.segment.writer import Writer

pytestmark = pytest.mark.slow

WaitUntil = Callable[..., None]
#: The time that a loaded machine needs to start an interpreter.
START_S = 30.0
#: No process listens here: the database is gone.
DSN = "postgresql://app:s3cret@127.0.0.1:1/app"
BLUE = "db.c0.eu-west-1.rds.amazonaws.com"
GREEN = "db-green-abc123.c0.eu-west-1.rds.amazonaws.com"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[RunFiles]:
    files = RunFiles.of(tmp_path / "run", "start")
    yield files
    for pid in monitors(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def make_pool(files: RunFiles) -> Iterator[Callable[..., bgpool.Pool[Any]]]:
    made: list[bgpool.Pool[Any]] = []

    def make(**options: Any) -> bgpool.Pool[Any]:
        made.append(bgpool.get_pool(DSN, bg_id="start", bg_run_dir=files.directory, min_size=0, max_size=2, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close(0)


@pytest.fixture
def on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of modules that this process and its monitors can import; the directory identifies those monitors."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def monitors(directory: Path) -> list[int]:
    """Return the processes that are, or will become, monitors and have *directory* in their path for imports."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mine = str(directory).encode() in (process / "environ").read_bytes()
            if mine and b"bgpool.monitor" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def lives(files: RunFiles) -> bool:
    reader = Reader(files)
    reader.check_path()
    return not reader.monitor_is_silent()


def fork_worker(function: Callable[[], object]) -> int:
    """Return the pid of a child that calls *function* and stays until it is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            signal.pause()
        finally:
            os._exit(1)
    return pid


def kill_workers(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def kill_monitor(files: RunFiles) -> None:
    with contextlib.suppress(FileNotFoundError, SegmentError, ProcessLookupError):
        os.kill(SegmentMap(files).header.pid, signal.SIGKILL)


def test_children_forked_during_a_start_delay_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The children inherit and keep all open files of the starting thread. An early version waited for them."""
    monkeypatch.setattr(spawn, "MONITOR_START_S", 3 * START_S)
    for number in range(4):
        files = RunFiles.of(tmp_path / f"run{number}", "start")
        pool = bgpool.get_pool(DSN, bg_id="start", bg_run_dir=files.directory, min_size=0, max_size=2, num_workers=1)
        children: list[int] = []
        pool.open()
        try:
            deadline = time.monotonic() + START_S
            while not lives(files):
                assert time.monotonic() < deadline
                if len(children) < 40:
                    children.append(fork_worker(lambda: None))
                time.sleep(0.005)
        finally:
            kill_workers(children)
            kill_monitor(files)
            pool.close(0)


@contextlib.contextmanager
def monitored(script: str, files: RunFiles, wait_until: WaitUntil) -> Iterator[Path]:
    """Return the descriptors, in /proc, of the monitor that the application *script* started; end both."""
    worker = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_until(lambda: lives(files), START_S)
        yield Path(f"/proc/{SegmentMap(files).header.pid}/fd")
    finally:
        worker.kill()
        worker.wait()
        kill_monitor(files)


def test_an_application_without_standard_files_gets_a_monitor(files: RunFiles, wait_until: WaitUntil) -> None:
    """Daemons close these files, and the next opened files get their numbers."""
    script = f"""
import os, time
import bgpool
os.closerange(0, 3)
pool = bgpool.get_pool({DSN!r}, bg_id="start", bg_run_dir={str(files.directory)!r}, min_size=0, max_size=2)
pool.open()
time.sleep(30)
"""
    with monitored(script, files, wait_until) as descriptors:
        # Only these three: the monitor opens and closes others at the same time.
        assert {str((descriptors / number).readlink()) for number in "012"} == {"/dev/null"}


def test_an_inherited_descriptor_above_the_soft_limit_is_closed(files: RunFiles, wait_until: WaitUntil) -> None:
    """The limit was lowered after the descriptor was opened, and posix_spawn cannot close it."""
    script = f"""
import os, resource, time
import bgpool
os.dup2(os.open(os.devnull, os.O_RDONLY), 700, inheritable=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
pool = bgpool.get_pool({DSN!r}, bg_id="start", bg_run_dir={str(files.directory)!r}, min_size=0, max_size=2)
pool.open()
time.sleep(30)
"""
    with monitored(script, files, wait_until) as descriptors:
        assert not (descriptors / "700").exists()


@pytest.mark.parametrize("executable", [None, "", "/usr/bin/uwsgi"])
def test_an_interpreter_is_found_where_python_is_embedded(
    monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    code = "import sys; print(sys.version_info[:2])"
    done = subprocess.run([python.interpreter(), "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(sys.version_info[:2])


# -- a module that makes the password ----------------------------------------------------------------------------

ASKS = """
import bgpool

def password(host, port, user):
    return "s3cret"

pool = bgpool.get_pool({dsn!r}, bg_id="start", bg_run_dir={run!r}, password=password)
try:
    with pool.connection() as conn:
        conn.execute("SELECT 1")
except Exception:
    pass
"""


def run_application(directory: Path, module: str) -> subprocess.Popen[bytes]:
    """Run an application that imports *module* and lives for a minute."""
    script = f"import os, threading, time; threading.Timer(60, os._exit, (0,)).start(); import {module}; time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), *sys.path])}
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)


def test_a_module_that_queries_at_import_does_not_make_the_monitor_a_worker(
    files: RunFiles, tmp_path: Path, wait_until: WaitUntil
) -> None:
    (tmp_path / "asks.py").write_text(ASKS.format(dsn="postgresql://app@127.0.0.1:1/app", run=str(files.directory)))
    worker = run_application(tmp_path, "asks")
    try:
        wait_until(lambda: lives(files), START_S)
        time.sleep(0.5)
        assert [row.pid for row in workers(files)] == [worker.pid]
        # The process that started the monitor may still be about to exit.
        wait_until(lambda: monitors(tmp_path) == [SegmentMap(files).header.pid], START_S)
    finally:
        worker.kill()
        worker.wait()


def test_a_module_that_queries_at_import_does_not_block_the_monitor(
    files: RunFiles, tmp_path: Path, wait_until: WaitUntil
) -> None:
    dsn = f"postgresql://app@{BLUE}:1/app?hostaddr=127.0.0.1"
    (tmp_path / "held.py").write_text(ASKS.format(dsn=dsn, run=str(files.directory)))
    prepare_run_dir(files.directory)
    hosts = (Host(BLUE, 1, Role.SOURCE, ("127.0.0.1",)), Host(GREEN, 1, Role.TARGET, ("127.0.0.2",)))
    deadline_ns = time.monotonic_ns() + 180 * 10**9
    # The state that a monitor leaves when it is killed during a switchover.
    Writer(
        files,
        1,
        Snapshot("start", Phase.IN_PROGRESS, 1, hosts=hosts, twins=((BLUE, GREEN),), deadline_ns=deadline_ns),
    )
    worker = run_application(tmp_path, "held")
    try:
        # The writer above counts as a monitor that lives without a heartbeat, which is waited for, too. A hold would
        # take 30 s.
        wait_until(lambda: SegmentMap(files).header.term == 2, HEARTBEAT_HUNG_S + 2 * START_S)
        # The process that started the monitor may still be about to exit.
        wait_until(lambda: monitors(tmp_path) == [SegmentMap(files).header.pid], START_S)
    finally:
        worker.kill()
        worker.wait()


#: Code that acts only in the monitor.
IN_THE_MONITOR = """
import os, time

def password(host, port, user):
    return "s3cret"

if os.getpid() != int(os.environ["APPLICATION"]):
    print("{word}", flush=True)
    {what}
"""


@pytest.mark.parametrize("what", [pytest.param("time.sleep(60)", marks=pytest.mark.full), "os.fork(); time.sleep(60)"])
def test_a_module_that_hangs_is_ended_with_all_that_it_has_started(
    make_pool: Callable[..., bgpool.Pool[Any]],
    on_the_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait_until: WaitUntil,
    what: str,
) -> None:
    monkeypatch.setenv("APPLICATION", str(os.getpid()))
    (on_the_path / "hangs.py").write_text(IN_THE_MONITOR.format(word="s3cret", what=what))
    (on_the_path / "sitecustomize.py").write_text("import bgpool.core.limits as l; l.MONITOR_READY_S = 1.0\n")
    monkeypatch.delitem(sys.modules, "hangs", raising=False)
    module = __import__("hangs")
    pool = make_pool(password=module.password)
    pool.open()
    wait_until(lambda: "did not watch after 1 s, and was killed" in caplog.text, START_S)
    assert "s3cret" not in caplog.text
    most = 0
    for _ in range(60):
        most = max(most, len(monitors(on_the_path)))
        time.sleep(0.05)
    assert 1 <= most <= 3, "one attempt at a time"
    pool.close(0)
    wait_until(lambda: monitors(on_the_path) == [], START_S + RESTART_PAUSE_MAX_S)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise SystemExit('s3cret')", "SystemExit"),
        ("raise ValueError('s3cret')", "ValueError"),
        ("os.kill(os.getpid(), 9)", "it was killed by signal 9"),
    ],
)
def test_a_failed_start_is_logged_with_its_reason(
    make_pool: Callable[..., bgpool.Pool[Any]],
    on_the_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait_until: WaitUntil,
    code: str,
    reason: str,
) -> None:
    monkeypatch.setenv("APPLICATION", str(os.getpid()))
    (on_the_path / "breaks.py").write_text(IN_THE_MONITOR.format(word="s3cret", what=code))
    monkeypatch.delitem(sys.modules, "breaks", raising=False)
    pool = make_pool(password=__import__("breaks").password)
    pool.open()
    wait_until(lambda: "the monitor could not be started" in caplog.text, START_S)
    (line,) = [r.getMessage() for r in caplog.records if "the monitor could not be started" in r.getMessage()]
    assert reason in line
    assert "s3cret" not in caplog.text


# -- permanent failures -------------------------------------------------------------------------------------------


def count_starts(file: Path) -> None:
    """Have this process write a line to *file* for every process that it starts: the time, on the monotonic clock."""
    real = os.posix_spawn
    file.touch()

    def count(*args: Any, **options: Any) -> int:
        with file.open("a") as starts:
            starts.write(f"{time.monotonic()}\n")
        return real(*args, **options)

    os.posix_spawn = count


def starts_in(file: Path) -> list[float]:
    """Return the times at which processes were started, as recorded by count_starts()."""
    return sorted(float(line) for line in file.read_text().splitlines()) if file.exists() else []


def put_future_segment(files: RunFiles) -> None:
    fields = layout._HEADER.pack(layout.MAGIC, layout.FORMAT + 8, layout.SLOT_BYTES, 1, 1, bytes(16))
    header = (fields + layout._CRC.pack(zlib.crc32(fields))).ljust(layout.SEQUENCE_OFFSET, b"\0")
    files.segment.write_bytes(header.ljust(layout.FILE_BYTES, b"\0"))
    files.segment.chmod(0o600)


#: The obstacle, the reason that is logged, and True if bgpool tries to start a monitor at all.
PERMANENT_FAILURES: dict[str, tuple[Callable[[RunFiles], object], str, bool]] = {
    "segment of the future": (put_future_segment, f"segment format {layout.FORMAT + 8}", False),
    "log": (lambda files: files.log.mkdir(), "Is a directory", True),
    "segment": (lambda files: files.segment.mkdir(), "Is a directory", True),
    "tenure": (lambda files: files.tenure(1).mkdir(), "Is a directory", True),
    "right to start": (lambda files: files.spawning.mkdir(), "Is a directory", False),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("segment of the future", "log") else pytest.mark.full)
        for name in PERMANENT_FAILURES
    ],
)
def test_a_failing_start_is_retried_less_often_and_logged_once(
    files: RunFiles,
    tmp_path: Path,
    make_pool: Callable[..., bgpool.Pool[Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait_until: WaitUntil,
    name: str,
) -> None:
    put, reason, tries = PERMANENT_FAILURES[name]
    prepare_run_dir(files.directory)
    put(files)
    monkeypatch.setattr(os, "posix_spawn", os.posix_spawn)
    starts = tmp_path / "starts"
    count_starts(starts)
    caplog.set_level(logging.WARNING, logger="bgpool")

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "be started" in r.getMessage()]

    make_pool().open()
    wait_until(said)
    if tries:
        wait_until(lambda: len(starts_in(starts)) >= 3)
    else:
        time.sleep(4.0)
    assert len(said()) == 1, said()
    assert reason in said()[0]
    # The pauses are 0.5 s, 1 s and so on.
    found = starts_in(starts)
    assert bool(found) == tries
    assert all(later - at >= 0.5 * 2**n for n, (at, later) in enumerate(itertools.pairwise(found))), found


def test_all_processes_of_a_host_observe_the_pause(files: RunFiles, tmp_path: Path, wait_until: WaitUntil) -> None:
    """Twelve processes that all fail do not cause twelve times the load."""
    prepare_run_dir(files.directory)
    files.log.mkdir()
    starts = tmp_path / "starts"
    pool = bgpool.get_pool(DSN, bg_id="start", bg_run_dir=files.directory, min_size=0, max_size=2, num_workers=1)

    def work() -> None:
        count_starts(starts)
        pool.open()

    children = [fork_worker(work) for _ in range(12)]
    try:
        wait_until(lambda: len(starts_in(starts)) >= 4)
        # Read before the children end that hold the right to start a monitor.
        found = starts_in(starts)
    finally:
        kill_workers(children)
    # One at a time, half a second apart.
    assert all(later - at >= 0.5 for at, later in itertools.pairwise(found)), found


def test_one_process_of_many_bypasses_a_hanging_starter(
    files: RunFiles, tmp_path: Path, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "MONITOR_START_S", 0.5)
    prepare_run_dir(files.directory)
    hung = files.spawning.open("w")
    files.spawning.chmod(0o600)
    fcntl.flock(hung, fcntl.LOCK_EX)
    pool = bgpool.get_pool(DSN, bg_id="start", bg_run_dir=files.directory, min_size=0, max_size=2, num_workers=1)
    starts = tmp_path / "starts"

    def work() -> None:
        hung.close()
        count_starts(starts)
        pool.open()

    children = [fork_worker(work) for _ in range(8)]
    try:
        wait_until(lambda: lives(files), START_S)
        time.sleep(0.5)
        assert len(starts_in(starts)) <= 3
    finally:
        kill_workers(children)
        kill_monitor(files)
        hung.close()


def test_the_wait_for_a_starter_begins_again_after_a_long_time(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock's file stays the same over the years."""
    prepare_run_dir(files.directory)
    place, settings, _ = parse(DSN, {"bg_id": "start"})
    starter = spawn.Starter("lonely", lambda: [MonitorConfig.of(place, settings, files.directory)])
    held = files.spawning.open("w")
    files.spawning.chmod(0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert not starter.ensure_monitor(files)
    clock[0] += 3600
    assert not starter.ensure_monitor(files)
    assert files.spawning.exists()
    for _ in range(int(MONITOR_START_S / 2) + 1):
        assert files.spawning.exists()
        clock[0] += 2
        assert not starter.ensure_monitor(files)
    assert not files.spawning.exists()
    held.close()
