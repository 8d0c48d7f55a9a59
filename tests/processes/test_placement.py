"""One process runs the monitors of all deployments of an application; incompatible monitors get separate processes."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock  # noqa:F401  # other users may lack permission to read Python's modules
import msgpack
import pytest

import bgpool
from bgpool.core.limits import (
    HEARTBEAT_S,
    HEARTBEAT_STALE_S,
    HOST_LINGER_S,
    LINGER_S,
    MONITOR_SHORT_LIFE_S,
)
from bgpool.dsn import parse
from bgpool.errors import SegmentError
from bgpool.monitor import placement, rendezvous, spawn
from bgpool.monitor.compatibility import compatibility_key
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.group import MonitorGroup
from bgpool.monitor.logfiles import LogFiles
from bgpool.monitor.placement import bring_up
from bgpool.monitor.rendezvous import Rendezvous, ask, listen
from bgpool.segment.locks import try_lock
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.reader import Reader, SegmentMap

pytestmark = pytest.mark.slow

WaitUntil = Callable[..., None]
#: The time that a loaded machine needs to start an interpreter.
START_S = 30.0
#: The age at which the end of a monitor no longer counts as an immediate one.
LIVED_S = MONITOR_SHORT_LIFE_S + HEARTBEAT_STALE_S + 0.2
DSN = "postgresql://app:s3cret@127.0.0.1:1/app"
Opener = Callable[..., list[bgpool.Pool[Any]]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run directory; processes that hold locks there are killed at the end."""
    directory = tmp_path / "run"
    yield directory
    for pid in processes(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def open_pools(run: Path, wait_until: WaitUntil) -> Iterator[Opener]:
    """Open a pool for each bg_id, all at the same time, and wait until all are watched."""
    made: list[bgpool.Pool[Any]] = []

    def open_all(*bg_ids: str, **options: Any) -> list[bgpool.Pool[Any]]:
        pools = [
            bgpool.get_pool(DSN, bg_id=bg_id, bg_run_dir=run, min_size=0, max_size=2, **options) for bg_id in bg_ids
        ]
        made.extend(pools)
        for pool in pools:
            pool.open()
        wait_until(lambda: all(lives(run, bg_id) for bg_id in bg_ids), START_S)
        return pools

    yield open_all
    for pool in made:
        pool.close(0)


def processes(run: Path) -> list[int]:
    """Return the processes, without this one, that hold the lock of a tenure open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(link.startswith(f"{run}/") and ".term-" in link for link in links(process / "fd")):
                found.add(int(process.name))
    return sorted(found - {os.getpid()})


def links(descriptors: Path) -> Iterator[str]:
    """Return the targets of open descriptors, without those that are closed at the same time."""
    for fd in descriptors.iterdir():
        with contextlib.suppress(OSError):
            yield str(fd.readlink())


def lives(run: Path, bg_id: str) -> bool:
    reader = Reader(RunFiles.of(run, bg_id))
    reader.check_path()
    return not reader.monitor_is_silent()


def holder(run: Path, bg_id: str) -> int:
    """Return the process that writes the segment of *bg_id*; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError, SegmentError):
        return SegmentMap(RunFiles.of(run, bg_id)).header.pid
    return 0


def holders(run: Path, bg_ids: Sequence[str]) -> set[int]:
    return {holder(run, bg_id) for bg_id in bg_ids}


def config_of(run: Path, bg_id: str, **options: Any) -> MonitorConfig:
    place, settings, _ = parse(DSN, {"bg_id": bg_id, **options})
    return MonitorConfig.of(place, settings, run)


def place_of(run: Path, bg_id: str = "any") -> Rendezvous:
    alike = compatibility_key(config_of(run, bg_id))
    assert alike is not None
    return Rendezvous(run, alike)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


BG_IDS = [f"deployment-{number}" for number in range(8)]


