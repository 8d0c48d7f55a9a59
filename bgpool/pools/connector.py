"""A connector: a pool without the driver's pool in it, for an owner that keeps the connections itself.

SQLAlchemy's pools, a thread-local or a plain list keep connections by rules of their own. A connector opens them where
the gate says, drains and cuts them as a pool does, and tells which of them may still be handed out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg_pool

from bgpool.dsn import Dsn
from bgpool.errors import ConfigurationError
from bgpool.logs import log_fields
from bgpool.pools.generation import Generation
from bgpool.pools.loop_source import LoopSource
from bgpool.pools.loops import running_loop
from bgpool.pools.participant import Participant
from bgpool.pools.recipe import DriversPool
from bgpool.pools.source import BlockingSource, ConnectionSource
from bgpool.segment.table import Usage
from bgpool.settings import Settings

__all__ = ["PLACE", "AnyConnector", "AsyncConnector", "Connector"]

_logger: Final = logging.getLogger("bgpool.pool")

C = TypeVar("C")

#: The drivers' parameters that say where a connection goes. That is the gate's to decide.
PLACE: Final = ("host", "hostaddr", "port", "unix_socket", "service", "conninfo", "dsn")


class AnyConnector(ConnectionSource[C]):
    """What a connector does, for callers that block and for those that await.

    Attributes:
        in_use: Tells whether the owner is using a connection. One that is idle is cut as soon as a switchover begins,
            one in use after bg_drain_timeout_ms. By default every connection counts as in use. Called by the watcher's
            thread, and by those that call the connector: not while they hold a lock that it takes.
        checkouts: How often the owner has handed out a connection, where it counts that; for the metrics.
        timeout: Longest hold, in seconds; bg_connect_timeout_ms.
    """

    KIND = "connector"
    in_use: Callable[[C], bool]

    def __init__(self, dsn: Dsn, settings: Settings, participant: Participant, options: Mapping[str, Any]) -> None:
        """A connector for *dsn*."""
        self.timeout = settings.bg_connect_timeout_ms / 1000
        self.in_use = _always
        self._owners: Final[WeakKeyDictionary[object, int]] = WeakKeyDictionary()
        super().__init__(dsn, settings, participant, options)

    def _reset(self) -> None:
        super()._reset()
        self.checkouts = self._connects = 0

    def _make_inner(self, generation: Generation) -> DriversPool:
        return _Kept(generation, self)

    # -- what its owner calls ------------------------------------------------------------------------------------

    async def aconnect(self, **kwargs: Any) -> C:
        """As Connector.connect."""
        for name in PLACE:
            if name in kwargs:
                raise ConfigurationError(
                    f"{name}: a connector goes to one endpoint; make another one for another server"
                )
        static = self._recipe.options.get("kwargs") or {}
        params = {**(static() if callable(static) else static), **kwargs}

        async def connect(generation: Generation, _left_s: float) -> C:
            try:
                connection = await generation.aconnect(**params)
            except self._recipe.failures as error:
                if generation.retired:
                    raise psycopg_pool.PoolClosed("the generation is retired") from error
                raise
            if generation.retired:
                # The switchover has begun meanwhile.
                connection.bgpool_discard()
                raise psycopg_pool.PoolClosed("the generation is retired")
            connection.bgpool_lent = True
            self._connects += 1
            return cast(C, connection)

        return await self._atake(self.timeout, connect)

    def set_owner_size(self, owner: object, max_size: int) -> None:
        """Note that *owner* keeps at most *max_size* connections; 0 where it has no limit.

        The owner is not kept alive. What the owners have together is compared with the server's max_connections.
        """
        with self._lock:
            self._owners[owner] = max_size

    # -- what the process asks -----------------------------------------------------------------------------------

    @property
    def max_size(self) -> int:
        """Connections that its owners may have; 0 where they have told none."""
        # The watcher asks while another thread makes an engine.
        with self._lock:
            return sum(self._owners.values())

    def tick(self) -> float:
        """As ConnectionSource's; what its owner has brought home since the drain began is cut without the grace."""
        for generations in self._generations_by_loop():
            for generation in generations.leaving():
                generation.retire()
        return super().tick()

    def usage(self) -> Usage:
        """As ConnectionSource's; what was served is what the owner has counted, or the connections that it has had."""
        return super().usage()._replace(served=max(self.checkouts, self._connects))


