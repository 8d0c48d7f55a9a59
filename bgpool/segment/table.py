"""The table of workers: a mapped file with a row for every process that uses a bg_id, and the bell that they ring.

::

    0     header  magic 8, format u32, rows u32, row bytes u32, CRC-32 u32, zero to 64
    64    bell u64  alone on its cache line; CLOCK_MONOTONIC in ns of the last nudge
    4096  row 0   words of eight bytes: pid, updated (CLOCK_MONOTONIC in ns), then the fields of Usage; zero to 128
          row 1   the same, and so on

A process owns a row for as long as it holds a lock on the row's bytes, which the kernel takes back at its end. No lock
is needed to write one's own row, nor to read anybody's: every word is stored as a whole. Integers of the header are
little-endian, words are native.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import struct
import zlib
from typing import Final, NamedTuple

from bgpool.plain_errors import SegmentError
from bgpool.segment import wake
from bgpool.segment.layout import FutureFormat
from bgpool.segment.paths import RunFiles, create_checked, open_checked, reserve

__all__ = ["ROWS", "Table", "Usage", "read_rows"]

_logger: Final = logging.getLogger("bgpool.segment")

MAGIC: Final = b"BGPWORK\n"
FORMAT: Final = 1
#: Processes of one bg_id on one host that have a row; further ones are present without.
ROWS: Final = 1024
ROW_BYTES: Final = 128
HEADER_BYTES: Final = 4096
BELL_OFFSET: Final = 64
FILE_BYTES: Final = HEADER_BYTES + ROWS * ROW_BYTES
#: Locked, shared, by processes that found no free row.
_OVERFLOW: Final = FILE_BYTES

_HEADER: Final = struct.Struct("<8sIIII")
#: struct flock of Linux on 64-bit machines: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("hhqqi4x")
# Locks of an open file description: neither given up when some other descriptor of the file is closed, nor lost to
# the threads of a process. None where the system has no such locks.
_OFD_SETLK: Final[int | None] = getattr(fcntl, "F_OFD_SETLK", None)
_OFD_GETLK: Final[int | None] = getattr(fcntl, "F_OFD_GETLK", None)


class Usage(NamedTuple):
    """What a process says of its pools.

    Attributes:
        sequence: The snapshot that all its pools have acted on.
        held: Callers that wait for a switchover to pass.
        in_use, idle: Connections.
        waiting: Callers that wait for a connection.
        drained: Connections that switchovers made unfit, since the process began.
        cut: Those of them that were still in use after the grace.
    """

    sequence: int = 0
    held: int = 0
    in_use: int = 0
    idle: int = 0
    waiting: int = 0
    drained: int = 0
    cut: int = 0


class Table:
    """One table file, mapped and open.

    Attributes:
        bell: The time of the last nudge, live.
    """

    def __init__(self, files: RunFiles) -> None:
        """Map the table of *files*; made if there is none, and made anew if it is broken.

        Raises:
            SegmentError: The file is not to be trusted, or cannot be made.
        """
        mapped = _open(files)
        try:
            self._memory: Final = mmap.mmap(mapped, FILE_BYTES)
            self._identity: Final = os.fstat(mapped)
        except OSError as error:
            raise SegmentError(f"{files.workers} cannot be mapped: {error.strerror}") from None
        finally:
            os.close(mapped)
        # Opened again for the locks: the mapping keeps a duplicate of the first descriptor for as long as it lives.
        try:
            self._fd = open_checked(files.workers, os.O_RDWR)
        except FileNotFoundError:
            raise SegmentError(f"{files.workers} was removed while it was opened") from None
        if not os.path.samestat(self._identity, os.fstat(self._fd)):
            self.close()
            raise SegmentError(f"{files.workers} was replaced while it was opened")
        words = memoryview(self._memory).cast("Q")
        self._rows: Final = words[HEADER_BYTES // 8 :]
        self.bell: Final = words[BELL_OFFSET // 8 :]
        self._bell_address: Final = wake.address_of(self._memory, BELL_OFFSET)

    def close(self) -> None:
        """Give up the descriptor and with it, unless a fork's other side has it too, the locks."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def is_in_place(self, files: RunFiles) -> bool:
        """Whether the path still leads to this file; if not, nobody looks at it any more."""
        try:
            return os.path.samestat(self._identity, files.workers.stat())
        except OSError:
            return False

    # -- rows ----------------------------------------------------------------------------------------------------

    def claim_row(self) -> int | None:
        """Lock a free row, wiped; None if there is none left, or no such locks: then only presence is locked."""
        if _OFD_SETLK is None:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        for row in range(ROWS):
            if _lock(self._fd, fcntl.F_WRLCK, _offset(row), ROW_BYTES):
                self._store(row, [0] * (ROW_BYTES // 8))
                return row
        _lock(self._fd, fcntl.F_RDLCK, _OVERFLOW, 1)
        return None

    def write_row(self, row: int, pid: int, updated_ns: int, usage: Usage) -> None:
        """Fill a row of one's own."""
        # The pid last: a row with a pid is whole.
        self._store(row, (updated_ns, *usage), begin=1)
        self._store(row, (pid,))

    def anybody_present(self) -> bool:
        """Whether a living process has any row, or is present without; this very object does not count."""
        if _OFD_GETLK is not None:
            return _is_locked(self._fd, 0, 0)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def _store(self, row: int, values: list[int] | tuple[int, ...], begin: int = 0) -> None:
        at = row * ROW_BYTES // 8 + begin
        for offset, value in enumerate(values):
            self._rows[at + offset] = value

    # -- the bell ------------------------------------------------------------------------------------------------

    def ring(self, mono_ns: int) -> None:
        """Wake whoever listens; what was cut was cut at *mono_ns*."""
        self.bell[0] = mono_ns
        wake.wake_all(self._bell_address)

    def wait_rung(self, seen_ns: int, timeout_s: float) -> bool:
        """Wait until the bell says something else than *seen_ns*, at most *timeout_s* seconds; whether it does."""
        return wake.wait_changed(self.bell, self._bell_address, seen_ns, timeout_s)


def read_rows(files: RunFiles) -> list[tuple[int, int, Usage]]:
    """Every row that a living process has: its pid, the time of its last update in ns, and what it says.

    Nothing is made, mended, mapped or locked.

    Raises:
        FileNotFoundError: There is no table.
        SegmentError: It is not to be trusted, or the system refuses to tell.
    """
    fd = open_checked(files.workers, os.O_RDONLY)
    try:
        _check(fd, files)
        table = os.pread(fd, FILE_BYTES, 0)
        if len(table) < FILE_BYTES:
            raise SegmentError(f"{files.workers} was cut short while it was read")
        words = memoryview(table)[HEADER_BYTES:].cast("Q")
        found = []
        for row in range(ROWS):
            pid, updated_ns, *usage = words[row * ROW_BYTES // 8 :][: 2 + len(Usage._fields)].tolist()
            # The row of the dead keeps what they said last; only a lock tells that somebody is there.
            if pid and _has_owner(fd, row):
                found.append((pid, updated_ns, Usage(*usage)))
        return found
    except OSError as error:
        raise SegmentError(f"{files.workers} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def _has_owner(fd: int, row: int) -> bool:
    if _OFD_GETLK is None:
        return False
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _offset(row), ROW_BYTES, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(fd, _OFD_GETLK, asked))[0] != fcntl.F_UNLCK)


def _open(files: RunFiles) -> int:
    """A descriptor of a table that is whole."""
    for _ in range(8):
        try:
            fd = open_checked(files.workers, os.O_RDWR)
        except FileNotFoundError:
            _make(files)
            continue
        except SegmentError as error:
            _remove(files, str(error))
            continue
        try:
            _check(fd, files)
        except FutureFormat:
            os.close(fd)
            raise
        except SegmentError as error:
            os.close(fd)
            _remove(files, str(error))
            continue
        return fd
    raise SegmentError(f"{files.workers} is made and removed again and again")


def _check(fd: int, files: RunFiles) -> None:
    found, expected = os.pread(fd, BELL_OFFSET, 0), _header()
    version = _HEADER.unpack(found[: _HEADER.size])[1] if found.startswith(MAGIC) and len(found) == BELL_OFFSET else 0
    if version > FORMAT and found == _header(*_HEADER.unpack(found[: _HEADER.size])[1:4]):
        raise FutureFormat(f"{files.workers} has format {version}; this version reads {FORMAT}")
    if found != expected or os.fstat(fd).st_size != FILE_BYTES:
        raise SegmentError(f"{files.workers} is not a table of workers")


def _remove(files: RunFiles, reason: str) -> None:
    """Take away what nobody may obey. Whoever has it mapped finds that it is not in place any more."""
    _logger.warning("%s; replaced", reason)
    try:
        files.workers.unlink(missing_ok=True)
    except OSError as error:
        raise SegmentError(f"{reason}, and cannot be replaced: {error.strerror}") from None


def _make(files: RunFiles) -> None:
    """Put a new table in place, whole from the first moment on, unless somebody else was faster."""
    draft = files.workers.with_suffix(f".draft-{os.getpid()}")
    draft.unlink(missing_ok=True)
    fd = create_checked(draft)
    try:
        os.pwrite(fd, _header(), 0)
        # Reserved now, a full disk is an error here instead of a SIGBUS at some later write.
        reserve(fd, FILE_BYTES)
        with contextlib.suppress(FileExistsError):
            os.link(draft, files.workers)
    except OSError as error:
        raise SegmentError(f"{files.workers} cannot be made: {error.strerror}") from None
    finally:
        os.close(fd)
        draft.unlink(missing_ok=True)


def _header(version: int = FORMAT, rows: int = ROWS, row_bytes: int = ROW_BYTES) -> bytes:
    fields = _HEADER.pack(MAGIC, version, rows, row_bytes, 0)
    return _HEADER.pack(MAGIC, version, rows, row_bytes, zlib.crc32(fields)).ljust(BELL_OFFSET, b"\0")


def _offset(row: int) -> int:
    return HEADER_BYTES + row * ROW_BYTES


def _lock(fd: int, kind: int, start: int, length: int) -> bool:
    assert _OFD_SETLK is not None
    try:
        fcntl.fcntl(fd, _OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_locked(fd: int, start: int, length: int) -> bool:
    """Whether another description of the file has a lock there; nothing is locked to find out."""
    if _OFD_GETLK is None:
        return True
    found = fcntl.fcntl(fd, _OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
