"""The common base of the dialects of both engines: a connector opens the connections, and each belongs to its pool.

The dialects are subclasses of SQLAlchemy's own dialects for the drivers. They override the methods that open, check and
close a connection. SQLAlchemy's dialects translate URLs, listeners and adapters for the driver.
"""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import StaticPool

from bgpool.core.engine import Engine
from bgpool.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    InheritedConnection,
    SwitchoverInterrupted,
)
from bgpool.integrations.sqlalchemy.gated import STALE, gate, most_connections
from bgpool.integrations.sqlalchemy.target import changes, make_connector, split
from bgpool.pools import fork
from bgpool.pools.connector import AnyConnector
from bgpool.registry import CONNECTORS

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, ExceptionContext
    from sqlalchemy.engine import Connection as SqlalchemyConnection
    from sqlalchemy.engine import Engine as SqlalchemyEngine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

__all__ = ["BgpoolDialect", "drivers_of"]

#: Errors that show that a connection is lost, whatever its state.
_LOST: Final = (SwitchoverInterrupted, CommitOutcomeUnknown, InheritedConnection)

_INSTEAD: Final = {
    "creator": "connection parameters go into the URL or connect_args, and a token into a do_connect listener or "
    "connect_args={'password': …}, which may be a callable",
    "pool": "give poolclass= and the parameters of the pool, such as pool_size=",
}

if TYPE_CHECKING:
    # SQLAlchemy has types only for the DefaultDialect part of the dialects that it is mixed in before.
    from sqlalchemy.engine.default import DefaultDialect as _Base
else:
    _Base = object


class BgpoolDialect(_Base):
    """Mixed in before SQLAlchemy's dialect of a driver.

    Attributes:
        bgpool_engine: The engine of the servers.
        bgpool_connectors: The classes of connectors, by engine.
        bgpool_connector: Opens the connections; None until create_engine has created an engine with the dialect.
        bgpool_replaced_at: The time of the last replacement of a stale connection, on the monotonic clock, in seconds.
    """

    supports_statement_cache = True
    bgpool_engine: ClassVar[Engine]
    bgpool_connectors: ClassVar[Mapping[Engine, type[AnyConnector[Any]]]] = CONNECTORS
    bgpool_connector: Any = None
    bgpool_replaced_at: float = -math.inf

    # create_engine passes the parameters that it finds in this signature, unless they are keyword-only.
    def __init__(
        self, connect_args: Mapping[str, Any] | None = None, creator: Any = None, pool: Any = None, **kwargs: Any
    ):
        """Create a dialect. Its arguments are those of create_engine that apply to a dialect.

        Args:
            connect_args: Connection parameters that override those of the URL. They are needed here, and not only when
                a connection is opened: a monitor must be started with them.
            creator, pool: Not allowed: neither would have bgpool's connections.
            kwargs: See SQLAlchemy's dialect.

        Raises:
            ConfigurationError: An argument is not allowed.
        """
        for name, given in (("creator", creator), ("pool", pool)):
            if given is not None:
                call = f"create_engine({name}=…)"
                if self.is_async:
                    call = (
                        "create_async_engine(async_creator=…)"
                        if name == "creator"
                        else f"create_async_engine({name}=…)"
                    )
                raise ConfigurationError(
                    f"{call} makes the connections itself, so that +bgpool cannot: {_INSTEAD[name]}"
                )
        self._connect_args: Final = dict(connect_args or {})
        self._static: Mapping[str, Any] = {}
        self._bg: Mapping[str, Any] = {}
        super().__init__(**kwargs)

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> Any:
        """Refuse: there are no asynchronous connections."""
        raise ConfigurationError(
            f"{url.drivername}:// has no async dialect for MySQL: use create_engine, in threads where there is a loop"
        )

    # -- creation of an engine -----------------------------------------------------------------------------------

    def create_connect_args(self, url: URL, *names: Any, **named: Any) -> Any:
        """Like SQLAlchemy's, with connect_args. bgpool's parameters are removed: the driver does not know them."""
        args, params = super().create_connect_args(url, *names, **named)
        params.update(self._connect_args)
        params, own = split(params)
        if self.bgpool_connector is None:
            # Libraries call it again later, also with other URLs.
            self._static, self._bg = dict(params), own
        return args, params

    @classmethod
    def engine_created(cls, engine: SqlalchemyEngine) -> None:
        """Create the connector of *engine*, and gate its pool.

        Raises:
            ConfigurationError: See get_connector.
        """
        dialect = engine.dialect
        # Always true, because SQLAlchemy calls it with its own engine; mypy needs the assertion.
        assert isinstance(dialect, BgpoolDialect)
        dialect._attach(engine)

    def _attach(self, engine: SqlalchemyEngine) -> None:
        connector = self.bgpool_connector = self.bgpool_make_connector()
        connector.in_use = _in_use
        connector.set_owner_size(self, most_connections(engine.pool))
        gate(engine.pool, connector)
        event.listen(engine.pool, "connect", _refuse_foreign)
        if not isinstance(engine.pool, StaticPool):
            # All users share its one entry, and SQLAlchemy counts it as unused once one of them has returned it.
            event.listen(engine.pool, "connect", _note_entry)
        event.listen(engine, "handle_error", _keep_the_others)
        self._engine: weakref.ref[SqlalchemyEngine] = weakref.ref(engine)
        fork.call_in_child(self)

    def bgpool_make_connector(self) -> AnyConnector[Any]:
        """Return the connector for the arguments of create_engine.

        Raises:
            ConfigurationError: See get_connector.
        """
        return make_connector(self.bgpool_connectors, self.bgpool_engine, self._static, self._bg)

    def bgpool_switched_within(self, seconds: float) -> bool:
        """Return whether checkouts are held, or connections of the pool were replaced within the last *seconds*."""
        connector = self.bgpool_connector
        holding = connector is not None and connector.is_holding(connector.participant.reader.refresh())
        return holding or time.monotonic() - self.bgpool_replaced_at < seconds

    # -- methods that SQLAlchemy calls ---------------------------------------------------------------------------

    def connect(self, *args: Any, **params: Any) -> Any:
        """Return a connection; *params* are those of the URL and connect_args, as changed by do_connect listeners."""
        if self.bgpool_connector is None:
            # The dialect has no engine.
            return super().connect(*args, **params)
        return self.bgpool_connect(changes(self._static, args, params))

    def bgpool_connect(self, params: Mapping[str, Any]) -> Any:
        """Return a connection for SQLAlchemy's pools; for *params* see Connector.connect."""
        return self.bgpool_connector.connect(**params)

    def _do_ping_w_event(self, dbapi_connection: DBAPIConnection) -> bool:
        """Check a connection for SQLAlchemy's pool. A stale one is not pinged but replaced, and only this one."""
        connector = self.bgpool_connector
        if connector is not None and not connector.is_fit(dbapi_connection):
            raise DisconnectionError(STALE)
        is_alive = super()._do_ping_w_event(dbapi_connection)
        if connector is not None and not connector.is_fit(dbapi_connection):
            # A switchover has begun during the ping.
            raise DisconnectionError(STALE)
        return is_alive

    def do_commit(self, dbapi_connection: PoolProxiedConnection) -> None:
        """Like SQLAlchemy's; a unit of work is notified just before COMMIT is sent, and just after its confirmation."""
        attempt = getattr(drivers_of(dbapi_connection), "bgpool_attempt", None)
        if attempt is None:
            super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]  # SQLAlchemy has no types
            return
        attempt.before_commit()
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]  # SQLAlchemy has no types
        attempt.after_commit()

    def do_rollback(self, dbapi_connection: PoolProxiedConnection) -> None:
        """Like SQLAlchemy's; on a lost connection it succeeds."""
        connection = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
        drivers = drivers_of(connection)
        attempt = getattr(drivers, "bgpool_attempt", None)
        if attempt is not None:
            attempt.before_rollback()
        generation = getattr(drivers, "bgpool_generation", None)
        if generation is not None and not generation.live[0] and _is_gone(drivers):
            return
        try:
            # The proxy costs a tenth of a checkout, so it is bypassed; but a rollback() that was set on it is called.
            replaced = "rollback" in getattr(dbapi_connection, "__dict__", ())
            super().do_rollback(dbapi_connection if replaced else connection)  # type: ignore[no-untyped-call]  # it has none
        except self.loaded_dbapi.Error:
            if not _is_gone(drivers):
                raise

    def bgpool_begin(self, connection: SqlalchemyConnection) -> None:
        """Have the driver begin the transaction of *connection*: the next statement bypasses SQLAlchemy."""

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Return whether *e* shows that *connection* is lost."""
        drivers = drivers_of(connection)
        if drivers is None or not hasattr(drivers, "bgpool_generation") or not isinstance(e, self.loaded_dbapi.Error):
            return bool(super().is_disconnect(e, connection, cursor))
        refused = drivers.bgpool_unfit and drivers.bgpool_refused
        return bool(isinstance(e, _LOST) or refused or not drivers.bgpool_is_open)

    def after_fork_in_child(self) -> None:
        """Give the engine a pool of the child's own, like ``dispose(close=False)``."""
        engine = self._engine()
        if engine is not None:
            fork.keep_forever(engine.pool)
            # A pool of a class that cannot be recreated: its connections are replaced at their next checkout.
            with contextlib.suppress(Exception):
                engine.dispose(close=False)


