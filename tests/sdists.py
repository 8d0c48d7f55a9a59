"""The sdists of frameworks, which have the frameworks' own tests, where wheels have none."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

from filelock import FileLock

__all__ = ["unpacked"]

DOWNLOAD_TIMEOUT_S: Final = 110.0
"""pip downloads ten megabytes and asks the sdist's build backend for its metadata: 6 s here. Below pytest's limit."""


def unpacked(name: str) -> Path:
    """The sdist of the installed version of *name*: fetched from the package index once, and kept in the environment.

    Raises:
        RuntimeError: pip could not get it.
    """
    release = f"{name}-{version(name)}"
    home = Path(sys.prefix) / f"{name}-tests"
    tree = home / release
    home.mkdir(exist_ok=True)
    with FileLock(home / "lock", timeout=DOWNLOAD_TIMEOUT_S):
        if not tree.is_dir():
            scratch = home / "scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            with tarfile.open(_download(name, scratch)) as archive:
                archive.extractall(scratch, filter="data")
            (scratch / release).rename(tree)
            shutil.rmtree(scratch)
    return tree


def _download(name: str, directory: Path) -> Path:
    # No compiler runs: pip builds the metadata alone, with build isolation, as the versions differ in what they need.
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--no-binary", name, "--dest", str(directory), f"{name}=={version(name)}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not download the sdist of {name} {version(name)}: {done.stderr[-2000:]}")
    return next(directory.glob("*.tar.gz"))
