"""get_pool, get_async_pool and get_connector: one object per process for equal arguments, connected to the monitor."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from bgpool.core.engine import Engine
from bgpool.core.limits import MONITOR_CHECKOUT_S
from bgpool.dsn import parse
from bgpool.errors import ConfigurationError
from bgpool.green_threads import check_threads
from bgpool.logs import log_fields
from bgpool.monitor import is_monitor
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.spawn import Starter
from bgpool.pools import fork
from bgpool.pools.connector import Connector
from bgpool.pools.mysql.connector import MysqlConnector
from bgpool.pools.mysql.pool import MysqlPool
from bgpool.pools.participant import Disabled, NonParticipant, Participant
from bgpool.pools.pool import Pool
from bgpool.pools.postgres.async_pool import AsyncPool
from bgpool.pools.postgres.connector import PostgresConnector
from bgpool.pools.postgres.pool import PostgresPool
from bgpool.pools.source import ConnectionSource
from bgpool.resolver import make_resolver
from bgpool.segment.paths import look_in
from bgpool.settings import Settings, is_disabled

__all__ = [
    "ASYNC_POOLS",
    "CONNECTORS",
    "POOLS",
    "close_pools",
    "get_async_pool",
    "get_connector",
    "get_pool",
    "get_source",
    "open_pools",
    "participants",
    "pools",
    "pools_of",
]

_logger: Final = logging.getLogger("bgpool.pool")

#: The pool of each engine.
POOLS: Final[Mapping[Engine, type[Pool[Any]]]] = {Engine.POSTGRESQL: PostgresPool, Engine.MYSQL: MysqlPool}
#: The async pool of each engine that has one.
ASYNC_POOLS: Final[Mapping[Engine, type[AsyncPool]]] = {Engine.POSTGRESQL: AsyncPool}
#: The connector of each engine.
CONNECTORS: Final[Mapping[Engine, type[Connector[Any]]]] = {
    Engine.POSTGRESQL: PostgresConnector,
    Engine.MYSQL: MysqlConnector,
}

S = TypeVar("S", bound=ConnectionSource[Any])


@dataclass(frozen=True, slots=True)
class _Key:
    """The arguments of a request, as a key. Never shown, because it contains passwords and keys."""

    asked: tuple[object, ...] = field(repr=False)


class _Registry:
    """The pools, connectors and participants of this process."""

    def __init__(self) -> None:
        self.pools: Final[dict[_Key, ConnectionSource[Any]]] = {}
        self.participants: Final[dict[tuple[Path, str], Participant]] = {}
        self.lock = threading.Lock()

    def after_fork_in_child(self) -> None:
        # Another thread may have been inside get_pool.
        self.lock = threading.Lock()


_registry: Final = _Registry()
fork.call_in_child(_registry)


def get_pool(dsn: str, bg_id: str | int | None = None, **options: Any) -> Pool[Any]:
    """Return the pool for *dsn*. The same arguments return the same pool.

    The pool is created at the first call and opened at first use.

    Safe before and after a fork: a child opens its own connections and does not use the parent's.

    Args:
        dsn: A ``postgresql://`` or ``mysql://`` URL, optionally with ``bg_`` parameters in its query, or a libpq
            connection string.
        bg_id: The id of the Blue/Green Deployment; the same for every connection to it. Default ``1``.
        options: Any other ``bg_`` parameter of docs/parameters.md. ``password``: a string or a callable
            ``(host, port, user) -> str``. ``endpoint``: the RDS or Aurora endpoint that the DSN's host is an alias of.
            ``monitoring``: a mapping of connection parameters for the monitoring connections only. And every option of
            psycopg_pool's ConnectionPool except ``open``; for MySQL those of docs/mysql.md.

    Raises:
        ConfigurationError: A parameter is unknown or out of range, the DSN is invalid, or the process uses green
            threads that bgpool does not support.
    """
    return get_source(POOLS, dsn, bg_id, options)


def get_async_pool(dsn: str, bg_id: str | int | None = None, **options: Any) -> AsyncPool:
    """Return the async pool for *dsn*. The same arguments return the same pool; it is opened at first use.

    It may be created without a running event loop. Each asyncio loop that uses it gets its own connections.

    Args:
        dsn: See get_pool; PostgreSQL only.
        bg_id: See get_pool.
        options: See get_pool, with the options of psycopg_pool's AsyncConnectionPool except ``open``. *configure*,
            *check*, *reset* and *reconnect_failed* may be functions or coroutine functions.

    Raises:
        ConfigurationError: See get_pool; or the engine is MySQL, for which there is no async pool.
    """
    return get_source(ASYNC_POOLS, dsn, bg_id, options)


def get_connector(dsn: str, bg_id: str | int | None = None, **options: Any) -> Connector[Any]:
    """Return the connector for *dsn*. The same arguments return the same connector, which connects on request.

    Safe before and after a fork, like a pool.

    Args:
        dsn: See get_pool.
        bg_id: See get_pool.
        options: See get_pool, without the options of a driver's pool: ``bg_`` parameters, ``password``, ``endpoint``,
            ``monitoring``, ``kwargs`` (connection parameters), and for PostgreSQL ``connection_class``.

    Raises:
        ConfigurationError: See get_pool.
    """
    return get_source(CONNECTORS, dsn, bg_id, options)


def get_source(
    kinds: Mapping[Engine, type[S]],
    dsn: str,
    bg_id: str | int | None,
    options: Mapping[str, Any],
    *,
    takes_part: bool = True,
) -> S:
    """Return the pool or connector of get_pool, get_async_pool or get_connector.

    Args:
        kinds: POOLS, ASYNC_POOLS or CONNECTORS.
        dsn, bg_id, options: See get_pool.
        takes_part: False for a plain pool or connector: it starts no monitor and reads no segment.

    Raises:
        ConfigurationError: See get_pool.
    """
    check_threads()
    if bg_id is not None:
        options = {**options, "bg_id": bg_id}
    key = _Key((id(kinds), takes_part, _frozen(dsn), _frozen(options)))
    fork.notice()
    with _registry.lock:
        known = _registry.pools.get(key)
        if known is None or known.closed:
            for closed in [key for key, one in _registry.pools.items() if one.closed]:
                del _registry.pools[closed]
            known = _registry.pools[key] = _make(kinds, dsn, options, takes_part=takes_part)
        return cast(S, known)


def open_pools() -> None:
    """Open every pool of this process now instead of at its first checkout; see Pool.open.

    Never raises, because a server's hook must not prevent a worker from starting.
    """
    for pool in pools():
        try:
            pool.start()
        except Exception as error:
            _logger.warning(
                "%r cannot be opened yet, and is opened at its first checkout: %r",
                pool,
                error,
                extra=log_fields("pool_not_opened", bg_id=pool.bg_id, host=pool.name),
            )


def pools() -> tuple[ConnectionSource[Any], ...]:
    """Return the pools and connectors of this process that are not closed."""
    fork.notice()
    return tuple(pool for pool in list(_registry.pools.values()) if not pool.closed)


def participants() -> tuple[Participant, ...]:
    """Return the participants of this process, one for each deployment."""
    fork.notice()
    return tuple(_registry.participants.copy().values())


def pools_of(directory: Path, bg_id: str) -> tuple[ConnectionSource[Any], ...]:
    """Return the pools and connectors of this process that use *bg_id* in *directory*."""
    participant = _registry.participants.get((directory, bg_id))
    return tuple(pool for pool in pools() if pool.participant is participant)


def close_pools(directory: Path, bg_id: str) -> None:
    """Close the pools of this process that use *bg_id* in *directory*, before the deployment is removed."""
    for pool in pools_of(directory, bg_id):
        pool.stop()


def _make(kinds: Mapping[Engine, type[S]], dsn: str, options: Mapping[str, Any], *, takes_part: bool) -> S:
    place, settings, left = parse(dsn, options)
    if place.engine not in kinds:
        raise ConfigurationError(
            f"there is no async pool for {place.engine.value}: postgresql:// is allowed, or get_pool in threads"
        )
    kind = kinds[place.engine]
    for name in left:
        if name not in kind.OPTIONS:
            own = ", ".join(sorted({*kind.OPTIONS, "kwargs"}))
            raise ConfigurationError(
                f"unknown parameter {name!r}: allowed are the bg_ parameters, password, endpoint, monitoring, and the "
                f"{kind.KIND}'s {own}"
            )
        kind.OPTIONS[name](name, left[name])
    if is_monitor() and "timeout" in kind.OPTIONS:
        # A module that queries the database while it loads must not delay the monitor until a switchover is over.
        left = {**left, "timeout": MONITOR_CHECKOUT_S}
    make_resolver(settings.bg_resolver)
    directory = look_in(settings.bg_run_dir)
    config = MonitorConfig.of(place, settings, directory)
    try:
        participant = _participant(settings, directory) if takes_part else _bystander(settings)
        made = kind(place, settings, participant, left)
        made.monitoring = config
        return made
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"the {kind.KIND} refuses its options: {error}") from None


def _participant(settings: Settings, directory: Path) -> Participant:
    key, known = (directory, settings.bg_id), _registry.participants
    kind = NonParticipant if is_monitor() else Disabled if is_disabled() else Participant
    if key not in known:
        starter = Starter(settings.bg_id, lambda: _monitor_configs(known[key]))
        known[key] = kind(settings.bg_id, settings.bg_run_dir, starter.ensure_monitor)
    return known[key]


def _bystander(settings: Settings) -> Participant:
    return NonParticipant(settings.bg_id, settings.bg_run_dir, lambda _files: None)


def _monitor_configs(participant: Participant) -> list[MonitorConfig]:
    """Return the monitor configurations of *participant*'s open pools, in the order in which the pools were made."""
    joined = participant.pools()
    found = [pool.monitoring for pool in list(_registry.pools.values()) if pool in joined]
    return [config for config in found if isinstance(config, MonitorConfig)]


def _frozen(value: object) -> object:
    """Return *value* as a key: equal values have equal keys, unhashable values count by identity."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(name), _frozen(item)) for name, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


@atexit.register
def _close_all() -> None:
    """Close idle connections at exit without waiting: a thread that connects to a silent host ends with the process."""
    for pool in list(_registry.pools.values()):
        # A failure must not keep the other pools open.
        with contextlib.suppress(Exception):
            pool.stop(timeout=0)
