"""The test of a pool's own login on green, while a deployment waits for its switchover.

The monitor tries its login there anyway, but that may be another user's. Only the application's processes have the
application's password.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from typing import Final, Protocol

from pymysql.constants import CR

from bgpool.core.limits import (
    LOGIN_TRIAL_INTERVAL_S,
    LOGIN_TRIAL_RETRY_S,
    LOGIN_TRIAL_TLS_S,
    LOGIN_TRIAL_WAIT_S,
    LOGIN_TRIALS_PER_S,
)
from bgpool.core.phase import Phase, Role
from bgpool.core.routing import Action, Decision
from bgpool.core.snapshot import Host, Snapshot
from bgpool.failures import first_line, server_refused, tls_was_refused
from bgpool.logs import log_fields
from bgpool.mysql import code_of
from bgpool.pools.receipts import Receipts
from bgpool.pools.recipe import Recipe

__all__ = ["GreenLogin"]

_logger: Final = logging.getLogger("bgpool.pool")

#: The phases without a green whose replication receipts could stop.
_OVER: Final = (Phase.NOT_CREATED, Phase.COMPLETED)

_REMEDY: Final = "let the user in there as on blue: account, plugin, password, database, certificate"


class Workers(Protocol):
    """The processes of the host that use the bg_id."""

    def count_workers(self) -> int:
        """Return their number, at least one."""

    def locked_out_workers(self) -> list[int]:
        """Return the pids of the processes with a pool whose login green refuses."""


class GreenLogin:
    """The login of one pool on the green host that will replace its endpoint.

    Attributes:
        failure: The reason for which it does not work; empty while it works, and while unknown.
    """

    def __init__(self, recipe: Recipe, workers: Workers, receipts: Receipts | None) -> None:
        """Create the test for the pool with *recipe* and *receipts*, in one of the host's *workers*."""
        self._receipts: Final = receipts
        self._recipe: Final = recipe
        self._workers: Final = workers
        self.reset()

    def reset(self) -> None:
        """Start without a result, in the child after a fork; the thread is the parent's."""
        self.failure = self._reported = ""
        self._green: Host | None = None
        self._due_at = 0.0
        self._thread: threading.Thread | None = None

    def look(self, snapshot: Snapshot | None) -> None:
        """Log in on green in the background if that is due; never wait."""
        green = self._find_green(snapshot)
        now = time.monotonic()
        if green != self._green:
            # Spread over time, because every process of every host sees the deployment at the same moment.
            self._due_at = now + random.random() * self._workers.count_workers() / LOGIN_TRIALS_PER_S
            self._green, self.failure = green, ""
            if self._receipts is not None and green is not None:
                # The recorded result is about another deployment.
                self._receipts.note_green(reaches=False)
        if self._receipts is not None and (snapshot is None or snapshot.phase in _OVER):
            self._receipts.stops_green = False
        if green is None or now < self._due_at or (self._thread is not None and self._thread.is_alive()):
            return
        if self._recipe.given_password:
            # The password comes with each connection, and there is none here.
            self.failure = ""
            return
        if self._leaves_it_to_another():
            self._due_at = now + LOGIN_TRIAL_WAIT_S
            return
        thread = threading.Thread(target=self._try, args=(green,), name="bgpool-login", daemon=True)
        with contextlib.suppress(RuntimeError, MemoryError):  # no thread now: the next look tries again
            thread.start()
            self._thread = thread

    def _find_green(self, snapshot: Snapshot | None) -> Host | None:
        """Return the host of connections after a switchover; None if no switchover must be prepared for."""
        if snapshot is None or snapshot.phase is not Phase.CREATED or not snapshot.ready:
            return None
        blue = self._recipe.endpoint.host(snapshot)
        return snapshot.twin(blue.name) if blue is not None and blue.role is Role.SOURCE else None

    def _leaves_it_to_another(self) -> bool:
        """Return whether another process makes the next try: of those that green refuses, the lowest pid does."""
        others = [pid for pid in self._workers.locked_out_workers() if pid != os.getpid()]
        return bool(others) and (not self.failure or min(others) < os.getpid())

    def _try(self, green: Host) -> None:
        interval_s = LOGIN_TRIAL_INTERVAL_S
        try:
            # The server is not queried for this: green may have the password in its cache today, and not after a
            # restart.
            failure = self._recipe.cache_warning
            if not failure:
                # Under green's own name, which will be replaced by blue's in the switchover.
                decision = Decision(Action.ROUTE, addresses=green.addresses, names=(green.name,))
                receipts = self._receipts
                reaches = self._recipe.try_login(decision, receipts.table if receipts is not None else None)
                if receipts is not None:
                    receipts.note_green(reaches=reaches)
                if reaches is None:
                    interval_s = LOGIN_TRIAL_RETRY_S
        except Exception as error:
            # A server that cannot be reached gives no new result, and the monitor reports it. The same holds for a
            # server without a free connection.
            failure = _explain(error) if server_refused(error) else self.failure
            interval_s = LOGIN_TRIAL_TLS_S if tls_was_refused(error) else LOGIN_TRIAL_RETRY_S
        self._due_at = time.monotonic() + interval_s * (0.5 + random.random())
        if green == self._green:
            self.failure = failure
            self._report(green, failure)

    def _report(self, green: Host, failure: str) -> None:
        # A problem that every server has was logged at the first login.
        if failure in ("", self._recipe.cache_warning, self._reported):
            return
        self._reported = failure
        dsn, bg_id = self._recipe.dsn, self._recipe.settings.bg_id
        _logger.warning(
            "[bg_id: %r] after a switchover this pool could not connect: user %r at %s:%d: %s",
            bg_id,
            dsn.user,
            green.name,
            dsn.port,
            failure,
            extra=log_fields("green_login_refused", bg_id=bg_id, phase=Phase.CREATED, host=green.name),
        )


def _explain(error: Exception) -> str:
    """Return the reason for a refused login, and the remedy; none on the server if a package is missing here."""
    remedy = "" if code_of(error) == CR.CR_AUTH_PLUGIN_ERR else f"; {_REMEDY}"
    return f"{first_line(error)}{remedy}"
