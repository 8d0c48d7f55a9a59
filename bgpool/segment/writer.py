"""The monitor's side of a segment. One term, one file, one writer: two writers of one file cannot exist.

A new monitor makes a new file, beginning with the snapshot of the old one, and puts it in the old one's place. What
a monitor that was stopped and wakes up again writes, wherever it was stopped, is obeyed by nobody.
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
    """A later term has begun: this one has nothing to say any more."""


def first_snapshot(bg_id: str) -> Snapshot:
    """What to begin with where no segment is left to go on from.

    Its epoch is the time in ms, which no earlier life of the segment has come up to: epochs rise by a few in a
    switchover. A worker may still have connections of such a life, and would take an equal number for the same epoch.
    """
    return Snapshot(bg_id, epoch=time.monotonic_ns() // 1_000_000)


class Writer:
    """Writes the segment of one term. To be made by whoever holds the lock of that term.

    Attributes:
        term: Which.
        snapshot: What it began with.
        sequence: That of the last publication.
    """

    def __init__(self, files: RunFiles, term: int, fresh: Snapshot) -> None:
        """Put a new segment in the place of whatever is there; it begins with what that one says.

        Args:
            files: Whose segment.
            term: This tenure, higher than that of the file in place.
            fresh: What to begin with if there is nothing to go on from.

        Raises:
            Superseded: A later term has begun.
            FutureFormat: The file in place is of a newer version.
            SegmentError: The file cannot be made.
        """
        self._files = files
        self._place: Final = str(files.segment)
        self.term: Final = term
        pending = new_pending_file(files.segment, term)
        try:
            # Everything that may fail for want of room comes before the file in place is touched.
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
        """Make *snapshot* what every reader sees, and wake those that wait.

        Raises:
            Superseded: Another monitor has taken over.
            SegmentError: It does not fit a slot.
        """
        sequence = self.sequence + 1
        slot = layout.pack_slot(sequence, encode(snapshot))
        self._check_turn()
        offset = layout.slot_offset(sequence)
        self._memory[offset : offset + len(slot)] = slot
        # One aligned store of eight bytes: a reader sees the old number or the new one, never half of each. Stopped
        # right before it, we may overwrite SUPERSEDED: the number is one that no reader has seen, so that it looks
        # again, and finds the word that says so for good.
        self._word[0] = self.sequence = sequence
        held, self._holds = self._holds, snapshot.phase is Phase.IN_PROGRESS
        if not self._holds and (held or self._line.moves):
            # What they held is gone: all of them connect anew.
            self._line.let_go()
        else:
            wake.wake_all(self._address)

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            Superseded: Another monitor has taken over.
        """
        self._check_turn()
        self._beat[0] = time.monotonic_ns()

    def note_bus(self, at_ns: int) -> None:
        """Say when the last message of the fleet was heard, in ns on the monotonic clock; it wakes nobody."""
        self._bus[0] = at_ns

    def is_in_place(self) -> bool:
        """Whether the path still leads to this file; a monitor for which it does not has been replaced."""
        return leads_to(self._place, self._inode)

    def remove(self) -> None:
        """Remove the file, if it is still in place: nobody needs it and the next monitor should begin afresh."""
        # Stopped between the look and the removal, we may remove the file of a later term. It takes a bg_id that nobody
        # has used for a while; the monitor of that term leaves, and the next one begins afresh, as was meant.
        if self.is_in_place():
            self._files.segment.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Write no more. If no path leads to the file, whoever still reads it is told to look elsewhere."""
        self._line.end()
        if not self.is_in_place():
            self._superseded[0] = self._superseded[0] or self.term
            _send_to_path(self._word, self._address)

    def _check_turn(self) -> None:
        if self._superseded[0]:
            raise Superseded(f"term {self.term} is over: the monitor of term {self._superseded[0]} has taken over")

    def _fence(self, pending: PendingFile) -> SegmentMap | None:
        """Make sure that no earlier term is believed, or put in place, from now on; return the file in place.

        A process may be stopped between any two steps, for as long as it likes. Our draft is there before we look at
        those of others. So an earlier term whose draft we do not see finds ours, or our file in place, and gives up.
        One whose draft we see, we remove, and its renaming fails; or it was renamed before, and it is what we find in
        place. And what is in place is read only after nothing that is still written to it counts.
        """
        for other in pending_files_of(self._files.segment):
            if other.term > self.term:
                raise Superseded(f"term {self.term} is over: a monitor of term {other.term} has begun")
            if other != pending:
                # Of one that died, or that was passed over because it was stopped.
                remove(other)
        try:
            old = trusted_map(self._files, write=True)
        except AnotherBoot:
            # Its monitor is dead, or there would have been no election.
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
    """A segment file of *term* with nothing published in it: the mapping, and device and inode."""
    fd = create_checked(pending.path)
    try:
        # Reserved now, a full disk is an error here instead of a SIGBUS at some later write.
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
    """The sequence and the snapshot that *old* has come to, if it is one of the same bg_id."""
    try:
        found = old.read() if old is not None else None
    except SegmentError:
        found = None
    if found is None or found[1].bg_id != fresh.bg_id:
        return 0, fresh
    return found


def _send_to_path(word: memoryview, address: int) -> None:
    """Shut the quick way of everybody who has the file mapped, and have them look the path up."""
    word[0] = layout.SUPERSEDED
    wake.wake_all(address)
