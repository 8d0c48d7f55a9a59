"""SQLAlchemy's own tests, which its sdist has and its wheel has not, of the version that is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import sqlalchemy
from filelock import FileLock

__all__ = ["unpacked"]

DOWNLOAD_TIMEOUT_S: Final = 110.0
"""pip downloads ten megabytes and asks the sdist's build backend for its metadata: 4 s here. Below pytest's limit."""


def unpacked() -> Path:
    """The sdist's tree; fetched from the package index once, and kept in the virtual environment.

    Raises:
        RuntimeError: pip could not get it.
    """
    version = sqlalchemy.__version__
    home = Path(sys.prefix) / "sqlalchemy-tests"
    tree = home / f"sqlalchemy-{version}"
    home.mkdir(exist_ok=True)
    with FileLock(home / "lock", timeout=DOWNLOAD_TIMEOUT_S):
        if not tree.is_dir():
            scratch = home / "scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            with tarfile.open(_download(version, scratch)) as archive:
                archive.extractall(scratch, filter="data")
            (scratch / tree.name).rename(tree)
            shutil.rmtree(scratch)
    return tree


def _download(version: str, directory: Path) -> Path:
    # No compiler runs: pip builds the metadata alone, with build isolation, as the versions differ in what they need.
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--no-binary", "sqlalchemy", "--dest", str(directory), f"sqlalchemy=={version}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not download the sdist of SQLAlchemy {version}: {done.stderr[-2000:]}")
    return next(directory.glob("*.tar.gz"))
