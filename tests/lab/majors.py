"""Pairs of a major upgrade for tests, independent of the programs that are configured for other pairs."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bgpool.lab import ProgramsError
from bgpool.lab.binaries import find_upgrade

__all__ = ["major_options"]


def major_options() -> dict[str, Any]:
    """Return keywords for Pair; they select the wheel's versions if the configured programs have only one version."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            versions = find_upgrade()
        except ProgramsError:
            patch.delenv("BGPOOL_LAB_POSTGRESQL", raising=False)
            versions = find_upgrade()
    return {"upgrade": "major", "programs": os.pathsep.join(str(programs.bin_dir) for programs in versions)}
