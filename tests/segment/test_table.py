"""The table of workers: rows come and go with their processes, whatever ends these."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import signal
import struct
import time
from pathlib import Path

import pytest

from bgpool.core.limits import ROW_STALE_S
from bgpool.errors import SegmentError
from bgpool.segment import presence as presence_module
from bgpool.segment import table
from bgpool.segment.layout import FutureFormat
from bgpool.segment.locks import Lock, is_held
from bgpool.segment.paths import RunFiles
from bgpool.segment.pending_files import pending_files_of
from bgpool.segment.presence import Presence, anybody_present, workers
from bgpool.segment.table import FILE_BYTES, Table, Usage, read_rows

USAGE = Usage(7, held=1, in_use=2, idle=3, waiting=4, drained=5, cut=6, served=8, failed=9, taking_part=12, outside=13)
USAGE = USAGE._replace(max_size=14, holds=15, longest_hold_ms=16, repeated=17, hold_timeouts=18, green_rejected=19)
USAGE = USAGE._replace(interrupted=20, outcome_unknown=21, pool_timeouts=22, too_many_requests=23, other_errors=24)
USAGE = USAGE._replace(offer=5, stuck_passwords=25, hold_limit_ms=26, timer_ms=27, busy_limit_ms=28, behind_proxy=29)
USAGE = USAGE._replace(locked_out=30, no_receipts=31, receipts_found=32, receipts_missing=33, old_blue_told=34)
USAGE = USAGE._replace(already_applied=35, receipts_deleted=36)
#: The header of docs/segment-format.md; words are in native byte order, here little-endian.
GOLDEN_HEADER = "424750574f524b0a 03000000 00040000 80010000"
GOLDEN_ROW = (
    10,
    11,
    7,
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    9,
    *range(12, 18),
    *(5, 26, 27, 28),
    *range(18, 26),
    29,
    30,
    *range(31, 37),
    *[0] * 11,
)


def test_golden_row(files: RunFiles) -> None:
    table = Table(files)
    table.write_row(2, 10, 11, USAGE)
    content = files.workers.read_bytes()
    assert content[:20].hex() == GOLDEN_HEADER.replace(" ", "")
    assert content[4096 + 2 * 384 : 4096 + 3 * 384] == struct.pack("@48Q", *GOLDEN_ROW)
    assert list(table.rows()) == [(2, 10, 11, USAGE)]


def test_a_row_says_what_its_owner_wrote(files: RunFiles) -> None:
    mine, other = Presence(files), Presence(files)
    mine.write(USAGE)
    first, second = workers(files)
    assert (first.pid, first.usage) == (os.getpid(), USAGE)
    assert second.usage == Usage()
    assert 0 <= first.age_s < 60
    mine.close()
    assert [row.usage for row in workers(files)] == [Usage()]
    other.close()
    assert workers(files) == ()


def test_a_row_has_room_for_its_fields_and_the_last_word() -> None:
    assert 2 + len(Usage._fields) < table.ROW_BYTES // 8


def test_workers_are_counted_by_what_they_wrote_lately(files: RunFiles) -> None:
    mine, other = Presence(files), Presence(files)
    assert mine.count_workers() == 2
    late_ns = time.monotonic_ns() - int((ROW_STALE_S + 1) * 1e9)
    table = Table(files)
    table.write_row(1, os.getpid(), late_ns, USAGE)
    assert mine.count_workers() == 1
    table.write_row(0, os.getpid(), late_ns, USAGE)
    assert mine.count_workers() == 1, "the calling process counts"
    mine.close()
    other.close()


def test_a_row_is_reclaimed_after_a_death_of_any_kind(files: RunFiles) -> None:
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        presence = Presence(files)
        presence.write(USAGE)
        os.write(told, b"!")
        signal.pause()
        os._exit(1)
    os.read(ready, 1)
    (row,) = workers(files)
    assert (row.pid, row.usage) == (pid, USAGE)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert workers(files) == ()
    assert read_rows(files) == []
    assert not anybody_present(files)
    presence = Presence(files)
    (row,) = workers(files)
    assert (row.pid, row.usage) == (os.getpid(), Usage()), "nothing is left of the owner before"
    presence.close()
    os.close(ready)
    os.close(told)


def test_more_processes_than_rows_are_present_all_the_same(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROWS", 2)
    crowd = [Presence(files) for _ in range(4)]
    assert len(workers(files)) == 2
    crowd[0].close()
    crowd[1].close()
    assert workers(files) == ()
    assert anybody_present(files)
    crowd[2].close()
    crowd[3].close()
    assert not anybody_present(files)


def test_a_look_at_a_row_costs_no_process_its_place(files: RunFiles) -> None:
    """A process that claims a row in the very moment of a look takes the next one, and all are counted."""
    files.row(0).touch(mode=0o600)
    looking = Lock(files.row(0))
    assert looking.take(os.O_RDONLY, fcntl.LOCK_SH)
    second = Presence(files)
    assert not is_held(files.row(0)), "a look is no presence"
    looking.release()
    first = Presence(files)
    assert [row.row for row in workers(files)] == [0, 1]
    first.close()
    assert [row.row for row in workers(files)] == [1]
    late_ns = time.monotonic_ns() - int((ROW_STALE_S + 1) * 1e9)
    Table(files).write_row(0, os.getpid(), late_ns, USAGE)
    assert second.count_workers() == 1
    second.close()


def test_locks_of_parts_of_a_file_are_not_needed(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sandboxes answer EINVAL to F_OFD_SETLK, and macOS has none."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("fcntl.fcntl", refuse)
    monkeypatch.setattr("fcntl.lockf", refuse)
    presence = Presence(files)
    assert [row.pid for row in workers(files)] == [os.getpid()]
    assert anybody_present(files)
    presence.close()
    assert not anybody_present(files)


def test_a_row_whose_lock_was_deleted_is_left(files: RunFiles) -> None:
    """For example by a cleanup of temporary files: the next process would take the same row."""
    presence = Presence(files)
    assert presence.is_in_place(files)
    files.row(0).unlink()
    assert not presence.is_in_place(files)
    presence.close()


def test_there_is_an_end_to_the_processes(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "_PRESENT", 1)
    presence = Presence(files)
    with pytest.raises(SegmentError, match="more than 1 processes of this host use bg_id 'orders'"):
        Presence(files)
    presence.close()


def test_to_look_is_not_to_be_present(files: RunFiles) -> None:
    assert not anybody_present(files)
    assert workers(files) == ()
    assert not files.workers.exists()
    Table(files)
    assert not anybody_present(files)


def test_the_bell_is_heard(files: RunFiles) -> None:
    listener = Table(files)
    presence = Presence(files)
    assert not listener.wait_rung(listener.doorbell[0], 0.01)
    before = listener.doorbell[0]
    presence.nudge()
    assert listener.wait_rung(before, 30.0)
    assert 0 <= time.monotonic_ns() - listener.doorbell[0] < 60 * 10**9


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * FILE_BYTES, b"\xff" * FILE_BYTES, os.urandom(FILE_BYTES), b"BGPWORK\n", b"x" * (FILE_BYTES + 1)],
    ids=["empty", "zeros", "ones", "random", "short", "long"],
)
def test_a_broken_table_is_replaced(files: RunFiles, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    files.workers.write_bytes(content)
    files.workers.chmod(0o600)
    presence = Presence(files)
    assert len(workers(files)) == 1
    assert "is not a table of workers; the table is replaced" in caplog.text
    presence.close()


def test_every_flipped_byte_of_the_header_is_found(files: RunFiles) -> None:
    Table(files)
    good = files.workers.read_bytes()
    for offset in range(table.DOORBELL_OFFSET):
        broken = bytearray(good)
        broken[offset] ^= 0x55
        files.workers.write_bytes(broken)
        Table(files)
        assert files.workers.read_bytes()[:64] == good[:64]


def test_a_table_of_a_newer_version_is_neither_read_nor_replaced(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(table, "_header", lambda *args: HEADER(*args) if args else HEADER(4, 64, 512))
        newer.setattr(table, "_check", lambda *_: None)
        Table(files)
    content = files.workers.read_bytes()
    with pytest.raises(FutureFormat, match="format 4"):
        Table(files)
    assert files.workers.read_bytes() == content


HEADER = table._header


def test_links_and_fifos_are_replaced_not_followed(files: RunFiles, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    files.workers.symlink_to(elsewhere)
    Table(files)
    assert elsewhere.read_bytes() == b"mine"
    assert not files.workers.is_symlink()
    files.workers.unlink()
    os.mkfifo(files.workers)
    Table(files)
    files.workers.unlink()
    files.workers.mkdir()
    with pytest.raises(SegmentError, match="cannot be replaced"):
        Table(files)


def test_a_replaced_table_is_noticed(files: RunFiles) -> None:
    presence = Presence(files)
    assert presence.is_in_place(files)
    files.workers.unlink()
    assert not presence.is_in_place(files)
    Table(files)
    assert not presence.is_in_place(files)
    presence.close()


def opened_in(directory: Path) -> list[Path]:
    """The files of *directory* that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        # The descriptor of the listing itself is closed by now.
        with contextlib.suppress(FileNotFoundError):
            found.append(descriptor.readlink())
    return sorted(path for path in found if path.is_relative_to(directory))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOLCK, errno.EIO])
