"""The endpoint of a pool: the DSN's host or the target of its alias. And its membership in a deployment."""

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
    """The endpoint of a pool.

    Attributes:
        name: The endpoint's name in the form of the metadata; the DSN's own host while no other name is known.
    """

    def __init__(self, dsn: Dsn, settings: Settings) -> None:
        self._host: Final = dsn.endpoint
        self._port: Final = dsn.port
        self._settings: Final = settings
        self.name = settings.endpoint or dsn.endpoint
        # A name of the user's own, whose chain of CNAMEs must be followed. Other names cause no lookups.
        self._is_alias: Final = settings.endpoint is None and may_be_alias(dsn.endpoint)
        # True once the target was resolved; and, in PREPARATION, true once it was resolved again since the phase began.
        self._known = not self._is_alias
        self._confirmed = False
        self._due_at = 0.0
        self._complained = False
        self._told_outside = False
        self._warned_untried = False
        self._reader: threading.Thread | None = None

    def read(self) -> None:
        """Resolve the alias, if the host is one and this was not done just now; takes up to ALIAS_TIMEOUT_S."""
        if self._is_alias and time.monotonic() >= self._due_at:
            self._follow(Phase.NOT_CREATED)
        name = parse_endpoint(self.name)
        if name is not None and name.kind is Kind.GLOBAL and not self._warned_untried:
            self._warned_untried = True
            self._warn_untried()

    def read_later(self, snapshot: Snapshot | None) -> None:
        """Resolve the alias again in the background if that is due: it may be changed while a process lives.

        It is due immediately when PREPARATION begins, and every ALIAS_RETRY_S while there is a deployment or while it
        could not be resolved.
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
            # The last known target remains in use.
            if not self._known:
                self._complain(error)
        else:
            if self._known and found != self.name:
                self._say_repointed(found)
            self.name, self._known = found, True
        self._due_at = time.monotonic() + ALIAS_RETRY_S
        self._confirmed = phase is Phase.PREPARATION

    def after_fork_in_child(self) -> None:
        """Start without the resolving thread, which is the parent's; log again what only the parent has logged."""
        self._reader = None
        self._told_outside = False
        self._due_at = 0.0

    def host(self, snapshot: Snapshot) -> Host | None:
        """Return the endpoint's host in the deployment of *snapshot*; None if the pool takes no part."""
        host = snapshot.host(self.name)
        return host if host is not None and self._goes_to(host) else None

    def decides_as(self, snapshot: Snapshot) -> str:
        """Return the name under which *snapshot* decides on connections; empty if they use the DNS name in any case.

        In PREPARATION an alias decides nothing until it was resolved again. It may have been changed, and a connection
        by name is right in either case.
        """
        unsure = self._is_alias and snapshot.phase is Phase.PREPARATION and not self._confirmed
        return "" if unsure or self.host(snapshot) is None else self.name

    def is_behind_proxy(self, snapshot: Snapshot | None) -> bool:
        """Return whether the deployment of *snapshot* has the endpoint, and the pool's port is another one."""
        host = snapshot.host(self.name) if snapshot is not None else None
        return host is not None and not self._goes_to(host)

    def _goes_to(self, host: Host) -> bool:
        """Return whether the port is the host's own. On a proxy's port, no server listens at a recorded address."""
        return host.port in (0, self._port)

    def takes_part(self, snapshot: Snapshot | None) -> bool | None:
        """Return whether the deployment of *snapshot* has the endpoint; None while its inventory is incomplete.

        If it has not, this is logged once: such a pool stays on old blue, and no other line warns of that in time.
        """
        if snapshot is None or not snapshot.ready:
            return None
        if self.host(snapshot) is not None:
            return True
        # An alias that cannot be resolved has a log line of its own. An alias that is being resolved may turn out to be
        # blue's.
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
