"""The recipe for connections of an AsyncPool: like those of a PostgresPool, awaited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import psycopg

from bgpool.pools.loops import apart
from bgpool.pools.postgres.async_connection import AsyncAware, async_aware
from bgpool.pools.postgres.async_inner import AsyncInnerPool
from bgpool.pools.postgres.recipe import PostgresRecipe
from bgpool.pools.postgres.session import with_session_reset
from bgpool.pools.recipe import Destination, DriversPool, Recipe
from bgpool.pools.waits import BLOCKING

__all__ = ["AsyncPostgresRecipe"]


class AsyncPostgresRecipe(PostgresRecipe):
    """The recipe of an AsyncPool."""

    def make_inner(self, connector: object) -> DriversPool:
        """See Recipe."""
        options = {**with_session_reset(self.options, awaits=True), "name": self.name}
        return AsyncInnerPool(cast(Any, connector), options)

    async def aopen(self, place: Destination, kwargs: Mapping[str, Any]) -> AsyncAware:
        """See Recipe."""
        connection_class = async_aware(self.options.get("connection_class", psycopg.AsyncConnection))
        connecting = connection_class.connect("", **self._params(place, kwargs))
        return await apart(connecting, connection_class.bgpool_discard)

    def for_trials(self) -> Recipe:
        """See Recipe; return a recipe whose connections block."""
        options = {name: value for name, value in self.options.items() if name != "connection_class"}
        trials = PostgresRecipe(self.dsn, self.settings, self.gate, self.endpoint, self.resolver, options)
        trials.waits = BLOCKING
        return trials
