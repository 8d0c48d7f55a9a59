"""``postgresql+bgpool_asyncpg://`` for create_async_engine: SQLAlchemy's dialect for asyncpg, through switchovers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi, PGDialect_asyncpg

from bgpool import errors
from bgpool.core.engine import Engine
from bgpool.errors import ConfigurationError
from bgpool.integrations.asyncpg import errors as asyncpgs
from bgpool.integrations.asyncpg.connection import AsyncpgAware
from bgpool.integrations.asyncpg.connector import AsyncpgConnector, get_connector
from bgpool.integrations.asyncpg.recipe import AsyncpgRecipe
from bgpool.integrations.asyncpg.unit import AsyncpgUnit
from bgpool.integrations.sqlalchemy.async_dialect import AsyncBgpoolDialect
from bgpool.integrations.sqlalchemy.dialect import drivers_of
from bgpool.integrations.sqlalchemy.greenlets import GreenletConnector
from bgpool.integrations.sqlalchemy.target import changes
from bgpool.pools.connector import AnyConnector
from bgpool.pools.recipe import Recipe
from bgpool.pools.units import Unit

__all__ = ["CONNECTORS", "AsyncBgpoolAsyncpgDialect"]

_OperationalError: Any = AsyncAdapt_asyncpg_dbapi.OperationalError


# SQLAlchemy's adapter translates asyncpg's errors by their class, and passes on its own errors unchanged. The errors
# below are of its own classes, so that ``orig`` of SQLAlchemy's errors is bgpool's error, as with psycopg.


class SwitchoverHoldTimeout(asyncpgs.SwitchoverHoldTimeout, _OperationalError):
    """bgpool.SwitchoverHoldTimeout for SQLAlchemy's adapter."""


class GreenHostRejected(asyncpgs.GreenHostRejected, _OperationalError):
    """bgpool.GreenHostRejected for SQLAlchemy's adapter."""


class SwitchoverInterrupted(asyncpgs.SwitchoverInterrupted, _OperationalError):
    """bgpool.SwitchoverInterrupted for SQLAlchemy's adapter."""


class CommitOutcomeUnknown(asyncpgs.CommitOutcomeUnknown, _OperationalError):
    """bgpool.CommitOutcomeUnknown for SQLAlchemy's adapter."""


class PasswordFailed(asyncpgs.PasswordFailed, _OperationalError):
    """bgpool.PasswordFailed for SQLAlchemy's adapter."""


class InheritedConnection(asyncpgs.InheritedConnection, _OperationalError):
    """bgpool.InheritedConnection for SQLAlchemy's adapter."""


class PoolClosed(asyncpgs.PoolClosed, _OperationalError):
    """bgpool.PoolClosed for SQLAlchemy's adapter."""


_OURS: Final[Mapping[Callable[..., Exception], type[Exception]]] = {
    errors.SwitchoverHoldTimeout: SwitchoverHoldTimeout,
    errors.GreenHostRejected: GreenHostRejected,
    errors.SwitchoverInterrupted: SwitchoverInterrupted,
    errors.CommitOutcomeUnknown: CommitOutcomeUnknown,
    errors.PasswordFailed: PasswordFailed,
    errors.InheritedConnection: InheritedConnection,
    errors.PoolClosed: PoolClosed,
}


class _Recipe(AsyncpgRecipe):
    @staticmethod
    def like(error: BaseException | None, kind: Callable[..., Exception], text: str) -> Exception:
        """See Recipe."""
        return asyncpgs.like(error, _OURS.get(kind, kind), text)


class _Unit(AsyncpgUnit[Any]):
    def is_autocommit(self, connection: Any) -> bool:
        """See Unit; SQLAlchemy's adapter begins transactions and knows the mode."""
        noted = getattr(connection, "bgpool_entry", None)
        adapter = getattr(noted() if noted is not None else None, "dbapi_connection", None)
        return getattr(adapter, "isolation_level", None) == "autocommit"

    def like(self, error: Exception, kind: Callable[..., Exception], text: str) -> Exception:
        """See Unit."""
        return _Recipe.like(error, kind, text)


class _Connector(GreenletConnector[Any], AsyncpgConnector):
    _recipe_class: ClassVar[type[Recipe]] = _Recipe
    _unit_class: ClassVar[type[Unit[Any, Any]]] = _Unit


#: Like bgpool.registry.CONNECTORS.
CONNECTORS: Final[Mapping[Engine, type[_Connector]]] = {Engine.POSTGRESQL: _Connector}


class AsyncBgpoolAsyncpgDialect(AsyncBgpoolDialect, PGDialect_asyncpg):
    """SQLAlchemy's PGDialect_asyncpg on bgpool's connections."""

    supports_statement_cache = True
    bgpool_engine = Engine.POSTGRESQL
    bgpool_connectors = CONNECTORS
    #: Parameters of SQLAlchemy's adapter that are not the driver's.
    _OF_ADAPTER: ClassVar = ("prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback")

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> Any:  # noqa:ARG003  # of any URL the same
        """Return the dialect of create_async_engine."""
        return cls

    def bgpool_make_connector(self) -> AnyConnector[Any]:
        """See BgpoolDialect; the parameters are asyncpg's."""
        params = {name: value for name, value in self._static.items() if name not in self._OF_ADAPTER}
        try:
            connector, rest = get_connector(None, None, {**params, **self._bg}, kinds=CONNECTORS)
        except ConfigurationError as error:
            raise ConfigurationError(f"create_async_engine: {error}") from None
        # Those of each connection.
        adapters = {name: value for name, value in self._static.items() if name in self._OF_ADAPTER}
        self._each: Mapping[str, Any] = {**rest, **adapters}
        return connector

    def connect(self, *args: Any, **params: Any) -> Any:
        """See BgpoolDialect."""
        if self.bgpool_connector is None:
            return super().connect(*args, **params)
        if params.get("ssl") is not self._static.get("ssl"):
            raise ConfigurationError(
                "ssl: a do_connect listener cannot change it; write it into the URL or connect_args"
            )
        return self.bgpool_connect({**self._each, **changes(_without_ssl(self._static), args, _without_ssl(params))})

    def bgpool_begin(self, connection: Connection) -> None:
        """See BgpoolDialect: SQLAlchemy's adapter sends BEGIN only before its own first statement."""
        connection.exec_driver_sql("SELECT 1")

    def do_rollback(self, dbapi_connection: Any) -> None:
        """See BgpoolDialect. A connection that is still in a transaction afterwards is not used again.

        SQLAlchemy's adapter forgets a transaction whose BEGIN or ROLLBACK was cancelled, and then sends no rollback.
        """
        try:
            super().do_rollback(dbapi_connection)
        finally:
            drivers = drivers_of(getattr(dbapi_connection, "dbapi_connection", dbapi_connection))
            if isinstance(drivers, AsyncpgAware) and not drivers.bgpool_is_idle and drivers.bgpool_is_open:
                drivers.terminate()


def _without_ssl(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "ssl"}
