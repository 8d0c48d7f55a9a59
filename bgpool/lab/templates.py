"""Directories that are expensive to make and always the same: made once for a user, and kept in the cache folder.

The folder is ``$XDG_CACHE_HOME/bgpool``, else ``~/.cache/bgpool``. A folder that is not private to this user, or that
cannot be written, is not used: then every lab makes its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bgpool.base_errors import SegmentError
from bgpool.lab.errors import LabError
from bgpool.lab.waiting import wait_until
from bgpool.segment.locks import Lock, try_lock
from bgpool.segment.paths import prepare_run_dir

__all__ = ["Make", "cache_dir", "template"]

log = logging.getLogger("bgpool.lab")

LOCK_TIMEOUT_S: Final = 60.0
"""The longest wait for another process that is making the same template; it takes five seconds."""

MOST_OTHERS: Final = 1
"""The number of templates with other stamps that are kept, the last ones used: each has a hundred megabytes."""

IN_USE_S: Final = 3600.0
"""A template that was used in the last hour may still be copied from."""

PREFIX: Final = "template-"

Make = Callable[[Path], None]
"""A callable that fills an existing, private and empty directory. The owner of the files does not matter."""


def cache_dir() -> Path:
    """Return the folder of templates; it may not exist yet.

    Raises:
        LabError: This user has no place for it.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise LabError(f"no cache folder: {error}") from None
    return Path(root).absolute() / "bgpool"


def template(stamp: str, make: Make, spare: Path) -> Path:
    """Return the template of that stamp, made if there is none. It must only be copied, never changed.

    Args:
        stamp: A name for everything that it depends on; letters, digits, ``.`` and ``-``.
        make: A callable that fills it.
        spare: The directory, not existing yet, in which it is made if it cannot be kept.

    Raises:
        LabError: *make* failed.
    """
    try:
        with _locked(stamp) as kept:
            if not _is_ours(kept):
                _keep(kept, make)
            os.utime(kept)
            return kept
    except (SegmentError, OSError) as error:
        log.info("no template is kept: %s", error)
    spare.mkdir(mode=0o700)
    make(spare)
    return spare


@contextlib.contextmanager
def _locked(stamp: str) -> Iterator[Path]:
    """Yield the path of the template, existing or not, while no other process makes it.

    Raises:
        SegmentError: The folder is not trustworthy.
        OSError: It cannot be used, or another process makes the template for too long.
    """
    try:
        folder = cache_dir()
    except LabError as error:
        raise OSError(str(error)) from None
    prepare_run_dir(folder)
    held: list[Lock] = []

    def lock() -> bool:
        held.extend(found for found in [try_lock(folder / f"{PREFIX}{stamp}.lock")] if found is not None)
        return bool(held)

    try:
        wait_until(lock, timeout_s=LOCK_TIMEOUT_S, what=f"another process makes {PREFIX}{stamp}", poll_s=0.05)
    except LabError as error:
        raise TimeoutError(str(error)) from None
    try:
        yield folder / f"{PREFIX}{stamp}"
    finally:
        held[0].release()


def _is_ours(path: Path) -> bool:
    """Return whether *path* is a directory that only this user could have put there."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise OSError(f"{path} can be changed by other users")
    return True


def _keep(path: Path, make: Make) -> None:
    """Make *path*, as a whole or not at all; templates that have not been used for long are removed."""
    others = [(other.lstat().st_mtime, other) for other in path.parent.glob(f"{PREFIX}*") if other.is_dir()]
    for used_s, other in sorted(others, reverse=True)[MOST_OTHERS:]:
        if used_s < time.time() - IN_USE_S:
            shutil.rmtree(other, ignore_errors=True)
            other.with_name(f"{other.name}.lock").unlink(missing_ok=True)
    # Left by a process that was killed while it made one; no other process makes one now.
    for unfinished in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        make(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
