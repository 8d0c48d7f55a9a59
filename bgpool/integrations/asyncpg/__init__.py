"""asyncpg through Blue/Green switchovers: its own pool and connections, opened and closed like bgpool's.

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

# Imported after the check, because they need asyncpg.
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
    """Like asyncpg.create_pool, for a database with a Blue/Green Deployment. Await it, or use ``async with``.

    Args:
        dsn: A ``postgresql://`` URL as libpq reads it. Its query may contain ``bg_`` parameters.
        bg_id: See bgpool.get_pool.
        options: Every option of asyncpg.create_pool except *connect*, and the parameters of bgpool.get_pool: ``bg_…``,
            ``endpoint``, ``monitoring``, and ``password``, a string or a callable ``(host, port, user) -> str``.

    Raises:
        ConfigurationError: A parameter is unknown or out of range, or the DSN cannot be used.
    """
    connector, rest = get_connector(dsn, bg_id, options)
    # With asyncpg's own defaults, which its class does not have.
    return Pool(connector, rest.pop("init", None), **{**POOL, **rest})


async def connect(dsn: str | None = None, *, bg_id: str | int | None = None, **options: Any) -> Any:
    """Like asyncpg.connect; also for ``asyncpg.create_pool(connect=functools.partial(connect, bg_id=…))``.

    Args:
        dsn, bg_id: See create_pool.
        options: Every option of asyncpg.connect, and bgpool's, as for create_pool.

    Returns:
        The connection; a switchover closes it after bg_drain_timeout_ms.

    Raises:
        ConfigurationError: See create_pool.
        SwitchoverHoldTimeout: A switchover held the caller for the maximum time.
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
    """Await ``fn(connection, *args)`` in a transaction and commit it; repeat it if a switchover cut it before that.

    *fn* may be called several times, but only one call is applied. Its effects outside its transaction happen once per
    call. It must not end the transaction. A unit whose task is cancelled is not run again; if it is cancelled during
    COMMIT, it may have been applied.

    Args:
        pool: A pool of create_pool.
        fn: A coroutine function with the work of one transaction.
        args: Its arguments after the connection.
        timeout: Longest time until the last call begins, in seconds; None for twice the longest hold.
        idempotent: *fn* may be applied twice. It is then also called again if the outcome of its COMMIT is unknown.
        receipt_id: The unit's id, 1 to 200 letters, digits and ``._:@/+=~#-``: the unit is applied once, however often
            and in however many processes it is run with this id. Needs bg_receipts_table. None for a generated id.

    Returns:
        The result of *fn*; AlreadyApplied(receipt_id) if an earlier run with the same *receipt_id* was applied.

    Raises:
        CommitOutcomeUnknown: COMMIT was cut, and its outcome cannot be determined.
        SwitchoverInterrupted: The unit was cut repeatedly until its time was used up.
        TypeError: The result of *fn* cannot be awaited.
        ConfigurationError: *pool* is not of create_pool, *fn* cannot be called, *timeout* is not a number of seconds,
            or *receipt_id* is not a valid id or has no table.
        Exception: Any error of *fn* or of acquiring a connection; the transaction was rolled back.
    """
    if not isinstance(pool, Pool):
        raise ConfigurationError(f"run: pool must be made by bgpool's create_pool, got {type(pool).__name__}")
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
