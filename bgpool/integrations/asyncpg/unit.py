"""Units of work on asyncpg connections. The outcome of a COMMIT that was cut is queried as with psycopg."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import asyncpg

from bgpool import errors
from bgpool.failures import sqlstate_of
from bgpool.integrations.asyncpg.connection import AsyncpgAware
from bgpool.integrations.asyncpg.errors import like, was_connecting
from bgpool.pools.postgres.outcome import Trace, outcome_by
from bgpool.pools.postgres.unit import CUT, PostgresUnit
from bgpool.pools.units import CLOSED_BY_FUNCTION, Outcome

if TYPE_CHECKING:
    from bgpool.integrations.asyncpg.pool import Pool

__all__ = ["AsyncpgUnit", "PoolLender", "apply_unit"]

R = TypeVar("R")

#: read_only_sql_transaction
_READ_ONLY: Final = "25006"
_FAILED: Final = "a statement failed and the function went on: the unit was rolled back"


class AsyncpgUnit(PostgresUnit[Any, R]):
    """One unit of work on an asyncpg pool. Its connections are AsyncpgAware."""

    # asyncpg's errors have no common base class.
    driver_error: ClassVar[type[Exception]] = Exception
    # True if the transaction has failed in one of the unit's own statements.
    _is_failed: bool = False

    def _reset(self) -> None:
        super()._reset()
        self._is_failed = False

    def is_autocommit(self, connection: Any) -> bool:  # noqa:ARG002  # others look
        """See Unit: asyncpg begins no transaction by itself."""
        return True

    def note_begun(self, connection: Any) -> None:
        """See Unit."""
        aware: AsyncpgAware = connection
        aware.bgpool_in_unit, aware.bgpool_refused, aware.bgpool_ended = True, None, False
        aware.bgpool_met_error, aware.bgpool_began_read_only = False, bool(aware.bgpool_reports_read_only())
        self._was_open = aware.is_in_transaction()

    async def afinish(self, connection: Any, result: R) -> None:
        """See Unit. The COMMIT of a failed transaction would roll it back without an error."""
        aware: AsyncpgAware = connection
        if aware.bgpool_met_error and aware.is_in_transaction():
            try:
                await aware.execute("SELECT")
            except asyncpg.InFailedSQLTransactionError:
                failed = asyncpg.InFailedSQLTransactionError(_FAILED)
                if not aware.bgpool_refused:
                    raise failed from None
                text = self._gate.describe("no longer takes writes; run the transaction again")
                refusal = asyncpg.ReadOnlySQLTransactionError(_FAILED)
                raise self.like(refusal, errors.SwitchoverInterrupted, text) from failed
        await super().afinish(connection, result)

    async def afail(self, connection: Any, error: BaseException, *, held: bool = True) -> None:
        """See Unit. A cursor of a lost connection only reports that it is closed."""
        await super().afail(connection, error, held=held)
        if isinstance(error, asyncpg.InterfaceError) or isinstance(error.__cause__, asyncpg.InterfaceError):
            try:
                self.check_lost(connection)
            except errors.Error as lost:
                raise lost from error

    async def asaved(self, connection: Any, query: str) -> tuple[Any, ...]:
        """See PostgresUnit; takes three round trips, or four if the statement is the unit's own."""
        aware: AsyncpgAware = connection
        await aware.execute("SAVEPOINT bgpool_unit")
        # A COMMIT would be answered without an error, although the server rolled back.
        self._is_failed = True
        try:
            row = await self._row(aware, query)
        except Exception:
            # Also for a TimeoutError of the connection's command_timeout, which is not an error of PostgreSQL.
            if aware.bgpool_is_open:
                await aware.execute("ROLLBACK TO SAVEPOINT bgpool_unit")
                self._is_failed = False
            raise
        await aware.execute("RELEASE SAVEPOINT bgpool_unit")
        self._is_failed = False
        return tuple(row) if row is not None else ()

    async def _row(self, aware: AsyncpgAware, query: str) -> Any:
        if not self._id or f"'{self._id}'" not in query:
            return await aware.fetchrow(query)
        # Unnamed and not cached: it would displace a statement that is used again.
        statement = await aware.prepare(query, name="")
        return await statement.fetchrow()

    async def asay(self, connection: Any, query: str) -> None:
        """See PostgresUnit."""
        aware: AsyncpgAware = connection
        await aware.execute(query)

    def address_of(self, connection: Any) -> str:
        """See PostgresUnit."""
        aware: AsyncpgAware = connection
        return aware.bgpool_address

    def is_in_transaction(self, connection: Any) -> bool:
        """See PostgresUnit."""
        aware: AsyncpgAware = connection
        return aware.bgpool_generation is not None and aware.is_in_transaction()

    def reads_only(self, connection: Any) -> bool:
        """See Unit."""
        aware: AsyncpgAware = connection
        return bool(aware.bgpool_is_standby() if self._is_given else aware.bgpool_reports_read_only())

    def is_lost(self, connection: Any) -> bool:
        """See Unit."""
        aware: AsyncpgAware = connection
        return self._is_failed or not aware.bgpool_is_open

    def is_wait(self, error: Exception) -> bool:
        """See Unit."""
        return isinstance(error, asyncio.TimeoutError) or super().is_wait(error)

    def was_cut(self, error: Exception) -> bool:
        """See Unit."""
        if isinstance(error, errors.Error):
            return isinstance(error, errors.CommitOutcomeUnknown)
        # An open connection raises no OSError: it is the function's, like a TimeoutError.
        return sqlstate_of(error) in CUT or was_connecting(error)

    def was_refused(self, error: Exception) -> bool:
        """See Unit."""
        # SQLAlchemy's adapter passes on only the code of errors.
        return sqlstate_of(error) == _READ_ONLY

    def like(self, error: Exception, kind: Callable[..., Exception], text: str) -> Exception:
        """See Unit."""
        return like(error, kind, text)

    async def _ask(self, trace: Trace) -> tuple[Outcome, str]:
        lender: Any = self._lender
        proxy = await lender.getconn(self.left_s())
        try:

            async def ask(query: str, *params: object) -> tuple[Any, ...]:
                return tuple(await proxy.fetchrow(query.format(*[f"${n + 1}" for n in range(len(params))]), *params))

            address = proxy.bgpool_address
            return await outcome_by(trace, address, ask, promoted=self._promotes), address
        except asyncpg.PostgresError as error:
            if self.was_cut(error) or isinstance(error, errors.Error):
                raise
            # It was refused, and would be refused again.
            return Outcome.UNKNOWN, proxy.bgpool_address
        finally:
            await lender.putconn(proxy)

    def check(self, connection: Any) -> None:
        """See Unit."""
        aware: AsyncpgAware = connection
        self.check_lost(aware)
        if aware.is_closed():
            raise asyncpg.InterfaceError(CLOSED_BY_FUNCTION)
        if not aware.is_in_transaction() and (self._was_open or self._ended or aware.bgpool_ended):
            raise asyncpg.InterfaceError(
                "the function ended the transaction that it was called in; a unit of work is committed by its runner"
            )

    def check_lost(self, connection: Any) -> None:
        """See Unit."""
        aware: AsyncpgAware = connection
        lost = asyncpg.ConnectionDoesNotExistError("connection was closed")
        if aware.bgpool_in_doubt:
            raise self.like(lost, errors.CommitOutcomeUnknown, self._gate.describe(aware.bgpool_in_doubt))
        if aware.bgpool_in_doubt is not None or aware.bgpool_is_lost:
            text = "cut the transaction, and the function went on; it did not commit, run it again"
            raise self.like(lost, errors.SwitchoverInterrupted, self._gate.describe(text))


