"""The Python interpreter of a monitor, and its environment."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

__all__ = ["environment", "interpreter"]


def interpreter() -> str:
    """Return the interpreter to run. If Python is embedded (uWSGI), sys.executable is the embedding program, or "".

    Raises:
        FileNotFoundError: No interpreter was found.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if Path(sys.executable or "").name.startswith(("python", "pypy")):
        return sys.executable
    for prefix in (sys.exec_prefix, sys.base_exec_prefix):
        if os.access(Path(prefix) / "bin" / name, os.X_OK):
            return str(Path(prefix) / "bin" / name)
    if found := shutil.which(name):
        return found
    raise FileNotFoundError(f"there is no {name} in {sys.exec_prefix} or on the PATH to run a monitor with")


def environment() -> dict[str, str]:
    """Return the environment of the monitor: this process's, with its path for imports."""
    path = [str(Path(entry).absolute()) for entry in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
