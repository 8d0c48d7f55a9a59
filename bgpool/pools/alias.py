"""The endpoint that a pool takes part under, the DSN's host or what that host is an alias of; and whether it does."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from bgpool.aliases import may_be_alias, real_endpoint
from bgpool.core.endpoints import Kind, parse_endpoint
from bgpool.core.limits import ALIAS_RETRY_S
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Host, Snapshot
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
        self._port: Final = dsn.port
        self._settings: Final = settings
        self.name = settings.endpoint or dsn.endpoint
        # Somebody's own name, whose chain is to be followed; nothing else costs anything at all.
        self._is_alias: Final = settings.endpoint is None and may_be_alias(dsn.endpoint)
        # Whether it was ever found out what it stands for; and, in PREPARATION, whether that was asked since it began.
        self._known = not self._is_alias
        self._confirmed = False
        self._due_at = 0.0
        self._complained = False
        self._told_outside = False
        self._warned_untried = False
        self._reader: threading.Thread | None = None

    def read(self) -> None:
        """Follow the alias, if it is one and that was not done just now; takes up to ALIAS_TIMEOUT_S."""
        if self._is_alias and time.monotonic() >= self._due_at:
            self._follow(Phase.NOT_CREATED)
        name = parse_endpoint(self.name)
        if name is not None and name.kind is Kind.GLOBAL and not self._warned_untried:
            self._warned_untried = True
            self._warn_untried()

    def read_later(self, snapshot: Snapshot | None) -> None:
        """Follow it again in the background, if it is time: it may be repointed while a process lives.

        At once when PREPARATION begins, and every ALIAS_RETRY_S while there is a deployment or it could not be read.
        """
        if not self._is_alias or (self._reader is not None and self._reader.is_alive()):
            return
        phase = snapshot.phase if snapshot is not None else Phase.NOT_CREATED
        if phase is not Phase.PREPARATION:
            self._confirmed = False
        is_time = (phase is Phase.CREATED or not self._known) and time.monotonic() >= self._due_at
        if is_time or (phase is Phase.PREPARATION and not self._confirmed):
            self._reader = threading.Thread(target=self._follow, args=(phase,), name="bgpool-alias", daemon=True)
            self._reader.start()

    def _follow(self, phase: Phase) -> None:
        try:
            found = real_endpoint(self._host, self._settings.bg_resolver) or self._host
        except (OSError, ValueError) as error:
            # What it stood for before is the best that there is.
            if not self._known:
                self._complain(error)
        else:
            if self._known and found != self.name:
                self._say_repointed(found)
            self.name, self._known = found, True
        self._due_at = time.monotonic() + ALIAS_RETRY_S
        self._confirmed = phase is Phase.PREPARATION

    def after_fork_in_child(self) -> None:
        """The reading thread stayed with the parent; what the parent has said of itself, the child has not."""
        self._reader = None
        self._told_outside = False
        self._due_at = 0.0

    def host(self, snapshot: Snapshot) -> Host | None:
        """What of the deployment of *snapshot* the endpoint is; None where the pool takes no part."""
        host = snapshot.host(self.name)
        return host if host is not None and self._goes_to(host) else None

    def decides_as(self, snapshot: Snapshot) -> str:
        """Under which name *snapshot* decides where connections go; empty where they go by name, whatever it says.

        In PREPARATION an alias decides nothing before it was read again: it may have been repointed, and by name is
        right in either case.
        """
        unsure = self._is_alias and snapshot.phase is Phase.PREPARATION and not self._confirmed
        return "" if unsure or self.host(snapshot) is None else self.name

    def is_behind_proxy(self, snapshot: Snapshot | None) -> bool:
        """Whether the endpoint is in the deployment of *snapshot*, and the pool goes to another port than it has."""
        host = snapshot.host(self.name) if snapshot is not None else None
        return host is not None and not self._goes_to(host)

    def _goes_to(self, host: Host) -> bool:
        """Whether the port is the host's own: behind a proxy's, nobody listens at a recorded address."""
        return host.port in (0, self._port)

    def takes_part(self, snapshot: Snapshot | None) -> bool | None:
        """Whether the deployment of *snapshot* has the endpoint; None while its inventory is not complete.

        Said once if it has not: such a pool stays on old blue, and nothing else would tell before it is too late.
        """
        if snapshot is None or not snapshot.ready:
            return None
        if self.host(snapshot) is not None:
            return True
        # Of an alias that cannot be read, another line tells; one that is being read may turn out to be blue's.
        if self._known and not self._told_outside:
            self._told_outside = True
            self._say_outside(snapshot, snapshot.host(self.name))
        return False

    def _say_outside(self, snapshot: Snapshot, host: Host | None) -> None:
        name = self._host or "the local socket"
        if host is None:
            why = (
                f"{name}{f' ({self.name})' if self.name != self._host else ''} is neither a blue nor a green endpoint: "
                "the pool takes no part in switchovers; connect to the endpoint's own name, state it with endpoint=, "
                "or give another database another bg_id"
            )
        else:
            why = (
                f"{name} with port {self._port} is a proxy of {self.name}, which has port {host.port}: the pool "
                f"takes no part in switchovers, because no server listens on port {self._port} of a recorded address; "
                "connect to the endpoint itself, or leave switchovers to the proxy"
            )
        _logger.warning(
            "[bg_id: %r] %s",
            self._settings.bg_id,
            why,
            extra=log_fields("pool_takes_no_part", bg_id=self._settings.bg_id, phase=snapshot.phase, host=self._host),
        )

    def _say_repointed(self, found: str) -> None:
        self._told_outside = False
        _logger.warning(
            "[bg_id: %r] %s stands for %s now, and no longer for %s",
            self._settings.bg_id,
            self._host,
            found if found != self._host else "no RDS endpoint",
            self.name,
            extra=log_fields("alias_changed", bg_id=self._settings.bg_id, host=self._host),
        )

    def _warn_untried(self) -> None:
        _logger.warning(
            "[bg_id: %r] %s is the endpoint of an Aurora Global Database, with which bgpool was never tested: try a "
            "switchover in a test environment first, and connect to the primary cluster's endpoint",
            self._settings.bg_id,
            self.name,
            extra=log_fields("global_database_untested", bg_id=self._settings.bg_id, host=self._host),
        )

    def _complain(self, error: Exception) -> None:
        if self._complained:
            return
        self._complained = True
        _logger.warning(
            "[bg_id: %r] cannot determine whether %s is an alias of an RDS endpoint (%s): the pool takes no part "
            "in switchovers; state the endpoint with endpoint=",
            self._settings.bg_id,
            self._host,
            error,
            extra=log_fields("alias_not_resolved", bg_id=self._settings.bg_id, host=self._host),
        )
