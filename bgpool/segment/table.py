"""The table of workers: a mapped file with a row for every process that uses a bg_id, and the bell that they ring.

::

    0     header  magic 8, format u32, rows u32, row bytes u32, CRC-32 u32, zero to 64
    64    bell u64  alone on its cache line; CLOCK_MONOTONIC in ns of the last nudge
    72    order u64  what an operator has ordered last, see orders.py
    4096  row 0   words of eight bytes: pid, updated (CLOCK_MONOTONIC in ns), then the fields of Usage; zero to 384
          row 1   the same, and so on

A process owns a row for as long as it holds the row's lock, a file beside the table (presence.py). No lock is needed to
write one's own row, nor to read anybody's: every word is stored as a whole. Integers of the header are little-endian,
words are native.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from bgpool.base_errors import SegmentError
from bgpool.logs import log_fields
from bgpool.segment import wake
from bgpool.segment.layout import FutureFormat
from bgpool.segment.locks import is_held
from bgpool.segment.paths import (
    Exhausted,
    RunFiles,
    create_checked,
    identity_of,
    leads_to,
    open_checked,
    refused,
    reserve,
)
from bgpool.segment.pending_files import new_pending_file, pending_files_of, remove

__all__ = ["ERRORS", "ROWS", "Table", "Usage", "read_rows"]

_logger: Final = logging.getLogger("bgpool.segment")

MAGIC: Final = b"BGPWORK\n"
FORMAT: Final = 3
#: Processes of one bg_id on one host that have a row; further ones are present without.
ROWS: Final = 1024
ROW_BYTES: Final = 384
_ROW_WORDS: Final = ROW_BYTES // 8
HEADER_BYTES: Final = 4096
DOORBELL_OFFSET: Final = 64
ORDER_OFFSET: Final = 72
FILE_BYTES: Final = HEADER_BYTES + ROWS * ROW_BYTES
#: What was said last of which table.
_complained: Final[dict[Path, str]] = {}

_HEADER: Final = struct.Struct("<8sIIII")


class Usage(NamedTuple):
    """What a process says of its pools.

    Attributes:
        sequence: The snapshot that all its pools have acted on.
        held: Callers that wait for a switchover to pass.
        in_use, idle: Connections.
        waiting: Callers that wait for a connection.
        drained: Connections that switchovers made unfit, since the process began.
        cut: Those of them that were still in use after the grace.
        served: Checkouts that were given a connection, since the process began.
        failed: Checkouts that ended with an error: held for too long, rejected, or no connection in time.
        taking_part: Pools whose endpoint is blue's or green's. Neither these nor the next are counted before the
            deployment's inventory is complete.
        outside: Pools whose endpoint is neither, so that a switchover passes them by.
        max_size: Connections that its pools may have, without the pools outside.
        holds: Callers that were held, since the process began.
        longest_hold_ms: The longest of these holds; one that is under way counts.
        repeated: Units of work that were run again, since the process began.
        offer: What a monitor with the best of the pools' parameters may be expected to see: a Sight's number, 0 while
            no pool has a connection.
        hold_limit_ms: The longest that a caller of any of its pools may be held.
        timer_ms: The shortest bg_switchover_timeout_ms of its pools.
        busy_limit_ms: After how long the server around the process ends it for being busy; 0 for never, or not known.
        hold_timeouts: The first of the counts of errors that reached the application, since the process began. ERRORS
            says which error each of them counts.
        stuck_passwords: Pools whose password callable has not returned for PASSWORD_TIMEOUT_S.
        behind_proxy: Pools that connect to another port than their endpoint has, so that a switchover passes them by.
        locked_out: Pools whose login green refuses, while a deployment waits for its switchover.
        no_receipts: Pools whose receipts table cannot be used.
        receipts_found: Units of work whose COMMIT was cut, and whose receipt said that it was applied, since the
            process began.
        receipts_missing: Those of which it said that nothing was applied, so that they were run again.
        old_blue_told: Units whose COMMIT was cut of which old blue told what became of it.
        already_applied: Units that ended with AlreadyApplied.
        receipts_deleted: Old receipts that units have deleted.
    """

    sequence: int = 0
    held: int = 0
    in_use: int = 0
    idle: int = 0
    waiting: int = 0
    drained: int = 0
    cut: int = 0
    served: int = 0
    failed: int = 0
    taking_part: int = 0
    outside: int = 0
    max_size: int = 0
    holds: int = 0
    longest_hold_ms: int = 0
    repeated: int = 0
    offer: int = 0
    hold_limit_ms: int = 0
    timer_ms: int = 0
    busy_limit_ms: int = 0
    hold_timeouts: int = 0
    green_rejected: int = 0
    interrupted: int = 0
    outcome_unknown: int = 0
    pool_timeouts: int = 0
    too_many_requests: int = 0
    other_errors: int = 0
    stuck_passwords: int = 0
    behind_proxy: int = 0
    locked_out: int = 0
    no_receipts: int = 0
    receipts_found: int = 0
    receipts_missing: int = 0
    old_blue_told: int = 0
    already_applied: int = 0
    receipts_deleted: int = 0

    @classmethod
    def merged(cls, several: Iterable[Usage]) -> Usage:
        """What several pools or processes add up to: sums, but of what says how long or how good it is an extreme."""
        found = list(several)
        if len(found) < 2:
            return found[0] if found else cls()
        sums = cls(*map(sum, zip(*found, strict=True)))
        return sums._replace(
            longest_hold_ms=max(one.longest_hold_ms for one in found),
            offer=max(one.offer for one in found),
            hold_limit_ms=max(one.hold_limit_ms for one in found),
            timer_ms=min((one.timer_ms for one in found if one.timer_ms), default=0),
            busy_limit_ms=min((one.busy_limit_ms for one in found if one.busy_limit_ms), default=0),
        )


#: Words of a row that say something.
_SAID_WORDS: Final = 2 + len(Usage._fields)

#: Which error each of these fields counts, by the name of its class in bgpool.errors.
ERRORS: Final[Mapping[str, str]] = {
    "hold_timeouts": "SwitchoverHoldTimeout",
    "green_rejected": "GreenHostRejected",
    "interrupted": "SwitchoverInterrupted",
    "outcome_unknown": "CommitOutcomeUnknown",
    "pool_timeouts": "PoolTimeout",
    "too_many_requests": "TooManyRequests",
    "other_errors": "other errors",
}


class Table:
    """One table file, mapped and open.

    Attributes:
        doorbell: The time of the last nudge, live.
        order: What an operator has ordered last, live; 0 for nothing. Who writes it rings the bell.
    """

    def __init__(self, files: RunFiles) -> None:
        """Map the table of *files*; made if there is none, and made anew if it is broken.

        Raises:
            SegmentError: The file is not to be trusted, or cannot be made.
            Exhausted: It may be in order, but the process cannot open any more.
        """
        self._files: Final = files
        # Looked at again and again: no path is put together each time.
        self._place: Final = str(files.workers)
        mapped = _open(files)
        try:
            self._memory: Final = mmap.mmap(mapped, FILE_BYTES)
            self._identity: Final = identity_of(mapped)
        except OSError as error:
            raise refused(f"{files.workers} cannot be mapped", error) from None
        except ValueError:
            raise SegmentError(f"{files.workers} was cut short while it was opened") from None
        finally:
            os.close(mapped)
        words = memoryview(self._memory).cast("Q")
        self._rows: Final = words[HEADER_BYTES // 8 :]
        self.doorbell: Final = words[DOORBELL_OFFSET // 8 :]
        self.order: Final = words[ORDER_OFFSET // 8 :]
        self._doorbell_address: Final = wake.address_of(self._memory, DOORBELL_OFFSET)

    def is_in_place(self, files: RunFiles) -> bool:
        """Whether the path still leads to this file; if not, nobody looks at it any more."""
        return leads_to(self._place if files is self._files else files.workers, self._identity)

    # -- rows ----------------------------------------------------------------------------------------------------

    def begin_row(self, row: int, lacks: int) -> None:
        """Make a row that was just claimed say nothing, but what is refused to its process, see host.py."""
        self._store(row, [0] * (_ROW_WORDS - 1) + [lacks])

    def write_row(self, row: int, pid: int, updated_ns: int, usage: Usage) -> None:
        """Fill a row of one's own."""
        # The pid last: a row with a pid is whole.
        self._store(row, (updated_ns, *usage), begin=1)
        self._store(row, (pid,))

    def touch_row(self, row: int, updated_ns: int) -> None:
        """Say that what a row of one's own says is so now, too."""
        self._store(row, (updated_ns,), begin=1)

    def rows(self) -> Iterator[tuple[int, int, int, Usage]]:
        """Every row that says something, of the living and of the dead: row, pid, update in ns, usage.

        One that is being written in this moment is left out; the next look finds it whole.
        """
        for row, pid in enumerate(self._rows[::_ROW_WORDS].tolist()):
            if pid:
                found = _words(self._rows, row)
                if found == _words(self._rows, row):
                    yield row, found[0], found[1], Usage(*found[2:])

    def count_since(self, mono_ns: int) -> int:
        """How many rows were written at *mono_ns* or later; without a system call, so the dead count for a while."""
        return sum(updated_ns >= mono_ns for updated_ns in self._rows[1::_ROW_WORDS].tolist())

    def _store(self, row: int, values: list[int] | tuple[int, ...], begin: int = 0) -> None:
        at = row * _ROW_WORDS + begin
        for offset, value in enumerate(values):
            self._rows[at + offset] = value

    # -- the bell ------------------------------------------------------------------------------------------------

    def ring(self, mono_ns: int) -> None:
        """Wake whoever listens; what was cut was cut at *mono_ns*."""
        self.doorbell[0] = mono_ns
        wake.wake_all(self._doorbell_address)

    def wait_rung(self, seen_ns: int, timeout_s: float, over: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the bell says something else than *seen_ns*, at most *timeout_s* seconds; whether it does.

        Whoever listens is woken by stir(), too, and waits no more if it is *over*.
        """
        return wake.wait_changed(self.doorbell, self._doorbell_address, seen_ns, timeout_s, over)

    def stir(self) -> None:
        """Wake whoever listens without ringing."""
        wake.wake_all(self._doorbell_address)


def read_rows(files: RunFiles) -> list[tuple[int, int, int, Usage, int]]:
    """Every row that a living process has: its number, pid, the time of the last update in ns, what it says, its lacks.

    Nothing is made, mended or mapped.

    Raises:
        FileNotFoundError: There is no table.
        SegmentError: It is not to be trusted, or the system refuses to tell who lives.
    """
    fd = open_checked(files.workers, os.O_RDONLY)
    try:
        _check(fd, files)
        table = os.pread(fd, FILE_BYTES, 0)
    except OSError as error:
        raise refused(f"{files.workers} cannot be read", error) from None
    finally:
        os.close(fd)
    if len(table) < FILE_BYTES:
        raise SegmentError(f"{files.workers} was cut short while it was read")
    words = memoryview(table)[HEADER_BYTES:].cast("Q")
    written = [row for row, pid in enumerate(words[::_ROW_WORDS].tolist()) if pid]
    # The row of the dead keeps what they said last; only its lock tells that its owner lives.
    refused_to = words[_ROW_WORDS - 1 :: _ROW_WORDS].tolist()
    return [(row, *_read(words, row), refused_to[row]) for row in written if is_held(files.row(row))]


def _read(words: memoryview, row: int) -> tuple[int, int, Usage]:
    """Of *row* in *words*, which begin with the first one: its pid, 0 for none, the last update in ns, what it says."""
    pid, updated_ns, *usage = _words(words, row)
    return pid, updated_ns, Usage(*usage)


def _words(words: memoryview, row: int) -> list[int]:
    """What *row* says, as it stands in *words*."""
    begin = row * _ROW_WORDS
    found: list[int] = words[begin : begin + _SAID_WORDS].tolist()
    return found


def _open(files: RunFiles) -> int:
    """A descriptor of a table that is whole."""
    for _ in range(8):
        try:
            fd = open_checked(files.workers, os.O_RDWR)
        except FileNotFoundError:
            _make(files)
            continue
        except Exhausted:
            # Others use it: want of descriptors in one process is no reason to take it away from all.
            raise
        except SegmentError as error:
            _remove(files, str(error))
            continue
        try:
            _check(fd, files)
        except (FutureFormat, Exhausted):
            os.close(fd)
            raise
        except SegmentError as error:
            os.close(fd)
            _remove(files, str(error))
            continue
        return fd
    raise SegmentError(f"{files.workers} is made and removed again and again")


def _check(fd: int, files: RunFiles) -> None:
    expected = _header()
    try:
        found = os.pread(fd, DOORBELL_OFFSET, 0)
    except OSError as error:
        raise refused(f"{files.workers} cannot be read", error) from None
    version = (
        _HEADER.unpack(found[: _HEADER.size])[1] if found.startswith(MAGIC) and len(found) == DOORBELL_OFFSET else 0
    )
    if version > FORMAT and found == _header(*_HEADER.unpack(found[: _HEADER.size])[1:4]):
        raise FutureFormat(f"{files.workers} has format {version}; this version reads {FORMAT}")
    if found != expected or os.fstat(fd).st_size != FILE_BYTES:
        raise SegmentError(f"{files.workers} is not a table of workers")


def _remove(files: RunFiles, reason: str) -> None:
    """Take away what nobody may obey. Whoever has it mapped finds that it is not in place any more."""
    try:
        files.workers.unlink(missing_ok=True)
    except OSError as error:
        raise refused(f"{reason}, and cannot be replaced", error) from None
    # Whoever breaks it again and again is told once.
    if _complained.get(files.workers) != reason:
        _complained[files.workers] = reason
        extra = log_fields("worker_table_replaced", bg_id=files.stem)
        _logger.warning("%s; the table is replaced", reason, extra=extra)


def _make(files: RunFiles) -> None:
    """Put a new table in place, whole from the first moment on, unless somebody else was faster."""
    pending = new_pending_file(files.workers)
    fd = create_checked(pending.path)
    try:
        # Allocate the blocks up front, so that a full disk raises here rather than SIGBUS on a later write.
        reserve(fd, FILE_BYTES)
        os.pwrite(fd, _header(), 0)
        # Not found: somebody else was faster and has cleared ours away.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(pending.path, files.workers)
    except OSError as error:
        raise refused(f"{files.workers} cannot be made", error) from None
    finally:
        os.close(fd)
        # Our own, and what those left who died here. There is a table now, so that nobody needs a draft any more.
        for left in {pending, *pending_files_of(files.workers)}:
            remove(left)


def _header(version: int = FORMAT, rows: int = ROWS, row_bytes: int = ROW_BYTES) -> bytes:
    fields = _HEADER.pack(MAGIC, version, rows, row_bytes, 0)
    return _HEADER.pack(MAGIC, version, rows, row_bytes, zlib.crc32(fields)).ljust(DOORBELL_OFFSET, b"\0")
