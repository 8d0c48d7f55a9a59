"""What of an engine is psycopg's. Other backends for PostgreSQL can have it as well: see docs/django.md."""

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
        """As SwitchoverWrapper's; the adapters among them are the same ones for all threads."""
        # Django makes them at the first call and remembers them. Threads that come first at the same moment are each
        # given their own, and the source of one would replace that of the other. Remembered are one thread's by now.
        get_adapters_template(settings.USE_TZ, self.timezone)
        return super().get_connection_params()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """As the backend's, with a connection of bgpool's in place of psycopg's."""
        source = self.bgpool_find(conn_params)
        if source is None:
            return super().get_new_connection(conn_params)
        # What the backend makes of a connection is left to it: PostGIS registers its types, say.
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
        # One in which a read-only server has refused a write counts as idle otherwise. On another connection the rest
        # of it would be committed.
        return super()._bgpool_is_idle(connection) and connection.pgconn.transaction_status == TransactionStatus.IDLE

    def _bgpool_configured_by(self) -> object:
        options = self.settings_dict["OPTIONS"]
        # Django gives a connection the isolation level when it takes it out of the pool, and nobody takes it back.
        return self.timezone_name, options.get("assume_role"), options.get("isolation_level")

    def bgpool_configure_connection(self, connection: Any) -> None:
        """As SwitchoverWrapper says."""
        self._configure_connection(connection)  # type: ignore[attr-defined]  # not in the stubs


class _Driver:
    """psycopg as a backend knows it, but for where it connects."""

    def __init__(self, source: Source) -> None:
        """psycopg, with connections of *source*."""
        self._source: Final = source

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg, name)

    def connect(self, **params: Any) -> Any:
        """A connection of the source's connector; with what is new in *params*, a backend's token for instance.

        Raises:
            ConfigurationError: That is where the connection goes to, which is the settings' to say.
        """
        connector: Any = self._source.connections
        of_each = {name: params[name] for name in PER_CONNECTION if name in params}
        return connector.connect(**of_each, **self._source.others(params))
