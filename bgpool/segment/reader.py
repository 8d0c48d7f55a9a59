"""The workers' side of a segment: one comparison of a mapped word while nothing changes.

A reader never waits for the writer, never takes a lock, and keeps its last good snapshot whatever it finds.
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
    """The segment's times are on the clock of another boot or time namespace.

    Attributes:
        header: The segment's.
    """

    def __init__(self, files: RunFiles, header: layout.Header) -> None:
        super().__init__(f"{files.segment} is of another boot or time namespace")
        self.header: Final = header


class SegmentMap:
    """One segment file, mapped.

    Attributes:
        word: The sequence, live: ``word[0]`` is what the writer last published.
        beat: The heartbeat, live, in ns on the monotonic clock.
        bus: When the monitor last heard a message of its fleet that counts, live, in ns on the monotonic clock; 0 for
            never.
        superseded: Live; other than 0 once nothing in the file is to be believed any more.
        inode: Device and inode of the file, to tell whether the path still leads to it.
    """

    def __init__(self, files: RunFiles, *, write: bool = False) -> None:
        """Map the segment of *files*.

        Raises:
            FileNotFoundError: There is none.
            AnotherBoot: Its boot id differs from ours; if one is unknown, its last sign of life lies in the future.
            SegmentError: It is not to be trusted.
            Exhausted: It may be in order, but the process cannot map any more.
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
            # And no more than that: a pool compares it as memory.
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
            # The clock tells: a sign of life that lies in the future was given in an earlier boot, after a longer time.
            return self.heartbeat_age_s() < float("inf")
        return theirs == ours

    @property
    def is_superseded(self) -> bool:
        """Whether the file is over: look it up by name again."""
        return bool(self.superseded[0] != 0 or self.word[0] == layout.SUPERSEDED)

    def read(self) -> tuple[int, Snapshot] | None:
        """The newest snapshot and its sequence; None before the first one and where there is no telling any more.

        What a file that is over says is for its successor to go on from, and for nobody else to act on.

        Raises:
            SegmentError: The slot does not hold what the word announces.
        """
        for attempt in range(READ_ATTEMPTS):
            sequence = self.word[0]
            if sequence in (0, layout.SUPERSEDED):
                return None
            offset = layout.slot_offset(sequence)
            payload = layout.unpack_slot(self.view[offset : offset + layout.SLOT_BYTES], sequence)
            if payload is not None:
                return sequence, decode(payload)
            # Rewritten under our eyes, or the bytes are not visible yet: let the writer's processor catch up.
            time.sleep(0.0001 * (attempt > 1))
        raise SegmentError(f"segment holds no whole snapshot {sequence} after {READ_ATTEMPTS} attempts")

    def heartbeat_age_s(self) -> float:
        """Seconds since the monitor's last sign of life; infinite for one that lies in the future."""
        return _age_s(self.beat[0])

    def bus_age_s(self) -> float | None:
        """Seconds since the monitor last heard of its fleet; None where it never has, or that lies in the future."""
        at_ns = self.bus[0]
        age_s = _age_s(at_ns)
        return age_s if at_ns and age_s < float("inf") else None


def _age_s(at_ns: int) -> float:
    """Seconds since *at_ns*, which was read before this is called; infinite for a time that lies in the future."""
    age_ns = time.monotonic_ns() - at_ns
    return age_ns / 1e9 if age_ns >= 0 else float("inf")


def trusted_map(files: RunFiles, *, write: bool = False) -> SegmentMap | None:
    """The segment in place; None if there is none or it is not to be trusted, which the next monitor puts right.

    Raises:
        FutureFormat: It is of a newer version. Two versions that replace each other's would leave nobody with one.
        AnotherBoot: Its monitor may live all the same, see AnotherBoot.header.
        Exhausted: Nobody can tell.
    """
    try:
        return SegmentMap(files, write=write)
    except (AnotherBoot, layout.FutureFormat, Exhausted):
        raise
    except (FileNotFoundError, SegmentError):
        return None


class Reading(NamedTuple):
    """What was read, and where: all of it from one mapping.

    Attributes:
        word: The live sequence word. After a change of monitor there is a new one, and the old never matches again.
        sequence: What the word said; 0 while there is no segment.
        snapshot: The last good snapshot; None before the first.
        mapped: The mapping; None while there is no segment.
    """

    word: memoryview
    sequence: int
    snapshot: Snapshot | None
    mapped: SegmentMap | None

    @property
    def is_current(self) -> bool:
        """Whether nothing was published since."""
        return self.mapped is not None and bool(self.word[0] == self.sequence)

    def wait_changed(
        self, timeout_s: float, over: Callable[[], bool] = lambda: False, *, in_line: bool = False
    ) -> bool:
        """Wait until something else is published, at most *timeout_s* seconds; whether it was.

        Who makes *over* true has the wait end with Reader.wake_waiters. Who waits *in_line* may be woken after others,
        and lets the next one go with Reader.wake_next.
        """
        if self.mapped is None:
            # Nothing wakes us when there is a segment at last: look again in time.
            time.sleep(min(timeout_s, WATCH_INTERVAL_S))
            return False
        return wake.wait_changed(self.word, self.mapped.address, self.sequence, timeout_s, over, in_line=in_line)


