"""The asyncpg connector, and asyncpg's parameters in the terms of get_connector."""

from __future__ import annotations

import inspect
import re
import ssl
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import asyncpg

from bgpool import errors
from bgpool.core.engine import Engine
from bgpool.dsn import Dsn, is_own
from bgpool.errors import ConfigurationError
from bgpool.integrations.asyncpg.connection import AsyncpgAware
from bgpool.integrations.asyncpg.recipe import LIBPQ, AsyncpgRecipe
from bgpool.integrations.asyncpg.unit import AsyncpgUnit
from bgpool.pools.connector import AsyncConnector
from bgpool.pools.options import Check, check_timeout
from bgpool.pools.participant import Participant
from bgpool.pools.recipe import Recipe
from bgpool.pools.units import Unit
from bgpool.registry import get_source
from bgpool.settings import Settings

__all__ = ["CONNECTION", "POOL", "AsyncpgConnector", "get_connector"]


def _keywords(function: Any) -> dict[str, Any]:
    """Return the keywords of *function* and their defaults, which differ between releases."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


#: The keywords of asyncpg's pool, and of its connections.
POOL: Final[Mapping[str, Any]] = {
    name: default for name, default in _keywords(asyncpg.create_pool).items() if name not in ("connect", "init")
}
CONNECTION: Final[Mapping[str, Any]] = _keywords(asyncpg.connect)
_NOT_READ: Final = ("service", "servicefile")
#: The range of tested releases, from (inclusive) and below: bgpool uses parts of asyncpg that are not documented.
_FROM: Final = (0, 30)
_BELOW: Final = (0, 33)
#: asyncpg's keywords that the monitor also needs, by libpq's names.
_SHARED: Final[Mapping[str, str]] = {
    "host": "host",
    "port": "port",
    "user": "user",
    "database": "dbname",
    "passfile": "passfile",
}


def _unchecked(_name: str, _value: object) -> None:
    """Do nothing: the value is checked with the connection parameters."""


def _ssl(name: str, value: object) -> None:
    if not isinstance(value, (bool, str, ssl.SSLContext)):
        raise ConfigurationError(f"{name}={value!r}: an sslmode as text, an ssl.SSLContext, True or False is allowed")


class AsyncpgConnector(AsyncConnector[AsyncpgAware]):
    """Opens asyncpg connections that are carried through Blue/Green switchovers."""

    KIND = "asyncpg pool"
    OPTIONS: ClassVar[Mapping[str, Check]] = {"kwargs": _unchecked, "ssl": _ssl}
    _recipe_class: ClassVar[type[Recipe]] = AsyncpgRecipe
    _unit_class: ClassVar[type[Unit[Any, Any]]] = AsyncpgUnit

    def __init__(self, dsn: Dsn, settings: Settings, participant: Participant, options: Mapping[str, Any]) -> None:
        """Create a connector for *dsn*, which already includes the kwargs."""
        super().__init__(dsn, settings, participant, {k: v for k, v in options.items() if k != "kwargs"})
        self.in_use = _is_busy

    async def aconnect(self, **kwargs: Any) -> AsyncpgAware:
        """Like AnyConnector's, with asyncpg's errors."""
        try:
            return await super().aconnect(**kwargs)
        except errors.PasswordFailed as error:
            raise self._recipe.like(None, errors.PasswordFailed, str(error)) from error

    def generation(self) -> object:
        """Return the generation that is handed out now in the running loop; None if there is none."""
        return self._here().current


def _check_release(version: str) -> None:
    """Refuse a release of asyncpg that may send statements that bgpool does not see.

    Raises:
        ConfigurationError: bgpool was not tested with asyncpg *version*.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not _FROM <= numbers < _BELOW:
        raise ConfigurationError(
            f"asyncpg {version} is installed: this bgpool is for asyncpg>={'.'.join(map(str, _FROM))},"
            f"<{'.'.join(map(str, _BELOW))}, because it uses parts of it that other releases may change"
        )


def _is_busy(connection: AsyncpgAware) -> bool:
    return connection.bgpool_busy


_ASYNCPG: Final[Mapping[Engine, type[AsyncpgConnector]]] = {Engine.POSTGRESQL: AsyncpgConnector}


def get_connector(
    dsn: str | None,
    bg_id: str | int | None,
    options: Mapping[str, Any],
    *,
    kinds: Mapping[Engine, type[AsyncpgConnector]] = _ASYNCPG,
) -> tuple[AsyncpgConnector, dict[str, Any]]:
    """Return the connector for *dsn*, of one of *kinds*, and the *options* for each connection or the pool.

    Raises:
        ConfigurationError: See bgpool.get_connector. Or asyncpg does not have an option, or its release is not
            supported.
    """
    _check_release(asyncpg.__version__)
    own: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in options.items():
        if is_own(name) or name in ("monitoring", "password", "ssl"):
            if value is not None:
                own[name] = value
        elif name in _SHARED or name in LIBPQ:
            if value is not None:
                shared[_SHARED.get(name, name)] = value
        elif name == "init" or name in POOL or (name in CONNECTION and name not in _NOT_READ):
            if name == "timeout":
                check_timeout(name, value)
            rest[name] = value
        elif name in _NOT_READ:
            raise ConfigurationError(f"{name} is not read; a host and a port are allowed, or the service in $PGSERVICE")
        elif name == "connect":
            raise ConfigurationError(
                "connect=… makes the connections itself: give bgpool's connect() to asyncpg.create_pool instead"
            )
        else:
            raise ConfigurationError(
                f"unknown parameter {name!r}: allowed are the bg_ parameters, password, endpoint, monitoring, and the "
                "options of asyncpg.create_pool and asyncpg.connect; settings of the session go into server_settings"
            )
    for name in ("host", "port"):
        if isinstance(shared.get(name), (list, tuple)):
            raise ConfigurationError(f"{name}: one endpoint is allowed, not a list")
    if shared:
        own["kwargs"] = shared
    return get_source(kinds, dsn or "postgresql://", bg_id, own), rest
