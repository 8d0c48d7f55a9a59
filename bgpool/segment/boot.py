"""The identity of the current boot: times of CLOCK_MONOTONIC are valid only within one boot and one time namespace."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Final

from bgpool.segment.paths import Exhausted, refused

__all__ = ["UNKNOWN", "boot_id"]

#: The boot id of a process that cannot read it: systemd's ProcSubset=pid, SELinux and container runtimes may hide it.
UNKNOWN: Final = bytes(16)

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE: Final = Path("/proc/self/ns/time")


def boot_id() -> bytes:
    """Return 16 bytes that are equal for all processes with the same monotonic clock; UNKNOWN if they cannot be read.

    A partial result is never used: a process with fewer permissions would seem to belong to another boot.

    Raises:
        Exhausted: It cannot be read now, because descriptors or memory have run out.
    """
    if sys.platform != "linux":
        return UNKNOWN
    try:
        boot, namespace = _BOOT.read_bytes(), _time_namespace()
    except OSError as error:
        why = refused("the boot id cannot be read", error)
        if isinstance(why, Exhausted):
            raise why from None
        return UNKNOWN
    # A container runtime hides a file by mounting /dev/null over it.
    return hashlib.blake2b(boot + namespace, digest_size=16).digest() if boot.strip() else UNKNOWN


def _time_namespace() -> bytes:
    try:
        return str(_TIME_NAMESPACE.stat().st_ino).encode()
    except FileNotFoundError:
        # Before Linux 5.6 there is a single time namespace.
        return b""
