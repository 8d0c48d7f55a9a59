"""A process of monitors. Each has its own threads, election, segment and log file.

No monitor waits for another one. While it has any, the process accepts requests for more at a socket in the run
directory, from workers whose monitors are compatible with the first one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from bgpool.core.limits import HOST_LINGER_S, HOST_MONITORS, HOST_PAUSE_S
from bgpool.errors import Error
from bgpool.logs import log_fields
from bgpool.monitor import rendezvous
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.loaded_modules import LoadedModules
from bgpool.monitor.logfiles import LogFiles
from bgpool.monitor.process import run_monitor
from bgpool.monitor.rendezvous import Peer, Rendezvous
from bgpool.monitor.stoppable import StoppableThread
from bgpool.segment.paths import RunFiles, prepare_run_dir

__all__ = ["Requester", "MonitorGroup"]

_logger: Final = logging.getLogger("bgpool.monitor")


class Requester(Protocol):
    """A requester of a monitor, which waits for the result."""

    def take(self) -> MonitorConfig | None:
        """Return the configuration to watch, which also accepts the request; None if there is none."""

    def tell(self, reason: str) -> None:
        """Report the reason for which it is not watched; empty if it is. Only the first call counts."""


class MonitorGroup:
    """The monitors of this process, from the start of the first to the end of the last."""

    def __init__(self, place: Rendezvous | None) -> None:
        """Create a group that accepts other monitors at *place*; None for one that accepts none."""
        self._place: Final = place
        self._logs: Final = LogFiles()
        self._imported: Final = LoadedModules()
        self._threads: Final[set[_Thread]] = set()
        self._ended, self._end = os.pipe()

    def run(self, first: Requester) -> None:
        """Run the monitor that *first* requests, and others; returns when none is left."""
        self._logs.begin()
        config = first.take()
        if config is None:
            return
        # Import here, so that an application's module is imported in the main thread; and before others are accepted,
        # because the import would delay them.
        reason = self.attempt(config, lambda: config.password)
        if reason:
            first.tell(reason)
            return
        self._imported.are_current()
        # Listen before the starter learns that it watches: requesters after that must find this process.
        listener = rendezvous.listen(self._place) if self._place is not None else None
        self._start(first)
        self._serve(listener)

    def attempt(self, config: MonitorConfig, work: Callable[[], object]) -> str:
        """Do *work* for the monitor of *config*, with its log; return the reason of a failure, empty for success.

        The text of an error that is not bgpool's may contain a secret, so it is not used.
        """
        extra = log_fields("monitor_failed", bg_id=config.bg_id)
        with contextlib.ExitStack() as stack:
            try:
                directory = Path(config.run_dir)
                prepare_run_dir(directory)
                stack.enter_context(self._logs.of(config.bg_id, RunFiles.of(directory, config.bg_id).log))
                work()
            except Error as error:
                _logger.error("%s", error, extra=extra)
                return str(error)
            except BaseException as error:
                _logger.exception("the monitor failed", extra=extra)
                return str(error) if isinstance(error, OSError) else type(error).__name__
        return ""

    def _start(self, asker: Requester) -> None:
        thread = _Thread(self, asker)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # out of threads
            self._threads.discard(thread)
            asker.tell(str(error))

    def leave(self, thread: _Thread) -> None:
        """Remove a monitor that has ended; called by its thread."""
        self._threads.discard(thread)
        os.write(self._end, b"!")

    # -- other monitors ------------------------------------------------------------------------------------------

    def _serve(self, listener: socket.socket | None) -> None:
        """Accept requests for other monitors until none is left."""
        place = self._place
        if place is None or listener is None:
            while self._threads:
                os.read(self._ended, 1)
            return
        inode = place.inode()
        with selectors.DefaultSelector() as selector:
            selector.register(self._ended, selectors.EVENT_READ)
            selector.register(listener, selectors.EVENT_READ)
            # The next request may come immediately, if a monitor has exited to be restarted.
            while ready := selector.select(None if self._threads else HOST_LINGER_S):
                for key, _ in ready:
                    if key.fileobj is listener:
                        self._accept(listener, place)
                    else:
                        os.read(self._ended, HOST_MONITORS)
        # Requesters that wait now find no process, and start one.
        rendezvous.leave(listener, place, inode)

    def _accept(self, listener: socket.socket, place: Rendezvous) -> None:
        try:
            caller = Peer(listener, place.compatibility_key)
        except OSError:
            # If descriptors have run out, requesters wait no longer than for a process that hangs.
            time.sleep(HOST_PAUSE_S)
            return
        if len(self._threads) < HOST_MONITORS and self._imported.are_current():
            self._start(caller)
        else:
            caller.tell("")


class _Thread(StoppableThread):
    """The main thread of one monitor, which starts its other threads."""

    def __init__(self, host: MonitorGroup, asker: Requester) -> None:
        super().__init__("bgpool-monitor")
        self._host: Final = host
        self._asker: Final = asker

    def run(self) -> None:
        """Run the monitor until it is no longer needed."""
        reason = ""
        try:
            config = self._asker.take()
            if config is not None:
                self.bg_id = config.bg_id
                watch = partial(run_monitor, config, on_begin=lambda: self._asker.tell(""))
                reason = self._host.attempt(config, watch)
        finally:
            self._asker.tell(reason)
            self._host.leave(self)
