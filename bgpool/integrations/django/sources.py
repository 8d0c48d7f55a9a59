"""The pool or connector of each database in the settings."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg_pool
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS

from bgpool.aliases import may_be_alias, real_endpoint
from bgpool.core.endpoints import parse_endpoint
from bgpool.core.engine import Engine
from bgpool.core.limits import ALIAS_RETRY_S
from bgpool.dsn import parse
from bgpool.errors import ConfigurationError
from bgpool.integrations.django.under_test import is_under_test, rehearses
from bgpool.integrations.drivers import PER_CONNECTION, Origin, split
from bgpool.pools import fork
from bgpool.pools.pool import Pool
from bgpool.pools.source import BlockingSource
from bgpool.registry import CONNECTORS, POOLS, get_source
from bgpool.settings import Settings, read_flag

__all__ = ["BG_ID", "OpenPool", "Source", "close_pools", "describe", "find", "is_wanted", "pool_options"]

_logger: Final = logging.getLogger("bgpool.pool")

#: The option without which an engine is Django's own.
BG_ID: Final = "bg_id"
#: Options of the pool that Django itself sets.
_DJANGOS_OWN: Final = ("kwargs", "configure", "open", "conninfo")
#: The longest pause between two queries to a DNS that could not tell whether a name is an alias, in seconds.
_LONGEST_PAUSE_S: Final = 600.0


class OpenPool:
    """A pool with the interface that Django expects of ``DatabaseWrapper.pool``."""

    def __init__(self, pool: Pool[Any]) -> None:
        """Create a proxy of *pool* that has its methods."""
        self.pool: Final = pool
        self.getconn: Final = pool.getconn
        self.putconn: Final = pool.putconn
        self.close: Final = pool.close
        self.stats: Final = pool.stats

    def open(self) -> None:
        """Do nothing: Django calls it at every checkout, and the first checkout opens the pool."""

    def get_stats(self) -> Mapping[str, int]:
        """Return the statistics of the driver's pool, by psycopg_pool's names."""
        return self.pool.stats().driver


@dataclass(frozen=True)
class Source:
    """The source of a database's connections.

    Attributes:
        connections: The pool or connector.
        pool: The pool; None if Django keeps the connections itself.
        params: The driver's parameters of all its connections, in Django's form.
        asked: The parameters from which it was created; they include a password.
        seen: The settings that led to *asked*, compared at each connection. None if it could not be determined whether
            the host is an alias: that is looked up again.
    """

    connections: BlockingSource[Any]
    pool: OpenPool | None
    params: Mapping[str, Any] = field(repr=False)
    asked: tuple[object, ...] = field(repr=False)
    seen: tuple[object, ...] | None = field(repr=False)

    def others(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the *params* that differ from the source's: one connection's own, such as a backend's token."""
        mine = self.params
        return {name: value for name, value in params.items() if name not in mine or mine[name] != value}


class _Known:
    """The sources of this process.

    Attributes:
        sources: The last source of each alias. Django's own pools are keyed by alias alone, and lead to the database
            that the settings named before a test database was created.
        lock: Held while a source is looked up, or created.
        looking: Held while a name is looked up for the first time.
    """

    def __init__(self) -> None:
        self.sources: Final[dict[str, Source]] = {}
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        # Another thread may have been creating a source.
        self.lock = threading.Lock()
        self.looking = threading.Lock()


_known: Final = _Known()
fork.call_in_child(_known)


@dataclass
class _Alias:
    """The state of a name that may be an alias of an RDS endpoint.

    Attributes:
        is_rds: True if it is one; None if that could not be determined yet.
        due_at: The time of the next query, on the monotonic clock.
        pause_s: The pause after the last query, in seconds; it doubles each time.
        was_asked: True if it has been queried, with or without an answer.
    """

    is_rds: bool | None = None
    due_at: float = 0.0
    pause_s: float = 0.0
    was_asked: bool = False

    def look(self, host: str, resolver: str) -> None:
        """Query whether *host* is one, if a query is due."""
        if self.is_rds is not None or time.monotonic() < self.due_at:
            return
        # Each request may open a connection: if the DNS does not answer, only one request per pause waits for it.
        self.pause_s = min(max(2 * self.pause_s, ALIAS_RETRY_S), _LONGEST_PAUSE_S)
        self.due_at = time.monotonic() + self.pause_s
        # The pool or connector resolves it as well, and logs the reason of a failure.
        with contextlib.suppress(OSError, ValueError):
            self.is_rds = real_endpoint(host, resolver) is not None
        self.was_asked = True


