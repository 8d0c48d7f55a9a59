"""What a process has imported, and whether that is what a new process would import."""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["LoadedModules"]


class LoadedModules:
    """The files of this process's modules, as they were when this was asked first after the import."""

    def __init__(self) -> None:
        self._known: Final[dict[str, tuple[int, ...]]] = {}

    def are_current(self) -> bool:
        """Whether all of them are still there and none was replaced: an application may be deployed over itself."""
        # Not by attribute: a module may have code of its own for that.
        files = {getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values())}
        found = {file: _state(file) for file in files if isinstance(file, str)}
        return all(self._known.setdefault(file, state) == state for file, state in found.items())


def _state(file: str) -> tuple[int, ...]:
    try:
        found = os.stat(file)  # noqa:PTH116  # of a thousand files
    except OSError:  # gone, or in an archive
        return ()
    return found.st_mtime_ns, found.st_size