def test_locks_that_the_system_refuses_are_a_bgpool_error(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A file system without locks: the pool goes on without a row."""
    Table(files)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    before = opened_in(files.directory)
    with pytest.raises(SegmentError, match="cannot be locked"):
        Presence(files)
    gc.collect()
    assert opened_in(files.directory) == before, "nothing stays open"
    with pytest.raises(SegmentError, match="cannot be locked"):
        anybody_present(files)


def test_an_unreadable_table_is_a_bgpool_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SegmentError, match="cannot be opened"):
        workers(RunFiles.of(tmp_path / "file", "orders"))
    with pytest.raises(SegmentError, match="cannot be read"):
        anybody_present(RunFiles.of(tmp_path / "file", "orders"))
    assert workers(RunFiles.of(tmp_path / "nowhere", "orders")) == ()


def test_two_may_make_the_table_at_the_same_time(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if both are process 1, each of its own container."""
    link, others = os.link, []

    def overtaken(*paths: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        others.append(Presence(files))
        link(*paths)

    monkeypatch.setattr(os, "link", overtaken)
    mine = Presence(files)
    assert mine.is_in_place(files)
    assert others[0].is_in_place(files)
    assert len(workers(files)) == 2
    assert pending_files_of(files.workers) == []
    mine.close()
    others[0].close()


@pytest.mark.parametrize("linked", [False, True], ids=["before it is in place", "after"])
def test_what_one_leaves_that_dies_while_it_makes_the_table_is_removed(files: RunFiles, linked: bool) -> None:
    pid = os.fork()
    if pid == 0:
        link = os.link

        def die(*paths: Path) -> None:
            if linked:
                link(*paths)
            os.kill(os.getpid(), signal.SIGKILL)

        os.link = die  # type: ignore[assignment]
        Table(files)
        os._exit(1)
    os.waitpid(pid, 0)
    assert len(pending_files_of(files.workers)) == 1
    Table(files)
    if linked:
        # Another name of the table, which costs nothing; gone with the next that is made.
        files.workers.unlink()
        Table(files)
    assert pending_files_of(files.workers) == []


def test_replaced_is_said_once_and_when_it_is_true(files: RunFiles, caplog: pytest.LogCaptureFixture) -> None:
    files.workers.mkdir()
    for _ in range(2):
        with pytest.raises(SegmentError, match="and cannot be replaced"):
            Table(files)
    assert "; the table is replaced" not in caplog.text
    files.workers.rmdir()
    for _ in range(3):
        files.workers.write_bytes(b"broken")
        files.workers.chmod(0o600)
        Table(files)
    assert caplog.text.count("is not a table of workers; the table is replaced") == 1


def test_a_lock_that_is_not_to_be_trusted_is_passed_by(files: RunFiles) -> None:
    """A monitor that saw no process because of one file would exit every ten seconds, and the next one would start."""
    files.row(0).touch(mode=0o600)
    files.row(0).chmod(0o644)
    with pytest.raises(SegmentError, match="mode 0644"):
        anybody_present(files)
    presence = Presence(files)
    assert anybody_present(files)
    assert [row.row for row in workers(files)] == [1]
    presence.close()
