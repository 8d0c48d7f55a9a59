"""The table of workers: a mapped file with a row for every process that uses a bg_id, and the monitor's doorbell.

::

    0     header  magic 8, format u32, rows u32, row bytes u32, CRC-32 u32, zero to 64
    64    doorbell u64  alone on its cache line; CLOCK_MONOTONIC in ns of the last nudge
    72    order u64  the operator's last order, see orders.py
    4096  row 0   words of eight bytes: pid, updated (CLOCK_MONOTONIC in ns), then the fields of Usage; zero to 384
          row 1   the same, and so on

A process owns a row while it holds the row's lock, a file next to the table (presence.py). No lock is needed to write
one's own row, or to read any row, because every word is written atomically. Integers of the header are little-endian,
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
#: Rows for the processes of one bg_id on one host; further processes are present without a row.
ROWS: Final = 1024
ROW_BYTES: Final = 384
_ROW_WORDS: Final = ROW_BYTES // 8
HEADER_BYTES: Final = 4096
DOORBELL_OFFSET: Final = 64
ORDER_OFFSET: Final = 72
FILE_BYTES: Final = HEADER_BYTES + ROWS * ROW_BYTES
#: The last message that was logged about each table.
_complained: Final[dict[Path, str]] = {}

_HEADER: Final = struct.Struct("<8sIIII")


class Usage(NamedTuple):
    """The figures of a process's pools.

    Attributes:
        sequence: The snapshot that all its pools have applied.
        held: Callers that wait for the end of a switchover.
        in_use, idle: The numbers of connections.
        waiting: Callers that wait for a connection.
        drained: Connections that switchovers made unfit, since the process started.
        cut: Drained connections that were still in use after the drain timeout.
        served: Checkouts that got a connection, since the process started.
        failed: Checkouts that ended with an error: held for too long, rejected, or without a connection in time.
        taking_part: Pools whose endpoint is blue's or green's. This and the next are counted only once the deployment's
            inventory is complete.
        outside: Pools whose endpoint is neither, so that a switchover does not affect them.
        max_size: The maximum of connections of its pools, without the pools outside of the deployment.
        holds: Callers that were held, since the process started.
        longest_hold_ms: The longest of these holds, including one in progress.
        repeated: Units of work that were repeated, since the process started.
        offer: The Visibility that a monitor can expect with the best of the pools' parameters; 0 while no pool has a
            connection.
        hold_limit_ms: The longest possible hold of a caller of any of its pools.
        timer_ms: The shortest bg_switchover_timeout_ms of its pools.
        busy_limit_ms: The time after which the application server ends a busy process; 0 for never, or not known.
        hold_timeouts: The first of the counts of errors that reached the application, since the process started. ERRORS
            names the error of each count.
        stuck_passwords: Pools whose password callable has not returned for PASSWORD_TIMEOUT_S.
        behind_proxy: Pools that connect to another port than their endpoint's, so that a switchover does not affect
            them.
        locked_out: Pools whose login green refuses, before a switchover.
        no_receipts: Pools whose receipts table cannot be used.
        receipts_found: Units of work whose COMMIT was cut and whose receipt showed that they were applied, since the
            process started.
        receipts_missing: Units whose COMMIT was cut and whose receipt showed that they were not applied, so that they
            were repeated.
        old_blue_told: Units whose COMMIT was cut and whose outcome old blue reported.
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
        """Return the figures of several pools or processes together: sums, and extremes for durations and values."""
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


#: The words of a row that are in use.
_SAID_WORDS: Final = 2 + len(Usage._fields)