class Connector(AnyConnector[C], BlockingSource[C]):
    """Opens connections that go through Blue/Green switchovers, for an owner that keeps them. Made by get_connector.

    Attributes: See AnyConnector.
    """

    def connect(self, **kwargs: Any) -> C:
        """A new connection to where the endpoint is now; the owner ends it with its ``close()``.

        Args:
            kwargs: Connection parameters of the driver, over those of the connector; none that says where to.

        Raises:
            ConfigurationError: One of PLACE is among them.
            SwitchoverHoldTimeout, GreenHostRejected, PoolClosed: As wait_admitted.
            OperationalError: The driver's: the server cannot be reached, or refuses the login.
        """
        return self._gate.waits.finish(self.aconnect(**kwargs))


class AsyncConnector(AnyConnector[C], LoopSource[C]):
    """The same for callers that await: ``aconnect`` and ``await_admitted``.

    A connection belongs to the loop in which it was opened, and is fit in no other.
    """

    KIND = "async connector"

    def is_fit(self, conn: C) -> bool:
        """As ConnectionSource says; *conn* is of the running loop as well."""
        connection: Any = conn
        return super().is_fit(conn) and connection.bgpool_generation.inner.loop is running_loop()

    def _make_inner(self, generation: Generation) -> DriversPool:
        return _KeptHere(generation, self)


class _Kept:
    """The connections of one generation, which the connector's owner keeps: what stands where a driver's pool would."""

    close_returns = False
    num_workers = 1
    opened_by_callers = False

    def __init__(self, generation: Generation, connector: AnyConnector[Any]) -> None:
        self._generation: Final = generation
        self._connector: Final = connector
        self.timeout = connector.timeout
        self.failure = ""
        self._told = False

    @property
    def max_size(self) -> int:
        """As DriversPool says."""
        return self._connector.max_size

    def open(self) -> None:
        """Nothing: its owner connects when it needs a connection."""

    def getconn(self, timeout: float | None = None) -> Any:  # noqa:ARG002  # the driver has a timeout for it
        """A new connection."""
        return self._generation.connect()

    def keep(self, conn: Any) -> None:
        """Close it: its owner does not want it back."""
        self._generation.replace(conn)

    def replace(self, conn: Any) -> None:
        """Nothing: its owner opens another one when it needs that."""

    def close(self, timeout: float = 0) -> None:  # noqa:ARG002  # there is nothing to wait for
        """Cut what is idle; its owner finds it closed."""
        self._generation.cut(self._is_idle)

    def get_stats(self) -> dict[str, int]:
        """As DriversPool says."""
        size, idle = self._generation.connections(), self._generation.connections(self._is_idle)
        return {"pool_size": size, "pool_available": idle, "pool_max": self.max_size, "requests_waiting": 0}

    def forget_who_gave_up(self) -> None:
        """Nothing: who waits for a connection waits at its owner."""

    def _is_idle(self, connection: Any) -> bool:
        try:
            return not self._connector.in_use(connection)
        except Exception as error:
            # The watcher's thread has other pools to look after; and what may be in use has the grace.
            told, self._told = self._told, True
            if not told:
                connector = self._connector
                extra = log_fields("in_use_failed", bg_id=connector.bg_id, host=connector.name)
                text = "[bg_id: %r] in_use of %s failed, its connections count as in use: %r"
                _logger.warning(text, connector.bg_id, connector.name, error, extra=extra)
            return False


class _KeptHere(_Kept):
    """Those of one event loop."""

    def __init__(self, generation: Generation, connector: AnyConnector[Any]) -> None:
        super().__init__(generation, connector)
        self.loop: Final = running_loop()


def _always(_connection: object) -> bool:
    return True
