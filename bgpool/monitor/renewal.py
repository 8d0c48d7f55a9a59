"""After the release: detect the time from which green can prove blue's names.

A certificate (and an IAM token) is for a name, and green's are regenerated some time after it took blue's names. The
monitor detects that once for the whole host, so that no worker makes attempts that fail.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from bgpool.core.events import CertificateRenewed
from bgpool.core.limits import RENEWAL_INTERVAL_S
from bgpool.core.plan import Target
from bgpool.logs import log_fields
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.probe import now
from bgpool.monitor.session import Session, SessionError
from bgpool.monitor.stoppable import StoppableThread

__all__ = ["Renewal"]

_logger: Final = logging.getLogger("bgpool.monitor")


class Renewal(StoppableThread):
    """Tries to log in at the green hosts under their new names, one connection at a time, until each accepts it."""

    def __init__(self, connect: Callable[[Target], Session], events: Inbox) -> None:
        super().__init__("bgpool-renewal")
        self._connect: Final = connect
        self._events: Final = events
        self._nudged: Final = threading.Event()
        self._targets: tuple[Target, ...] = ()

    def assign(self, targets: tuple[Target, ...]) -> None:
        """Try *targets* from now on, in every RENEWAL_INTERVAL_S; none to pause."""
        self._targets = targets
        if targets:
            self._nudged.set()

    def run(self) -> None:
        """Try until stopped; sleeps without targets."""
        while True:
            # Clear it first, so that a later change is not missed.
            self._nudged.clear()
            targets = self._targets
            if self.over.is_set():
                return
            if not targets:
                self._nudged.wait()
                continue
            for target in targets:
                if not self.over.is_set() and self._is_renewed(target):
                    self._events.put(CertificateRenewed(now(), target.host))
            self.over.wait(RENEWAL_INTERVAL_S)

    def stop(self) -> None:
        """End; a connection that is being opened is closed afterwards."""
        super().stop()
        self._nudged.set()

    def _is_renewed(self, target: Target) -> bool:
        try:
            self._connect(target).close()
        except (SessionError, OSError) as error:
            extra = log_fields("certificate_not_renewed", host=target.host)
            names = ", ".join(target.names)
            _logger.debug("%s cannot prove its new name %s yet: %s", target.host, names, error, extra=extra)
            return False
        return True