#: The error that each of these fields counts, by the name of its class in bgpool.errors.
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
    """A table file, mapped and open.

    Attributes:
        doorbell: The time of the last nudge, live.
        order: The operator's last order, live; 0 for none. Its writer then rings the doorbell.
    """

    def __init__(self, files: RunFiles) -> None:
        """Map the table of *files*. It is created if it does not exist, and created again if it is broken.

        Raises:
            SegmentError: The file cannot be trusted or created.
            Exhausted: It may be valid, but the process cannot open any more files.
        """
        self._files: Final = files
        # Stored because it is used often, to avoid constructing a path each time.
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
        """True if the path still leads to this file; if not, no process reads it any longer."""
        return leads_to(self._place if files is self._files else files.workers, self._identity)

    # -- rows ----------------------------------------------------------------------------------------------------

    def begin_row(self, row: int, lacks: int) -> None:
        """Clear a newly claimed row, except for the features that its process cannot use, see kernel_features.py."""
        self._store(row, [0] * (_ROW_WORDS - 1) + [lacks])

    def write_row(self, row: int, pid: int, updated_ns: int, usage: Usage) -> None:
        """Write this process's row."""
        # The pid is written last: a row with a pid is complete.
        self._store(row, (updated_ns, *usage), begin=1)
        self._store(row, (pid,))

    def touch_row(self, row: int, updated_ns: int) -> None:
        """Confirm that the values in this process's row are current."""
        self._store(row, (updated_ns,), begin=1)

    def rows(self) -> Iterator[tuple[int, int, int, Usage]]:
        """Return every used row, of living and dead processes: row, pid, update in ns, usage.

        A row that is being written is omitted; the next call finds it complete.
        """
        for row, pid in enumerate(self._rows[::_ROW_WORDS].tolist()):
            if pid:
                found = _words(self._rows, row)
                if found == _words(self._rows, row):
                    yield row, found[0], found[1], Usage(*found[2:])

    def count_since(self, mono_ns: int) -> int:
        """Return the number of rows written since *mono_ns*. It makes no system call, so the dead count for a while."""
        return sum(updated_ns >= mono_ns for updated_ns in self._rows[1::_ROW_WORDS].tolist())

    def _store(self, row: int, values: list[int] | tuple[int, ...], begin: int = 0) -> None:
        at = row * _ROW_WORDS + begin
        for offset, value in enumerate(values):
            self._rows[at + offset] = value

    # -- the doorbell --------------------------------------------------------------------------------------------

    def ring(self, mono_ns: int) -> None:
        """Wake the waiting monitor; a connection was cut at *mono_ns*."""
        self.doorbell[0] = mono_ns
        wake.wake_all(self._doorbell_address)

    def wait_rung(self, seen_ns: int, timeout_s: float, over: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the doorbell differs from *seen_ns*, at most *timeout_s* seconds. Return whether it does.

        stir() wakes the waiter, too, which then returns if it is *over*.
        """
        return wake.wait_changed(self.doorbell, self._doorbell_address, seen_ns, timeout_s, over)

    def stir(self) -> None:
        """Wake the waiter without ringing the doorbell."""
        wake.wake_all(self._doorbell_address)


def read_rows(files: RunFiles) -> list[tuple[int, int, int, Usage, int]]:
    """Return every row of a living process: its number, pid, the time of the last update in ns, its figures, its lacks.

    Nothing is created, repaired or mapped.

    Raises:
        FileNotFoundError: The table does not exist.
        SegmentError: It cannot be trusted, or the system refuses to show which processes live.
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
    # A dead process's row keeps its last values; only the lock shows that the owner is alive.
    refused_to = words[_ROW_WORDS - 1 :: _ROW_WORDS].tolist()
    return [(row, *_read(words, row), refused_to[row]) for row in written if is_held(files.row(row))]


def _read(words: memoryview, row: int) -> tuple[int, int, Usage]:
    """Return *row* of *words*, which begin with row 0: its pid, 0 for none, the last update in ns, and the figures."""
    pid, updated_ns, *usage = _words(words, row)
    return pid, updated_ns, Usage(*usage)


def _words(words: memoryview, row: int) -> list[int]:
    """Return the words of *row* in *words*, without interpretation."""
    begin = row * _ROW_WORDS
    found: list[int] = words[begin : begin + _SAID_WORDS].tolist()
    return found


def _open(files: RunFiles) -> int:
    """Return a descriptor of a complete table."""
    for _ in range(8):
        try:
            fd = open_checked(files.workers, os.O_RDWR)
        except FileNotFoundError:
            _make(files)
            continue
        except Exhausted:
            # Other processes use it: a lack of descriptors in this one is no reason to remove it.
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
    """Remove an invalid table. Processes that have it mapped find that it is no longer in place."""
    try:
        files.workers.unlink(missing_ok=True)
    except OSError as error:
        raise refused(f"{reason}, and cannot be replaced", error) from None
    # A table that is broken repeatedly is logged once.
    if _complained.get(files.workers) != reason:
        _complained[files.workers] = reason
        extra = log_fields("worker_table_replaced", bg_id=files.stem)
        _logger.warning("%s; the table is replaced", reason, extra=extra)


def _make(files: RunFiles) -> None:
    """Put a new, complete table in place, unless another process was faster."""
    pending = new_pending_file(files.workers)
    fd = create_checked(pending.path)
    try:
        # Allocate the blocks first, so that a full disk raises here instead of causing SIGBUS on a later write.
        reserve(fd, FILE_BYTES)
        os.pwrite(fd, _header(), 0)
        # Not found: another process was faster and has removed this pending file.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(pending.path, files.workers)
    except OSError as error:
        raise refused(f"{files.workers} cannot be made", error) from None
    finally:
        os.close(fd)
        # Remove this process's pending file, and those of processes that died here: there is a table now.
        for left in {pending, *pending_files_of(files.workers)}:
            remove(left)


def _header(version: int = FORMAT, rows: int = ROWS, row_bytes: int = ROW_BYTES) -> bytes:
    fields = _HEADER.pack(MAGIC, version, rows, row_bytes, 0)
    return _HEADER.pack(MAGIC, version, rows, row_bytes, zlib.crc32(fields)).ljust(DOORBELL_OFFSET, b"\0")
