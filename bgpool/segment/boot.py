"""Which boot this is: times of CLOCK_MONOTONIC mean something in one boot and one time namespace only."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bgpool.segment.paths import Exhausted, refused

__all__ = ["boot_id"]


def boot_id() -> bytes:
    """16 bytes that are the same for all processes whose monotonic clocks agree.

    Linux tells the boot and the time namespace. Elsewhere all boots look alike, and a heartbeat that lies in the
    future gives a segment of an earlier boot away.

    Raises:
        Exhausted: They cannot be asked now. To guess would make a good segment look like another boot's.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        digest.update(Path("/proc/sys/kernel/random/boot_id").read_bytes())
        digest.update(str(Path("/proc/self/ns/time").stat().st_ino).encode())
    except OSError as error:
        why = refused("the boot id cannot be read", error)
        if isinstance(why, Exhausted):
            raise why from None
    return digest.digest()
