"""The parts of an engine for psycopg. Other backends for PostgreSQL can use them as well: see docs/django.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import psycopg
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql.psycopg_any import get_adapters_template, is_psycopg3
from psycopg.pq import TransactionStatus

from bgpool.core.engine import Engine
from bgpool.integrations.django.sources import Source
from bgpool.integrations.django.wrapper import SwitchoverWrapper
from bgpool.integrations.drivers import PER_CONNECTION

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper as _Base
else:
    _Base = object

__all__ = ["PostgresWrapper"]

if not is_psycopg3:
    raise ImproperlyConfigured("bgpool's engines need psycopg 3, and Django has found psycopg2: pip install psycopg")


class PostgresWrapper(SwitchoverWrapper, _Base):
    """Mixed in before a DatabaseWrapper for PostgreSQL."""

    bgpool_engine: ClassVar[Engine] = Engine.POSTGRESQL

    def get_connection_params(self) -> dict[str, Any]:
        """See SwitchoverWrapper; the adapters in the parameters are the same for all threads."""
        # Django creates the adapters at the first call and caches them. Threads whose first calls coincide each get
        # their own, and the source of one would replace that of the other. By now those of one thread are cached.
        get_adapters_template(settings.USE_TZ, self.timezone)
        return super().get_connection_params()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Like the backend's, with a connection of bgpool instead of psycopg's."""
        source = self.bgpool_find(conn_params)
        if source is None:
            return super().get_new_connection(conn_params)
        # The backend configures the connection itself: PostGIS registers its types, for example.
        if source.pool is not None:
            connection = super().get_new_connection(conn_params)
        else:
            self.Database: Any = _Driver(source)
            try:
                connection = super().get_new_connection(conn_params)
            finally:
                del self.Database
        self.bgpool_note(source, connection)
        return connection

    def _bgpool_is_idle(self, connection: Any) -> bool:
        # Otherwise a connection on which a read-only server has refused a write counts as idle. The rest of the
        # transaction would be committed on another connection.
        return super()._bgpool_is_idle(connection) and connection.pgconn.transaction_status == TransactionStatus.IDLE

    def _bgpool_configured_by(self) -> object:
        options = self.settings_dict["OPTIONS"]
        # Django sets the isolation level when it takes a connection out of the pool, and never resets it.
        return self.timezone_name, options.get("assume_role"), options.get("isolation_level")

    def bgpool_configure_connection(self, connection: Any) -> None:
        """See SwitchoverWrapper."""
        self._configure_connection(connection)  # type: ignore[attr-defined]  # not in the stubs


class _Driver:
    """psycopg's module for a backend, except for connect()."""

    def __init__(self, source: Source) -> None:
        """Create a module like psycopg's, with connections of *source*."""
        self._source: Final = source

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg, name)

    def connect(self, **params: Any) -> Any:
        """Return a connection of the source's connector, with the new values in *params*, such as a backend's token.

        Raises:
            ConfigurationError: A new value changes the server, which only the settings may name.
        """
        connector: Any = self._source.connections
        of_each = {name: params[name] for name in PER_CONNECTION if name in params}
        return connector.connect(**of_each, **self._source.others(params))
