"""Units of work on PostgreSQL: where a COMMIT was cut, the new primary is asked what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, ClassVar, Final, TypeVar, cast

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from bgpool.core.limits import UNIT_PAUSE_MAX_S, UNIT_PAUSE_S
from bgpool.errors import CommitOutcomeUnknown, Error, GreenHostRejected, PoolClosed, SwitchoverInterrupted
from bgpool.pools.postgres.connection import SwitchoverAware
from bgpool.pools.postgres.outcome import AnyConnection, Receipt, outcome_of, take_receipt
from bgpool.pools.postgres.recipe import like
from bgpool.pools.postgres.refusal import reports_read_only
from bgpool.pools.units import CLOSED_BY_FUNCTION, Outcome, Unit
from bgpool.pools.waits import settled

__all__ = ["CUT", "PostgresUnit", "apply_unit"]

C = TypeVar("C", bound=AnyConnection)
R = TypeVar("R")

#: SQLSTATEs with which a server ends a connection, or says that it was ended.
CUT: Final = frozenset({"57P01", "57P02", "57P03", "08000", "08003", "08006"})


class PostgresUnit(Unit[C, R]):
    """One unit of work on a PostgreSQL pool, of threads or of tasks."""

    driver_error: ClassVar[type[Exception]] = psycopg.Error
    _receipt: Receipt | None = None
    # Whether green was a physical replica when the receipt was taken.
    _promotes: bool = False
    # Whether the transaction was open when the function was called; else its first statement opens it.
    _was_open: bool = True

    def _reset(self) -> None:
        super()._reset()
        self._receipt = None

    def is_autocommit(self, connection: C) -> bool:
        """As Unit says."""
        return connection.autocommit

    def begin(self, connection: C) -> None:
        """As Unit says."""
        super().begin(connection)
        self._was_open = connection.pgconn.transaction_status != TransactionStatus.IDLE
        cast(SwitchoverAware, connection).bgpool_began_read_only = bool(reports_read_only(connection))

    async def atake_receipt(self, connection: C) -> None:
        """As Unit says; during a switchover."""
        # A receipt tells of one transaction. Without a deployment there is no switchover, and nothing to look at.
        if not self._takes_part or self._ended or not self._gate.switching():
            return
        if connection.pgconn.transaction_status == TransactionStatus.INTRANS:
            self._receipt = await _receipt(connection)
            self._promotes = self._gate.green_was_replica()

    def was_cut(self, error: Exception) -> bool:
        """As Unit says."""
        if not isinstance(error, psycopg.Error):
            return False
        if isinstance(error, CommitOutcomeUnknown) or error.sqlstate in CUT:
            return True
        return error.sqlstate is None and error.__class__ is psycopg.OperationalError

    def was_refused(self, error: Exception) -> bool:
        """As Unit says."""
        return isinstance(error, psycopg.Error) and error.sqlstate == psycopg.errors.ReadOnlySqlTransaction.sqlstate

    def like(self, error: Exception, kind: Callable[..., Exception], text: str) -> Exception:
        """As Unit says."""
        return like(error, kind, text)

    async def afind_out(self) -> Outcome:
        """As Unit says; the server that is the primary now tells."""
        receipt = self._receipt
        if receipt is None or receipt.xid is None:
            # Nothing was written: what was not applied can be run again.
            return Outcome.UNKNOWN if receipt is None else Outcome.NOT_COMMITTED
        pause_s = UNIT_PAUSE_S
        while self.left_s() > 0:
            try:
                outcome = await self._ask(receipt)
            except (PoolClosed, GreenHostRejected) as error:
                self._gate.tally.absorb(error)
                return Outcome.UNKNOWN
            except psycopg.OperationalError as error:
                # Cut again, or not to be reached yet.
                self._gate.tally.absorb(error)
                outcome = Outcome.PENDING
            except psycopg.Error:
                # Refused, and it would be every time.
                return Outcome.UNKNOWN
            except Exception:
                # What the application does for a connection has failed, for a token perhaps, and must not hide that
                # the transaction may have been committed.
                outcome = Outcome.PENDING
            if outcome is not Outcome.PENDING:
                return outcome
            await self._waits.sleep(pause_s)
            pause_s = min(2 * pause_s, UNIT_PAUSE_MAX_S)
        return Outcome.UNKNOWN

    async def _ask(self, receipt: Receipt) -> Outcome:
        connection = await settled(self._lender.getconn(self.left_s()))
        try:
            return await outcome_of(receipt, connection, promoted=self._promotes)
        finally:
            try:
                # The pool would do it, and complain. What was answered stands, also where this is cut.
                if not connection.autocommit:
                    with contextlib.suppress(psycopg.Error):
                        await settled(connection.rollback())
            finally:
                await settled(self._lender.putconn(connection))

    def check(self, connection: C) -> None:
        """As Unit says."""
        aware: Any = connection
        self.check_lost(connection)
        if connection.pgconn.status != ConnStatus.OK:
            raise psycopg.ProgrammingError(CLOSED_BY_FUNCTION)
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.INTRANS:
            return
        if status == TransactionStatus.INERROR:
            raise _failed()
        if self._was_open or self._ended or aware.bgpool_ended or status != TransactionStatus.IDLE:
            raise psycopg.ProgrammingError(
                "the function ended the transaction that it was called in; a unit of work is committed by its runner"
            )
        # The function has sent nothing.

    def check_lost(self, connection: C) -> None:
        """As Unit says."""
        aware: Any = connection
        if aware.bgpool_in_doubt:
            raise CommitOutcomeUnknown(self._gate.describe(aware.bgpool_in_doubt))
        if aware.bgpool_in_doubt is not None or (connection.pgconn.status != ConnStatus.OK and not connection._closed):
            text = "cut the transaction, and the function went on; it did not commit, run it again"
            raise SwitchoverInterrupted(self._gate.describe(text))
        if aware.bgpool_refused and connection.pgconn.transaction_status == TransactionStatus.INERROR:
            text = self._gate.describe("takes no writes any more; run the transaction again")
            raise like(psycopg.errors.ReadOnlySqlTransaction(), SwitchoverInterrupted, text) from _failed()


async def apply_unit(
    unit: Unit[C, R],
    connection: C,
    block: AbstractContextManager[object] | AbstractAsyncContextManager[object],
    fn: Callable[[C], Awaitable[R]],
) -> R:
    """Call *fn* in *block*, a transaction of psycopg's on *connection*, and commit it, as one attempt of *unit*."""
    try:
        async with _Awaited(block) if isinstance(block, AbstractContextManager) else block:
            unit.begin(connection)
            try:
                result = await fn(connection)
            finally:
                # Before psycopg's block ends the transaction after an error, which is no doing of the function's.
                unit.leave(connection)
            await unit.afinish(connection, result)
    except BaseException as error:
        await unit.afail(connection, error)
        raise
    return result