#: By name and resolver.
_aliases: Final[dict[tuple[str, str], _Alias]] = {}


def is_wanted(settings_dict: Mapping[str, Any]) -> bool:
    """Return whether the database of *settings_dict* must have bgpool's connections."""
    return settings_dict["OPTIONS"].get(BG_ID) is not None


def pool_options(settings_dict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return ``OPTIONS["pool"]`` as options of get_pool; None for no pool.

    Raises:
        ConfigurationError: The value is not one that Django allows.
    """
    given = settings_dict["OPTIONS"].get("pool")
    if isinstance(given, str) and given:
        given = read_flag("OPTIONS['pool']", given)
    if not given:
        return None
    if given is True:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"OPTIONS['pool']={given!r}: True, False or a dict of the pool's options is allowed")
    for name in _DJANGOS_OWN:
        if name in given:
            raise ConfigurationError(f"OPTIONS['pool']: {name} is Django's own to give; leave it out")
    return given


def find(
    engine: Engine,
    alias: str,
    settings_dict: Mapping[str, Any],
    params: Mapping[str, Any],
    configured_by: object,
    make_configure: Callable[[], Callable[[Any], None]],
) -> Source:
    """Return the source for the database *alias*; the same one for the same settings.

    Args:
        engine: The engine of the database.
        alias: Its name in the settings, or Django's for a connection to none of its databases.
        settings_dict: Its settings.
        params: The driver's parameters, as Django derived them from the settings.
        configured_by: The values that determine the configuration of a pool's connections.
        make_configure: Creates the function that is called with each new connection of a pool. Equal functions count as
            the same.

    Raises:
        ImproperlyConfigured: The settings cannot be used; the text names the replacement.
    """
    made_password = _is_made(params.get("password"), settings_dict)
    if made_password:
        params = {name: value for name, value in params.items() if name != "password"}
    try:
        options = settings_dict["OPTIONS"]
        others = (
            params,
            settings_dict["HOST"],
            settings_dict["CONN_HEALTH_CHECKS"],
            _part_of(alias, settings_dict),
            configured_by,
            made_password,
        )
        last = _known.sources.get(alias)
        if last is not None and last.seen == (options, *others) and not last.connections.closed:
            # This runs at every connection, and a request with a pool takes one. The rest only runs after a change.
            return last
        return _find(engine, _origin(alias), alias, settings_dict, (_copied(options), *others), make_configure)
    except ConfigurationError as error:
        origin = _origin(alias)
        raise ImproperlyConfigured(
            str(origin.refusal(error)) if origin.name not in str(error) else str(error)
        ) from error


def _find(
    engine: Engine,
    origin: Origin,
    alias: str,
    settings_dict: Mapping[str, Any],
    seen: tuple[Any, ...],
    make_configure: Callable[[], Callable[[Any], None]],
) -> Source:
    given, params, _, checks, part, _, made_password = seen
    own = split(given)[1]
    options = pool_options({"OPTIONS": given}) if alias != NO_DB_ALIAS else None
    if options is not None and made_password:
        raise ConfigurationError(
            "the backend makes a password for each connection, and a pool opens connections by itself: give "
            "PASSWORD a callable, such as bgpool.auth.RdsIam, or leave OPTIONS['pool'] out"
        )
    takes_part = _is_rds(_host_of(engine, origin, params, own), own) if part is None else part
    asked = (params, own, options, takes_part is not False, bool(checks), make_configure())
    fork.notice()
    with _known.lock:
        known = _known.sources.get(alias)
        if known is not None and known.asked == asked and not known.connections.closed:
            return known
        # Like Django, which reads it once: tests change the settings of a database that is in use.
        is_first = known is None or known.pool is None
        if options is not None and is_first and settings_dict["CONN_MAX_AGE"] != 0:
            raise ConfigurationError(
                "Pooling doesn't support persistent connections. Set CONN_MAX_AGE to 0, or leave OPTIONS['pool'] out"
            )
        made = _known.sources[alias] = _make(engine, origin, asked, seen if takes_part is not None else None)
    if known is not None and known.pool is not None and known.pool.pool is not made.connections:
        known.pool.close()
    return made


def describe(
    engine: Engine, alias: str, settings_dict: Mapping[str, Any], params: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the DSN and the options of get_connector for the database *alias*; for the arguments see find.

    Raises:
        ConfigurationError: The settings cannot be used.
    """
    own = split(settings_dict["OPTIONS"])[1]
    dsn, kwargs = _origin(alias).translate(engine, params, own)
    return dsn, {**own, "kwargs": {name: value for name, value in kwargs.items() if name not in PER_CONNECTION}}


def close_pools(alias: str) -> None:
    """Close the pool of *alias*, if any: its idle connections immediately, the others when they are returned."""
    fork.notice()
    with _known.lock:
        known = _known.sources.get(alias)
        if known is None or known.pool is None:
            return
        del _known.sources[alias]
    known.pool.close()


def _part_of(alias: str, settings_dict: Mapping[str, Any]) -> bool | None:
    """Return whether the database must take part in a deployment; None if its host decides."""
    if alias == NO_DB_ALIAS:
        return False
    return rehearses() if is_under_test(settings_dict) else None


def _is_made(password: object, settings_dict: Mapping[str, Any]) -> bool:
    """Return whether a backend generated *password*: it is not in the settings and may change per connection."""
    if password is None or password is settings_dict["PASSWORD"]:
        return False
    options = settings_dict["OPTIONS"]
    return password not in (settings_dict["PASSWORD"], options.get("password"), options.get("passwd"))


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of *options*, and of dicts in them."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}


def _origin(alias: str) -> Origin:
    return Origin(f"DATABASES[{alias!r}]", "HOST, PORT, USER, PASSWORD and NAME", "OPTIONS")


def _make(engine: Engine, origin: Origin, asked: tuple[Any, ...], seen: tuple[object, ...] | None) -> Source:
    params, own, options, takes_part, checks, configure = asked
    dsn, kwargs = origin.translate(engine, params, {**own, **(options or {})})
    if options is None:
        kwargs = {name: value for name, value in kwargs.items() if name not in PER_CONNECTION}
        connector = get_source(CONNECTORS, dsn, None, {**own, "kwargs": kwargs}, takes_part=takes_part)
        connector.in_use = _in_use
        return Source(connector, None, params, asked, seen)
    check = {"check": _CHECKS[engine]} if checks else {}
    whole = {**own, **check, **options, "configure": configure, "kwargs": {**kwargs, "autocommit": True}}
    pool = get_source(POOLS, dsn, None, whole, takes_part=takes_part)
    return Source(pool, OpenPool(pool), params, asked, seen)


def _in_use(connection: Any) -> bool:
    """Return whether a connection that Django keeps has an open transaction; a switchover first cuts those without."""
    return not connection.bgpool_is_idle


def _ping(connection: Any) -> None:
    connection.ping()


#: The check of a connection before a pool hands it out, by engine.
_CHECKS: Final[Mapping[Engine, Callable[[Any], None]]] = {
    Engine.POSTGRESQL: psycopg_pool.ConnectionPool.check_connection,
    Engine.MYSQL: _ping,
}


def _host_of(engine: Engine, origin: Origin, params: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return the driver's host: OPTIONS, $PGHOST or a service of libpq may name it instead of HOST."""
    dsn, kwargs = origin.translate(engine, params, own)
    shared = {name: value for name, value in kwargs.items() if name not in PER_CONNECTION}
    return parse(dsn, {**own, "kwargs": shared})[0].host


def _is_rds(host: str, own: Mapping[str, Any]) -> bool | None:
    """Return whether *host* is an RDS or Aurora endpoint, or an alias of one; None if that could not be determined."""
    # This reads the name only and opens no connection; only an alias costs one DNS query.
    if own.get("endpoint") is not None or parse_endpoint(host) is not None:
        return True
    if not may_be_alias(host):
        return False
    resolver = Settings.from_mapping({n: v for n, v in own.items() if n == "bg_resolver"}).bg_resolver
    alias = _aliases.setdefault((host, resolver), _Alias())
    if alias.was_asked:
        alias.look(host, resolver)
    else:
        # Threads whose first look-ups coincide wait for the one that queries: until a host is known not to be an
        # endpoint, a database takes part, and has a monitor.
        with _known.looking:
            alias.look(host, resolver)
    return alias.is_rds
