"""The modules that this process has imported, and a check whether a new process would import the same."""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["LoadedModules"]


class LoadedModules:
    """The files of this process's modules, as they were at the first check after the import."""

    def __init__(self) -> None:
        self._known: Final[dict[str, tuple[int, ...]]] = {}

    def are_current(self) -> bool:
        """Return whether all files still exist and none was replaced: an application may be deployed in place."""
        # Not by attribute access, which may run code of the module.
        files = {getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values())}
        found = {file: _state(file) for file in files if isinstance(file, str)}
        return all(self._known.setdefault(file, state) == state for file, state in found.items())


def _state(file: str) -> tuple[int, ...]:
    try:
        found = os.stat(file)  # noqa:PTH116  # fast, for a thousand files
    except OSError:  # removed, or in an archive
        return ()
    return found.st_mtime_ns, found.st_size