def test_all_deployments_of_an_application_have_one_process(run: Path, open_pools: Opener) -> None:
    """This holds even if all pools are opened at the same time, each by its own thread."""
    open_pools(*BG_IDS)
    assert len(holders(run, BG_IDS)) == 1
    (pid,) = holders(run, BG_IDS)
    # Each monitor writes to its own log only.
    for bg_id in BG_IDS:
        text = RunFiles.of(run, bg_id).log.read_text()
        assert text.count("monitor of bg_id") == 1
        assert f"monitor of bg_id {bg_id!r} started, term 1" in text
        assert text.count("blue does not answer") <= 1
    assert len(processes(run)) == 1
    descriptors = list(links(Path(f"/proc/{pid}/fd")))
    assert descriptors.count("/dev/null") >= 3


def test_the_end_of_one_monitor_leaves_the_others_running(run: Path, open_pools: Opener, wait_until: WaitUntil) -> None:
    first, *_ = open_pools("first", "second")
    pid = holder(run, "first")
    first.close(1.0)
    wait_until(lambda: not RunFiles.of(run, "first").segment.exists(), LINGER_S + START_S)
    assert lives(run, "second")
    assert holder(run, "second") == pid
    # The bg_id can be watched again.
    open_pools("first")
    assert holders(run, ["first", "second"]) == {pid}


def test_the_process_ends_with_its_last_monitor(run: Path, open_pools: Opener, wait_until: WaitUntil) -> None:
    pools = open_pools("first", "second")
    pid = holder(run, "first")
    name = place_of(run).socket
    assert name.is_socket()
    for pool in pools:
        pool.close(1.0)
    wait_until(lambda: not is_there(pid), LINGER_S + HOST_LINGER_S + START_S)
    assert not name.exists()


def test_a_monitor_whose_segment_is_removed_restarts_in_the_same_process(
    run: Path, open_pools: Opener, wait_until: WaitUntil
) -> None:
    open_pools("first", "second")
    pid, term = holder(run, "first"), SegmentMap(RunFiles.of(run, "second")).header.term
    time.sleep(LIVED_S)
    RunFiles.of(run, "first").segment.unlink()
    wait_until(lambda: lives(run, "first"), START_S)
    assert holder(run, "first") == pid
    assert lives(run, "second")
    assert SegmentMap(RunFiles.of(run, "second")).header.term == term


def test_a_monitor_that_loses_a_thread_restarts_and_the_others_go_on(
    run: Path, tmp_path: Path, open_pools: Opener, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    # This works although bgpool is not imported yet: the remaining modules are imported when a monitor starts.
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import pathlib, time
import bgpool.monitor.doorbell as bell
real = bell.Doorbell.run
def run(self):
    if self.bg_id != "first" or not pathlib.Path({str(tmp_path / "break")!r}).exists():
        return real(self)
    raise RuntimeError("broken")
bell.Doorbell.run = run
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "break").touch()
    pool = bgpool.get_pool(DSN, bg_id="first", bg_run_dir=run, min_size=0, max_size=2)
    open_pools("second")
    pid, term = holder(run, "second"), SegmentMap(RunFiles.of(run, "second")).header.term
    pool.open()
    try:
        log = RunFiles.of(run, "first").log
        wait_until(lambda: log.exists() and "bgpool-bell ended unexpectedly" in log.read_text(), START_S)
        (tmp_path / "break").unlink()
        wait_until(lambda: lives(run, "first"), START_S)
    finally:
        pool.close(0)
    assert lives(run, "second")
    assert (holder(run, "second"), SegmentMap(RunFiles.of(run, "second")).header.term) == (pid, term)
    assert "ended unexpectedly" not in RunFiles.of(run, "second").log.read_text()


# -- the compatibility of monitors -----------------------------------------------------------------------------


