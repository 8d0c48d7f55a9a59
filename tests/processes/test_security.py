"""Files that other users put into the run directory are refused, and bgpool's own data stays private."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg_pool import PoolTimeout

import bgpool
from bgpool import registry, testing
from bgpool.core.phase import Phase
from bgpool.dsn import parse
from bgpool.fleet.streams import RIGHTS, stream_keys
from bgpool.lab import Pair
from bgpool.lab.redis import RedisServer
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.process import run_monitor
from bgpool.segment import layout, table
from bgpool.segment.paths import RunFiles, look_in, prepare_run_dir
from bgpool.segment.presence import Presence, workers
from bgpool.segment.reader import Reader, SegmentMap
from tests.clusters import shared_memory
from tests.docs.pages import ROOT

pytestmark = [pytest.mark.lab, pytest.mark.slow]

WaitUntil = Callable[..., None]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users")
STRANGER = 12345
VICTIM = b"precious"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    (tmp_path / "run").mkdir(mode=0o700)
    return RunFiles.of(tmp_path / "run", "hostile")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file elsewhere that a link may lead to."""
    path = tmp_path / "victim"
    path.write_bytes(VICTIM)
    path.chmod(0o600)
    return path


def put_symlink(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def put_fifo(path: Path, _: Path) -> None:
    os.mkfifo(path, 0o600)


def put_directory(path: Path, _: Path) -> None:
    path.mkdir()


def put_strangers(path: Path, _: Path) -> None:
    path.write_bytes(b"x" * layout.FILE_BYTES)
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER)


def put_open_to_all(path: Path, _: Path) -> None:
    path.touch()
    path.chmod(0o666)


def put(content: bytes) -> Callable[[Path, Path], None]:
    def put_content(path: Path, _: Path) -> None:
        path.write_bytes(content)
        path.chmod(0o600)

    return put_content


def put_huge(path: Path, _: Path) -> None:
    put(b"")(path, path)
    os.truncate(path, 2**40)


ANY_FILE = {
    "symlink": put_symlink,
    "fifo": put_fifo,
    "directory": put_directory,
    "stranger's": put_strangers,
    "open to all": put_open_to_all,
}
MAPPED_FILE = {
    **ANY_FILE,
    "empty": put(b""),
    "random": put(os.urandom(layout.FILE_BYTES)),
    "huge": put_huge,
    "future segment": put(layout.MAGIC + b"\x09\0\0\0" + bytes(layout.FILE_BYTES - 12)),
    "future table": put(table.MAGIC + b"\x09\0\0\0" + bytes(table.FILE_BYTES - 12)),
}
CASES = [
    *((name, hostile) for name in ("segment", "workers") for hostile in MAPPED_FILE),
    *((name, hostile) for name in ("spawning", "relay", "term", "log", "history") for hostile in ANY_FILE),
]


