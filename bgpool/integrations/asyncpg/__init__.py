"""asyncpg through Blue/Green switchovers: its own pool and connections, opened and ended as bgpool's are.

``create_pool`` and ``connect`` take asyncpg's arguments and bgpool's parameters. Source: docs/asyncpg.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from bgpool.errors import ConfigurationError
from bgpool.pools.options import check_unit
from bgpool.pools.receipts import AlreadyApplied
from bgpool.pools.units import Unit, awaitable

try:
    from asyncpg import __version__ as _version
except ImportError as error:
    raise ImportError(
        "bgpool.integrations.asyncpg needs asyncpg 0.30 to 0.32: pip install 'bgpool[asyncpg]'"
    ) from error

if tuple(map(int, _version.split(".")[:2])) < (0, 30):
    raise ImportError(f"bgpool.integrations.asyncpg needs asyncpg 0.30 to 0.32, and this is {_version}")

# Behind the check, for they need asyncpg.
from bgpool.integrations.asyncpg.connector import CONNECTION, POOL, get_connector
from bgpool.integrations.asyncpg.errors import (
    CommitOutcomeUnknown,
    GreenHostRejected,
    InheritedConnection,
    PasswordFailed,
    PoolClosed,
    SwitchoverHoldTimeout,
    SwitchoverInterrupted,
)
from bgpool.integrations.asyncpg.pool import Pool
from bgpool.integrations.asyncpg.unit import PoolLender, apply_unit

__all__ = [
    "CommitOutcomeUnknown",
    "GreenHostRejected",
    "InheritedConnection",
    "PasswordFailed",
    "Pool",
    "PoolClosed",
    "SwitchoverHoldTimeout",
    "SwitchoverInterrupted",
    "connect",
    "create_pool",
    "run",
]

R = TypeVar("R")


def create_pool(dsn: str | None = None, *, bg_id: str | int | None = None, **options: Any) -> Pool:
    """As asyncpg.create_pool, for a database with a Blue/Green Deployment; to be awaited, or for ``async with``.

    Args:
        dsn: A ``postgresql://`` URL as libpq reads it, with ``bg_`` parameters in its query if you like.
        bg_id: As for bgpool.get_pool.
        options: Every option of asyncpg.create_pool but *connect*, and the parameters of bgpool.get_pool: ``bg_…``,
            ``endpoint``, ``monitoring``, and ``password``, a string or a callable ``(host, port, user) -> str``.

    Raises:
        ConfigurationError: A parameter that is not known or out of its domain, or a DSN that cannot be used.
    """
    connector, rest = get_connector(dsn, bg_id, options)
    # With asyncpg's own defaults, which its class does not have.
    return Pool(connector, rest.pop("init", None), **{**POOL, **rest})


async def connect(dsn: str | None = None, *, bg_id: str | int | None = None, **options: Any) -> Any:
    """As asyncpg.connect; also for ``asyncpg.create_pool(connect=functools.partial(connect, bg_id=…))``.

    Args:
        dsn, bg_id: As for create_pool.
        options: Every option of asyncpg.connect, and bgpool's, as for create_pool.

    Returns:
        The connection; a switchover ends it after bg_drain_timeout_ms.

    Raises:
        ConfigurationError: As create_pool.
        SwitchoverHoldTimeout: A switchover has held it for as long as it may be.
        GreenHostRejected: The endpoint is green and the switchover is over.
    """
    connector, rest = get_connector(dsn, bg_id, options)
    for name in rest:
        if name not in CONNECTION:
            raise ConfigurationError(f"{name} is an option of a pool: create_pool takes it")
    return await connector.aconnect(**rest)


@overload
async def run(
    pool: Pool,
    fn: Callable[..., Awaitable[R]],
    *args: object,
    timeout: float | None = ...,
    idempotent: bool = ...,
) -> R: ...


@overload
async def run(
    pool: Pool,
    fn: Callable[..., Awaitable[R]],
    *args: object,
    timeout: float | None = ...,
    idempotent: bool = ...,
    receipt_id: str | None,
) -> R | AlreadyApplied: ...


async def run(
    pool: Pool,
    fn: Callable[..., Awaitable[R]],
    *args: object,
    timeout: float | None = None,
    idempotent: bool = False,
    receipt_id: str | None = None,
) -> R | AlreadyApplied:
    """Await ``fn(connection, *args)`` in a transaction and commit it; again, when a switchover cut it before that.

    *fn* may be called several times, of which one is applied: what it does beside its transaction it does several
    times. It must not end the transaction. A unit whose task is cancelled is not run again; cancelled during COMMIT, it
    may have been applied.

    Args:
        pool: Of create_pool.
        fn: What is to be done in one transaction, a coroutine function.
        args: Its arguments after the connection.
        timeout: Longest time until the last call begins, in seconds; None for the longest hold and as much again.
        idempotent: *fn* may be applied twice. Then it is called again also where nobody can tell whether it was.
        receipt_id: The unit's id, 1 to 200 letters, digits and ``._:@/+=~#-``: it is applied once, however often and in
            how many processes it is run with this id. Needs bg_receipts_table. None for an id of its own.

    Returns:
        What *fn* returned; AlreadyApplied(receipt_id) if an earlier run with the same *receipt_id* was applied.

    Raises:
        CommitOutcomeUnknown: COMMIT was cut, and nobody can tell what became of it.
        SwitchoverInterrupted: Cut again and again, until the time was used up.
        TypeError: *fn* returned nothing that can be awaited.
        ConfigurationError: *pool* is not of create_pool, *fn* cannot be called, *timeout* is no number of seconds, or
            *receipt_id* is no id or has no table.
        Exception: Whatever *fn* or acquiring a connection raised; the transaction was rolled back.
    """
    if not isinstance(pool, Pool):
        raise ConfigurationError(f"run: a pool of bgpool's create_pool is allowed, and not {type(pool).__name__}")
    check_unit("run", fn, timeout)

    async def call(connection: Any) -> R:
        result: R = await awaitable(fn, fn(connection, *args))
        return result

    async def attempt(unit: Any) -> R:
        return await apply_unit(unit, pool, call)

    timeout_s = 2 * pool.connector.hold_s if timeout is None else timeout
    unit: Unit[Any, R] = pool.connector.amake_unit(
        attempt, PoolLender(pool), timeout_s=timeout_s, idempotent=idempotent, receipt_id=receipt_id
    )
    return await unit.arun()
