"""The monitor's side of a segment. One term, one file, one writer: two writers of one file cannot exist.

A new monitor makes a new file, beginning with the snapshot of the old one, and puts it in the old one's place. What
a monitor that was stopped and wakes up again writes, it writes into a file that no path leads to.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import Final

from bgpool.core.snapshot import Snapshot
from bgpool.plain_errors import SegmentError
from bgpool.segment import layout, wake
from bgpool.segment.boot import boot_id
from bgpool.segment.codec import encode
from bgpool.segment.paths import RunFiles, create_checked, reserve
from bgpool.segment.reader import SegmentMap

__all__ = ["Writer"]


class Writer:
    """Writes the segment of one term. To be made by whoever holds the lock of that term."""

    def __init__(self, files: RunFiles, term: int, snapshot: Snapshot) -> None:
        """Put a new segment that holds *snapshot* in the place of whatever is there.

        Args:
            files: Whose segment.
            term: This tenure, higher than that of the file in place.
            snapshot: What to begin with: the old file's, or a fresh one.

        Raises:
            SegmentError: The file cannot be made, or that of a later term is in place.
        """
        self._files = files
        self.term: Final = term
        old = self._old_map()
        draft = files.segment.with_suffix(f".draft-{term}")
        draft.unlink(missing_ok=True)
        fd = create_checked(draft)
        try:
            # Reserved now, a full disk is an error here instead of a SIGBUS at some later write.
            reserve(fd, layout.FILE_BYTES)
            found = os.fstat(fd)
            self._memory = mmap.mmap(fd, layout.FILE_BYTES)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise SegmentError(f"segment {draft} cannot be made: {error.strerror}") from None
        finally:
            os.close(fd)
        self._inode = (found.st_dev, found.st_ino)
        words = memoryview(self._memory)[: layout.HEADER_BYTES].cast("Q")
        self._word = words[layout.SEQUENCE_OFFSET // 8 :]
        self._beat = words[layout.HEARTBEAT_OFFSET // 8 :]
        self._address = wake.address_of(self._memory, layout.SEQUENCE_OFFSET)
        self._memory[: layout.SEQUENCE_OFFSET] = layout.pack_header(layout.Header(term, os.getpid(), boot_id()))
        self.sequence = old.word[0] if old is not None and old.word[0] != layout.SUPERSEDED else 0
        self.beat()
        self.publish(snapshot)
        self._check_turn(draft)
        draft.replace(files.segment)
        if old is not None:
            old.word[0] = layout.SUPERSEDED
            wake.wake_all(old.address)

    def __repr__(self) -> str:
        return f"<Writer {self._files.segment} term={self.term} sequence={self.sequence}>"

    def publish(self, snapshot: Snapshot) -> None:
        """Make *snapshot* what every reader sees, and wake those that wait.

        Raises:
            SegmentError: It does not fit a slot.
        """
        sequence = self.sequence + 1
        slot = layout.pack_slot(sequence, encode(snapshot))
        offset = layout.slot_offset(sequence)
        self._memory[offset : offset + len(slot)] = slot
        # One aligned store of eight bytes: a reader sees the old number or the new one, never half of each.
        self._word[0] = self.sequence = sequence
        wake.wake_all(self._address)

    def beat(self) -> None:
        """Give a sign of life."""
        self._beat[0] = time.monotonic_ns()

    def is_in_place(self) -> bool:
        """Whether the path still leads to this file; a monitor for which it does not has been replaced."""
        try:
            found = self._files.segment.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._inode

    def remove(self) -> None:
        """Remove the file, if it is still in place: nobody needs it and the next monitor should begin afresh."""
        if self.is_in_place():
            self._files.segment.unlink(missing_ok=True)

    def _check_turn(self, draft: Path) -> None:
        """Whoever was stopped since it was elected must not put its file over that of a later term."""
        found = self._old_map()
        if found is not None and found.header.term >= self.term:
            draft.unlink(missing_ok=True)
            raise SegmentError(f"term {self.term} is over: a monitor of term {found.header.term} writes the segment")

    def _old_map(self) -> SegmentMap | None:
        try:
            return SegmentMap(self._files, write=True)
        except (FileNotFoundError, SegmentError):
            return None
