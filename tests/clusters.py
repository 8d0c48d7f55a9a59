"""New PostgreSQL clusters by copying one, as PostgreSQL's own tests make theirs: initdb takes a second of CPU.

All that a process makes have the same identifier, but for those that are made to be upgraded to: these must differ from
their primaries. A test that needs two other ones of different identifiers does not use this.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from bgpool.lab.binaries import Programs

__all__ = ["copy_clusters"]

#: What is given to none but the initdb of an upgrade.
WITHOUT_CHECKSUMS: Final = "--no-data-checksums"


def copy_clusters(patch: pytest.MonkeyPatch, directory: Path) -> None:
    """Have each initdb of this process but the first be a copy of what the first has made, which is in *directory*."""
    made: Final[dict[object, Path]] = {}
    run = Programs._run

    def copying(programs: Programs, program: str, arguments: Sequence[str], *rest: object) -> str:
        if program != "initdb" or WITHOUT_CHECKSUMS in arguments:
            return run(programs, program, arguments, *rest)  # type: ignore[arg-type]  # passed on as they are
        place = arguments.index("-D") + 1
        key, target = (programs, *arguments[:place], *arguments[place + 1 :]), Path(arguments[place])
        if key not in made:
            told = run(programs, program, arguments, *rest)  # type: ignore[arg-type]  # passed on as they are
            template = directory / f"cluster-{len(made)}"
            template.mkdir()
            _copy(target, template)
            made[key] = template
            return told
        _copy(made[key], target)
        return ""

    patch.setattr(Programs, "_run", copying)


def _copy(source: Path, target: Path) -> None:
    """What *source* has in it, with owners and modes."""
    subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True, timeout=60)
