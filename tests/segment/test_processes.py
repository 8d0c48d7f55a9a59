"""The segment between processes: no torn read, a wake-up, one writer, and presence."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from bgpool.core.events import Instant
from bgpool.core.limits import HEARTBEAT_STALE_S
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.monitor import election
from bgpool.segment import layout
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import Presence, anybody_present
from bgpool.segment.reader import Reader
from bgpool.segment.writer import Superseded, Writer
from tests.segment.conftest import Fork

pytestmark = pytest.mark.slow


def numbered(n: int) -> Snapshot:
    """A snapshot that says its number in several places and at different lengths."""
    hosts = tuple(Host(f"{n}.{'x' * (n % 200)}", n % 65536, Role.SOURCE) for _ in range(n % 40))
    return Snapshot("orders", Phase(n % 6), epoch=n, hosts=hosts, deadline_ns=n)


def test_no_read_is_ever_torn(files: RunFiles, fork: Fork) -> None:
    writer = Writer(files, 1, numbered(1))
    began_at = time.monotonic()
    # Two seconds, and on a busy machine until there is something to judge by.
    stop_at, give_up_at = began_at + 2.0, began_at + 60.0

    def read() -> None:
        reader, seen, reads = Reader(files), 0, 0
        while time.monotonic() < (stop_at if reads > 100 else give_up_at):
            snapshot = reader.refresh().snapshot
            assert snapshot is not None
            assert snapshot == numbered(snapshot.epoch)
            assert snapshot.epoch >= seen
            reads += snapshot.epoch != seen
            seen = snapshot.epoch
        assert reads > 100

    readers = [fork(read) for _ in range(2)]
    n, codes = 1, []
    while readers:
        n += 1
        writer.publish(numbered(n))
        ended, status = os.waitpid(readers[0], os.WNOHANG)
        if ended:
            readers.remove(ended)
            codes.append(os.waitstatus_to_exitcode(status))
    assert codes == [0, 0]
    assert n > 1000


def test_waiters_of_other_processes_wake(files: RunFiles, fork: Fork) -> None:
    writer = Writer(files, 1, numbered(1))
    ready, told = os.pipe()

    def wait() -> None:
        reading = Reader(files).refresh()
        os.write(told, b"!")
        assert reading.wait_changed(90.0)

    waiters = [fork(wait) for _ in range(4)]
    for _ in waiters:
        os.read(ready, 1)
    time.sleep(0.5)
    began = time.monotonic()
    writer.publish(numbered(2))
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in waiters] == [0] * 4
    assert time.monotonic() - began < 30.0
    os.close(ready)
    os.close(told)


def test_a_wait_ends_by_itself(files: RunFiles) -> None:
    Writer(files, 1, numbered(1))
    reading = Reader(files).refresh()
    assert not reading.wait_changed(0.05)
    assert not Reader(RunFiles.of(files.directory, "nobody")).refresh().wait_changed(0.05)


def test_polling_serves_where_the_kernel_cannot(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpool.segment.wake._FUTEX", None)
    writer = Writer(files, 1, numbered(1))
    reading = Reader(files).refresh()
    threading.Timer(0.05, lambda: writer.publish(numbered(2))).start()
    assert reading.wait_changed(60.0)


def test_waiting_costs_no_cpu(files: RunFiles) -> None:
    Writer(files, 1, numbered(1))
    reading = Reader(files).refresh()
    before = time.thread_time()
    assert not reading.wait_changed(0.5)
    assert time.thread_time() - before < 0.1


def test_readers_move_to_the_file_of_a_new_term(files: RunFiles) -> None:
    old = Writer(files, 1, numbered(1))
    reader = Reader(files)
    waiting = reader.refresh()
    new = Writer(files, 2, Snapshot("orders"))
    assert waiting.wait_changed(30.0)
    assert reader.refresh().snapshot == new.snapshot == numbered(1), "the new one goes on from where the old one was"
    new.publish(numbered(2))
    assert reader.refresh().snapshot == numbered(2)
    assert new.sequence > old.sequence
    # The old monitor resumes and continues to write, without effect.
    assert not old.is_in_place()
    with pytest.raises(Superseded, match="term 2 has taken over"):
        old.publish(numbered(99))
    with pytest.raises(Superseded):
        old.beat()
    assert reader.refresh().snapshot == numbered(2)
    assert Reader(files).refresh().snapshot == numbered(2)


def test_a_removed_segment_is_found_again(files: RunFiles) -> None:
    Writer(files, 1, numbered(1))
    reader = Reader(files)
    reader.refresh()
    files.segment.unlink()
    reader.check_path()
    assert reader.refresh().snapshot == numbered(1)
    Writer(files, 1, numbered(5))
    reader.check_path()
    assert reader.refresh().snapshot == numbered(5)


def test_presence_lasts_as_long_as_its_process(files: RunFiles, fork: Fork) -> None:
    assert not anybody_present(files)
    ready, told = os.pipe()

    def be_there() -> None:
        presence = Presence(files)
        os.write(told, b"!")
        signal.pause()
        presence.close()

    pid = fork(be_there)
    os.read(ready, 1)
    assert anybody_present(files)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not anybody_present(files)
    os.close(ready)
    os.close(told)


def test_a_childs_end_does_not_end_the_parents_presence(files: RunFiles, fork: Fork) -> None:
    presence = Presence(files)
    os.waitpid(fork(presence.close), 0)
    assert anybody_present(files)
    presence.close()
    assert not anybody_present(files)


def test_one_monitor_at_a_time_and_the_next_goes_on_from_its_snapshot(files: RunFiles, fork: Fork) -> None:
    ready, told = os.pipe()

    def lead() -> None:
        tenure = election.claim(files)
        assert tenure is not None
        writer = Writer(files, tenure.term, Snapshot("orders", Phase.IN_PROGRESS, epoch=2))
        os.write(told, b"!")
        while True:
            writer.beat()
            time.sleep(0.05)

    pid = fork(lead)
    os.read(ready, 1)
    assert election.claim(files) is None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    tenure = election.claim(files)
    assert tenure is not None
    assert tenure.term == 2
    assert Writer(files, tenure.term, Snapshot("orders")).snapshot == Snapshot("orders", Phase.IN_PROGRESS, epoch=2)
    tenure.lock.release()


def test_a_stopped_monitor_is_fenced_off(files: RunFiles, fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, told = os.pipe()

    def lead() -> None:
        tenure = election.claim(files)
        assert tenure is not None
        writer = Writer(files, tenure.term, Snapshot("orders", epoch=7))
        os.write(told, b"!")
        with pytest.raises(Superseded):
            while True:
                writer.publish(Snapshot("orders", epoch=8))
                writer.beat()
                time.sleep(0.02)

    pid = fork(lead)
    os.read(ready, 1)
    os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(election, "HEARTBEAT_HUNG_S", 60.0)
        assert election.claim(files) is None, "a fresh heartbeat counts as life"
    time.sleep(HEARTBEAT_STALE_S)
    monkeypatch.setattr(election, "HEARTBEAT_HUNG_S", 1.0)
    tenure = election.claim(files)
    assert tenure is not None
    assert tenure.term == 2
    writer = Writer(files, 2, Snapshot("orders"))
    writer.publish(Snapshot("orders", epoch=9))
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a fenced monitor must notice and leave"
    found = Reader(files).refresh().snapshot
    assert found is not None
    assert found.epoch == 9
    assert writer.is_in_place()
    tenure.lock.release()


def test_a_broken_segment_is_put_right_by_the_next_monitor(files: RunFiles) -> None:
    files.segment.write_bytes(b"\0" * layout.FILE_BYTES)
    files.segment.chmod(0o600)
    tenure = election.claim(files)
    assert tenure is not None
    Writer(files, tenure.term, Snapshot("orders"))
    assert Reader(files).refresh().snapshot == Snapshot("orders")
    tenure.lock.release()


def test_instants_order_by_the_monotonic_clock() -> None:
    assert Instant(1, 9) < Instant(2, 0)


def test_lock_files_of_past_terms_do_not_pile_up(files: RunFiles) -> None:
    for term in range(1, 6):
        tenure = election.claim(files)
        assert tenure is not None
        assert tenure.term == term
        writer = Writer(files, term, Snapshot("orders"))
        tenure.lock.release()
        writer._beat[0] = 0
    assert len(list(Path(files.directory).glob("*.term-*.lock"))) <= 1


def test_one_that_was_stopped_before_it_began_is_passed_over(
    files: RunFiles, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lock of the next term, and has no segment: otherwise no process would ever get that lock."""
    monkeypatch.setattr(election, "HEARTBEAT_HUNG_S", 0.3)
    ready, told = os.pipe()
    go, start = os.pipe()

    def lead() -> None:
        tenure = election.claim(files)
        assert tenure is not None
        assert tenure.term == 1
        os.write(told, b"!")
        os.read(go, 1)
        with pytest.raises(Superseded, match="term 1 is over"):
            Writer(files, tenure.term, Snapshot("orders"))

    pid = fork(lead)
    os.read(ready, 1)
    tenure = election.claim(files)
    assert tenure is not None
    assert tenure.term == 2
    writer = Writer(files, tenure.term, Snapshot("orders"))
    os.write(start, b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert writer.is_in_place()
    assert not list(files.directory.glob("*.draft-*"))
    tenure.lock.release()