@pytest.mark.parametrize(("name", "hostile"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_hostile_file_is_refused_and_the_pool_serves(
    pair: Pair, files: RunFiles, victim: Path, caplog: pytest.LogCaptureFixture, name: str, hostile: str
) -> None:
    path = files.tenure(1) if name == "term" else getattr(files, name)
    MAPPED_FILE[hostile](path, victim)
    pool = bgpool.get_pool(pair.dsn, bg_id="hostile", bg_resolver=pair.resolver, bg_run_dir=files.directory)
    try:
        for _ in range(2):
            with pool.connection() as conn:
                assert conn.execute("SELECT 1").fetchone() == (1,)
            time.sleep(0.3)
    finally:
        pool.close()
    assert victim.read_bytes() == VICTIM
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    if name in ("segment", "workers"):
        lines = [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]
        refused = [record.getMessage() for record in caplog.records if "segment is refused" in record.getMessage()]
        assert lines or refused, caplog.text
        assert len(set(refused)) == len(refused), "each refusal is logged once"
    # The refused file still exists, or was replaced by bgpool's own file; it was never used.
    if path.is_file() and not path.is_symlink() and name in ("segment", "workers"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 or hostile == "open to all"


def recipes() -> dict[str, str]:
    """Return the commands of docs/servers.md that make a directory for a group, by the names of their requirements."""
    text = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    host = re.search(r"^install -d -o root .*?(?=#)", text, re.MULTILINE)
    pod = re.search(r"^ +- (mkdir -p .* chmod 2770 .*)$", text, re.MULTILINE)
    assert host
    assert pod
    return {"host": host[0], "pod": pod[1]}


class TestSharedByAGroup:
    """Both recipes of docs/servers.md: a directory of the host, and one in a pod's emptyDir with fsGroup."""

    GROUP = 23456

    @pytest.fixture(params=["host", "pod"])
    def shared(self, request: pytest.FixtureRequest) -> Iterator[RunFiles]:
        # Pytest's own directories are private, and the users of the group must be able to enter.
        mount = Path(f"/tmp/bgpool-shared-{os.getpid()}")
        mount.mkdir()
        os.chown(mount, 0, self.GROUP)
        mount.chmod(0o2777)
        command = recipes()[request.param].replace("-g bgpool", f"-g {self.GROUP}").replace("0:2000", f"0:{self.GROUP}")
        directory = mount / "shared"
        subprocess.run(["sh", "-c", re.sub(r"/run/bgpool(/shared)?", str(directory), command)], check=True)
        yield RunFiles.of(look_in(directory), "shared")
        shutil.rmtree(mount)

    def as_user(self, uid: int, function: Callable[[], object]) -> int:
        """Return the pid of a child that runs *function* as *uid* in the group."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                # Like the kubelet: the group of fsGroup is a supplementary one.
                os.setgroups([self.GROUP])
                os.setgid(uid)
                os.setuid(uid)
                function()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        return pid

    @as_root
    def test_users_of_one_group_have_one_monitor_and_take_over_from_each_other(
        self, shared: RunFiles, wait_until: WaitUntil
    ) -> None:
        place, settings, _ = parse("postgresql://app@127.0.0.1:1/app", {"bg_id": "shared"})
        config = MonitorConfig.of(place, settings, shared.directory)

        def lead() -> None:
            os.umask(0o077)
            assert run_monitor(config, linger_s=None)

        def follow() -> None:
            presence = Presence(shared)
            assert len(workers(shared)) == 1
            assert Reader(shared).refresh().snapshot is not None
            presence.nudge()

        first = self.as_user(1001, lead)
        wait_until(lambda: shared.segment.exists())
        assert os.waitstatus_to_exitcode(os.waitpid(self.as_user(1002, follow), 0)[1]) == 0
        os.kill(first, 9)
        os.waitpid(first, 0)
        second = self.as_user(1002, lead)
        try:
            wait_until(lambda: SegmentMap(shared).header.term == 2)
        finally:
            os.kill(second, 9)
            os.waitpid(second, 0)
        for path in shared.directory.iterdir():
            found = path.stat()
            assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (self.GROUP, 0o660), path

    @as_root
    def test_users_of_one_mount_without_a_recipe_have_a_directory_each(self, shared: RunFiles) -> None:
        mount = shared.directory.parent

        def be_present() -> None:
            os.umask(0)
            directory = look_in(mount)
            assert prepare_run_dir(directory)
            Presence(RunFiles.of(directory, "alone"))

        for uid in (1001, 1002):
            assert os.waitstatus_to_exitcode(os.waitpid(self.as_user(uid, be_present), 0)[1]) == 0
            found = (mount / f"bgpool-{uid}").stat()
            assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (uid, 0o700)

    @as_root
    def test_a_user_outside_the_group_has_a_plain_pool(self, shared: RunFiles) -> None:
        def try_it() -> None:
            os.setgroups([])
            os.setgid(1003)
            os.setuid(1003)
            with pytest.raises(bgpool.SegmentError):
                Presence(shared)

        pid = os.fork()
        if pid == 0:
            try:
                try_it()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@as_root
def test_a_worker_that_becomes_another_user_has_that_users_directory() -> None:
    """gunicorn with preload_app and user: the pool is created, and perhaps used, by root."""
    mount = Path(f"/tmp/bgpool-users-{os.getpid()}")
    mount.mkdir()
    mount.chmod(0o1777)
    options: dict[str, Any] = {"bg_run_dir": mount, "bg_id": "users", "min_size": 0, "max_size": 1}
    pool = bgpool.get_pool("postgresql://app@127.0.0.1:1/app", **options)

    def work() -> None:
        os.setgroups([])
        os.setgid(1001)
        os.setuid(1001)
        pool.open()
        assert [row.pid for row in bgpool.status("users", mount).workers] == [os.getpid()]
        assert bgpool.status("users", mount).run_dir == str(mount / "bgpool-1001")

    try:
        # With this deployment, no process starts a monitor for root.
        with testing.deployment(mount, bg_id="users"):
            pool.open()
            assert pool.participant.files.directory == mount / "bgpool-0"
            # Called here, because another user cannot read modules that are not loaded yet.
            bgpool.status("users", mount)
            pid = os.fork()
            if pid == 0:
                try:
                    work()
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert [row.pid for row in bgpool.status("users", mount).workers] == [os.getpid()]
    finally:
        shutil.rmtree(mount)


def test_no_secret_can_be_found(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    """Search everything that others may read: command lines, environments, files, shared memory, logs, reprs."""
    caplog.set_level(logging.DEBUG)
    options: dict[str, Any] = {"bg_id": "secret", "bg_resolver": pair.resolver, "bg_run_dir": tmp_path / "run"}
    pool = bgpool.get_pool(pair.dsn, **options)
    secret = pair.app_password.encode()
    try:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
        wait_until(lambda: pool.stats().phase is Phase.NOT_CREATED)
        place, settings, _ = parse(pair.dsn, options)
        config = MonitorConfig.of(place, settings, tmp_path / "run")
        pool_parts = [pool, pool.stats(), place, settings, config, pool.participant, pool._gate, pool._generations]
        assert not any(secret.decode() in repr(part) for part in pool_parts)
        assert secret.decode() not in caplog.text
        assert_hidden(secret, tmp_path / "run")
    finally:
        pool.close()


def assert_hidden(secret: bytes, run_dir: Path) -> None:
    """Check that *secret* is in no file of *run_dir* or of shared memory, and in no command line or environment."""
    for path in (*run_dir.rglob("*"), *shared_memory()):
        if path.is_file() and path.stat().st_size < 10**7:
            assert secret not in path.read_bytes(), path
    for process in Path("/proc").glob("[0-9]*"):
        for seen in ("cmdline", "environ"):
            try:
                assert secret not in (process / seen).read_bytes(), process
            except OSError:
                continue


@pytest.mark.parametrize("is_admitted", [True, False])
def test_no_secret_of_a_fleet_can_be_found(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil, *, is_admitted: bool
) -> None:
    """Search for the bus's password and the key: in what others may read, on the bus, and after a refused login."""
    caplog.set_level(logging.DEBUG)
    # Made at run time: a literal of this file would be found in it.
    password, key = secrets.token_hex(16), secrets.token_hex(32)
    run_dir, bg_id = tmp_path / "run", f"fleet-{os.getpid()}"
    with RedisServer() as bus:
        bus.user("watcher", password if is_admitted else "another", *RIGHTS.split())
        url = bus.url(user="watcher", password=password)
        pool = bgpool.get_pool(
            pair.dsn, bg_id=bg_id, bg_resolver=pair.resolver, bg_run_dir=run_dir, bg_fleet=url, bg_fleet_key=key
        )
        stream, hosts = stream_keys(bg_id)
        try:
            with pool.connection() as conn:
                conn.execute("SELECT 1")
            log = RunFiles.of(run_dir, bg_id).log
            if is_admitted:
                wait_until(lambda: bus.execute("XLEN", hosts) >= 1)
            else:
                wait_until(lambda: bus.execute("ACL", "LOG") and "refuses the user or the password" in log.read_text())
            for secret in (password, key):
                assert secret not in caplog.text
                assert secret not in repr((pool, pool.stats(), pool.monitoring, registry._registry.pools))
                assert_hidden(secret.encode(), run_dir)
                for one in (stream, hosts):
                    assert secret.encode() not in repr(bus.execute("XRANGE", one, "-", "+")).encode()
                assert secret not in repr(bgpool.status(bg_id, run_dir))
        finally:
            pool.close()


def test_the_wrong_password_is_not_in_the_error(pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dsn = pair.dsn.replace(pair.app_password, "wr0ng-s3cret")
    pool = bgpool.get_pool(
        dsn, bg_id="wrong", bg_resolver=pair.resolver, bg_run_dir=tmp_path / "run", timeout=1.0, reconnect_timeout=0.5
    )
    caplog.set_level(logging.DEBUG)
    with pytest.raises(PoolTimeout) as caught, pool.connection():
        pass
    pool.close()
    assert "wr0ng" not in repr(caught.value) + str(caught.value) + caplog.text


def test_a_run_directory_that_becomes_hostile_stops_no_watcher(
    pair: Pair,
    files: RunFiles,
    wait_until: WaitUntil,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The watcher reports what it cannot repair, and continues with the rest: draining, cutting, its row."""
    pool = bgpool.get_pool(pair.dsn, bg_id="hostile", bg_resolver=pair.resolver, bg_run_dir=files.directory)
    try:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
        wait_until(lambda: pool.stats().phase is not None)
        files.directory.chmod(0o777)
        files.workers.unlink()
        wait_until(lambda: "0777" in caplog.text)
        ticks: list[float] = []

        def tick() -> float:
            ticks.append(time.monotonic())
            return math.inf

        monkeypatch.setattr(pool, "tick", tick)
        wait_until(lambda: len(ticks) >= 2)
        with pool.connection() as conn:
            conn.execute("SELECT 1")
    finally:
        files.directory.chmod(0o700)
        pool.close()
