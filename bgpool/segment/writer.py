"""The monitor's side of a segment. Each term has one file and one writer, so that a file never has two writers.

A new monitor creates a new file, beginning with the snapshot of the old one, and replaces the old file. Writes of a
monitor that was stopped at any point and resumes later have no effect.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Final

from bgpool.base_errors import SegmentError
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.segment import layout, wake
from bgpool.segment.boot import boot_id
from bgpool.segment.codec import encode
from bgpool.segment.paths import RunFiles, create_checked, leads_to, refused, reserve
from bgpool.segment.pending_files import PendingFile, new_pending_file, pending_files_of, remove
from bgpool.segment.reader import AnotherBoot, SegmentMap, trusted_map
from bgpool.segment.release_queue import ReleaseQueue

__all__ = ["Superseded", "Writer", "first_snapshot"]


class Superseded(SegmentError):
    """A later term has begun, so that this one must not write any more."""


def first_snapshot(bg_id: str) -> Snapshot:
    """Return the first snapshot if there is no segment to continue from.

    Its epoch is the time in ms, which is greater than any epoch of an earlier segment, because epochs increase by only
    a few in a switchover. A worker may still have connections from an earlier segment, and would take an equal number
    for the same epoch.
    """
    return Snapshot(bg_id, epoch=time.monotonic_ns() // 1_000_000)


class Writer:
    """Writes the segment of one term. Only the holder of that term's lock may create it.

    Attributes:
        term: The term.
        snapshot: The first snapshot.
        sequence: The number of the last publication.
    """

    def __init__(self, files: RunFiles, term: int, fresh: Snapshot) -> None:
        """Replace the segment in place, if any; the new one begins with its last snapshot.

        Args:
            files: The files of the deployment.
            term: This tenure's term, higher than that of the file in place.
            fresh: The first snapshot if there is nothing to continue from.

        Raises:
            Superseded: A later term has begun.
            FutureFormat: The file in place is of a newer version.
            SegmentError: The file cannot be created.
        """
        self._files = files
        self._place: Final = str(files.segment)
        self.term: Final = term
        pending = new_pending_file(files.segment, term)
        try:
            # All steps that may fail for lack of space come before the file in place is changed.
            self._memory, self._inode = _make(pending, term)
            words = memoryview(self._memory)[: layout.HEADER_BYTES].cast("Q")
            self._word = words[layout.SEQUENCE_OFFSET // 8 :]
            self._beat = words[layout.HEARTBEAT_OFFSET // 8 :]
            self._superseded = words[layout.SUPERSEDED_OFFSET // 8 :]
            self._bus = words[layout.BUS_OFFSET // 8 :]
            self._address = wake.address_of(self._memory, layout.SEQUENCE_OFFSET)
            self._line: Final = ReleaseQueue(self._address)
            self._holds = False
            old = self._fence(pending)
            self.sequence, self.snapshot = _last_words(old, fresh)
            self.beat()
            self.publish(self.snapshot)
            self._put_in_place(pending)
        except SegmentError:
            remove(pending)
            raise
        if old is not None:
            _send_to_path(old.word, old.address)

    def __repr__(self) -> str:
        return f"<Writer {self._files.segment} term={self.term} sequence={self.sequence}>"

    def publish(self, snapshot: Snapshot) -> None:
        """Publish *snapshot* to all readers, and wake those that wait.

        Raises:
            Superseded: Another monitor has taken over.
            SegmentError: It does not fit into a slot.
        """
        sequence = self.sequence + 1
        slot = layout.pack_slot(sequence, encode(snapshot))
        self._check_turn()
        offset = layout.slot_offset(sequence)
        self._memory[offset : offset + len(slot)] = slot
        # One aligned store of eight bytes: a reader sees the old or the new number, never a mix. If this monitor is
        # stopped right before it, it may overwrite SUPERSEDED. But no reader has seen this number, so every reader
        # checks again, and finds the other word, which marks the file as superseded for good.
        self._word[0] = self.sequence = sequence
        held, self._holds = self._holds, snapshot.phase is Phase.IN_PROGRESS
        if not self._holds and (held or self._line.moves):
            # Connections that were held are gone: all waiters connect again.
            self._line.let_go()
        else:
            wake.wake_all(self._address)

    def beat(self) -> None:
        """Write a heartbeat.

        Raises:
            Superseded: Another monitor has taken over.
        """
        self._check_turn()
        self._beat[0] = time.monotonic_ns()

    def note_bus(self, at_ns: int) -> None:
        """Record the time of the last message of the fleet, in ns on the monotonic clock. This wakes no waiter."""
        self._bus[0] = at_ns

    def is_in_place(self) -> bool:
        """True if the path still leads to this file; if not, this monitor has been replaced."""
        return leads_to(self._place, self._inode)

    def remove(self) -> None:
        """Remove the file if it is still in place: it is no longer needed, and the next monitor should start empty."""
        # If this monitor is stopped between the check and the removal, it may remove the file of a later term. That
        # requires a bg_id that was unused for a while. The later monitor then exits, and the next one starts empty, as
        # intended.
        if self.is_in_place():
            self._files.segment.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Stop writing. If no path leads to the file, make its readers look up the path again."""
        self._line.end()
        if not self.is_in_place():
            self._superseded[0] = self._superseded[0] or self.term
            _send_to_path(self._word, self._address)

    def _check_turn(self) -> None:
        if self._superseded[0]:
            raise Superseded(f"term {self.term} is over: the monitor of term {self._superseded[0]} has taken over")

    def _fence(self, pending: PendingFile) -> SegmentMap | None:
        """Ensure that no earlier term can be believed, or put in place, from now on. Return the file in place.

        A process may be stopped between any two steps, for any time. This monitor's pending file exists before it
        checks for those of others. So an earlier term whose pending file it does not see will find this one, or
        this monitor's file in place, and give up. An earlier pending file that it does see is removed, so that its
        rename fails; or it was renamed before, and is the file in place. The file in place is read only after writes to
        it no longer count.
        """
        for other in pending_files_of(self._files.segment):
            if other.term > self.term:
                raise Superseded(f"term {self.term} is over: a monitor of term {other.term} has begun")
            if other != pending:
                # The pending file of a process that died, or that was stopped and replaced.
                remove(other)
        try:
            old = trusted_map(self._files, write=True)
        except AnotherBoot:
            # Its monitor is dead, because otherwise there would have been no election.
            old = None
        if old is None:
            return None
        if old.header.term >= self.term:
            raise Superseded(f"term {self.term} is over: a monitor of term {old.header.term} writes the segment")
        old.superseded[0] = self.term
        return old

    def _put_in_place(self, pending: PendingFile) -> None:
        try:
            pending.path.replace(self._files.segment)
        except FileNotFoundError:
            raise Superseded(f"term {self.term} is over: a later one has removed what it had begun") from None
        except OSError as error:
            raise refused(f"{self._files.segment} cannot be replaced", error) from None


