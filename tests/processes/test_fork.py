"""A fork at any moment: the child leaves the parent's connections alone, and both processes continue."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

import bgpool
from bgpool import testing
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import workers
from tests.engines import kit_of

pytestmark = pytest.mark.lab

RunChild = Callable[[Callable[[], object]], int]


@pytest.fixture(scope="module", params=list(Engine), ids=lambda engine: engine.value)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Pair(engine=request.param) as pair:
        yield pair


@pytest.fixture
def pool(pair: Pair, tmp_path: Path) -> Iterator[bgpool.Pool[Any]]:
    pool = bgpool.get_pool(
        pair.dsn, bg_id="fork", bg_resolver=pair.resolver, bg_run_dir=tmp_path / "run", min_size=1, max_size=1
    )
    yield pool
    pool.close()


def in_child(function: Callable[[], object]) -> int:
    """Return the exit status of a child that runs *function* and exits like a forked worker."""
    return end_of(begin_child(function, os.fork))


def begin_child(function: Callable[[], object], fork: Callable[[], int]) -> int:
    """Return the pid of such a child."""
    pid = fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def in_child_untold(function: Callable[[], object]) -> int:
    """Like in_child, by a fork that runs none of Python's hooks.

    On a busy machine CPython's interpreter lock can be lost in such a child, which then hangs in any Python code: the
    fork is repeated, with more time. A defect of bgpool would hang all three attempts. See docs/servers.md.
    """

    def run() -> None:
        sys.setswitchinterval(0.005)
        function()

    for timeout_s in (4.0, 10.0, 20.0):
        status = end_of(begin_child(run, ctypes.PyDLL(None).fork), timeout_s)
        if status != -signal.SIGKILL:
            break
    return status


def end_of(pid: int, timeout_s: float = 60.0) -> int:
    """Return the exit status of a child, which is killed after *timeout_s* seconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def backend(pool: bgpool.Pool[Any]) -> int:
    """Return the server's identifier of the pool's connection, which must also answer a query."""
    with pool.connection() as conn:
        assert ask(conn, 1) == 1
        return kit_of(conn).session(conn)


def ask(conn: Any, n: int) -> int:
    """Return the result of ``SELECT n``."""
    return int(kit_of(conn).execute(conn, f"SELECT {n}")[0][0])


def test_a_pool_made_before_the_fork_works_on_both_sides(pool: bgpool.Pool[Any]) -> None:
    parents = backend(pool)

    def child() -> None:
        assert backend(pool) != parents

    assert in_child(child) == 0
    assert backend(pool) == parents or backend(pool)


def test_a_daemon_can_use_its_parents_pool(pool: bgpool.Pool[Any], tmp_path: Path) -> None:
    """Fork twice and close every descriptor, like python-daemon, after the pool was used."""
    parents = backend(pool)
    files = RunFiles.of(tmp_path / "run", "fork")

    def daemon() -> None:
        os.closerange(0, 10_000)
        for _ in range(3):
            os.open(os.devnull, os.O_RDWR)
        os.chdir("/")
        os.umask(0)
        assert backend(pool) != parents
        deadline = time.monotonic() + 30.0
        while os.getpid() not in [row.pid for row in workers(files)]:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def child() -> None:
        os.setsid()
        assert end_of(begin_child(daemon, os.fork)) == 0

    assert in_child(child) == 0
    assert backend(pool) == parents


@pytest.mark.parametrize("children", [20, pytest.param(100, marks=pytest.mark.full)])
def test_children_leave_the_parents_connection_alone(pool: bgpool.Pool[Any], children: int) -> None:
    with pool.connection() as conn:
        execute = kit_of(conn).execute
        execute(conn, "CREATE TEMPORARY TABLE mine (n int)")
        for n in range(children):
            assert in_child(lambda: None) == 0
            execute(conn, "INSERT INTO mine VALUES (%s)", (n,))
        assert execute(conn, "SELECT count(*) FROM mine") == [(children,)]


def test_an_inherited_connection_is_refused_in_the_child_and_lives_on_in_the_parent(
    pool: bgpool.Pool[Any],
) -> None:
    with pool.connection() as conn:
        ask(conn, 1)

        def child() -> None:
            with pytest.raises(bgpool.InheritedConnection, match="belongs to the parent"):
                ask(conn, 2)
            conn.close()
            pool.putconn(conn)
            assert backend(pool) > 0

        assert in_child(child) == 0
        assert ask(conn, 3) == 3