class PoolLender:
    """An asyncpg pool as a unit's Lender."""

    def __init__(self, pool: Pool) -> None:
        self._pool: Final = pool

    async def getconn(self, timeout: float | None = None) -> Any:
        """See Lender."""
        return await self._pool.acquire(timeout=timeout)

    async def putconn(self, conn: Any) -> None:
        """See Lender."""
        await self._pool.release(conn)


async def apply_unit(unit: AsyncpgUnit[R], pool: Pool, fn: Callable[[Any], Awaitable[R]]) -> R:
    """Make one attempt of *unit*: await *fn* in a transaction on a connection of *pool*, and commit it."""
    proxy = await pool.acquire(timeout=unit.left_s())
    raw: AsyncpgAware = proxy._con
    try:
        transaction = proxy.transaction()
        # Not start(): if that is cancelled, asyncpg logs an ERROR when the connection is released.
        await transaction.__aenter__()
        try:
            await unit.abegin(raw)
            try:
                result = await fn(proxy)
            finally:
                unit.leave(raw)
            await unit.afinish(raw, result)
            await transaction.__aexit__(None, None, None)
        except BaseException as error:
            if raw.is_in_transaction():
                with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await transaction.__aexit__(type(error), error, error.__traceback__)
            await unit.afail(raw, error)
            raise
        await unit.ahousekeep(raw)
        return result
    finally:
        await pool.release(proxy)
