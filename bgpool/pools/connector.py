"""A connector: a pool without the driver's pool, for an owner that keeps the connections itself.

SQLAlchemy's pools, a thread-local or a plain list keep connections by their own rules. A connector opens connections
where the gate decides, drains and cuts them as a pool does, and decides which of them may still be handed out.
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

#: The drivers' parameters for the destination of a connection. The gate decides on that.
PLACE: Final = ("host", "hostaddr", "port", "unix_socket", "service", "conninfo", "dsn")


class AnyConnector(ConnectionSource[C]):
    """The functions of a connector, for callers that block and for callers that await.

    Attributes:
        in_use: Returns whether the owner is using a connection. An idle connection is cut as soon as a switchover
            begins, a connection in use after bg_drain_timeout_ms. By default every connection counts as in use. It is
            called by the watcher's thread and by threads that call the connector, which must not hold a lock that it
            takes.
        checkouts: The number of connections that the owner has handed out, if it counts them; for the metrics.
        timeout: The longest hold, in seconds; bg_connect_timeout_ms.
    """

    KIND = "connector"
    in_use: Callable[[C], bool]

    def __init__(self, dsn: Dsn, settings: Settings, participant: Participant, options: Mapping[str, Any]) -> None:
        """Create a connector for *dsn*."""
        self.timeout = settings.bg_connect_timeout_ms / 1000
        self.in_use = _always
        self._owners: Final[WeakKeyDictionary[object, int]] = WeakKeyDictionary()
        super().__init__(dsn, settings, participant, options)

    def _reset(self) -> None:
        super()._reset()
        self.checkouts = self._connects = 0

    def _make_inner(self, generation: Generation) -> DriversPool:
        return _Kept(generation, self)

    # -- called by its owner -------------------------------------------------------------------------------------

    async def aconnect(self, **kwargs: Any) -> C:
        """Like Connector.connect."""
        for name in PLACE:
            if name in kwargs:
                raise ConfigurationError(
                    f"{name}: a connector goes to one endpoint; create another connector for another server"
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
                # The switchover has begun while the connection was being opened.
                connection.bgpool_discard()
                raise psycopg_pool.PoolClosed("the generation is retired")
            connection.bgpool_lent = True
            self._connects += 1
            return cast(C, connection)

        return await self._atake(self.timeout, connect)

    def set_owner_size(self, owner: object, max_size: int) -> None:
        """Record that *owner* keeps at most *max_size* connections; 0 if it has no limit.

        The owner is not kept alive. The sum of all owners is compared with the server's max_connections.
        """
        with self._lock:
            self._owners[owner] = max_size

    # -- called by the process -----------------------------------------------------------------------------------

    @property
    def max_size(self) -> int:
        """The maximum number of connections of its owners; 0 if none is recorded."""
        # The watcher reads this while another thread creates an engine.
        with self._lock:
            return sum(self._owners.values())

    def tick(self) -> float:
        """Like ConnectionSource.tick; connections that became idle during a drain are cut before their grace ends."""
        for generations in self._generations_by_loop():
            for generation in generations.leaving():
                generation.retire()
        return super().tick()

    def usage(self) -> Usage:
        """Like ConnectionSource.usage; *served* is the owner's count, or the number of opened connections."""
        return super().usage()._replace(served=max(self.checkouts, self._connects))


class Connector(AnyConnector[C], BlockingSource[C]):
    """Connections that survive Blue/Green switchovers, for an owner that keeps them. Created by get_connector.

    Attributes: See AnyConnector.
    """

    def connect(self, **kwargs: Any) -> C:
        """Return a new connection to the endpoint's current location; the owner ends it with its ``close()``.

        Args:
            kwargs: Connection parameters of the driver, which override the connector's; none that sets the destination.

        Raises:
            ConfigurationError: One of PLACE is among them.
            SwitchoverHoldTimeout, GreenHostRejected, PoolClosed: The same as in wait_admitted.
            OperationalError: The driver's: the server cannot be reached, or refuses the login.
        """
        return self._gate.waits.finish(self.aconnect(**kwargs))


class AsyncConnector(AnyConnector[C], LoopSource[C]):
    """A connector for callers that await: ``aconnect`` and ``await_admitted``.

    A connection belongs to the loop in which it was opened, and is fit in no other.
    """

    KIND = "async connector"

    def is_fit(self, conn: C) -> bool:
        """Like ConnectionSource.is_fit; *conn* must also belong to the running loop."""
        connection: Any = conn
        return super().is_fit(conn) and connection.bgpool_generation.inner.loop is running_loop()

    def _make_inner(self, generation: Generation) -> DriversPool:
        return _KeptHere(generation, self)


class _Kept:
    """The connections of one generation, which the connector's owner keeps. It takes the place of a driver's pool."""

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
        """See DriversPool."""
        return self._connector.max_size

    def open(self) -> None:
        """Do nothing: the owner connects when it needs a connection."""

    def getconn(self, timeout: float | None = None) -> Any:  # noqa:ARG002  # the driver has a timeout for it
        """Return a new connection."""
        return self._generation.connect()

    def keep(self, conn: Any) -> None:
        """Close it: the owner does not take it back."""
        self._generation.replace(conn)

    def replace(self, conn: Any) -> None:
        """Do nothing: the owner opens another one when it needs one."""

    def close(self, timeout: float = 0) -> None:  # noqa:ARG002  # there is nothing to wait for
        """Cut the idle connections; the owner finds them closed."""
        self._generation.cut(self._is_idle)

    def get_stats(self) -> dict[str, int]:
        """See DriversPool."""
        size, idle = self._generation.connections(), self._generation.connections(self._is_idle)
        return {"pool_size": size, "pool_available": idle, "pool_max": self.max_size, "requests_waiting": 0}

    def forget_who_gave_up(self) -> None:
        """Do nothing: callers wait for a connection at the owner."""

    def _is_idle(self, connection: Any) -> bool:
        try:
            return not self._connector.in_use(connection)
        except Exception as error:
            # The watcher's thread has other pools to handle; and a connection that may be in use gets the grace.
            told, self._told = self._told, True
            if not told:
                connector = self._connector
                extra = log_fields("in_use_failed", bg_id=connector.bg_id, host=connector.name)
                text = "[bg_id: %r] in_use of %s failed, its connections count as in use: %r"
                _logger.warning(text, connector.bg_id, connector.name, error, extra=extra)
            return False


class _KeptHere(_Kept):
    """The connections of one generation in one event loop."""

    def __init__(self, generation: Generation, connector: AnyConnector[Any]) -> None:
        super().__init__(generation, connector)
        self.loop: Final = running_loop()


def _always(_connection: object) -> bool:
    return True