def test_forks_work_while_other_threads_are_in_checkouts(pool: bgpool.Pool[Any]) -> None:
    stopping = threading.Event()
    failures: list[BaseException] = []

    def busy() -> None:
        try:
            while not stopping.is_set():
                backend(pool)
        except BaseException as error:
            failures.append(error)

    crew = [threading.Thread(target=busy) for _ in range(2)]
    for thread in crew:
        thread.start()
    try:
        statuses = [in_child(lambda: backend(pool)) for _ in range(10)]
    finally:
        stopping.set()
        for thread in crew:
            thread.join(20)
    assert statuses == [0] * 10
    assert failures == []


def in_child_of_a_thread(function: Callable[[], object]) -> int:
    """Like in_child, forked by a thread that is not the main one."""
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(in_child(function)))
    thread.start()
    thread.join(60)
    return statuses[0]


def test_a_fork_works_while_another_thread_waits_for_a_connection(pool: bgpool.Pool[Any]) -> None:
    found: list[int] = []
    with pool.connection() as conn:
        # The pool has one connection: this thread is in the middle of a checkout when the other thread forks.
        waiting = threading.Thread(target=lambda: found.append(backend(pool)))
        waiting.start()
        while not pool.stats().waiting:
            threading.Event().wait(0.01)
        parents = kit_of(conn).session(conn)

        def child() -> None:
            assert backend(pool) != parents

        assert [in_child_of_a_thread(child) for _ in range(5)] == [0] * 5
        assert ask(conn, 1) == 1
    waiting.join(20)
    assert found == [parents]


