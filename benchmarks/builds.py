"""An earlier build of bgpool, so that one run can measure two builds.

The earlier build is a commit of this repository. A process that measures it has it first on its PYTHONPATH. The
monitor that such a process starts has it, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

__all__ = ["BEFORE", "NOW", "builds", "environment", "is_current", "statuses"]

#: The last commit before bgpool's own costs were reduced.
COMMIT: Final = "c9a8a21132def11c1855b533b96d9141b93e1bad"
#: The names of the two builds in tables.
NOW: Final = "bgpool"
BEFORE: Final = "bgpool, before"

_ROOT: Final = Path(__file__).parents[1]


@contextlib.contextmanager
def builds() -> Iterator[dict[str, Path]]:
    """Yield directories with the package ``bgpool``, by NOW and BEFORE.

    BEFORE is missing if git does not have its commit (a source distribution, a shallow clone). Tables then have no rows
    for it.
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
    """Return *environ* for a Python that imports bgpool from *build* and the benchmarks from this repository.

    Start Python with ``-P`` (3.11) or with a file, and not in this directory, which it would search first.
    """
    return {**environ, "PYTHONPATH": f"{build}:{_ROOT}", "PYTHONSAFEPATH": "1"}


def is_current(build: Path) -> bool:
    """Return whether *build* is the bgpool that this process imports."""
    return build.resolve() == _ROOT


def statuses(build: Path, run_dir: Path) -> list[dict[str, Any]]:
    """Return the output of ``bgpool status --json`` of *build*, which can read the segments of *build*."""
    command = [
        sys.executable,
        "-c",
        "from bgpool.cli import main; main()",
        "status",
        "--json",
        "--run-dir",
        f"{run_dir}",
    ]
    done = subprocess.run(
        command, env=environment(build, dict(os.environ)), cwd="/", capture_output=True, check=False, text=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found


def _archive() -> bytes | None:
    command = ["git", "-C", str(_ROOT), "archive", COMMIT, "bgpool"]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
