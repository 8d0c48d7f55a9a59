"""The place of the servers' programs: an argument, or an environment variable for each engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bgpool.core.engine import Engine
from bgpool.lab.errors import ProgramsError

__all__ = ["PATH", "directories", "place_of", "unusable"]

VARIABLES: Final[Mapping[Engine, str]] = {
    Engine.POSTGRESQL: "BGPOOL_LAB_POSTGRESQL",
    Engine.MYSQL: "BGPOOL_LAB_MYSQL",
}
"""The variables that name the place if no argument does: for tests, benchmarks and scripts without one."""

PATH: Final = "path"
"""A place that is not a directory: the PATH, and then the places where distributions install servers."""


def unusable(engine: Engine, problem: str) -> ProgramsError:
    """Return the error for programs of *engine* that are missing or unusable."""
    return ProgramsError(problem, VARIABLES[engine])


def place_of(engine: Engine, given: str | Path | None) -> str | None:
    """Return *given*, or the value of the environment variable of *engine*; None if neither names a place."""
    return str(given) if given is not None else os.environ.get(VARIABLES[engine]) or None


def directories(engine: Engine, place: str) -> list[Path]:
    """Return the directories that may have programs in a *place* that is a directory.

    Raises:
        ProgramsError: It is not one.
    """
    root = Path(place)
    if not place or not root.is_dir():  # Path('') is the current one
        raise unusable(engine, f"{place!r} is not a directory: the one with the servers' programs, or {PATH!r}")
    return [root.resolve() / below for below in (".", "bin", "sbin")]