def test_parent_and_child_are_held_after_a_fork_in_a_switchover(
    pair: Pair, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """Parent and child are held, independently of each other, and released without delay."""
    blue, green, files = pair.names.blue.primary, pair.names.green.primary, RunFiles.of(tmp_path / "run", "1")
    with testing.deployment(tmp_path / "run", blue=blue, green=green, bg_resolver=pair.resolver) as deployment:
        pool = bgpool.get_pool(
            pair.dsn, bg_resolver=pair.resolver, bg_run_dir=deployment.run_dir, min_size=1, max_size=2
        )
        go_through(pool, deployment, files, wait_until)


def go_through(
    pool: bgpool.Pool[Any], deployment: testing.Deployment, files: RunFiles, wait_until: Callable[..., None]
) -> None:
    before, found, statuses = backend(pool), list[int](), list[int]()
    deployment.phase(Phase.IN_PROGRESS)
    held = [threading.Thread(target=lambda: found.append(backend(pool))) for _ in range(2)]
    for thread in held:
        thread.start()
    wait_until(lambda: pool.stats().held == 2)

    def child() -> None:
        assert pool.stats().held == 0
        assert backend(pool) != before

    forking = threading.Thread(target=lambda: statuses.append(in_child_of_a_thread(child)))
    forking.start()
    try:
        wait_until(lambda: {row.usage.held for row in workers(files) if row.pid != os.getpid()} == {1})
        assert (found, statuses) == ([], [])
    finally:
        deployment.roll_back()
    for thread in [*held, forking]:
        thread.join(20)
    assert statuses == [0]
    assert len(found) == 2


def test_a_child_that_ends_normally_neither_hangs_nor_warns(pair: Pair, tmp_path: Path) -> None:
    """Such a child also runs exit handlers and collects inherited objects."""
    script = f"""
import os, sys, bgpool
pool = bgpool.get_pool({pair.dsn!r}, bg_resolver={pair.resolver!r}, bg_run_dir={str(tmp_path / "run")!r}, min_size=2)
with pool.connection() as conn, conn.cursor() as cursor:
    cursor.execute("SELECT 1")
pid = os.fork()
if pid == 0:
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT 1")
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
with pool.connection() as conn, conn.cursor() as cursor:
    cursor.execute("SELECT 1")
    assert cursor.fetchone() == (1,)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


ROWS = 20_000


@contextlib.contextmanager
def in_the_middle_of_a_result(conn: Any) -> Iterator[tuple[Iterator[Any], Any]]:
    """Return a result larger than any buffer, with three rows of it read, and the object that closes it."""
    if isinstance(conn, pymysql.connections.Connection):
        cursor = conn.cursor(pymysql.cursors.SSCursor)
        conn.begin()
        cursor.execute(
            "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 900) "
            f"SELECT repeat('x', 1000) FROM g a, g b LIMIT {ROWS}"
        )
        rows: Iterator[Any] = iter(cursor.fetchone, None)
        closing: Any = cursor
    else:
        rows = closing = conn.cursor().stream(f"SELECT repeat('x', 1000) FROM generate_series(1, {ROWS})")
    for _ in range(3):
        next(rows)
    yield rows, closing
    closing.close()


class TestUnreadResults:
    """Rows that the parent has not read yet arrive at the socket, which parent and child share."""

    pytestmark = pytest.mark.usefixtures("patient_threads")

    @pytest.fixture(params=["with hooks", "without hooks"])
    def run_child(self, request: pytest.FixtureRequest) -> RunChild:
        return in_child if request.param == "with hooks" else in_child_untold

    def test_the_child_may_close_the_result(self, pool: bgpool.Pool[Any], run_child: RunChild) -> None:
        with pool.connection() as conn, in_the_middle_of_a_result(conn) as (rows, closing):
            assert run_child(closing.close) == 0
            assert sum(1 for _ in rows) == ROWS - 3

    def test_the_child_cannot_read_the_parents_rows(self, pool: bgpool.Pool[Any], run_child: RunChild) -> None:
        with pool.connection() as conn, in_the_middle_of_a_result(conn) as (rows, _):

            def child() -> None:
                with pytest.raises(bgpool.InheritedConnection):
                    # psycopg may have received more rows than it has returned; the child has a copy of these.
                    while True:
                        next(rows)
                with pytest.raises(bgpool.InheritedConnection):
                    conn.cursor().execute("SELECT 1")

            assert run_child(child) == 0
            assert sum(1 for _ in rows) == ROWS - 3

    def test_the_child_can_neither_end_nor_cancel_the_transaction(
        self, pool: bgpool.Pool[Any], run_child: RunChild
    ) -> None:
        with pool.connection() as conn, in_the_middle_of_a_result(conn) as (rows, closing):

            def child() -> None:
                for cancel in ("cancel", "cancel_safe") if isinstance(conn, psycopg.Connection) else ():
                    with pytest.raises(bgpool.InheritedConnection):
                        getattr(conn, cancel)()
                closing.close()
                for end in (conn.commit, conn.rollback):
                    with pytest.raises(bgpool.InheritedConnection):
                        end()

            assert run_child(child) == 0
            assert sum(1 for _ in rows) == ROWS - 3

    def test_a_child_that_exits_within_the_result_neither_reads_nor_warns(self, pair: Pair, tmp_path: Path) -> None:
        script = f"""
import os, sys, bgpool
from tests.processes.test_fork import ROWS, in_the_middle_of_a_result
pool = bgpool.get_pool({pair.dsn!r}, bg_resolver={pair.resolver!r}, bg_run_dir={str(tmp_path / "run")!r}, min_size=1)
conn = pool.getconn()
middle = in_the_middle_of_a_result(conn)
rows, closing = middle.__enter__()
pid = os.fork()
if pid == 0:
    del middle, rows, closing
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert sum(1 for _ in rows) == ROWS - 3
middle.__exit__(None, None, None)
conn.rollback()
pool.putconn(conn)
"""
        done = subprocess.run(
            [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", script],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


#: A pool is created before the fork and used after it, also by a thread other than the main one.
CHILD_OF_ONE_THREAD = """
import ctypes, os, threading
import bgpool
from tests.processes.test_fork import warnings_of_fork

pool = bgpool.get_pool({dsn!r}, bg_id="alone", bg_run_dir={run!r}, kwargs={{"connect_timeout": 2}}, timeout=0.2)
pid = ctypes.PyDLL(None).fork()
if pid:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
def use():
    try:
        pool.getconn()
    except bgpool.Error:
        pass
with warnings_of_fork() as texts:
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    use()
os.write(1, f"{{texts}}\\n".encode())
os._exit(0)
"""


@contextlib.contextmanager
def warnings_of_fork() -> Iterator[list[str]]:
    """Collect the log lines that warn of a fork without hooks."""
    texts: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "event", "") == "fork_without_hooks":
                texts.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("bgpool.pool")
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


class TestForksWithoutHooks:
    """uWSGI and C libraries fork without Python's hooks: bgpool runs no code in the child before its first call."""

    pytestmark = pytest.mark.usefixtures("patient_threads")

    def test_the_child_does_not_reuse_the_parents_connection(self, pool: bgpool.Pool[Any]) -> None:
        parents = backend(pool)
        assert backend(pool) == parents, "the parent reuses its connection"

        def child() -> None:
            assert backend(pool) != parents

        assert [in_child_untold(child) for _ in range(10)] == [0] * 10
        assert backend(pool) == parents

    def test_the_child_of_a_plain_pool_does_not_reuse_it_either(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BGPOOL_DISABLE", "1")
        plain = bgpool.get_pool(pair.dsn, bg_id="fork-plain", bg_resolver=pair.resolver, min_size=1, max_size=1)
        parents = backend(plain)
        assert plain.admits()

        def child() -> None:
            assert backend(plain) != parents

        assert [in_child_untold(child) for _ in range(3)] == [0] * 3
        assert backend(plain) == parents
        plain.close()

    def test_all_threads_of_the_child_notice_the_fork(self, pool: bgpool.Pool[Any]) -> None:
        parents = backend(pool)

        def child() -> None:
            found: list[int] = []
            crew = [threading.Thread(target=lambda: found.append(backend(pool))) for _ in range(8)]
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join(20)
            assert len(found) == 8
            assert parents not in found

        assert [in_child_untold(child) for _ in range(5)] == [0] * 5
        assert backend(pool) == parents

    def test_an_inherited_connection_is_refused(self, pool: bgpool.Pool[Any]) -> None:
        with pool.connection() as conn:
            ask(conn, 1)

            def child() -> None:
                with pytest.raises(bgpool.InheritedConnection):
                    ask(conn, 2)
                pool.putconn(conn)
                conn.close()
                assert backend(pool) > 0

            assert in_child_untold(child) == 0
            assert ask(conn, 3) == 3

    @pytest.mark.parametrize("call", ["close", "stats", "drain", "getpool"])
    def test_any_first_call_leaves_the_parents_alone(
        self, pool: bgpool.Pool[Any], pair: Pair, tmp_path: Path, call: str
    ) -> None:
        parents = backend(pool)

        def child() -> None:
            if call == "getpool":
                other = bgpool.get_pool(pair.dsn, bg_id="fork", bg_resolver=pair.resolver, bg_run_dir=tmp_path / "run")
                assert backend(other) != parents
            else:
                getattr(pool, call)()

        assert in_child_untold(child) == 0
        assert backend(pool) == parents

    def test_a_parent_with_threads_causes_a_warning(self, pool: bgpool.Pool[Any]) -> None:
        backend(pool)

        def child() -> None:
            with warnings_of_fork() as texts:
                backend(pool)
                backend(pool)
            assert len(texts) == 1
            assert "a thread of the parent held may block it" in texts[0]

        assert in_child_untold(child) == 0

    def test_a_parent_without_threads_causes_no_warning(self, pair: Pair, tmp_path: Path) -> None:
        # A separate process is needed: this one has threads of pytest.
        script = CHILD_OF_ONE_THREAD.format(dsn=pair.dsn, run=str(tmp_path / "run"))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr

    def test_objects_of_the_parents_threads_are_never_collected(self, pool: bgpool.Pool[Any]) -> None:
        """From Python 3.13 on, the collection of one whose thread was not joined may end the child with SIGSEGV."""
        backend(pool)
        # Joined, so that its collection is harmless in any case.
        threads = [threading.Thread(target=int)]
        threads[0].start()
        threads[0].join()
        known = weakref.ref(threads[0])

        def child() -> None:
            backend(pool)
            threads.clear()
            gc.collect()
            assert known() is not None

        assert in_child_untold(child) == 0
        threads.clear()
        gc.collect()
        assert known() is None

    def test_the_parents_row_is_not_the_childs(self, pool: bgpool.Pool[Any], tmp_path: Path) -> None:
        backend(pool)
        files = RunFiles.of(tmp_path / "run", "fork")

        def child() -> None:
            backend(pool)
            assert {row.pid for row in workers(files)} == {os.getpid(), os.getppid()}

        assert in_child_untold(child) == 0
        assert [row.pid for row in workers(files)] == [os.getpid()]
