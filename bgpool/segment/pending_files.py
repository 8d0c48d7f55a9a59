"""Pending files: each has a unique name until it is complete, and then replaces the final file in one step.

A process that dies before that leaves its pending file. The process that creates the next one removes it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from bgpool.segment.paths import refused

__all__ = ["PendingFile", "pending_files_of", "new_pending_file", "remove"]

#: Random, because neither pids nor names distinguish processes of different containers.
_RANDOM_BYTES: Final = 8


class PendingFile(NamedTuple):
    """A pending file.

    Attributes:
        path: Its path.
        term: The term of its monitor; 0 for files that do not depend on terms.
    """

    path: Path
    term: int


def new_pending_file(path: Path, term: int = 0) -> PendingFile:
    """Return a name for a pending file of *path*. Nothing is created."""
    return PendingFile(path.with_name(f"{path.name}.draft-{term}-{os.urandom(_RANDOM_BYTES).hex()}"), term)


def pending_files_of(path: Path) -> list[PendingFile]:
    """Return all pending files of *path*, of running and of dead processes.

    Raises:
        SegmentError: The directory cannot be read.
    """
    pattern = re.compile(rf"{re.escape(path.name)}\.draft-([0-9]{{1,18}})-[0-9a-f]{{{2 * _RANDOM_BYTES}}}")
    try:
        matches = [pattern.fullmatch(entry.name) for entry in path.parent.iterdir()]
    except OSError as error:
        raise refused(f"{path.parent} cannot be read", error) from None
    return [PendingFile(path.parent / match[0], int(match[1])) for match in matches if match]


def remove(pending: PendingFile) -> None:
    """Remove *pending*, if it exists. After that its process can no longer put it in place.

    Raises:
        SegmentError: It cannot be removed.
    """
    try:
        pending.path.unlink(missing_ok=True)
    except OSError as error:
        raise refused(f"{pending.path} cannot be removed", error) from None
