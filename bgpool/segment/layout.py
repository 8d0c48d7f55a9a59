"""The binary layout of a segment. docs/segment-format.md documents the same.

::

    0    header   magic 8, format u32, slot bytes u32, term u64, pid u64, boot id 16, CRC-32 u32, zero to 64
    64   sequence u64    alone on its cache line; 0 before the first publish, SUPERSEDED after another file took over
    128  heartbeat u64   alone on its cache line; CLOCK_MONOTONIC in ns
    192  superseded u64  alone on its cache line; 0, or the term of the monitor that took over, which is final
    256  bus u64         alone on its cache line; CLOCK_MONOTONIC in ns of the last message of the fleet; 0 for none
    4096 slot 0   length u32, CRC-32 u32 (of sequence, length and payload), sequence u64, payload
         slot 1   the same; the snapshot with sequence number *n* is in slot n mod 2

Integers are little-endian, except for the four words, which are native: a mapping is never shared between machines.
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
#: A word that the file's own monitor does not write in publish(). The mark that a file is superseded must not be undone
#: by a monitor that was stopped in the middle of publish() and resumes.
SUPERSEDED_OFFSET: Final = 192
#: A separate word, because messages arrive up to ten times a second: a snapshot for each would wake every worker.
BUS_OFFSET: Final = 256
#: Twice the size of the largest snapshot that core/limits.py allows.
SLOT_BYTES: Final = 256 * 1024
FILE_BYTES: Final = HEADER_BYTES + 2 * SLOT_BYTES
#: The value of the sequence word of a superseded file: it matches no number that a reader has seen.
SUPERSEDED: Final = 2**64 - 1

_HEADER: Final = struct.Struct("<8sIIQQ16s")
_CRC: Final = struct.Struct("<I")
SLOT_HEADER: Final = struct.Struct("<IIQ")
_CHECKED: Final = struct.Struct("<QI")
PAYLOAD_BYTES: Final = SLOT_BYTES - SLOT_HEADER.size


class FutureFormat(SegmentError):
    """A file of a newer version of bgpool. It is neither read nor replaced."""


@dataclass(frozen=True, slots=True)
class Header:
    """The constant part of a segment file.

    Attributes:
        term: Counts the tenures of monitors. Each term has one file and one writer.
        pid: The monitor's process id, for operators; never used to decide whether it is alive.
        boot_id: The boot whose monotonic clock the file's times refer to; 16 bytes.
    """

    term: int
    pid: int
    boot_id: bytes


def pack_header(header: Header) -> bytes:
    """Return the first 64 bytes of a segment."""
    fields = _HEADER.pack(MAGIC, FORMAT, SLOT_BYTES, header.term, header.pid, header.boot_id)
    return (fields + _CRC.pack(zlib.crc32(fields))).ljust(SEQUENCE_OFFSET, b"\0")


def unpack_header(data: bytes) -> Header:
    """Return the header in the first 64 bytes of *data*.

    Raises:
        SegmentError: It is not a segment, has another version's format, or has a wrong checksum.
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
    """Return the offset of the snapshot with number *sequence*."""
    return HEADER_BYTES + (sequence & 1) * SLOT_BYTES


def pack_slot(sequence: int, payload: bytes) -> bytes:
    """Return the bytes of a slot: header and payload.

    Raises:
        SegmentError: *payload* is larger than a slot.
    """
    if len(payload) > PAYLOAD_BYTES:
        raise SegmentError(f"snapshot of {len(payload)} bytes does not fit a slot of {PAYLOAD_BYTES}")
    crc = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(sequence, len(payload))))
    return SLOT_HEADER.pack(len(payload), crc, sequence) + payload


def unpack_slot(data: memoryview, sequence: int) -> bytes | None:
    """Return the payload of a slot if it contains the complete snapshot with number *sequence*; otherwise None.

    The checksum decides, not the number: a processor may show the sequence word before the bytes that it announces.
    """
    length, crc, found = SLOT_HEADER.unpack_from(data)
    if found != sequence or length > PAYLOAD_BYTES:
        return None
    payload = bytes(data[SLOT_HEADER.size : SLOT_HEADER.size + length])
    return payload if crc == zlib.crc32(payload, zlib.crc32(_CHECKED.pack(sequence, length))) else None
