"""The workers' side of a segment: while nothing changes, a check is one comparison of a mapped word.

A reader never waits for the writer, never takes a lock, and keeps its last valid snapshot in any case.
"""

from __future__ import annotations

import array
import logging
import mmap
import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from bgpool.base_errors import SegmentError
from bgpool.core.limits import HEARTBEAT_STALE_S, READ_ATTEMPTS, WATCH_INTERVAL_S
from bgpool.core.snapshot import Snapshot
from bgpool.logs import log_fields
from bgpool.segment import layout, wake
from bgpool.segment.boot import UNKNOWN, boot_id
from bgpool.segment.codec import decode
from bgpool.segment.paths import Exhausted, RunFiles, identity_of, open_checked, refused

__all__ = ["AnotherBoot", "Reader", "Reading", "SegmentMap", "trusted_map"]

_logger: Final = logging.getLogger("bgpool.segment")
_NOTHING: Final = memoryview(array.array("Q", [0]))


class AnotherBoot(SegmentError):
    """The segment's times refer to the clock of another boot or time namespace.

    Attributes:
        header: The segment's header.
    """

    def __init__(self, files: RunFiles, header: layout.Header) -> None:
        super().__init__(f"{files.segment} is of another boot or time namespace")
        self.header: Final = header


class SegmentMap:
    """A mapped segment file.

    Attributes:
        word: The sequence word, live: ``word[0]`` is the number of the last publication.
        beat: The heartbeat, live, in ns on the monotonic clock.
        bus: The time of the last valid message of the fleet, live, in ns on the monotonic clock; 0 for none.
        superseded: Live; not 0 if the file is no longer valid.
        inode: Device and inode of the file, to detect that the path leads to another file.
    """

    def __init__(self, files: RunFiles, *, write: bool = False) -> None:
        """Map the segment of *files*.

        Raises:
            FileNotFoundError: It does not exist.
            AnotherBoot: Its boot id differs from that of this process; or, if one of them is unknown, its heartbeat is
                in the future.
            SegmentError: It cannot be trusted.
            Exhausted: It may be valid, but the process cannot map any more files.
        """
        fd = open_checked(files.segment, os.O_RDWR if write else os.O_RDONLY)
        try:
            found = os.fstat(fd)
            if found.st_size != layout.FILE_BYTES:
                raise SegmentError(f"{files.segment} has {found.st_size} bytes instead of {layout.FILE_BYTES}")
            access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
            self.memory: Final = mmap.mmap(fd, layout.FILE_BYTES, access=access)
        except OSError as error:
            raise refused(f"{files.segment} cannot be mapped", error) from None
        except ValueError:
            raise SegmentError(f"{files.segment} was cut short while it was opened") from None
        finally:
            os.close(fd)
        self.view: Final = memoryview(self.memory)
        self.inode: Final = (found.st_dev, found.st_ino)
        self.header: Final = layout.unpack_header(bytes(self.view[: layout.SEQUENCE_OFFSET]))
        words = self.view[: layout.HEADER_BYTES].cast("Q")

        def word(offset: int) -> memoryview:
            # Only this word, because a pool compares the view as memory.
            return words[offset // 8 : offset // 8 + 1]

        self.word: Final = word(layout.SEQUENCE_OFFSET)
        self.beat: Final = word(layout.HEARTBEAT_OFFSET)
        self.bus: Final = word(layout.BUS_OFFSET)
        self.superseded: Final = word(layout.SUPERSEDED_OFFSET)
        self.address: Final = wake.address_of(self.memory, layout.SEQUENCE_OFFSET)
        if not self._is_of_this_boot():
            raise AnotherBoot(files, self.header)

    def _is_of_this_boot(self) -> bool:
        theirs, ours = self.header.boot_id, boot_id()
        if UNKNOWN in (theirs, ours):
            # Judge by the clock: a heartbeat in the future is from an earlier boot with a longer uptime.
            return self.heartbeat_age_s() < float("inf")
        return theirs == ours

    @property
    def is_superseded(self) -> bool:
        """True if the file is superseded: the path must be looked up again."""
        return bool(self.superseded[0] != 0 or self.word[0] == layout.SUPERSEDED)

    def read(self) -> tuple[int, Snapshot] | None:
        """Return the newest snapshot and its sequence; None before the first one, and if it cannot be determined.

        The snapshot of a superseded file may only be used by the next monitor, to continue from it.

        Raises:
            SegmentError: The slot does not contain the snapshot that the sequence word announces.
        """
        for attempt in range(READ_ATTEMPTS):
            sequence = self.word[0]
            if sequence in (0, layout.SUPERSEDED):
                return None
            offset = layout.slot_offset(sequence)
            payload = layout.unpack_slot(self.view[offset : offset + layout.SLOT_BYTES], sequence)
            if payload is not None:
                return sequence, decode(payload)
            # The slot was rewritten during the read, or its bytes are not visible yet: wait for the writer's processor.
            time.sleep(0.0001 * (attempt > 1))
        raise SegmentError(f"segment holds no whole snapshot {sequence} after {READ_ATTEMPTS} attempts")

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the monitor's last heartbeat; infinite if it is in the future."""
        return _age_s(self.beat[0])

    def bus_age_s(self) -> float | None:
        """Return the seconds since the last message of the fleet; None without one, or if it is in the future."""
        at_ns = self.bus[0]
        age_s = _age_s(at_ns)
        return age_s if at_ns and age_s < float("inf") else None


def _age_s(at_ns: int) -> float:
    """Return the seconds since *at_ns*, which must be read before this call; infinite for a time in the future."""
    age_ns = time.monotonic_ns() - at_ns
    return age_ns / 1e9 if age_ns >= 0 else float("inf")


def trusted_map(files: RunFiles, *, write: bool = False) -> SegmentMap | None:
    """Return the segment in place; None if there is none, or if it cannot be trusted, which the next monitor corrects.

    Raises:
        FutureFormat: It has a newer format. Two versions that replace each other's file would leave neither with one.
        AnotherBoot: Its monitor may still be alive, see AnotherBoot.header.
        Exhausted: It cannot be determined.
    """
    try:
        return SegmentMap(files, write=write)
    except (AnotherBoot, layout.FutureFormat, Exhausted):
        raise
    except (FileNotFoundError, SegmentError):
        return None


class Reading(NamedTuple):
    """The result of a read; all of it comes from one mapping.

    Attributes:
        word: The live sequence word. After a change of monitor there is a new word, and the old one never matches
            again.
        sequence: The value of the word; 0 without a segment.
        snapshot: The last valid snapshot; None before the first.
        mapped: The mapping; None without a segment.
    """

    word: memoryview
    sequence: int
    snapshot: Snapshot | None
    mapped: SegmentMap | None

    @property
    def is_current(self) -> bool:
        """True if there was no publication since."""
        return self.mapped is not None and bool(self.word[0] == self.sequence)

    def wait_changed(
        self, timeout_s: float, over: Callable[[], bool] = lambda: False, *, in_line: bool = False
    ) -> bool:
        """Wait for the next publication, at most *timeout_s* seconds. Return whether there was one.

        Reader.wake_waiters ends the wait after *over* has become true. A caller that waits *in_line* may be woken after
        others, and then wakes the next one with Reader.wake_next.
        """
        if self.mapped is None:
            # The appearance of a segment wakes no waiter, so check again after a while.
            time.sleep(min(timeout_s, WATCH_INTERVAL_S))
            return False
        return wake.wait_changed(self.word, self.mapped.address, self.sequence, timeout_s, over, in_line=in_line)


class Reader:
    """This process's knowledge of a deployment: the newest snapshot, kept up to date without blocking.

    Safe to use from any number of threads, because the reading is replaced as a whole.

    Attributes:
        reading: The newest reading that a caller has requested.
    """

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        # Stored because it is used often, to avoid constructing a path each time.
        self._place = str(files.segment)
        self._complained = ""
        self.reading = Reading(_NOTHING, 0, None, None)

    def __repr__(self) -> str:
        phase = self.reading.snapshot.phase.name if self.reading.snapshot else None
        return f"<Reader {self._files.segment} sequence={self.reading.sequence} phase={phase}>"

    def follow(self, files: RunFiles) -> None:
        """Read the segment of *files* from now on, instead of the current one."""
        self._files, self._place = files, str(files.segment)
        self.reading = Reading(_NOTHING, 0, None, None)

    def refresh(self) -> Reading:
        """Return the newest snapshot, or the last valid one. Never raises, never blocks."""
        reading = self.reading
        if reading.is_current:
            return reading
        new = self._read(reading)
        if new.mapped is None and (mapped := self._map()) is not None:
            new = self._read(Reading(mapped.word, 0, reading.snapshot, mapped))
        self.reading = new
        return new

    def _read(self, reading: Reading) -> Reading:
        """Return the current content of *reading*'s file; if it is invalid, the known snapshot without a file."""
        mapped = reading.mapped
        if mapped is None:
            return reading
        sequence, snapshot = mapped.word[0], reading.snapshot
        try:
            if (found := mapped.read()) is not None:
                sequence, snapshot = found
        except SegmentError as error:
            # Do not read the slot again before it is rewritten: a broken slot must not slow down every checkout.
            self._complain(error)
        # Check this after the word was read. A number that a stopped monitor stores after another took over is always
        # seen together with the superseded mark. A number that was seen without the mark is never stored again.
        if mapped.is_superseded:
            # A process without a snapshot should use the last one of a file whose successor is about to be created.
            return Reading(_NOTHING, 0, reading.snapshot or snapshot, None)
        return Reading(mapped.word, sequence, snapshot, mapped)

    def check_path(self) -> None:
        """Map the file again if the path leads to a file other than the mapped one, or if a file now exists."""
        try:
            found = identity_of(self._place)
        except OSError:
            return
        reading = self.reading
        if reading.mapped is not None and found == reading.mapped.inode:
            return
        if (mapped := self._map()) is not None:
            # Sequence 0 is never published, so that the next check reads the slot.
            self.reading = Reading(mapped.word, 0, reading.snapshot, mapped)
            if reading.mapped is not None:
                # The file was removed and is no longer written, so its waiters must be woken here.
                wake.wake_all(reading.mapped.address)

    def is_of_file(self, reading: Reading) -> bool:
        """Return whether *reading* belongs to the file that is currently read."""
        return reading.mapped is self.reading.mapped

    def wake_waiters(self) -> None:
        """Make all waiters check whether their wait is over. Waiters of other processes are not affected."""
        mapped = self.reading.mapped
        if mapped is not None:
            wake.wake_all(mapped.address)

    def wake_next(self) -> None:
        """Wake the next waiter in line, in any process."""
        mapped = self.reading.mapped
        if mapped is not None:
            wake.wake_in_line(mapped.address, 1)

    def monitor_is_silent(self) -> bool:
        """True if there was no heartbeat of a monitor for HEARTBEAT_STALE_S."""
        mapped = self.reading.mapped
        return mapped is None or mapped.heartbeat_age_s() > HEARTBEAT_STALE_S

    def _map(self) -> SegmentMap | None:
        """Return the file that the path leads to; None if there is no usable one."""
        try:
            return SegmentMap(self._files)
        except FileNotFoundError:
            return None
        except SegmentError as error:
            self._complain(error)
            return None

    def _complain(self, error: SegmentError) -> None:
        """Log the problem with the file once. The last valid snapshot, or a plain pool, remains in use."""
        if str(error) != self._complained:
            self._complained = str(error)
            extra = log_fields("segment_refused", bg_id=self._files.stem)
            _logger.warning("the segment is refused: %s", error, extra=extra)
