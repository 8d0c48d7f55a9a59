"""New PostgreSQL clusters by copying one, as PostgreSQL's own tests make theirs, and in memory.

initdb takes a second of CPU, and so do the 100 MB of a pair's files on a disk. All clusters that a process makes have
the same identifier, but for those that are made to be upgraded to: these must differ from their primaries. A test that
needs two other ones of different identifiers does not use this.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from bgpool.lab.binaries import Programs

__all__ = ["copy_clusters", "in_memory", "shared_memory"]

#: An option only for the initdb of an upgrade.
WITHOUT_CHECKSUMS: Final = "--no-data-checksums"

MEMORY: Final = Path("/dev/shm")
PREFIX: Final = "bgpool-tests-"
#: Three processes have had 2 GiB in use, with the pairs that each keeps.
ROOM_BYTES: Final = 6 << 30


@contextlib.contextmanager
def in_memory(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have this process, and those that it starts, make their temporary files in memory, where that has the room."""
    if not _has_room():
        yield
        return
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=MEMORY, ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o1777)  # as /tmp: servers run as others
        patch.setenv("TMPDIR", directory)
        patch.setattr(tempfile, "tempdir", directory)
        yield


def shared_memory() -> Iterator[Path]:
    """Return the files in shared memory, except those that tests created with in_memory."""
    for path in MEMORY.iterdir():
        if not path.name.startswith(PREFIX):
            yield path
            yield from path.rglob("*")


def _has_room() -> bool:
    try:
        found, memory = os.statvfs(MEMORY), Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return False
    available = re.search(r"^MemAvailable: +(\d+) kB$", memory, re.MULTILINE)
    room = min(found.f_bavail * found.f_frsize, int(available[1]) << 10 if available else 0)
    # The lab may have to copy the servers' programs to where their account can reach them.
    return room >= ROOM_BYTES and not found.f_flag & os.ST_NOEXEC and os.access(MEMORY, os.W_OK)


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
    """Copy the contents of *source*, with owners and modes."""
    subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True, timeout=60)
