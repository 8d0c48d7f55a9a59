"""The endpoint that a pool takes part under: the DSN's host, or what that host is an alias of."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from bgpool.aliases import may_be_alias, real_endpoint
from bgpool.core.limits import ALIAS_RETRY_S
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
        self._try_at = 0.0
        self._reader: threading.Thread | None = None

    def read(self) -> None:
        """Follow the alias, if it is one that was not followed yet; takes up to ALIAS_TIMEOUT_S."""
        if not self._unread:
            return
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
        """The reading thread stayed with the parent."""
        self._reader = None

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
