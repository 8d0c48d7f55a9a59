"""A data directory with nothing but the system tables, made once in a process and copied for every server.

MariaDB takes a third of a second to make one, and every now and then a second more, in which one of its threads
misses a signal of another; a copy takes a few hundredths.
"""

from __future__ import annotations

import atexit
import shutil
import threading
from pathlib import Path
from typing import Final

from bgpool.lab.guard import Guard
from bgpool.lab.mariadb_conf import ACCOUNT, TINY
from bgpool.lab.mariadb_programs import MariadbPrograms

__all__ = ["copy_template"]

MAKE_TIMEOUT_S: Final = 60.0

_lock: Final = threading.Lock()
_made: Final[dict[MariadbPrograms, Path]] = {}


def copy_template(found: MariadbPrograms, data_dir: Path) -> None:
    """Make *data_dir*, which must not exist, one for a server's first start.

    Raises:
        LabError: MariaDB failed to make the template.
    """
    with _lock:
        template = _made.get(found)
        # In a child of the process that made it, it may be gone.
        if template is None or not template.is_dir():
            template = _made[found] = _make(found)
    shutil.copytree(template, data_dir)
    for path in (data_dir, *data_dir.rglob("*")):
        found.programs.give(path)


def _make(found: MariadbPrograms) -> Path:
    guard = Guard()
    template, temporary = guard.base / "template", guard.base / "tmp"
    for directory in (template, temporary):
        directory.mkdir(mode=0o700)
        found.programs.give(directory)
    statements = ["CREATE DATABASE mysql;", "USE mysql;"]
    statements += [script.read_text(encoding="utf-8") for script in found.scripts]
    try:
        found.programs.run(
            *found.command(template, temporary), "--bootstrap", *TINY, "--skip-log-bin", "--log-warnings=0",
            timeout_s=MAKE_TIMEOUT_S, stdin="\n".join((*statements, ACCOUNT, "")),
        )  # fmt: skip
    except BaseException:
        guard.close()
        raise
    atexit.register(guard.close)
    return template