def _refuse_foreign(connection: Any, _entry: object) -> None:
    """Raise ConfigurationError unless *connection*, which is new, is bgpool's."""
    if not hasattr(drivers_of(connection), "bgpool_generation"):
        raise ConfigurationError(
            "a do_connect listener returned a connection of its own, which bgpool cannot carry through a switchover: "
            "change the parameters that the listener is given, and return nothing"
        )


def _note_entry(connection: Any, entry: ConnectionPoolEntry) -> None:
    """Note the pool entry that keeps *connection*."""
    drivers_of(connection).bgpool_entry = weakref.ref(entry)


def _in_use(connection: Any) -> bool:
    """Return whether *connection* is in use outside its pool, is being set up, or was detached."""
    noted = getattr(connection, "bgpool_entry", None)
    entry = noted() if noted is not None else None
    return entry is None or drivers_of(entry.dbapi_connection) is not connection or entry.in_use


def _keep_the_others(context: ExceptionContext) -> None:
    """Keep the other connections after a cut: those of the same age are found stale one by one, and fresh ones stay."""
    if isinstance(context.original_exception, _LOST):
        context.invalidate_pool_on_disconnect = False


def drivers_of(connection: Any) -> Any:
    """Return the driver's connection behind *connection*: a proxy, an adapter for asyncio, or the connection itself."""
    connection = getattr(connection, "dbapi_connection", connection)
    return getattr(connection, "driver_connection", connection)


def _is_gone(connection: Any) -> bool:
    """Return whether *connection* is closed, or belongs to the parent process."""
    generation = getattr(connection, "bgpool_generation", None)
    if generation is None:
        return False
    return not connection.bgpool_is_open or bool(not generation.live[0] and generation.inherited)
