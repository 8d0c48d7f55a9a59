"""``python -m bgpool.monitor``: the process that a worker starts. Its configuration comes on standard input."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import Final

from bgpool.errors import Error
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.process import run_monitor
from bgpool.segment.paths import RunFiles, prepare_run_dir

_LOG_BYTES: Final = 1_000_000


def main() -> None:
    """Read the configuration, leave the starter behind, and watch."""
    config = MonitorConfig.load(sys.stdin.buffer.read())
    # Twice a child is nobody's child: the starter reaps the first, and never has a zombie of the second.
    if os.fork():
        os._exit(0)
    status = 0
    try:
        directory = Path(config.run_dir)
        prepare_run_dir(directory)
        _log_to(RunFiles.of(directory, config.bg_id).log)
        run_monitor(config)
    except Error as error:
        logging.getLogger("bgpool.monitor").error("%s", error)
        status = 1
    except Exception:
        logging.getLogger("bgpool.monitor").exception("the monitor failed")
        status = 1
    # A resolver may hold a thread for minutes; nothing that is left to do is worth waiting for it.
    logging.shutdown()
    os._exit(status)


def _log_to(path: Path) -> None:
    os.umask(0o077)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("bgpool")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    main()
