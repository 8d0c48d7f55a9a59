"""Who is there: every process that uses a bg_id has a row in the table of workers, and says there what it does."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from bgpool.core.limits import ROW_STALE_S
from bgpool.plain_errors import SegmentError
from bgpool.segment.paths import RunFiles, refused
from bgpool.segment.table import Table, Usage, read_rows

__all__ = ["Presence", "WorkerRow", "anybody_present", "workers"]


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A living process that uses a bg_id.

    Attributes:
        pid: As the process itself sees it: in another container it means nothing.
        age_s: Seconds since it last wrote its row.
        usage: What it wrote.
        row: Which row of the table it has, for as long as it lives.
    """

    pid: int
    age_s: float
    usage: Usage
    row: int


class Presence:
    """This process's row, from construction to close() or the end of the process. The kernel ends it, whatever happens.

    Written by one thread; readers see every word as a whole.
    """

    def __init__(self, files: RunFiles) -> None:
        """Be present.

        Raises:
            SegmentError: The table is not to be trusted, or the system refuses to lock it.
        """
        self._table = Table(files)
        try:
            self._row = self._table.claim_row()
        except SegmentError:
            self._table.close()
            raise
        self.write(Usage())

    def write(self, usage: Usage) -> None:
        """Say what the process's pools do now."""
        if self._row is not None:
            self._table.write_row(self._row, os.getpid(), time.monotonic_ns(), usage)

    def count_workers(self) -> int:
        """How many processes of the host use the bg_id just now, this one included; at least one."""
        return max(1, self._table.count_since(time.monotonic_ns() - int(ROW_STALE_S * 1e9)))

    def nudge(self) -> None:
        """Tell the monitor that the server has cut a connection just now."""
        self._table.ring(time.monotonic_ns())

    def is_in_place(self, files: RunFiles) -> bool:
        """Whether the path still leads to our table; if not, nobody can see that we are here."""
        return self._table.is_in_place(files)

    def close(self) -> None:
        """Be gone. In a forked child this closes the inherited descriptor; the parent stays present."""
        self._table.close()


def anybody_present(files: RunFiles) -> bool:
    """Whether a process on this host uses the bg_id of *files*.

    Raises:
        SegmentError: The table is not to be trusted, or the system refuses to tell.
    """
    table = _existing(files)
    if table is None:
        return False
    try:
        return table.anybody_present()
    finally:
        table.close()


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
    return tuple(WorkerRow(pid, max(0.0, (now_ns - at_ns) / 1e9), usage, row) for row, pid, at_ns, usage in rows)


def _existing(files: RunFiles) -> Table | None:
    """The table; None where there is none: to look makes none."""
    try:
        files.workers.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused(f"{files.workers} cannot be seen", error) from None
    return Table(files)