def test_another_environment_leads_to_another_process(
    run: Path, open_pools: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_pools("first")
    monkeypatch.setenv("PGSSLROOTCERT", "/nowhere")
    open_pools("second")
    assert len(holders(run, ["first", "second"])) == 2
    # Each monitor starts in the compatible process.
    open_pools("third")
    assert holder(run, "third") == holder(run, "second")
    monkeypatch.delenv("PGSSLROOTCERT")
    open_pools("fourth")
    assert holder(run, "fourth") == holder(run, "first")


def test_variables_of_the_process_alone_do_not_matter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(run, "any")
    before = compatibility_key(config)
    monkeypatch.setenv("INVOCATION_ID", "another")
    monkeypatch.setenv("SHLVL", "7")
    assert compatibility_key(config) == before
    assert compatibility_key(config_of(run, "other")) == before
    monkeypatch.chdir("/")
    assert compatibility_key(config) != before


def test_resource_limits_matter(run: Path) -> None:
    """The operator may have limited a task of the same application."""
    config, (soft, hard) = config_of(run, "any"), resource.getrlimit(resource.RLIMIT_CORE)
    before = compatibility_key(config)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else 1024, hard))
    try:
        assert compatibility_key(config) != before
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert compatibility_key(config) == before


def test_a_redeployed_application_gets_a_new_process(
    run: Path, tmp_path: Path, open_pools: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module changes that the callable's own module imports."""
    (tmp_path / "deployed_keys.py").write_text("KEY = 's3cret'\n")
    (tmp_path / "deployed.py").write_text("from deployed_keys import KEY\ndef password(*_):\n    return KEY\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    password = __import__("deployed").password
    open_pools("first", "second", password=password)
    assert len(holders(run, ["first", "second"])) == 1
    (tmp_path / "deployed_keys.py").write_text("KEY = 'another'\n")
    open_pools("third", password=password)
    open_pools("fourth", password=password)
    assert holder(run, "third") == holder(run, "fourth") != holder(run, "first")
    assert lives(run, "first")


CALLABLES = """
def plain(host, port, user):
    return "s3cret"

def other(host, port, user):
    return "s3cret"

def keyed(secret, host, port, user):
    return "s3cret"

class Vault:
    def __init__(self, path):
        self.path = path
    def __call__(self, host, port, user):
        return "s3cret"
"""


def test_callables_of_equal_code_share_a_process(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vaults.py").write_text(CALLABLES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "vaults", raising=False)
    vaults: Any = __import__("vaults")

    def of(password: object) -> bytes | None:
        return compatibility_key(config_of(run, "any", password=password))

    assert of(vaults.plain) == of(vaults.plain)
    assert len({of(None), of(vaults.plain), of(vaults.other), of(vaults.Vault("a"))}) == 4
    # The arguments of a callable do not matter.
    assert of(vaults.Vault("a")) == of(vaults.Vault("b"))
    assert of(functools.partial(vaults.keyed, "a")) == of(functools.partial(vaults.keyed, "b"))
    before = of(vaults.plain)
    (tmp_path / "vaults.py").write_text(CALLABLES + "\n# mended\n")
    assert of(vaults.plain) != before, "the existing process would continue to use the old code"


def test_a_full_process_is_followed_by_another(
    run: Path, tmp_path: Path, open_pools: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import bgpool.core.limits as l; l.HOST_MONITORS = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    open_pools(*BG_IDS)
    found = [holder(run, bg_id) for bg_id in BG_IDS]
    assert max(found.count(pid) for pid in found) == 3
    assert len(set(found)) == 3


def test_a_failing_monitor_is_retried_in_its_own_process(
    run: Path,
    open_pools: Opener,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: WaitUntil,
) -> None:
    failed: list[str] = []

    def note(config: MonitorConfig, *, alone: bool) -> str:
        reason = bring_up(config, alone=alone)
        if reason and config.bg_id == "ill":
            failed.append(reason)
        return reason

    monkeypatch.setattr(spawn, "bring_up", note)
    open_pools("well")
    pid = holder(run, "well")
    RunFiles.of(run, "ill").log.mkdir()
    pool = bgpool.get_pool(DSN, bg_id="ill", bg_run_dir=run, min_size=0, max_size=2)
    pool.open()
    try:
        wait_until(lambda: "the monitor could not be started" in caplog.text, START_S)
        assert "Is a directory" in caplog.text
        # One more attempt fails, in the process with other monitors.
        wait_until(lambda: len(failed) >= 2, START_S)
        RunFiles.of(run, "ill").log.rmdir()
        wait_until(lambda: lives(run, "ill"), START_S)
        assert holder(run, "ill") != pid
    finally:
        pool.close(0)
    assert holder(run, "well") == pid
    # The rendezvous still belongs to the first process.
    open_pools("next")
    assert holder(run, "next") == pid


# -- processes that are gone, or hang --------------------------------------------------------------------------------


def test_a_killed_process_is_replaced_for_all_its_monitors(
    run: Path, open_pools: Opener, wait_until: WaitUntil
) -> None:
    """The socket of the killed process still exists."""
    open_pools(*BG_IDS)
    time.sleep(LIVED_S)
    old = holder(run, BG_IDS[0])
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: old not in holders(run, BG_IDS), START_S)
    wait_until(lambda: all(lives(run, bg_id) for bg_id in BG_IDS), START_S)
    assert len(holders(run, BG_IDS)) == 1


def test_a_stopped_process_is_replaced_for_all_its_monitors(
    run: Path, open_pools: Opener, wait_until: WaitUntil
) -> None:
    open_pools(*BG_IDS)
    time.sleep(LIVED_S)
    old = holder(run, BG_IDS[0])
    os.kill(old, signal.SIGSTOP)
    try:
        wait_until(lambda: old not in holders(run, BG_IDS), START_S)
        assert len(holders(run, BG_IDS)) == 1
        # A new monitor is placed in the new process.
        open_pools("new")
        assert holder(run, "new") == holder(run, BG_IDS[0])
    finally:
        os.kill(old, signal.SIGCONT)
    wait_until(lambda: not is_there(old) or old not in processes(run), HOST_LINGER_S + 5)
    open_pools("newer")
    assert holder(run, "newer") == holder(run, BG_IDS[0])


@pytest.fixture
def fake_process(run: Path) -> Iterator[Callable[[Sequence[bytes]], None]]:
    """Listen at the socket, answer each request with the given messages, and close the connection."""
    prepare_run_dir(run)
    made: list[socket.socket] = []

    def meet(said: Sequence[bytes]) -> None:
        listener = listen(place_of(run))
        assert listener is not None
        made.append(listener)

        def answer() -> None:
            with contextlib.suppress(OSError):
                listener.setblocking(True)
                while True:
                    sock, _ = listener.accept()
                    with sock:
                        sock.recv(100_000)
                        for message in said:
                            sock.send(message)

        threading.Thread(target=answer, daemon=True).start()

    yield meet
    for listener in made:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        rendezvous._drop(listener)


@pytest.mark.parametrize("said", [[], [b"taken"], [b"done:"], [b"?"], [b"taken", b"?"]], ids=str)
def test_a_process_that_ends_during_a_request_is_replaced(
    run: Path, fake_process: Callable[[Sequence[bytes]], None], open_pools: Opener, said: list[bytes]
) -> None:
    fake_process(said)
    assert ask(place_of(run), config_of(run, "any")) is None
    open_pools("any")
    assert lives(run, "any")


def test_the_reason_of_a_failure_is_passed_on(run: Path, fake_process: Callable[[Sequence[bytes]], None]) -> None:
    fake_process([b"taken", b"done:no room"])
    assert ask(place_of(run), config_of(run, "any")) == "no room"


def test_the_wait_for_a_hanging_starter_ends(run: Path, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "MONITOR_START_S", 0.3)
    prepare_run_dir(run)
    place = place_of(run)
    lock = try_lock(place.lock)
    assert lock is not None
    assert bring_up(config_of(run, "any"), alone=False) == ""
    wait_until(lambda: lives(run, "any"))
    assert not place.socket.exists(), "it accepts no other monitors: there could be many such processes"
    lock.release()


# -- the socket --------------------------------------------------------------------------------------------------


def test_a_run_directory_with_a_long_path_works(tmp_path: Path, wait_until: WaitUntil) -> None:
    run = tmp_path / ("long-" * 20) / "run"
    prepare_run_dir(run)
    try:
        assert bring_up(config_of(run, "first"), alone=False) == ""
        assert bring_up(config_of(run, "second"), alone=False) == ""
        assert holder(run, "first") == holder(run, "second")
        assert place_of(run).socket.is_socket()
        assert len(os.fsencode(place_of(run).socket)) > 108
    finally:
        os.kill(holder(run, "first"), signal.SIGKILL)
    wait_until(lambda: not processes(run))


def test_an_incompatible_monitor_is_refused(run: Path, open_pools: Opener) -> None:
    open_pools("first")
    place = place_of(run)
    colliding = Rendezvous(run, place.compatibility_key[:2] + bytes(30))
    assert colliding.socket == place.socket
    assert ask(colliding, config_of(run, "second")) is None
    assert ask(place, config_of(run, "second")) == ""


@pytest.mark.parametrize("message", [b"", b"\xc1", msgpack.packb(1), msgpack.packb((b"", b"", b"")), None], ids=str)
def test_an_invalid_message_does_no_harm(
    run: Path, open_pools: Opener, message: bytes | None, wait_until: WaitUntil
) -> None:
    open_pools("first")
    place = place_of(run)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(os.fsencode(place.socket))
        if message is None:
            message = msgpack.packb((place.compatibility_key, b"\xc1"))
        sock.send(message)
        sock.settimeout(5.0)
        assert sock.recv(100) in (b"done:", b"")
    assert ask(place, config_of(run, "second")) == ""
    wait_until(lambda: lives(run, "second"), 2 * HEARTBEAT_S + 5)


def test_the_socket_is_private_to_its_user(run: Path, open_pools: Opener) -> None:
    before = os.umask(0)
    try:
        open_pools("first")
    finally:
        os.umask(before)
    found = place_of(run).socket.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (os.geteuid(), 0o600)
    assert place_of(run).compatibility_key.hex()[4:] not in str(list(run.iterdir()))


def test_a_process_of_another_container_is_not_trusted() -> None:
    """Its user may have the same number. It receives no password, and its messages are not unpickled."""

    class Elsewhere:
        def getsockopt(self, *_: int) -> bytes:
            # The kernel's answer for a process without a pid in this namespace.
            return struct.pack("3i", 0, os.geteuid(), os.getegid())

    other: Any = Elsewhere()
    assert not rendezvous._is_ours(other)
    one, another = socket.socketpair()
    with one, another:
        assert rendezvous._is_ours(one)


class _First:
    """Requests the first monitor of a process."""

    def __init__(self, config: MonitorConfig) -> None:
        self._config = config

    def take(self) -> MonitorConfig:
        return self._config

    def tell(self, reason: str) -> None:
        assert not reason


def test_the_process_can_be_found_once_its_first_monitor_watches(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_run_dir(run)
    place, found = place_of(run), threading.Event()

    class First(_First):
        def tell(self, reason: str) -> None:
            assert not reason
            if place.socket.is_socket():
                found.set()

    def listen_late(place: Rendezvous) -> socket.socket | None:
        time.sleep(0.2)
        return listen(place)

    monkeypatch.setattr(rendezvous, "listen", listen_late)
    monkeypatch.setattr(LogFiles, "begin", lambda _: None)
    monkeypatch.setattr("bgpool.monitor.group.run_monitor", lambda _config, on_begin: on_begin())
    MonitorGroup(place).run(First(config_of(run, "any")))
    assert found.is_set()
    assert not place.socket.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users")
def test_users_of_one_group_have_a_process_each(wait_until: WaitUntil) -> None:
    """The users share the run directory. No user gets another user's password or process."""
    mount = Path(f"/tmp/bgpool-company-{os.getpid()}")
    run = mount / "run"
    run.mkdir(parents=True)
    os.chown(run, 0, 23456)
    run.chmod(0o2770)
    mount.chmod(0o755)

    def as_user(uid: int, function: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([23456])
                os.setgid(uid)
                os.setuid(uid)
                os.chdir("/")
                function()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(1)
        return pid

    def host(bg_id: str) -> None:
        MonitorGroup(place_of(run)).run(_First(config_of(run, bg_id)))

    def ask_for(bg_id: str) -> None:
        assert ask(place_of(run), config_of(run, bg_id)) == ""

    def ended(pid: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    hosts = {uid: as_user(uid, functools.partial(host, f"of-{uid}")) for uid in (1001, 1002)}
    try:
        wait_until(lambda: len([path for path in run.iterdir() if path.suffix == ".sock"]) == 2)
        assert ended(as_user(1001, lambda: ask_for("first"))) == 0
        assert ended(as_user(1002, lambda: ask_for("second"))) == 0
        assert (holder(run, "first"), holder(run, "second")) == (hosts[1001], hosts[1002])
        theirs = next(path for path in run.iterdir() if path.name.startswith("~host-1001-") and path.suffix == ".sock")
        assert (theirs.stat().st_gid, theirs.stat().st_mode & 0o777) == (23456, 0o600)
        assert ended(as_user(1002, lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(str(theirs))))
        # Root may connect, but is refused; and root trusts no other user's socket.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(theirs))
            sock.settimeout(5.0)
            assert sock.recv(100) == b"done:"
        theirs.rename(place_of(run).socket)
        assert ask(place_of(run), config_of(run, "third")) is None
    finally:
        for pid in hosts.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(mount)


def test_children_forked_during_a_request_inherit_no_socket(run: Path, open_pools: Opener) -> None:
    open_pools("any")
    place, config = place_of(run), config_of(run, "any")
    others = {*links(Path("/dev/fd"))}  # opened by other tests of the process
    found: list[str] = []
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            assert ask(place, config) == ""

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        for _ in range(100):
            out, give = os.pipe()
            pid = os.fork()
            if pid == 0:
                sockets = [link for link in {*links(Path("/dev/fd"))} - others if link.startswith("socket:")]
                os.write(give, "\n".join(sockets).encode())
                os._exit(0)
            os.close(give)
            found.append(os.read(out, 10_000).decode())
            os.close(out)
            os.waitpid(pid, 0)
    finally:
        over.set()
        asking.join()
    assert not any(found)


def test_a_child_of_the_process_delays_no_restart(
    run: Path, tmp_path: Path, open_pools: Opener, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    """The application's code forks in the monitor's process, and the child lives longer."""
    (tmp_path / "forks.py").write_text(
        f"""
import os, pathlib, time
def password(host, port, user):
    if os.fork() == 0:
        pathlib.Path({str(tmp_path / "child")!r}).touch()
        # Until the test is over, whose directory goes with it: also one that is forked at its very end.
        while not pathlib.Path({str(tmp_path / "over")!r}).exists():
            time.sleep(0.1)
        os._exit(0)
    return "s3cret"
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "forks", raising=False)
    password = __import__("forks").password
    open_pools("first", password=password)
    try:
        wait_until((tmp_path / "child").exists)
        time.sleep(LIVED_S)
        old = holder(run, "first")
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: holder(run, "first") not in (0, old) and lives(run, "first"), START_S)
    finally:
        (tmp_path / "over").touch()


def test_without_sockets_each_monitor_has_a_process(run: Path, tmp_path: Path, wait_until: WaitUntil) -> None:
    """A sandbox may refuse sockets (RestrictAddressFamilies=)."""
    script = f"""
import socket, time
class Refused(socket.socket):
    def __init__(self, family=-1, *args, **options):
        if family == socket.AF_UNIX:
            raise OSError(97, "Address family not supported by protocol")
        super().__init__(family, *args, **options)
socket.socket = Refused
import bgpool
pools = [
    bgpool.get_pool({DSN!r}, bg_id=b, bg_run_dir={str(run)!r}, min_size=0, max_size=2) for b in ("first", "second")
]
for pool in pools:
    pool.open()
time.sleep(60)
"""
    (tmp_path / "sitecustomize.py").write_text(script.partition("import bgpool")[0])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    worker = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        wait_until(lambda: lives(run, "first") and lives(run, "second"), START_S)
        assert len(holders(run, ["first", "second"])) == 2
    finally:
        worker.kill()
        worker.wait()


def test_equal_callables_are_loaded_once(run: Path) -> None:
    """A callable may load much, such as a client of boto3."""
    first, second = (config_of(run, bg_id, password=bgpool.auth.RdsIam()) for bg_id in ("first", "second"))
    assert first.password is second.password
    assert config_of(run, "third", password=bgpool.auth.RdsIam("eu-west-1")).password is not first.password
