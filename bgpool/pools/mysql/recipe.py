"""The recipe for PyMySQL connections: a socket to an address, under a name to prove."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import pymysql
from pymysql.constants import CR

from bgpool.core.routing import Decision
from bgpool.errors import InheritedConnection, SwitchoverInterrupted
from bgpool.mysql import BoundedConnection, code_of
from bgpool.mysql_driver import wants_tls
from bgpool.mysql_logins import rehearse
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.session import with_session_reset
from bgpool.pools.mysql.store import Store
from bgpool.pools.recipe import Destination, DriversPool, Recipe

__all__ = ["MysqlRecipe", "like"]


class MysqlRecipe(Recipe):
    """The recipe of a MySQL pool."""

    TRIAL: ClassVar[Mapping[str, Any]] = MappingProxyType({"init_command": None})
    LOADS: ClassVar[bool] = True

    def make_inner(self, connector: object) -> DriversPool:
        """See Recipe."""
        return Store(connector, **{**with_session_reset(self.options), "name": self.name})

    def open(self, place: Destination, kwargs: Mapping[str, Any]) -> MysqlConnection:
        """See Recipe."""
        params = {**self.dsn.params, **kwargs}
        if place.password is not None:
            params["password"] = place.password
        host = place.host or self.dsn.host
        connection = MysqlConnection(address=place.address, host=host, port=self.dsn.port, **params)
        self.warn_of_cache(connection.cache_warning)
        return connection

    def limited(self, kwargs: Mapping[str, Any], decision: Decision, limit_s: float) -> Mapping[str, Any]:
        """See Recipe: the limit applies to all attempts together."""
        del decision
        return {**kwargs, "give_up_at": time.monotonic() + limit_s}

    def load(self) -> None:
        """See Recipe: the TLS context of these parameters, and the library that encrypts a password without TLS."""
        params = self.dsn.params
        with contextlib.suppress(Exception):  # the connection reports the problem with them
            BoundedConnection(**{**params, "defer_connect": True})
        if not (wants_tls(params) or params.get("unix_socket")):
            rehearse()

    def is_silence(self, error: Exception) -> bool:
        """See Recipe."""
        return isinstance(error.__cause__, TimeoutError)

    def failure(self, text: str) -> Exception:
        """See Recipe."""
        return pymysql.OperationalError(CR.CR_UNKNOWN_HOST, text)

    @staticmethod
    def like(error: BaseException | None, kind: Callable[..., Exception], text: str) -> Exception:
        """See Recipe."""
        return like(error, kind, text)


def like(error: BaseException | None, kind: Callable[..., Exception], text: str) -> Exception:
    """Return an error of *kind* with number and text, like PyMySQL's errors.

    The number is that of *error*; if it has none, that of a lost connection. Without an error, the number is that of a
    connection that cannot be opened. An error about an existing connection has the number of a lost one, so that its
    owner replaces it.
    """
    had_one = error is not None or kind in (SwitchoverInterrupted, InheritedConnection)
    number = code_of(error) if error is not None else 0
    return kind(number or (CR.CR_SERVER_GONE_ERROR if had_one else CR.CR_CONN_HOST_ERROR), text)
