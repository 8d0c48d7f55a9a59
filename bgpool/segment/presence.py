"""The presence of processes: each one that uses a bg_id has a row in the table of workers, with its current figures.

A process is present while it holds the lock of its row, which is a separate file next to the table. There is one lock
file per row because flock works in every kernel and sandbox. Locks on a part of a file may be refused, are dropped when
any descriptor of that file is closed, or exist only on Linux.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

from bgpool.base_errors import SegmentError
from bgpool.core.limits import ROW_STALE_S
from bgpool.segment import table
from bgpool.segment.kernel_features import lacks
from bgpool.segment.locks import Lock, is_held, try_lock
from bgpool.segment.paths import Exhausted, RunFiles
from bgpool.segment.table import Table, Usage, read_rows

__all__ = ["Presence", "WorkerRow", "anybody_present", "best_offer", "workers"]


#: The maximum of present processes of one bg_id on one host; those beyond ROWS have a lock and no row. Each claim tries
#: the locks of all rows before it, which takes about 10 µs for each.
_PRESENT: Final = 8192
#: The maximum of rows to skip at the beginning if their locks are refused.
_PASSED_BY: Final = 64


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A living process that uses a bg_id.

    Attributes:
        pid: Its own process id. It has no meaning outside of its container.
        age_s: Seconds since it last wrote its row.
        usage: The values in its row.
        row: The number of its row in the table, constant for its lifetime.
        lacks: The kernel features that it cannot use, see kernel_features.LACKS.
    """

    pid: int
    age_s: float
    usage: Usage
    row: int
    lacks: int


class Presence:
    """This process's row, from construction to close() or the end of the process. The kernel releases it in any case.

    It is written by one thread; readers read every word atomically.
    """

    def __init__(self, files: RunFiles) -> None:
        """Claim a row.

        Raises:
            SegmentError: The table or a lock cannot be trusted, the system refuses to lock, or there are too many
                processes.
        """
        self._table: Final = Table(files)
        self._row, self._lock = _claim(files)
        if self._row < table.ROWS:
            self._table.begin_row(self._row, lacks())
        self._said: Usage | None = None
        self.write(Usage())

    def write(self, usage: Usage) -> None:
        """Write the current figures of the process's pools."""
        if self._row >= table.ROWS:
            return
        if usage == self._said:
            self._table.touch_row(self._row, time.monotonic_ns())
        else:
            self._table.write_row(self._row, os.getpid(), time.monotonic_ns(), usage)
            self._said = usage

    def count_workers(self) -> int:
        """Return the number of processes of the host that currently use the bg_id, including this one; at least one."""
        return max(1, self._table.count_since(time.monotonic_ns() - int(ROW_STALE_S * 1e9)))

    def locked_out_workers(self) -> list[int]:
        """Return the pids of the host's processes that have a pool whose login green refuses."""
        since_ns = time.monotonic_ns() - int(ROW_STALE_S * 1e9)
        return [pid for _, pid, at_ns, usage in self._table.rows() if usage.locked_out and at_ns >= since_ns]

    def nudge(self) -> None:
        """Notify the monitor that the server has cut a connection."""
        self._table.ring(time.monotonic_ns())

    def is_in_place(self, files: RunFiles) -> bool:
        """True if the paths still lead to this table and this lock; if not, other processes cannot see this one."""
        return self._table.is_in_place(files) and self._lock.is_in_place()

    def close(self) -> None:
        """Give up the row. In a forked child this has no effect; the parent stays present."""
        self._lock.release()


def anybody_present(files: RunFiles) -> bool:
    """Return whether a process on this host uses the bg_id of *files*.

    Raises:
        SegmentError: No process was found, but a lock cannot be trusted, or the system refuses the query.
    """
    refusal: SegmentError | None = None
    for path in files.all_rows():
        try:
            if is_held(path):
                return True
        except SegmentError as error:
            # One file that cannot be trusted does not hide other processes.
            refusal = error
    if refusal is not None:
        raise refusal
    return False


def workers(files: RunFiles) -> tuple[WorkerRow, ...]:
    """Return every process on this host that uses the bg_id of *files*, in the order of their rows. Nothing is changed.

    Raises:
        SegmentError: The table cannot be trusted, or the system refuses the query.
    """
    now_ns = time.monotonic_ns()
    try:
        rows = read_rows(files)
    except FileNotFoundError:
        return ()
    return tuple(
        WorkerRow(pid, max(0.0, (now_ns - at_ns) / 1e9), usage, row, refused_to)
        for row, pid, at_ns, usage, refused_to in rows
    )


def best_offer(files: RunFiles) -> int:
    """Return the Visibility of the best parameters that any process on this host has for a monitor; 0 for none.

    Raises:
        SegmentError: The table cannot be trusted, or the system refuses the query.
    """
    return max((row.usage.offer for row in workers(files)), default=0)


def _claim(files: RunFiles) -> tuple[int, Lock]:
    """Return the first row whose lock is free, and the lock."""
    for row in range(_PRESENT):
        try:
            lock = try_lock(files.row(row))
        except Exhausted:
            raise
        except SegmentError:
            # A single lock file may be untrusted; a refusal by the kernel concerns every row.
            if row >= _PASSED_BY:
                raise
            continue
        if lock is not None:
            return row, lock
    raise SegmentError(f"more than {_PRESENT} processes of this host use bg_id {files.stem!r}")
