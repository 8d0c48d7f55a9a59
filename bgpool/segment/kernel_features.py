"""What the kernel, or a sandbox in front of it, refuses. Found by trying: that Python has a name for it says nothing.

Nothing here is needed: for each there is another way, slower or less careful. Log, status and doctor say which it is.
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

#: Since Linux 4.14. Source: linux/mman.h; the mmap module names it from Python 3.13 on only.
_MADV_WIPEONFORK: Final = 18


@dataclass(frozen=True, slots=True)
class MissingFeature:
    """Something that is refused.

    Attributes:
        name: What.
        text: That it is, and what follows.
        remedy: What to do about it.
        is_lacking: Tries it.
    """

    name: str
    text: str
    remedy: str
    is_lacking: Callable[[], bool]


def memory_file() -> int | None:
    """A descriptor of a new file in memory that has no name; None where the kernel makes none."""
    if sys.platform == "linux":
        # The attribute is missing where Python was built with an old C library.
        with contextlib.suppress(AttributeError, OSError):
            return os.memfd_create("bgpool")
    return None


def wiped_page() -> mmap.mmap | None:
    """A page of memory that is zero in every child, however it is forked; None where the kernel makes none."""
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
        # Out of descriptors: nothing is known of the boot id.
        return False


def _no_memory_file() -> bool:
    fd = memory_file()
    if fd is not None:
        os.close(fd)
    return fd is None


#: By the bit that stands for each in a worker's row.
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
    """What is refused to this process: the sum of the bits of LACKS. 0 on other systems than Linux, which have none."""
    if sys.platform != "linux":
        return 0
    return sum(bit for bit, lack in LACKS.items() if lack.is_lacking())
