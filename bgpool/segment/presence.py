"""Who is there: every process that uses a bg_id has a row in the table of workers, and says there what it does.

A process is present for as long as it holds the lock on its row, a file of its own beside the table. One lock file for
each row, because flock works in every kernel and sandbox, where locks on a part of a file may be refused, are dropped
when any descriptor of that file is closed, or exist on Linux alone.
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


#: Processes of one bg_id on one host that can be present; those beyond ROWS have a lock and no row. Each claim tries
#: the locks of all before it, which takes about 10 us for each.
_PRESENT: Final = 8192
#: Rows among the first ones that are passed by where their lock is refused.
_PASSED_BY: Final = 64


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A living process that uses a bg_id.

    Attributes:
        pid: As the process itself sees it: in another container it means nothing.
        age_s: Seconds since it last wrote its row.
        usage: What it wrote.
        row: Which row of the table it has, for as long as it lives.
        lacks: What the kernel refuses to it, see host.LACKS.
    """

    pid: int
    age_s: float
    usage: Usage
    row: int
    lacks: int


class Presence:
    """This process's row, from construction to close() or the end of the process. The kernel ends it, whatever happens.

    Written by one thread; readers see every word as a whole.
    """

    def __init__(self, files: RunFiles) -> None:
        """Be present.

        Raises:
            SegmentError: The table or a lock is not to be trusted, the system refuses to lock, or there are too many.
        """
        self._table: Final = Table(files)
        self._row, self._lock = _claim(files)
        if self._row < table.ROWS:
            self._table.begin_row(self._row, lacks())
        self._said: Usage | None = None
        self.write(Usage())

    def write(self, usage: Usage) -> None:
        """Say what the process's pools do now."""
        if self._row >= table.ROWS:
            return
        if usage == self._said:
            self._table.touch_row(self._row, time.monotonic_ns())
        else:
            self._table.write_row(self._row, os.getpid(), time.monotonic_ns(), usage)
            self._said = usage

    def count_workers(self) -> int:
        """How many processes of the host use the bg_id just now, this one included; at least one."""
        return max(1, self._table.count_since(time.monotonic_ns() - int(ROW_STALE_S * 1e9)))

    def locked_out_workers(self) -> list[int]:
        """The pids of the host's processes of which green refuses the login of a pool."""
        since_ns = time.monotonic_ns() - int(ROW_STALE_S * 1e9)
        return [pid for _, pid, at_ns, usage in self._table.rows() if usage.locked_out and at_ns >= since_ns]

    def nudge(self) -> None:
        """Tell the monitor that the server has cut a connection just now."""
        self._table.ring(time.monotonic_ns())

    def is_in_place(self, files: RunFiles) -> bool:
        """Whether the paths still lead to our table and our lock; if not, nobody can see that we are here."""
        return self._table.is_in_place(files) and self._lock.is_in_place()

    def close(self) -> None:
        """Be gone. In a forked child this does nothing; the parent stays present."""
        self._lock.release()


def anybody_present(files: RunFiles) -> bool:
    """Whether a process on this host uses the bg_id of *files*.

    Raises:
        SegmentError: Nobody is seen, but a lock is not to be trusted, or the system refuses to tell.
    """
    refusal: SegmentError | None = None
    for path in files.all_rows():
        try:
            if is_held(path):
                return True
        except SegmentError as error:
            # One file that is not to be trusted hides nobody else.
            refusal = error
    if refusal is not None:
        raise refusal
    return False


def workers(files: RunFiles) -> tuple[WorkerRow, ...]:
    """Every process on this host that uses the bg_id of *files*, in the order of their rows; to look changes nothing.

    Raises:
        SegmentError: The table is not to be trusted, or the system refuses to tell.
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
    """The best parameters that any process on this host has for a monitor: a Sight's number, 0 for none.

    Raises:
        SegmentError: The table is not to be trusted, or the system refuses to tell.
    """
    return max((row.usage.offer for row in workers(files)), default=0)


def _claim(files: RunFiles) -> tuple[int, Lock]:
    """The first row whose lock is free, and the lock."""
    for row in range(_PRESENT):
        try:
            lock = try_lock(files.row(row))
        except Exhausted:
            raise
        except SegmentError:
            # Its file may not be to be trusted; what the kernel refuses, it refuses for every row.
            if row >= _PASSED_BY:
                raise
            continue
        if lock is not None:
            return row, lock
    raise SegmentError(f"more than {_PRESENT} processes of this host use bg_id {files.stem!r}")
