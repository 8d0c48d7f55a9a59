"""Where and how to connect: reading a DSN, and the keywords that come with it."""

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
    # What has no scheme is a connection string of libpq's.
    "": Engine.POSTGRESQL,
    "postgresql": Engine.POSTGRESQL,
    "postgres": Engine.POSTGRESQL,
    "mysql": Engine.MYSQL,
    # SQLAlchemy's URLs. What differs from the same parameters elsewhere, dsn/mysql.py knows.
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
    """Take a DSN and get_pool's keywords apart.

    Args:
        dsn: A ``postgresql://`` or ``mysql://`` URL, or a libpq connection string.
        options: ``bg_`` parameters, ``endpoint``, ``password``, ``monitoring``, ``kwargs`` (connection parameters),
            and what is the pool's.

    Returns:
        Where to connect, the settings, and the options that are left for the pool underneath.

    Raises:
        ConfigurationError: Anything that cannot be used; the text never holds the password.
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
    """Whether the parameter *name* is bgpool's own, and none of the driver's."""
    # With an @ it is the rest of a password in which a ? was not escaped, and errors quote names.
    return name == _ENDPOINT or (name.startswith(("bg_", MONITORING_PREFIX)) and "@" not in name)


def _split_url(dsn: str) -> tuple[Engine, str, dict[str, object]]:
    """*dsn* without bgpool's own parameters, and those parameters. What is the driver's stays as it was written."""
    scheme = dsn.partition("://")[0].lower() if "://" in dsn.partition("=")[0] else ""
    if scheme not in _ENGINES:
        named = f" {scheme!r}" if re.fullmatch(r"[a-z][a-z0-9+._-]*", scheme, re.ASCII) else ""
        raise ConfigurationError(f"dsn: scheme{named} is not supported; postgresql and mysql are allowed")
    if not scheme:
        return _ENGINES[scheme], dsn, {}
    if _ENGINES[scheme] is Engine.POSTGRESQL:
        # libpq knows no other.
        dsn = f"postgresql{dsn[len(scheme) :]}"
    base, _, query = dsn.partition("?")
    if "+" in scheme:
        # SQLAlchemy reads it as a browser does.
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
    """The parameters of the monitoring connections alone; taken out of *own*."""
    overrides: dict[str, Any] = {
        name[len(MONITORING_PREFIX) :]: own.pop(name) for name in list(own) if name.startswith(MONITORING_PREFIX)
    }
    if mapping is not None:
        if not isinstance(mapping, Mapping):
            # Not repr(mapping): it was meant to hold a password.
            raise ConfigurationError(
                f"monitoring: a mapping of connection parameters is allowed, not {type(mapping).__name__}"
            )
        overrides |= mapping
    return overrides
