"""bgpool as it was before: the same measurement of two builds, in one run.

The build before is a commit of this repository. A process that measures it has it first on its PYTHONPATH; so has the
monitor that such a process starts.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["BEFORE", "NOW", "builds", "environment"]

#: The last commit before bgpool's own costs were looked at as a whole.
COMMIT: Final = "c9a8a21132def11c1855b533b96d9141b93e1bad"
#: What the two builds are called in tables.
NOW: Final = "bgpool"
BEFORE: Final = "bgpool, before"

_ROOT: Final = Path(__file__).parents[1]


@contextlib.contextmanager
def builds() -> Iterator[dict[str, Path]]:
    """Directories that have the package ``bgpool``, by NOW and BEFORE; without the latter where git has no such commit.

    Where it has none (a source distribution, a shallow clone), tables have no rows for it.
    """
    with tempfile.TemporaryDirectory(prefix="bgpool-before-") as directory:
        found = {NOW: _ROOT}
        packed = _archive()
        if packed is not None:
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(directory, filter="data")
            found[BEFORE] = Path(directory)
        yield found


def environment(build: Path, environ: dict[str, str]) -> dict[str, str]:
    """*environ* for a Python that is to import bgpool from *build* and the benchmarks from here.

    Start it with ``-P`` (3.11) or from a file, and not in this directory: Python would look there first.
    """
    return {**environ, "PYTHONPATH": f"{build}:{_ROOT}", "PYTHONSAFEPATH": "1"}


def _archive() -> bytes | None:
    command = ["git", "-C", str(_ROOT), "archive", COMMIT, "bgpool"]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