class _Awaited:
    """A context manager that blocks, for ``async with``."""

    def __init__(self, block: AbstractContextManager[object]) -> None:
        self._block: Final = block

    async def __aenter__(self) -> object:
        return self._block.__enter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        return self._block.__exit__(*error)


def _failed() -> Exception:
    return psycopg.errors.InFailedSqlTransaction(
        "a statement failed and the function went on: the unit was rolled back"
    )


async def _receipt(connection: AnyConnection) -> Receipt | None:
    """As take_receipt; None where the server gives none. Its lineage is asked for once in an epoch."""
    generation = cast(SwitchoverAware, connection).bgpool_generation
    if generation.lineage == "":
        return None
    try:
        receipt = await take_receipt(connection, generation.lineage)
    except psycopg.Error as error:
        _go_on_without(connection, error)
        return None
    generation.lineage = receipt.lineage
    return receipt


def _go_on_without(connection: AnyConnection, error: psycopg.Error) -> None:
    """Raise *error* if the transaction cannot go on after it: receipts are a help, and no unit may fail for one."""
    status = connection.pgconn.transaction_status
    if isinstance(error, Error) or status not in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
        raise error
    if not isinstance(error, psycopg.OperationalError):
        # Not there, or not for us: none of the epoch's units asks again, or each would leave an error in the server's
        # log. A timeout, in contrast, may pass.
        cast(SwitchoverAware, connection).bgpool_generation.lineage = ""
