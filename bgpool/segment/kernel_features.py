"""Optional kernel features that the kernel or a sandbox may refuse. They are tested: a name in Python proves nothing.

None of them is required. For each there is a fallback, which is slower or less safe. Log, status and doctor report it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bgpool.base_errors import SegmentError
from bgpool.segment.boot import UNKNOWN, boot_id
from bgpool.segment.wake import kernel_wakes

__all__ = ["LACKS", "MissingFeature", "lacks", "memory_file", "wiped_page"]

#: Since Linux 4.14. Source: linux/mman.h; the mmap module has this constant only from Python 3.13 on.
_MADV_WIPEONFORK: Final = 18


@dataclass(frozen=True, slots=True)
class MissingFeature:
    """A feature that may be refused.

    Attributes:
        name: Its name.
        text: The message: the feature is refused, and the consequences.
        remedy: The advice.
        is_lacking: Tests the feature; returns whether it is refused.
    """

    name: str
    text: str
    remedy: str
    is_lacking: Callable[[], bool]


def memory_file() -> int | None:
    """Return a descriptor of a new anonymous file in memory; None if the kernel does not support it."""
    if sys.platform == "linux":
        # The attribute does not exist if Python was built with an old C library.
        with contextlib.suppress(AttributeError, OSError):
            return os.memfd_create("bgpool")
    return None


def wiped_page() -> mmap.mmap | None:
    """Return a page of memory that is zero in every child, however it is forked; None if there is no support."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_MADV_WIPEONFORK)
            return page
    return None


def _is_boot_unknown() -> bool:
    try:
        return boot_id() == UNKNOWN
    except SegmentError:
        # Descriptors have run out, which says nothing about the boot id.
        return False


def _no_memory_file() -> bool:
    fd = memory_file()
    if fd is not None:
        os.close(fd)
    return fd is None


#: By the bit of each feature in a worker's row.
LACKS: Final[Mapping[int, MissingFeature]] = {
    1: MissingFeature(
        "boot id",
        "it cannot be read: a segment that an earlier boot left in a run directory on a disk may pass for current",
        "keep the run directory in memory, or have all of /proc mounted (systemd: ProcSubset=all)",
        _is_boot_unknown,
    ),
    2: MissingFeature(
        "futex",
        "it is refused: callers that wait look every 10 ms, and processes that are not refused learn up to 0.8 s late "
        "what a monitor here publishes",
        "allow the system call futex",
        lambda: not kernel_wakes(),
    ),
    4: MissingFeature(
        "memfd_create",
        "it is refused: the monitor is given its configuration, with the password, in a nameless file of the run "
        "directory",
        "keep the run directory in memory, or allow the system call memfd_create",
        _no_memory_file,
    ),
    8: MissingFeature(
        "MADV_WIPEONFORK",
        "it is refused: each checkout asks for its process id",
        "allow the system call madvise, MADV_WIPEONFORK included",
        lambda: wiped_page() is None,
    ),
}


def lacks() -> int:
    """Return the sum of the bits in LACKS of the features that this process cannot use; 0 on other systems."""
    if sys.platform != "linux":
        return 0
    return sum(bit for bit, lack in LACKS.items() if lack.is_lacking())
