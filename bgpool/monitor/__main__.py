"""``python -m bgpool.monitor``: the process that a worker starts. Its configuration comes on standard input."""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from bgpool.errors import Error
from bgpool.logs import log_fields
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.process import run_monitor
from bgpool.segment.paths import RunFiles, open_checked, prepare_run_dir

_LOG_BYTES: Final = 1_000_000


def main() -> None:
    """Read the configuration, leave the starter behind, and watch."""
    _forget_the_starters_signals()
    config = MonitorConfig.load(sys.stdin.buffer.read())
    extra = log_fields("monitor_failed", bg_id=config.bg_id)
    # Twice a child is nobody's child: the starter reaps the first, and never has a zombie of the second.
    if os.fork():
        os._exit(0)
    status = 0
    try:
        directory = Path(config.run_dir)
        prepare_run_dir(directory)
        _log_to(RunFiles.of(directory, config.bg_id).log)
        run_monitor(config, on_begin=_leave_the_starters_pipes)
    except Error as error:
        logging.getLogger("bgpool.monitor").error("%s", error, extra=extra)
        status = 1
    except Exception:
        logging.getLogger("bgpool.monitor").exception("the monitor failed", extra=extra)
        status = 1
    # A resolver may hold a thread for minutes; nothing that is left to do is worth waiting for it.
    logging.shutdown()
    os._exit(status)


def _forget_the_starters_signals() -> None:
    """What a worker ignores or blocks, its server did for the worker's sake: a monitor ends when it is told to."""
    for number in {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _leave_the_starters_pipes() -> None:
    """The starter waits for the end of our output."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log in the run directory, opened with the same care as everything else there."""

    def _open(self) -> TextIOWrapper:
        fd = open_checked(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        return os.fdopen(fd, "a", encoding=self.encoding)


def _log_to(path: Path) -> None:
    handler = _LogFile(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("bgpool")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    main()
