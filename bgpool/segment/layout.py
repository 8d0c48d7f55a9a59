"""Where every byte of a segment lies. docs/segment-format.md is this page in prose.

::

    0    header   magic 8, format u32, slot bytes u32, term u64, pid u64, boot id 16, CRC-32 u32, zero to 64
    64   sequence u64    alone on its cache line; 0 before the first publish, SUPERSEDED once another file took over
    128  heartbeat u64   alone on its cache line; CLOCK_MONOTONIC in ns
    192  superseded u64  alone on its cache line; 0, or the term of whoever took over, and nobody ever takes it back
    256  bus u64         alone on its cache line; CLOCK_MONOTONIC in ns of the last message of the fleet; 0 for none
    4096 slot 0   length u32, CRC-32 u32 (of sequence, length and payload), sequence u64, payload
         slot 1   the same; the snapshot numbered *n* is in slot n mod 2

Integers are little-endian but for the four words, which are native: a mapping is never shared between machines.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from bgpool.base_errors import SegmentError

__all__ = [
    "BUS_OFFSET",
    "FILE_BYTES",
    "FORMAT",
    "HEADER_BYTES",
    "HEARTBEAT_OFFSET",
    "PAYLOAD_BYTES",
    "SEQUENCE_OFFSET",
    "SLOT_BYTES",
    "SLOT_HEADER",
    "SUPERSEDED",
    "SUPERSEDED_OFFSET",
    "FutureFormat",
    "Header",
    "pack_header",
    "pack_slot",
    "slot_offset",
    "unpack_header",
    "unpack_slot",
]

MAGIC: Final = b"BGPOOL\r\n"
FORMAT: Final = 5
HEADER_BYTES: Final = 4096
SEQUENCE_OFFSET: Final = 64
HEARTBEAT_OFFSET: Final = 128
#: A word that the file's own monitor does not write while it publishes: what says that a file is over must not be
#: undone by a monitor that was stopped in the middle of publish() and wakes up.
SUPERSEDED_OFFSET: Final = 192
#: Messages come up to ten times a second: a snapshot for each would wake every worker of the host.
BUS_OFFSET: Final = 256
#: Twice what the largest snapshot of core/limits.py comes to.
SLOT_BYTES: Final = 256 * 1024
FILE_BYTES: Final = HEADER_BYTES + 2 * SLOT_BYTES
#: What the sequence word becomes when the file is over, so that no number that was ever seen in it still matches.
SUPERSEDED: Final = 2**64 - 1

_HEADER: Final = struct.Struct("<8sIIQQ16s")
_CRC: Final = struct.Struct("<I")
SLOT_HEADER: Final = struct.Struct("<IIQ")
_CHECKED: Final = struct.Struct("<QI")
PAYLOAD_BYTES: Final = SLOT_BYTES - SLOT_HEADER.size


class FutureFormat(SegmentError):
    """A file that a newer version of bgpool has made: neither read nor replaced."""


@dataclass(frozen=True, slots=True)
class Header:
    """What never changes in the life of a segment file.

    Attributes:
        term: Counts the tenures of monitors. One term, one file, one writer.
        pid: The monitor's process id, for a person to read; never for telling whether it lives.
        boot_id: The boot whose monotonic clock the file's times are on; 16 bytes.
    """

    term: int
    pid: int
    boot_id: bytes


def pack_header(header: Header) -> bytes:
    """The first 64 bytes of a segment."""
    fields = _HEADER.pack(MAGIC, FORMAT, SLOT_BYTES, header.term, header.pid, header.boot_id)
    return (fields + _CRC.pack(zlib.crc32(fields))).ljust(SEQUENCE_OFFSET, b"\0")


def unpack_header(data: bytes) -> Header:
    """The header in the first 64 bytes of *data*.

    Raises:
        SegmentError: Not a segment, a format of another version, or a wrong checksum.
    """
    if len(data) < SEQUENCE_OFFSET or data[: len(MAGIC)] != MAGIC:
        raise SegmentError("not a bgpool segment: wrong magic")
    _, version, slot_bytes, term, pid, boot_id = _HEADER.unpack_from(data)
    fields = data[: _HEADER.size]
    if data[_HEADER.size : SEQUENCE_OFFSET] != _CRC.pack(zlib.crc32(fields)).ljust(
        SEQUENCE_OFFSET - _HEADER.size, b"\0"
    ):
        raise SegmentError("segment header has a wrong checksum")
    if version != FORMAT:
        text = f"segment format {version} is not the format {FORMAT} that this version reads"
        if version > FORMAT:
            raise FutureFormat(f"{text}: a newer bgpool runs on this host; restart this process with that version")
        raise SegmentError(f"{text}: an older bgpool has made it; the next monitor of this version replaces it")
    if slot_bytes != SLOT_BYTES:
        raise SegmentError(f"segment has slots of {slot_bytes} bytes instead of {SLOT_BYTES}")
    return Header(term, pid, boot_id)


def slot_offset(sequence: int) -> int:
    """Where the snapshot numbered *sequence* lies."""
    return HEADER_BYTES + (sequence & 1) * SLOT_BYTES


def pack_slot(sequence: int, payload: bytes) -> bytes:
    """A slot's bytes: header and payload.

    Raises:
        SegmentError: *payload* is larger than a slot.
    """
    if len(payload) > PAYLOAD_BYTES:
        raise SegmentError(f"snapshot of {len(payload)} bytes does not fit a slot of {PAYLOAD_BYTES}")
    crc = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(sequence, len(payload))))
    return SLOT_HEADER.pack(len(payload), crc, sequence) + payload


def unpack_slot(data: memoryview, sequence: int) -> bytes | None:
    """The payload of a slot if it holds the snapshot numbered *sequence*, whole; None otherwise.

    The checksum decides, not the numbers: a processor may show the word before the bytes it announces.
    """
    length, crc, found = SLOT_HEADER.unpack_from(data)
    if found != sequence or length > PAYLOAD_BYTES:
        return None
    payload = bytes(data[SLOT_HEADER.size : SLOT_HEADER.size + length])
    return payload if crc == zlib.crc32(payload, zlib.crc32(_CHECKED.pack(sequence, length))) else None
