"""The open file descriptors of this process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

__all__ = ["open_descriptors"]

#: The directories that list them. /dev/fd is a link to the second on Linux, and a file system of its own on macOS.
_LISTS: Final = (Path("/dev/fd"), Path("/proc/self/fd"))
#: The numbers that are tried one by one where no directory lists the open ones. A try takes about 1 µs.
_TRIED: Final = 65_536


def open_descriptors() -> list[int]:
    """Return the numbers of all open descriptors, and that of the one which the list was read through.

    Without /proc, each number below the soft limit is tried, but at most the first 65,536.

    Raises:
        OSError: The process has no descriptor left to read the list with.
    """
    for directory in _LISTS:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            return [int(entry.name) for entry in directory.iterdir()]
    limit = os.sysconf("SC_OPEN_MAX")
    return [fd for fd in range(_TRIED if limit < 0 else min(limit, _TRIED)) if _is_open(fd)]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
