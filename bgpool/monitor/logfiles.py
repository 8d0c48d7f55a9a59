"""The logs of the monitors of one process, each in its own file."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from bgpool.logs import utc_formatter
from bgpool.monitor.stoppable import bg_id_of_thread
from bgpool.segment.paths import open_checked

__all__ = ["LogFiles"]

_LOG_BYTES: Final = 1_000_000


class LogFiles(logging.Handler):
    """Writes a line of a monitor's thread to the file of its bg_id, and a line without a bg_id to all files."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, _LogFile] = {}

    def begin(self) -> None:
        """Handle all log lines of bgpool from now on."""
        logger = logging.getLogger("bgpool")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)

    @contextlib.contextmanager
    def of(self, bg_id: str, path: Path) -> Iterator[None]:
        """Use *path* for the lines of *bg_id* within the block.

        Raises:
            OSError, SegmentError: It cannot be written.
        """
        file = _LogFile(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
        file.setFormatter(utc_formatter("%(process)d %(levelname)s %(name)s %(message)s"))
        # Replaced as a whole, because other threads may log at the same time.
        self._files = {**self._files, bg_id: file}
        try:
            yield
        finally:
            # The next monitor of the same bg_id may already have begun.
            self._files = {whose: other for whose, other in self._files.items() if other is not file}
            file.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record* to its file."""
        for file in self._files_of(record):
            file.handle(record)

    def _files_of(self, record: logging.LogRecord) -> list[_LogFile]:
        files = self._files
        # The thread decides first: a line may lack its bg_id.
        for bg_id in (bg_id_of_thread(), getattr(record, "bg_id", "")):
            if bg_id in files:
                return [files[bg_id]]
        return [] if bg_id_of_thread() else list(files.values())


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log file in the run directory, opened with the same checks as its other files."""

    def _open(self) -> TextIOWrapper:
        fd = open_checked(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        return os.fdopen(fd, "a", encoding=self.encoding)
