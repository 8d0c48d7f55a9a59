"""The endpoint that a pool takes part under, the DSN's host or what that host is an alias of; and whether it does."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from bgpool.aliases import may_be_alias, real_endpoint
from bgpool.core.endpoints import Kind, parse_endpoint
from bgpool.core.limits import ALIAS_RETRY_S
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import Dsn
from bgpool.logs import log_fields
from bgpool.settings import Settings

__all__ = ["Endpoint"]

_logger: Final = logging.getLogger("bgpool.pool")


class Endpoint:
    """Where a pool belongs.

    Attributes:
        name: The endpoint as the metadata spells names; the DSN's own host while nothing else is known.
    """

    def __init__(self, dsn: Dsn, settings: Settings) -> None:
        self._host: Final = dsn.endpoint
        self._settings: Final = settings
        self.name = settings.endpoint or dsn.endpoint
        # An alias whose chain is still to be read; nothing else costs anything at all.
        self._unread = settings.endpoint is None and may_be_alias(dsn.endpoint)
        self._complained = False
        self._told_outside = False
        self._warned_untried = False
        self._try_at = 0.0
        self._reader: threading.Thread | None = None

    def read(self) -> None:
        """Follow the alias, if it is one that was not followed yet; takes up to ALIAS_TIMEOUT_S."""
        if self._unread:
            self._follow()
        name = parse_endpoint(self.name)
        if name is not None and name.kind is Kind.GLOBAL and not self._warned_untried:
            self._warned_untried = True
            self._warn_untried()

    def _follow(self) -> None:
        try:
            self.name = real_endpoint(self._host, self._settings.bg_resolver) or self._host
        except (OSError, ValueError) as error:
            self._complain(error)
            self._try_at = time.monotonic() + ALIAS_RETRY_S
        else:
            self._unread = False

    def read_later(self) -> None:
        """Follow it in the background if it could not be read before and it is time to try again."""
        if not self._unread or time.monotonic() < self._try_at or (self._reader and self._reader.is_alive()):
            return
        self._reader = threading.Thread(target=self.read, name="bgpool-alias", daemon=True)
        self._reader.start()

    def after_fork_in_child(self) -> None:
        """The reading thread stayed with the parent; what the parent has said of itself, the child has not."""
        self._reader = None
        self._told_outside = False

    def takes_part(self, snapshot: Snapshot | None) -> bool | None:
        """Whether the deployment of *snapshot* has the endpoint; None while its inventory is not complete.

        Said once if it has not: such a pool stays on old blue, and nothing else would tell before it is too late.
        """
        if snapshot is None or not snapshot.ready:
            return None
        if snapshot.host(self.name) is not None:
            return True
        # Of an alias that cannot be read, another line tells; one that is being read may turn out to be blue's.
        if not self._unread and not self._told_outside:
            self._told_outside = True
            self._say_outside(snapshot)
        return False

    def _say_outside(self, snapshot: Snapshot) -> None:
        name = self._host or "the local socket"
        _logger.warning(
            "[bg_id: %r] %s%s is neither blue's nor green's: takes no part in switchovers; connect to the endpoint's "
            "own name, state it with endpoint=, or give another database another bg_id",
            self._settings.bg_id,
            name,
            f" ({self.name})" if self.name != self._host else "",
            extra=log_fields("outside", bg_id=self._settings.bg_id, phase=snapshot.phase, host=self._host),
        )

    def _warn_untried(self) -> None:
        _logger.warning(
            "[bg_id: %r] %s is the endpoint of an Aurora Global Database, with which bgpool has not been tried: try a "
            "switchover in a test environment first, and connect to the primary cluster's endpoint",
            self._settings.bg_id,
            self.name,
            extra=log_fields("untried", bg_id=self._settings.bg_id, host=self._host),
        )

    def _complain(self, error: Exception) -> None:
        if self._complained:
            return
        self._complained = True
        _logger.warning(
            "[bg_id: %r] whether %s is an alias of an RDS endpoint cannot be told (%s): it takes no part in "
            "switchovers; state the endpoint with endpoint=",
            self._settings.bg_id,
            self._host,
            error,
            extra=log_fields("alias_unread", bg_id=self._settings.bg_id, host=self._host),
        )
