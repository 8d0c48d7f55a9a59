"""Files that are replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, text: str, *, mode: int, prepare: Callable[[Path], None] | None = None) -> None:
    """Write *text* next to *path* and rename it there: a reader gets the old text or the new, never a part.

    Args:
        path: The file; its directory must be writable.
        text: Its new content, written as UTF-8.
        mode: The permission bits, whatever the umask is.
        prepare: A callable that receives the temporary file before it is renamed, to change its owner for instance.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        if prepare is not None:
            prepare(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
