"""Files in the making: each under a name that nobody else has, until it is whole and takes its place in one step.

A process that dies in between leaves its draft behind. Whoever makes the next one removes it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from bgpool.segment.paths import refused

__all__ = ["PendingFile", "pending_files_of", "new_pending_file", "remove"]

#: Random, because a pid tells processes of different containers no more apart than a name would.
_RANDOM_BYTES: Final = 8


class PendingFile(NamedTuple):
    """A file in the making.

    Attributes:
        path: Where it is.
        term: Whose; 0 for files that have nothing to do with terms.
    """

    path: Path
    term: int


def new_pending_file(path: Path, term: int = 0) -> PendingFile:
    """A name for a draft of *path*; nothing is made."""
    return PendingFile(path.with_name(f"{path.name}.draft-{term}-{os.urandom(_RANDOM_BYTES).hex()}"), term)


def pending_files_of(path: Path) -> list[PendingFile]:
    """Every draft of *path* that there is, of the living and of the dead.

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
    """Remove *pending*, if it is there. Its maker can never put it in place then.

    Raises:
        SegmentError: It cannot be removed.
    """
    try:
        pending.path.unlink(missing_ok=True)
    except OSError as error:
        raise refused(f"{pending.path} cannot be removed", error) from None
