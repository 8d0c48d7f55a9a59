"""A process of monitors: each in threads of its own, with an election, a segment and a log file of its own.

What one of them waits for, no other waits for. For as long as it has any, the process takes more of them at a socket in
the run directory, from workers whose monitors are like its first one.
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
    """Somebody who asks for a monitor, and waits."""

    def take(self) -> MonitorConfig | None:
        """What is to be watched, which is promised by that; None where nothing is."""

    def tell(self, reason: str) -> None:
        """Why it is not watched; empty where it is. The first time counts."""


class MonitorGroup:
    """The monitors of this process, from the beginning of the first to the end of the last."""

    def __init__(self, place: Rendezvous | None) -> None:
        """One that takes other monitors at *place*; None for one that takes none."""
        self._place: Final = place
        self._logs: Final = LogFiles()
        self._imported: Final = LoadedModules()
        self._threads: Final[set[_Thread]] = set()
        self._ended, self._end = os.pipe()

    def run(self, first: Requester) -> None:
        """Run the monitor that *first* asks for, and others; returns when none is left."""
        self._logs.begin()
        config = first.take()
        if config is None:
            return
        # Here, where an application's module that is imported for it finds the main thread; and before others are
        # taken, whom that import would keep waiting.
        reason = self.attempt(config, lambda: config.password)
        if reason:
            first.tell(reason)
            return
        self._imported.are_current()
        # Before its starter hears that it watches: whoever comes after that is to find us.
        listener = rendezvous.listen(self._place) if self._place is not None else None
        self._start(first)
        self._serve(listener)

    def attempt(self, config: MonitorConfig, work: Callable[[], object]) -> str:
        """Do *work* for the monitor of *config*, with its log; why it failed, for whoever is told, empty if it did not.

        What an error says that is not ours is of its maker's making, and may hold a secret.
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
        except RuntimeError as error:  # no more threads
            self._threads.discard(thread)
            asker.tell(str(error))

    def leave(self, thread: _Thread) -> None:
        """One has ended; called by itself."""
        self._threads.discard(thread)
        os.write(self._end, b"!")

    # -- others --------------------------------------------------------------------------------------------------

    def _serve(self, listener: socket.socket | None) -> None:
        """Wait until no monitor is left, and take others meanwhile."""
        place = self._place
        if place is None or listener is None:
            while self._threads:
                os.read(self._ended, 1)
            return
        inode = place.inode()
        with selectors.DefaultSelector() as selector:
            selector.register(self._ended, selectors.EVENT_READ)
            selector.register(listener, selectors.EVENT_READ)
            # The next one may come at once, where a monitor has left to begin anew.
            while ready := selector.select(None if self._threads else HOST_LINGER_S):
                for key, _ in ready:
                    if key.fileobj is listener:
                        self._accept(listener, place)
                    else:
                        os.read(self._ended, HOST_MONITORS)
        # Whoever waits there now finds nobody, and starts a process.
        rendezvous.leave(listener, place, inode)

    def _accept(self, listener: socket.socket, place: Rendezvous) -> None:
        try:
            caller = Peer(listener, place.compatibility_key)
        except OSError:
            # Whoever waits there, where descriptors have run out, waits no longer than for a process that hangs.
            time.sleep(HOST_PAUSE_S)
            return
        if len(self._threads) < HOST_MONITORS and self._imported.are_current():
            self._start(caller)
        else:
            caller.tell("")


class _Thread(StoppableThread):
    """The thread of one monitor, which makes its others."""

    def __init__(self, host: MonitorGroup, asker: Requester) -> None:
        super().__init__("bgpool-monitor")
        self._host: Final = host
        self._asker: Final = asker

    def run(self) -> None:
        """Be the monitor until nobody needs one."""
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
