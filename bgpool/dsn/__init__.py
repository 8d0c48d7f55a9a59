"""Parse a DSN and the keywords that come with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from bgpool.core.engine import Engine
from bgpool.dsn import mysql, postgres
from bgpool.dsn.dsn import MONITORING_PREFIX, Dsn, Password, RawDsn, names_are_proved, user_of
from bgpool.errors import ConfigurationError
from bgpool.settings import Settings

__all__ = ["MONITORING_PREFIX", "Dsn", "Engine", "Password", "is_own", "names_are_proved", "parse", "user_of"]

_ENDPOINT: Final = "endpoint"

_READERS: Final[Mapping[Engine, Callable[[RawDsn], Dsn]]] = {
    Engine.POSTGRESQL: postgres.read,
    Engine.MYSQL: mysql.read,
}
_ENGINES: Final[Mapping[str, Engine]] = {
    # A string without a scheme is a libpq connection string.
    "": Engine.POSTGRESQL,
    "postgresql": Engine.POSTGRESQL,
    "postgres": Engine.POSTGRESQL,
    "mysql": Engine.MYSQL,
    # SQLAlchemy's URLs. dsn/mysql.py handles the parameters that have another meaning there.
    "postgresql+bgpool": Engine.POSTGRESQL,
    "postgresql+bgpool_async": Engine.POSTGRESQL,
    "postgresql+bgpool_asyncpg": Engine.POSTGRESQL,
    "postgresql+psycopg": Engine.POSTGRESQL,
    "postgresql+psycopg_async": Engine.POSTGRESQL,
    "mysql+bgpool": Engine.MYSQL,
    "mysql+pymysql": Engine.MYSQL,
    "mariadb+bgpool": Engine.MYSQL,
    "mariadb+pymysql": Engine.MYSQL,
}


def parse(dsn: str, options: Mapping[str, Any]) -> tuple[Dsn, Settings, dict[str, Any]]:
    """Parse a DSN and get_pool's keywords.

    Args:
        dsn: A ``postgresql://`` or ``mysql://`` URL, or a libpq connection string.
        options: ``bg_`` parameters, ``endpoint``, ``password``, ``monitoring``, ``kwargs`` (connection parameters), and
            options of the pool.

    Returns:
        The parsed DSN, the settings, and the remaining options for the driver's pool.

    Raises:
        ConfigurationError: A part is invalid. The text never contains the password.
    """
    if not isinstance(dsn, str):
        raise ConfigurationError(f"dsn: a string is allowed, not {type(dsn).__name__}")
    if not dsn.strip():
        raise ConfigurationError(
            "dsn: a postgresql:// or mysql:// URL or a libpq connection string is allowed, not an empty one"
        )
    engine, url, own = _split_url(dsn.strip())
    left = dict(options)
    for name in [name for name in left if is_own(name)]:
        own[name] = left.pop(name)
    overrides = _monitoring_overrides(own, left.pop("monitoring", None))
    settings = Settings.from_mapping(own)
    return _READERS[engine](RawDsn(url, overrides, left)), settings, left


def is_own(name: str) -> bool:
    """Return whether the parameter *name* is bgpool's own, not the driver's."""
    # A name with an @ is the rest of a password in which a ? was not escaped, and errors quote names.
    return name == _ENDPOINT or (name.startswith(("bg_", MONITORING_PREFIX)) and "@" not in name)


def _split_url(dsn: str) -> tuple[Engine, str, dict[str, object]]:
    """Return the engine, *dsn* without bgpool's own parameters, and those. The rest stays as it was written."""
    scheme = dsn.partition("://")[0].lower() if "://" in dsn.partition("=")[0] else ""
    if scheme not in _ENGINES:
        named = f" {scheme!r}" if re.fullmatch(r"[a-z][a-z0-9+._-]*", scheme, re.ASCII) else ""
        raise ConfigurationError(f"dsn: scheme{named} is not supported; postgresql and mysql are allowed")
    if not scheme:
        return _ENGINES[scheme], dsn, {}
    if _ENGINES[scheme] is Engine.POSTGRESQL:
        # libpq accepts no other scheme.
        dsn = f"postgresql{dsn[len(scheme) :]}"
    base, _, query = dsn.partition("?")
    if "+" in scheme:
        # SQLAlchemy decodes a + in the query as a blank.
        query = query.replace("+", "%20")
    own: dict[str, object] = {}
    rest: list[str] = []
    for item in query.split("&"):
        name, _, value = item.partition("=")
        if is_own(unquote(name)):
            own[unquote(name)] = unquote(value)
        elif item:
            rest.append(item)
    return _ENGINES[scheme], f"{base}?{'&'.join(rest)}" if rest else base, own


def _monitoring_overrides(own: dict[str, object], mapping: object) -> dict[str, Any]:
    """Return the parameters that only the monitoring connections use, and remove them from *own*."""
    overrides: dict[str, Any] = {
        name[len(MONITORING_PREFIX) :]: own.pop(name) for name in list(own) if name.startswith(MONITORING_PREFIX)
    }
    if mapping is not None:
        if not isinstance(mapping, Mapping):
            # Without repr(mapping), because it is meant to hold a password.
            raise ConfigurationError(
                f"monitoring: a mapping of connection parameters is allowed, not {type(mapping).__name__}"
            )
        overrides |= mapping
    return overrides
