"""The recipe for psycopg connections: libpq connects to an address, and proves a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, cast

import psycopg

from bgpool.core.limits import SHORTEST_CONNECT_S
from bgpool.core.routing import Decision
from bgpool.pools.postgres.blocking_connection import BlockingAware, aware
from bgpool.pools.postgres.inner import InnerPool
from bgpool.pools.postgres.outcome import row_of
from bgpool.pools.postgres.receipts import LACKS, REACHES, quoted
from bgpool.pools.postgres.session import with_session_reset
from bgpool.pools.recipe import Destination, DriversPool, Recipe
from bgpool.pools.waits import finish

__all__ = ["PostgresRecipe", "like"]


class PostgresRecipe(Recipe):
    """The recipe of a PostgreSQL pool."""

    TRIAL: ClassVar[Mapping[str, Any]] = MappingProxyType({"target_session_attrs": "any"})

    def make_inner(self, connector: object) -> DriversPool:
        """See Recipe; psycopg_pool uses only connect() of a connection class."""
        own = {"open": False, "connection_class": cast(Any, connector), "name": self.name}
        return InnerPool("", **{**with_session_reset(self.options), **own})

    def open(self, place: Destination, kwargs: Mapping[str, Any]) -> BlockingAware:
        """See Recipe."""
        connection_class = aware(self.options.get("connection_class", psycopg.Connection))
        return connection_class.connect("", **self._params(place, kwargs))

    def shortest_s(self, decision: Decision) -> float:
        """See Recipe: each address is tried in turn, under each name, with a limit of its own."""
        return float(SHORTEST_CONNECT_S * self._tries(decision))

    def limited(self, kwargs: Mapping[str, Any], decision: Decision, limit_s: float) -> Mapping[str, Any]:
        """See Recipe."""
        limit = int(limit_s / self._tries(decision))
        own = int(float({**self.dsn.params, **kwargs}.get("connect_timeout") or 0))
        return {**kwargs, "connect_timeout": min(own, limit) if own > 0 else limit}

    def _tries(self, decision: Decision) -> int:
        names = len(decision.names) if self.names_matter else 1
        return max(1, len(decision.addresses) * names)

    def _params(self, place: Destination, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return psycopg's connection parameters."""
        where = {name: value for name, value in (("hostaddr", place.address), ("host", place.host)) if value}
        if place.password is not None:
            where["password"] = place.password
        return {**self.dsn.params, **kwargs, **where}

    def reaches(self, connection: Any, table: str) -> bool | None:
        """See Recipe: a logical replica gets the rows of the tables in its subscription."""
        try:
            (lacks,) = finish(row_of(connection, LACKS.format(table=quoted(table))))
            (reaches,) = finish(row_of(connection, REACHES.format(table=quoted(table))))
        except psycopg.Error:
            return False
        return None if lacks else bool(reaches)

    def is_silence(self, error: Exception) -> bool:
        """See Recipe."""
        return isinstance(error, psycopg.errors.ConnectionTimeout)

    def failure(self, text: str) -> Exception:
        """See Recipe."""
        return psycopg.OperationalError(text)

    @staticmethod
    def like(error: BaseException | None, kind: Callable[..., Exception], text: str) -> Exception:
        """See Recipe."""
        return like(error, kind, text)


def like(error: BaseException | None, kind: Callable[..., Exception], text: str) -> Exception:
    """Return an error of *kind* with *text* and the SQLSTATE of *error*."""
    new = kind(text)
    if isinstance(error, psycopg.Error) and isinstance(new, psycopg.Error):
        new.sqlstate = error.sqlstate
    return new
