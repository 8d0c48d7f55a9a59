"""If descriptors or memory run out, the segment is left as it is: no error is raised, nothing is replaced."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from bgpool.core.snapshot import Snapshot
from bgpool.errors import SegmentError
from bgpool.monitor import election
from bgpool.segment.locks import try_lock
from bgpool.segment.paths import Exhausted, RunFiles
from bgpool.segment.presence import Presence
from bgpool.segment.reader import Reader, SegmentMap
from bgpool.segment.table import Table
from bgpool.segment.writer import Writer


@contextmanager
def free_descriptors(number: int) -> Iterator[None]:
    """The process can open *number* files more and then none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Pools of earlier tests are in reference cycles, and free descriptors when they are collected.
    gc.collect()
    # Above what tests before this one have left open in the process.
    most = len(os.listdir("/proc/self/fd")) + 64  # noqa: PTH208  # a number is all that is asked for
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, most), hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(number):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("number", range(4))
def test_descriptors_run_out(files: RunFiles, number: int, caplog: pytest.LogCaptureFixture) -> None:
    writer, table = Writer(files, 1, Snapshot("orders", epoch=7)), Table(files)
    reader = Reader(files)
    for attempt in range(2):
        with free_descriptors(number):
            found = reader.refresh().snapshot
            reader.check_path()
            if number < 2:
                with pytest.raises(Exhausted):
                    Presence(files)
        assert found in (None, writer.snapshot), attempt
    assert len([r for r in caplog.records if "segment is refused" in r.getMessage()]) <= 1
    assert reader.refresh().snapshot == writer.snapshot
    assert table.is_in_place(files), "one process's want is no reason to take the table away from all"
    assert "replaced" not in caplog.text


def test_the_last_good_snapshot_goes_on(files: RunFiles) -> None:
    """Another monitor took over while the process had no descriptor to follow with."""
    old = Writer(files, 1, Snapshot("orders", epoch=7))
    reader = Reader(files)
    reader.refresh()
    new = Writer(files, 2, Snapshot("orders"))
    new.publish(Snapshot("orders", epoch=9))
    with free_descriptors(0):
        for _ in range(2):
            assert reader.refresh().snapshot == old.snapshot
            assert not reader.refresh().is_current, "the quick way stays shut"
    found = reader.refresh()
    assert found.snapshot == Snapshot("orders", epoch=9)
    assert found.is_current


@pytest.mark.parametrize("number", range(3))
def test_no_monitor_replaces_what_it_cannot_read(files: RunFiles, number: int) -> None:
    writer = Writer(files, 1, Snapshot("orders", epoch=7))
    writer._beat[0] = 0
    with free_descriptors(number), pytest.raises(SegmentError):
        tenure = election.claim(files)
        assert tenure is not None
        Writer(files, tenure.term, Snapshot("orders"))
    assert Reader(files).refresh().snapshot == writer.snapshot


@pytest.mark.parametrize("refusal", [OSError(errno.ENOMEM, "Cannot allocate memory"), ValueError("too short")])
def test_a_refused_mapping_is_a_bgpool_error(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    Writer(files, 1, Snapshot("orders"))
    Table(files)
    reader = Reader(files)

    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise refusal

    monkeypatch.setattr(mmap, "mmap", refuse)
    for use in (SegmentMap, Table, Presence):
        with pytest.raises(SegmentError):
            use(files)
    assert reader.refresh().snapshot is None
    if isinstance(refusal, OSError):
        with pytest.raises(SegmentError, match="cannot be made"):
            Writer(files, 2, Snapshot("orders"))


def test_a_refused_lock_is_a_bgpool_error(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(SegmentError, match="cannot be locked"):
        try_lock(files.spawning)
