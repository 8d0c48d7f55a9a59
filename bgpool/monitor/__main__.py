"""``python -m bgpool.monitor``: the process that a worker starts. Its configuration comes on standard input."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import select
import signal
import sys
import time
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from bgpool.core.limits import MONITOR_READY_S
from bgpool.errors import Error
from bgpool.logs import log_fields, utc_formatter
from bgpool.monitor import be_monitor
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.process import run_monitor
from bgpool.segment.paths import RunFiles, open_checked, prepare_run_dir

_LOG_BYTES: Final = 1_000_000
#: How often it is looked whether the monitor has ended before it watched, in seconds.
_POLL_S: Final = 0.05


def main() -> None:
    """Read the configuration, have a child that watches, and leave it alone as soon as it does."""
    # A monitor ends when it is told to; Python would raise KeyboardInterrupt in whatever it is doing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _close_above_the_limit()
    # This process is no worker, whatever an application's modules may want to do here.
    be_monitor()
    config = MonitorConfig.load(sys.stdin.buffer.read())
    starter = _leave_the_starters_files()
    # A pipe among ourselves: nobody else is here who could be given its ends by a fork.
    told, tell = os.pipe()
    # Twice a child is nobody's child: the starter reaps the first, and never has a zombie of the second.
    pid = os.fork()
    if pid:
        os.close(tell)
        _attend(pid, told, starter)
        os._exit(0)
    os.close(told)
    _watch(config, tell, starter)


def _close_above_the_limit() -> None:
    """Close what the starter could not keep from us; with such a number nothing of our own can have been opened."""
    limit = os.sysconf("SC_OPEN_MAX")
    for fd in (int(path.name) for path in Path("/dev/fd").iterdir()):
        if 0 <= limit <= fd:
            with contextlib.suppress(OSError):
                os.close(fd)


def _attend(pid: int, told: int, starter: int) -> None:
    """Wait until the monitor watches, which it says on *told*, or has ended; end it where it takes too long."""
    deadline = time.monotonic() + MONITOR_READY_S
    while time.monotonic() < deadline:
        # Not the end of the pipe: the application may have forked children, which keep it open.
        if select.select([told], [], [], _POLL_S)[0]:
            if os.read(told, 1):
                return
            time.sleep(_POLL_S)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if os.WIFSIGNALED(status):
                _tell(starter, f"it was killed by signal {os.WTERMSIG(status)}")
            return
    _tell(starter, f"it did not watch after {MONITOR_READY_S:.0f} s, and was killed")
    with contextlib.suppress(ProcessLookupError):
        # All of the session, which we lead: whatever the application's modules have started, and ourselves.
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


def _watch(config: MonitorConfig, tell: int, starter: int) -> None:
    """Be the monitor; ends the process."""

    def begin() -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(tell, b"!")
        os.close(tell)
        # Nobody reads it any more; closed, its number might come to stand for something else.
        os.dup2(0, starter, inheritable=False)

    status = 1
    extra = log_fields("monitor_failed", bg_id=config.bg_id)
    try:
        directory = Path(config.run_dir)
        prepare_run_dir(directory)
        _log_to(RunFiles.of(directory, config.bg_id).log)
        run_monitor(config, on_begin=begin)
        status = 0
    except Error as error:
        logging.getLogger("bgpool.monitor").error("%s", error, extra=extra)
        _tell(starter, str(error))
    except BaseException as error:
        logging.getLogger("bgpool.monitor").exception("the monitor failed", extra=extra)
        # What else an error says is of its maker's making, and may hold a secret.
        _tell(starter, str(error) if isinstance(error, OSError) else type(error).__name__)
    # A resolver may hold a thread for minutes; nothing that is left to do is worth waiting for it.
    logging.shutdown()
    os._exit(status)


def _tell(starter: int, reason: str) -> None:
    """What the starter is to log: one line."""
    with contextlib.suppress(OSError):
        os.write(starter, f"{' '.join(reason.split())}\n".encode(errors="replace"))


def _leave_the_starters_files() -> int:
    """Have nothing for standard input and output any more; where the starter reads what went wrong.

    What an application's modules print is not for the starter: there may be secrets in it.
    """
    starter = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.close(nothing)
    return starter


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log in the run directory, opened with the same care as everything else there."""

    def _open(self) -> TextIOWrapper:
        fd = open_checked(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        return os.fdopen(fd, "a", encoding=self.encoding)


def _log_to(path: Path) -> None:
    handler = _LogFile(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(utc_formatter("%(process)d %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("bgpool")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    main()
