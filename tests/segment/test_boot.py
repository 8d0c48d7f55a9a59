"""The boot of a segment, also if one of two processes cannot read the boot id."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.errors import SegmentError
from bgpool.monitor import election
from bgpool.segment import boot, reader, writer
from bgpool.segment.boot import UNKNOWN, boot_id
from bgpool.segment.paths import Exhausted, RunFiles
from bgpool.segment.reader import AnotherBoot, Reader, SegmentMap
from bgpool.segment.writer import Writer

Fork = Callable[[Callable[[], object]], int]
ONE, OTHER = bytes(range(16)), bytes(range(1, 17))


def test_it_is_stable_and_known_here() -> None:
    assert boot_id() == boot_id() != UNKNOWN
    assert len(boot_id()) == 16


@pytest.mark.parametrize("hidden", ["absent", "denied", "empty"])
@pytest.mark.parametrize("name", ["_BOOT", "_TIME_NAMESPACE"])
def test_half_of_it_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, hidden: str) -> None:
    """Of two processes the one that can read less is not of another boot."""

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    if hidden == "empty":
        (tmp_path / "hidden").touch()
    if hidden == "denied":
        monkeypatch.setattr(Path, "read_bytes" if name == "_BOOT" else "stat", deny)
    else:
        monkeypatch.setattr(boot, name, tmp_path / "hidden")
    # A kernel without time namespaces has no such file, and one of another kind is one that can be compared.
    assert (boot_id() == UNKNOWN) == (name == "_BOOT" or hidden == "denied")


def test_want_of_descriptors_is_no_unknown_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(Exhausted):
        boot_id()


@pytest.fixture
def be_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Makes this process, and those that it forks from then on, one of another boot."""

    def be(what: bytes) -> None:
        monkeypatch.setattr(reader, "boot_id", lambda: what)
        monkeypatch.setattr(writer, "boot_id", lambda: what)

    return be


@pytest.fixture
def lead(files: RunFiles, fork: Fork) -> Iterator[Callable[[], int]]:
    """Start a monitor that only writes heartbeats; return its pid."""
    ready, told = os.pipe()

    def run() -> None:
        tenure = election.claim(files)
        assert tenure is not None
        mine = Writer(files, tenure.term, Snapshot("orders", Phase.IN_PROGRESS, epoch=2))
        os.write(told, b"!")
        while True:
            mine.beat()
            time.sleep(0.02)

    def start() -> int:
        pid = fork(run)
        os.read(ready, 1)
        return pid

    yield start
    os.close(ready)
    os.close(told)


@pytest.mark.parametrize(("theirs", "ours"), [(ONE, UNKNOWN), (UNKNOWN, ONE), (UNKNOWN, UNKNOWN)])
def test_an_unknown_boot_is_not_another_boot(
    files: RunFiles, be_of: Callable[[bytes], None], lead: Callable[[], int], theirs: bytes, ours: bytes
) -> None:
    be_of(theirs)
    pid = lead()
    be_of(ours)
    snapshot = Reader(files).refresh().snapshot
    assert snapshot is not None
    assert snapshot.epoch == 2
    assert election.claim(files) is None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    tenure = election.claim(files)
    assert tenure is not None
    assert Writer(files, tenure.term, Snapshot("orders")).snapshot.epoch == 2, "goes on from where the other was"


def test_a_segment_of_another_boot_is_not_replaced_while_its_monitor_lives(
    files: RunFiles, be_of: Callable[[bytes], None], lead: Callable[[], int]
) -> None:
    """A container runtime that gives each container a boot id of its own, or a time namespace."""
    be_of(ONE)
    pid = lead()
    be_of(OTHER)
    with pytest.raises(AnotherBoot):
        SegmentMap(files)
    inode = files.segment.stat().st_ino
    with pytest.raises(SegmentError, match=rf"of another boot .* its monitor \(pid {pid}\) lives: .* BGPOOL_RUN_DIR"):
        election.claim(files)
    assert files.segment.stat().st_ino == inode
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    tenure = election.claim(files)
    assert tenure is not None
    assert Writer(files, tenure.term, Snapshot("orders", epoch=9)).snapshot.epoch == 9, "its times mean nothing here"


@pytest.mark.parametrize("ours", [UNKNOWN, ONE])
def test_without_ids_a_heartbeat_in_the_future_is_of_another_boot(
    files: RunFiles, be_of: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch, ours: bytes
) -> None:
    be_of(UNKNOWN)
    with monkeypatch.context() as earlier:
        now_ns = time.monotonic_ns()
        earlier.setattr(time, "monotonic_ns", lambda: now_ns + 3600 * 10**9)
        Writer(files, 1, Snapshot("orders", epoch=2))
    be_of(ours)
    with pytest.raises(AnotherBoot):
        SegmentMap(files)
    tenure = election.claim(files)
    assert tenure is not None
    assert Writer(files, tenure.term, Snapshot("orders", epoch=9)).snapshot.epoch == 9


def test_a_heartbeat_between_two_reads_is_not_in_the_future(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Writer(files, 1, Snapshot("orders"))
    mapped = SegmentMap(files)
    clock = time.monotonic_ns

    def beat_meanwhile() -> int:
        now_ns = clock()
        monkeypatch.setattr(time, "monotonic_ns", clock)
        mine.beat()
        return now_ns

    monkeypatch.setattr(time, "monotonic_ns", beat_meanwhile)
    assert mapped.heartbeat_age_s() < 60
