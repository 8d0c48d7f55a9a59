"""What the dialects of both engines have in common: connections are made by a connector, and each belongs to its pool.

They are subclasses of SQLAlchemy's own dialects for the drivers, and override where a connection is made, judged and
ended. What a URL, a listener or an adapter means to the driver is left to those.
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

#: What says that a connection is lost, whatever it looks like.
_LOST: Final = (SwitchoverInterrupted, CommitOutcomeUnknown, InheritedConnection)

_INSTEAD: Final = {
    "creator": "connection parameters go into the URL or connect_args, and a token into a do_connect listener or "
    "connect_args={'password': …}, which may be a callable",
    "pool": "give poolclass= and the parameters of the pool, such as pool_size=",
}

if TYPE_CHECKING:
    # Of the dialects that it is mixed in before, SQLAlchemy types what DefaultDialect has.
    from sqlalchemy.engine.default import DefaultDialect as _Base
else:
    _Base = object


class BgpoolDialect(_Base):
    """Mixed in before SQLAlchemy's dialect of a driver.

    Attributes:
        bgpool_engine: Of which engine the servers are.
        bgpool_connectors: What makes the connections, of each engine.
        bgpool_connector: Makes the connections; None until create_engine has made an engine with the dialect.
        bgpool_replaced_at: When a stale connection was replaced last, on the monotonic clock, in seconds.
    """

    supports_statement_cache = True
    bgpool_engine: ClassVar[Engine]
    bgpool_connectors: ClassVar[Mapping[Engine, type[AnyConnector[Any]]]] = CONNECTORS
    bgpool_connector: Any = None
    bgpool_replaced_at: float = -math.inf

    # create_engine looks for what is no keyword-only argument, and hands over what it finds here.
    def __init__(
        self, connect_args: Mapping[str, Any] | None = None, creator: Any = None, pool: Any = None, **kwargs: Any
    ):
        """A dialect. Its arguments are those that create_engine takes, as far as they are a dialect's.

        Args:
            connect_args: Connection parameters, over those of the URL. They are needed here, and not only where a
                connection is made: a monitor is to be started with them.
            creator, pool: Not allowed: neither would have connections of bgpool's.
            kwargs: As SQLAlchemy's dialect.

        Raises:
            ConfigurationError: One that is not allowed.
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

    # -- making an engine ----------------------------------------------------------------------------------------

    def create_connect_args(self, url: URL, *names: Any, **named: Any) -> Any:
        """As SQLAlchemy's, with connect_args; the parameters of bgpool are put aside, the driver does not know them."""
        args, params = super().create_connect_args(url, *names, **named)
        params.update(self._connect_args)
        params, own = split(params)
        if self.bgpool_connector is None:
            # Later it is asked for by libraries, also with other URLs.
            self._static, self._bg = dict(params), own
        return args, params

    @classmethod
    def engine_created(cls, engine: SqlalchemyEngine) -> None:
        """Make the connector of *engine*, and have its pool held.

        Raises:
            ConfigurationError: As get_connector.
        """
        dialect = engine.dialect
        # Always so, for SQLAlchemy calls it with its own engine; and mypy knows it by this.
        assert isinstance(dialect, BgpoolDialect)
        dialect._attach(engine)

    def _attach(self, engine: SqlalchemyEngine) -> None:
        connector = self.bgpool_connector = self.bgpool_make_connector()
        connector.in_use = _in_use
        connector.set_owner_size(self, most_connections(engine.pool))
        gate(engine.pool, connector)
        event.listen(engine.pool, "connect", _refuse_foreign)
        if not isinstance(engine.pool, StaticPool):
            # Its one entry is everybody's, and unused to SQLAlchemy once one of them has returned it.
            event.listen(engine.pool, "connect", _note_entry)
        event.listen(engine, "handle_error", _keep_the_others)
        self._engine: weakref.ref[SqlalchemyEngine] = weakref.ref(engine)
        fork.call_in_child(self)

    def bgpool_make_connector(self) -> AnyConnector[Any]:
        """The connector for what create_engine was given.

        Raises:
            ConfigurationError: As get_connector.
        """
        return make_connector(self.bgpool_connectors, self.bgpool_engine, self._static, self._bg)

    def bgpool_switched_within(self, seconds: float) -> bool:
        """Whether checkouts are held, or the connections of the pool were replaced within the last *seconds*."""
        connector = self.bgpool_connector
        holding = connector is not None and connector.is_holding(connector.participant.reader.refresh())
        return holding or time.monotonic() - self.bgpool_replaced_at < seconds

    # -- what SQLAlchemy calls -----------------------------------------------------------------------------------

    def connect(self, *args: Any, **params: Any) -> Any:
        """A connection; *params* are those of the URL and connect_args, as do_connect listeners have changed them."""
        if self.bgpool_connector is None:
            # A dialect without an engine.
            return super().connect(*args, **params)
        return self.bgpool_connect(changes(self._static, args, params))

    def bgpool_connect(self, params: Mapping[str, Any]) -> Any:
        """A connection, as SQLAlchemy's pools want it; *params* as Connector.connect has them."""
        return self.bgpool_connector.connect(**params)

    def _do_ping_w_event(self, dbapi_connection: DBAPIConnection) -> bool:
        """What SQLAlchemy's pool calls. What is stale is not asked, but replaced, and this one alone."""
        connector = self.bgpool_connector
        if connector is not None and not connector.is_fit(dbapi_connection):
            raise DisconnectionError(STALE)
        is_alive = super()._do_ping_w_event(dbapi_connection)
        if connector is not None and not connector.is_fit(dbapi_connection):
            # A switchover has begun while it was being asked.
            raise DisconnectionError(STALE)
        return is_alive

    def do_commit(self, dbapi_connection: PoolProxiedConnection) -> None:
        """As SQLAlchemy's; a unit of work is told right before COMMIT is sent, and right after it was answered."""
        attempt = getattr(drivers_of(dbapi_connection), "bgpool_attempt", None)
        if attempt is None:
            super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]  # SQLAlchemy has no types
            return
        attempt.before_commit()
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]  # SQLAlchemy has no types
        attempt.after_commit()

    def do_rollback(self, dbapi_connection: PoolProxiedConnection) -> None:
        """As SQLAlchemy's; what is gone is rolled back."""
        connection = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
        drivers = drivers_of(connection)
        attempt = getattr(drivers, "bgpool_attempt", None)
        if attempt is not None:
            attempt.before_rollback()
        generation = getattr(drivers, "bgpool_generation", None)
        if generation is not None and not generation.live[0] and _is_gone(drivers):
            return
        try:
            # Without the proxy, whose way to it costs a tenth of a checkout; but a rollback() put there is called.
            replaced = "rollback" in getattr(dbapi_connection, "__dict__", ())
            super().do_rollback(dbapi_connection if replaced else connection)  # type: ignore[no-untyped-call]  # it has none
        except self.loaded_dbapi.Error:
            if not _is_gone(drivers):
                raise

    def bgpool_begin(self, connection: SqlalchemyConnection) -> None:
        """Have the driver begin the transaction of *connection*: what is sent next does not go through SQLAlchemy."""

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Whether *e* says that *connection* is lost."""
        drivers = drivers_of(connection)
        if drivers is None or not hasattr(drivers, "bgpool_generation") or not isinstance(e, self.loaded_dbapi.Error):
            return bool(super().is_disconnect(e, connection, cursor))
        refused = drivers.bgpool_unfit and drivers.bgpool_refused
        return bool(isinstance(e, _LOST) or refused or not drivers.bgpool_is_open)

    def after_fork_in_child(self) -> None:
        """Give the engine a pool of the child's own, as ``dispose(close=False)`` does."""
        engine = self._engine()
        if engine is not None:
            fork.keep_forever(engine.pool)
            # Of a class that cannot be made again: its connections are replaced at their next checkout.
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
    """Note by whom *connection* is kept."""
    drivers_of(connection).bgpool_entry = weakref.ref(entry)


def _in_use(connection: Any) -> bool:
    """Whether anybody but its pool has *connection*; also while it is being set up, or was detached."""
    noted = getattr(connection, "bgpool_entry", None)
    entry = noted() if noted is not None else None
    return entry is None or drivers_of(entry.dbapi_connection) is not connection or entry.in_use


def _keep_the_others(context: ExceptionContext) -> None:
    """One connection was cut: those that are as old are found stale one by one, and a fresh one need not go."""
    if isinstance(context.original_exception, _LOST):
        context.invalidate_pool_on_disconnect = False


def drivers_of(connection: Any) -> Any:
    """The driver's connection behind *connection*: SQLAlchemy's proxy for it, or its adapter for asyncio, or itself."""
    connection = getattr(connection, "dbapi_connection", connection)
    return getattr(connection, "driver_connection", connection)


def _is_gone(connection: Any) -> bool:
    """Whether *connection* is closed, or the parent's of a fork."""
    generation = getattr(connection, "bgpool_generation", None)
    if generation is None:
        return False
    return not connection.bgpool_is_open or bool(not generation.live[0] and generation.inherited)