class Reader:
    """What a process knows of a deployment: the newest snapshot, kept up to date without blocking.

    Safe to use from any number of threads: the reading is replaced as a whole.

    Attributes:
        reading: The newest that somebody has asked for.
    """

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        # Looked at again and again: no path is put together each time.
        self._place = str(files.segment)
        self._complained = ""
        self.reading = Reading(_NOTHING, 0, None, None)

    def __repr__(self) -> str:
        phase = self.reading.snapshot.phase.name if self.reading.snapshot else None
        return f"<Reader {self._files.segment} sequence={self.reading.sequence} phase={phase}>"

    def follow(self, files: RunFiles) -> None:
        """Read the segment of *files* from now on, and forget the other."""
        self._files, self._place = files, str(files.segment)
        self.reading = Reading(_NOTHING, 0, None, None)

    def refresh(self) -> Reading:
        """The newest snapshot; the last good one if there is nothing better. Never raises, never blocks."""
        reading = self.reading
        if reading.is_current:
            return reading
        new = self._read(reading)
        if new.mapped is None and (mapped := self._map()) is not None:
            new = self._read(Reading(mapped.word, 0, reading.snapshot, mapped))
        self.reading = new
        return new

    def _read(self, reading: Reading) -> Reading:
        """What the file of *reading* says now; without a file, and what was known, if nothing there counts any more."""
        mapped = reading.mapped
        if mapped is None:
            return reading
        sequence, snapshot = mapped.word[0], reading.snapshot
        try:
            if (found := mapped.read()) is not None:
                sequence, snapshot = found
        except SegmentError as error:
            # Not to be read again before it is written again: a broken slot must not make every checkout slow.
            self._complain(error)
        # Asked after the word was read. A number that a stopped monitor stores after another took over is seen together
        # with the mark of that other; and one that was seen without it is never stored again.
        if mapped.is_superseded:
            # A process that knows nothing yet is better off with the last word of a file whose successor is on its way.
            return Reading(_NOTHING, 0, reading.snapshot or snapshot, None)
        return Reading(mapped.word, sequence, snapshot, mapped)

    def check_path(self) -> None:
        """Map anew if the path leads to another file than the one mapped, or to one at last."""
        try:
            found = identity_of(self._place)
        except OSError:
            return
        reading = self.reading
        if reading.mapped is not None and found == reading.mapped.inode:
            return
        if (mapped := self._map()) is not None:
            # Sequence 0 is never published: the next look reads the slot.
            self.reading = Reading(mapped.word, 0, reading.snapshot, mapped)
            if reading.mapped is not None:
                # Who waits there would hear of nothing: the file was removed, and nobody writes to it any more.
                wake.wake_all(reading.mapped.address)

    def is_of_file(self, reading: Reading) -> bool:
        """Whether *reading* is of the file that is read now."""
        return reading.mapped is self.reading.mapped

    def wake_waiters(self) -> None:
        """Have everybody who waits for a change look whether it is over; for those of other processes nothing is."""
        mapped = self.reading.mapped
        if mapped is not None:
            wake.wake_all(mapped.address)

    def wake_next(self) -> None:
        """Let the next one go who waits in line, in whichever process."""
        mapped = self.reading.mapped
        if mapped is not None:
            wake.wake_in_line(mapped.address, 1)

    def monitor_is_silent(self) -> bool:
        """Whether no monitor has given a sign of life for HEARTBEAT_STALE_S."""
        mapped = self.reading.mapped
        return mapped is None or mapped.heartbeat_age_s() > HEARTBEAT_STALE_S

    def _map(self) -> SegmentMap | None:
        """The file that the path leads to; None if there is none that can be used."""
        try:
            return SegmentMap(self._files)
        except FileNotFoundError:
            return None
        except SegmentError as error:
            self._complain(error)
            return None

    def _complain(self, error: SegmentError) -> None:
        """Say once what is wrong with the file; the last good snapshot, or a plain pool, goes on."""
        if str(error) != self._complained:
            self._complained = str(error)
            extra = log_fields("segment_refused", bg_id=self._files.stem)
            _logger.warning("the segment is refused: %s", error, extra=extra)