def _make(pending: PendingFile, term: int) -> tuple[mmap.mmap, tuple[int, int]]:
    """Create a segment file of *term* without a publication; return the mapping, and device and inode."""
    fd = create_checked(pending.path)
    try:
        # Allocate the space now, so that a full disk raises here instead of causing SIGBUS at a later write.
        reserve(fd, layout.FILE_BYTES)
        found = os.fstat(fd)
        memory = mmap.mmap(fd, layout.FILE_BYTES)
    except OSError as error:
        raise refused(f"segment {pending.path} cannot be made", error) from None
    finally:
        os.close(fd)
    memory[: layout.SEQUENCE_OFFSET] = layout.pack_header(layout.Header(term, os.getpid(), boot_id()))
    return memory, (found.st_dev, found.st_ino)


def _last_words(old: SegmentMap | None, fresh: Snapshot) -> tuple[int, Snapshot]:
    """Return the last sequence and snapshot of *old*, if it belongs to the same bg_id."""
    try:
        found = old.read() if old is not None else None
    except SegmentError:
        found = None
    if found is None or found[1].bg_id != fresh.bg_id:
        return 0, fresh
    return found


def _send_to_path(word: memoryview, address: int) -> None:
    """Disable the fast path of all readers that have the file mapped, so that they look up the path again."""
    word[0] = layout.SUPERSEDED
    wake.wake_all(address)
