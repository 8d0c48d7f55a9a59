"""Units of work on PostgreSQL: if COMMIT was cut and no receipt decides, the new primary and old blue are queried."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, TypeVar, cast

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from bgpool.core.endpoints import names_when_old
from bgpool.core.limits import (
    OLD_BLUE_S,
    RECEIPTS_DELETED_AT_ONCE,
    RECEIPTS_LOCK_MS,
    RECEIPTS_STATEMENT_MS,
    UNIT_PAUSE_MAX_S,
    UNIT_PAUSE_S,
)
from bgpool.core.routing import Action, Decision
from bgpool.errors import CommitOutcomeUnknown, Error, GreenHostRejected, PoolClosed, SwitchoverInterrupted
from bgpool.failures import sqlstate_of
from bgpool.pools.detached import within
from bgpool.pools.postgres import receipts
from bgpool.pools.postgres.connection import SwitchoverAware
from bgpool.pools.postgres.outcome import (
    NOTHING_WRITTEN,
    TRACE,
    TRACE_LINEAGE,
    AnyConnection,
    Trace,
    outcome_of,
    row_of,
    saved,
)
from bgpool.pools.postgres.recipe import like
from bgpool.pools.postgres.refusal import reports_read_only
from bgpool.pools.receipts import KeyTaken
from bgpool.pools.recipe import Recipe
from bgpool.pools.units import CLOSED_BY_FUNCTION, Outcome, Unit
from bgpool.pools.waits import BLOCKING, Waits, finish, settled

__all__ = ["CUT", "PostgresUnit", "until_told"]

C = TypeVar("C", bound=AnyConnection)
R = TypeVar("R")

#: SQLSTATEs with which a server ends a connection, or reports that it was ended.
CUT: Final = frozenset({"57P01", "57P02", "57P03", "08000", "08003", "08006"})
#: SQLSTATEs of a statement that has waited too long, or conflicted with another transaction: a lock, a time limit of
#: the user, a row that another transaction has just committed, a deadlock.
_WAITS: Final = frozenset({"55P03", "57014", "40001", "40P01"})
#: Classes of SQLSTATEs for a statement that does not fit the table: its columns, values, constraints, triggers, rights.
_OF_TABLE: Final = ("0A", "22", "23", "38", "39", "3F", "42", "44", "P0")
#: Classes of SQLSTATEs for problems that another try may not meet: no resources, a lock, an operator or a time limit.
_MAY_PASS: Final = ("53", "55", "57")
_IDLE: Final = TransactionStatus.IDLE
_INTRANS: Final = TransactionStatus.INTRANS
#: The largest lock_timeout, in ms.
_LONGEST_MS: Final = 2**31 - 1


class PostgresUnit(Unit[C, R]):
    """One unit of work on a PostgreSQL pool, for threads or tasks."""

    driver_error: ClassVar[type[Exception]] = psycopg.Error
    _trace: Trace | None = None
    # True if green was a physical replica when the trace was taken, or the receipt inserted.
    _promotes: bool = False
    # The address of the server whose receipts table contains the unit's receipt.
    _receipt_address: str = ""
    # True if the transaction was open when the function was called; otherwise its first statement opens it.
    _was_open: bool = True

    def _reset(self) -> None:
        super()._reset()
        if self._cut is None:
            self._trace = None

    def is_autocommit(self, connection: C) -> bool:
        """See Unit."""
        return connection.autocommit

    def note_begun(self, connection: C) -> None:
        """See Unit."""
        super().note_begun(connection)
        self._was_open = connection.pgconn.transaction_status != _IDLE
        cast(SwitchoverAware, connection).bgpool_began_read_only = bool(reports_read_only(connection))

    # -- one attempt ---------------------------------------------------------------------------------------------

    # A block of psycopg's would work, but costs more than all the rest of a unit. Until the end, psycopg treats this
    # like one: commit() is refused in it, and inner blocks are savepoints.

    def begin_block(self, connection: C) -> Any:
        """See Unit."""
        aware: Any = connection
        return aware.wait(aware.bgpool_begin_gen())

    def commit_block(self, connection: C) -> Any:
        """See Unit."""
        connection._num_transactions -= 1
        if connection._num_transactions:
            raise psycopg.transaction.OutOfOrderTransactionNesting(
                f"transaction commit at the wrong nesting level: a block in the function was not left on {connection}"
            )
        committing: Any = connection
        return committing.commit()

    async def aabandon(self, connection: C, error: BaseException) -> None:
        """See Unit; like psycopg's block, it ignores errors of the rollback."""
        if not self._is_finished and connection._num_transactions:
            block: Any = (psycopg.AsyncTransaction if self._waits.awaits else psycopg.Transaction)(
                cast(Any, connection)
            )
            block._outer_transaction, block._stack_index = True, 0
            leave = block.__aexit__ if self._waits.awaits else block.__exit__
            await settled(leave(type(error), error, error.__traceback__))
        await self.afail(connection, error)

    # -- statements of an attempt --------------------------------------------------------------------------------

    async def asaved(self, connection: C, query: str) -> tuple[Any, ...]:
        """Return the first row of *query*, in a savepoint.

        Raises:
            Exception: The driver's; the transaction is as it was before, unless the connection is lost.
        """
        return await saved(connection, query)

    async def asay(self, connection: C, query: str) -> None:
        """Send *query*, which may be several statements, in the current transaction.

        Raises:
            Exception: The driver's.
        """
        await row_of(connection, query)

    async def adelete_old(self, connection: C) -> int:
        """See Unit; the lock that excludes other processes ends with the transaction."""
        kept = self._receipts
        assert kept is not None
        block: Any = connection.transaction()
        async with _Awaited(block) if isinstance(block, AbstractContextManager) else block:
            limits = {"lock_ms": RECEIPTS_LOCK_MS, "statement_ms": RECEIPTS_STATEMENT_MS}
            await self.asay(connection, receipts.DELETING.format(**limits))
            row = await self.asaved(connection, receipts.CAN_DELETE.format(table=self._table))
            is_read_only, *_, is_alone = row
            if is_read_only or not await self.acan_use(connection) or not is_alone:
                return 0
            if why := receipts.no_deletion(row):
                kept.keep_old(why)
                return 0
            most = RECEIPTS_DELETED_AT_ONCE
            query = receipts.DELETE.format(table=self._table, retention_s=kept.retention_s, most=most)
            return int((await self.asaved(connection, query))[0])

    def address_of(self, connection: C) -> str:
        """Return the IP address of the server of *connection*."""
        return connection.info.hostaddr

    def is_in_transaction(self, connection: C) -> bool:
        """Return whether a transaction is open that can continue."""
        return connection.pgconn.transaction_status == TransactionStatus.INTRANS

    def is_lost(self, connection: C) -> bool:
        """See Unit."""
        usable = (TransactionStatus.IDLE, TransactionStatus.INTRANS)
        return connection.pgconn.transaction_status not in usable

    def is_wait(self, error: Exception) -> bool:
        """See Unit."""
        return sqlstate_of(error) in _WAITS

    def is_tables(self, error: Exception) -> bool:
        """See Unit."""
        return sqlstate_of(error).startswith(_OF_TABLE)

    async def alook(self, connection: C) -> str:
        """See Unit."""
        row = await self.asaved(connection, receipts.LOOK.format(table=self._table))
        why = receipts.misfit(row)
        if not why and self._receipts is not None:
            self._receipts.found_in(row[-1])
        return why

    async def ainsert(self, connection: C) -> bool:
        """See Unit."""
        wait_ms = max(1, min(int(self.left_s() * 1000), _LONGEST_MS))
        claim = receipts.CLAIM.format(table=self._table, id=self._id, unit=self._writer(), wait_ms=wait_ms)
        return bool((await self.asaved(connection, claim))[0])

    async def awriter(self, connection: C) -> str:
        """See Unit."""
        row = await self.asaved(connection, receipts.WRITER.format(table=self._table, id=self._id))
        return str(row[0]) if row else ""

    def note_receipt(self, connection: C) -> None:
        """See Unit."""
        super().note_receipt(connection)
        self._receipt_address = self.address_of(connection)
        self._promotes = self._gate.green_was_replica()

    def reads_only(self, connection: C) -> bool:
        """See Unit; PostgreSQL reports it from 14 on."""
        if self._is_given:
            return connection.pgconn.parameter_status(b"in_hot_standby") == b"on"
        return bool(connection.read_only or reports_read_only(connection))

    def decides(self, connection: C) -> bool:
        """See Unit: a logical replica has only the rows of the tables that it must replicate."""
        return self._reaches() or self.address_of(connection) == self._receipt_address

    def _reaches(self) -> bool:
        """Return whether the receipt reaches the next primary; without a deployment that is a physical standby."""
        return not self._takes_part or self._promotes or (self._receipts is not None and self._receipts.reach_green)

    async def awrite_receipt(self, connection: C) -> None:
        """See Unit."""
        # A trace identifies one transaction. Without a deployment there is no switchover, and no snapshot to check.
        traces = not self._ended and self.is_switching()
        leaves = self.leaves_receipt() and not self.reads_only(connection)
        if not (traces or leaves) or not self.is_in_transaction(connection):
            return
        if leaves and await self.acan_use(connection):
            await self._aleave(connection)
        if traces and self._trace is None and not (self._has_receipt and self._reaches()):
            await self._atrace(connection)

    async def _aleave(self, connection: C) -> None:
        """Insert the receipt, if the transaction has written data."""
        self.name_receipt()
        try:
            leave = receipts.LEAVE.format(table=self._table, id=self._id, unit=self._writer())
            rows = await self.asaved(connection, leave)
            writer = await self.awriter(connection) if not rows and (self._is_given or self._cuts) else ""
        except self.driver_error as error:
            if self.is_wait(error) and (self._is_given or self._cuts):
                # It met a row that its snapshot does not contain, which may be another run's.
                raise
            self._go_on_without(connection, error)
            if self.is_tables(error):
                self.refuse_table(connection, error)
            return
        if writer:
            raise KeyTaken(writer)
        if rows:
            self.note_receipt(connection)
        else:
            self._trace = NOTHING_WRITTEN

    async def _atrace(self, connection: C) -> None:
        """Take the transaction's trace; the lineage of its server is queried once in an epoch."""
        generation = cast(SwitchoverAware, connection).bgpool_generation
        if generation.lineage == "":
            return
        try:
            xid, lsn, taken_at, lineage = await self.asaved(connection, TRACE if generation.lineage else TRACE_LINEAGE)
        except self.driver_error as error:
            self._go_on_without(connection, error)
            if not sqlstate_of(error).startswith(_MAY_PASS):
                # It does not exist, or the role may not read it. No later unit of the epoch queries it again, because
                # each would leave an error in the server's log. A timeout, in contrast, may be temporary.
                generation.lineage = ""
            return
        generation.lineage = generation.lineage or lineage
        self._trace = Trace(xid, lsn or "0/0", taken_at, self.address_of(connection), generation.lineage or "")
        self._promotes = self._gate.green_was_replica()

    def _go_on_without(self, connection: C, error: Exception) -> None:
        """Raise *error* if the transaction cannot continue after it. Traces and receipts help, but are not required."""
        # A refused write is not the unit's own: a read-only transaction has no id or log position.
        if self.is_lost(connection) or (isinstance(error, Error) and not self.was_refused(error)):
            raise error
        self._gate.tally.absorb(error)

    def forget(self) -> None:
        """See Unit."""
        self._trace = None

    @property
    def _table(self) -> str:
        assert self._receipts is not None
        return receipts.quoted(self._receipts.table)

    # -- the meaning of its errors -------------------------------------------------------------------------------

    def was_cut(self, error: Exception) -> bool:
        """See Unit."""
        if not isinstance(error, psycopg.Error):
            return False
        if isinstance(error, CommitOutcomeUnknown) or error.sqlstate in CUT:
            return True
        return error.sqlstate is None and error.__class__ is psycopg.OperationalError

    def was_refused(self, error: Exception) -> bool:
        """See Unit."""
        return isinstance(error, psycopg.Error) and error.sqlstate == psycopg.errors.ReadOnlySqlTransaction.sqlstate

    def like(self, error: Exception, kind: Callable[..., Exception], text: str) -> Exception:
        """See Unit."""
        return like(error, kind, text)

    # -- the outcome of its COMMIT -------------------------------------------------------------------------------

    async def afind_out(self) -> Outcome:
        """See Unit; the current primary reports the outcome, or old blue does."""
        trace = self._trace
        if trace is None or trace.xid is None:
            # Nothing was written, so a unit that was not applied can be repeated.
            return Outcome.UNKNOWN if trace is None else Outcome.NOT_COMMITTED
        pause_s = UNIT_PAUSE_S
        while self.left_s() > 0:
            try:
                outcome, address = await self._ask(trace)
            except (PoolClosed, GreenHostRejected) as error:
                self._gate.tally.absorb(error)
                return Outcome.UNKNOWN
            except psycopg.OperationalError as error:
                # The connection was cut again, or the server cannot be reached yet.
                self._gate.tally.absorb(error)
                outcome = Outcome.PENDING
            except psycopg.Error:
                # The server refuses it, and would do so every time.
                return Outcome.UNKNOWN
            except Exception:
                # The application's own code for a connection has failed, perhaps for a token. Its error must not hide
                # that the transaction may have been committed.
                outcome = Outcome.PENDING
            else:
                if outcome is Outcome.UNKNOWN and self._takes_part and address != trace.address:
                    # The release has happened, so another server is the primary. Old blue did commit, or did not.
                    return await self.aask_old_blue(trace)
            if outcome is not Outcome.PENDING:
                return outcome
            await self._waits.sleep(pause_s)
            pause_s = min(2 * pause_s, UNIT_PAUSE_MAX_S)
        return Outcome.UNKNOWN

    async def _ask(self, trace: Trace) -> tuple[Outcome, str]:
        """Return the outcome by the primary, and the primary's IP address."""
        connection = await settled(self._lender.getconn(self.left_s()))
        try:
            return await outcome_of(trace, connection, promoted=self._promotes), self.address_of(connection)
        finally:
            try:
                # The pool would do this, too, but with a warning. The answer is valid even if this is cut.
                if not connection.autocommit:
                    with contextlib.suppress(psycopg.Error):
                        await settled(connection.rollback())
            finally:
                await settled(self._lender.putconn(connection))

    async def aask_old_blue(self, trace: Trace) -> Outcome:
        """Return the outcome by old blue, within the unit's time."""
        outcome = await self._waits.call(lambda: ask_old_blue(self._recipe, trace, self.left_s))
        if outcome is not Outcome.UNKNOWN:
            self._gate.tally.count_receipts("old_blue_told")
        return outcome

    def check(self, connection: C) -> None:
        """See Unit."""
        aware: Any = connection
        status = connection.pgconn.transaction_status
        if status == _INTRANS and aware.bgpool_in_doubt is None:
            return
        self.check_lost(connection)
        if connection.pgconn.status != ConnStatus.OK:
            raise psycopg.ProgrammingError(CLOSED_BY_FUNCTION)
        if status == TransactionStatus.INERROR:
            raise _failed()
        if self._was_open or self._ended or aware.bgpool_ended or status != TransactionStatus.IDLE:
            raise psycopg.ProgrammingError(
                "the function ended the transaction that it was called in; a unit of work is committed by its runner"
            )
        # The function has sent nothing.

    def check_lost(self, connection: C) -> None:
        """See Unit."""
        aware: Any = connection
        if aware.bgpool_in_doubt:
            raise CommitOutcomeUnknown(self._gate.describe(aware.bgpool_in_doubt))
        if aware.bgpool_in_doubt is not None or (connection.pgconn.status != ConnStatus.OK and not connection._closed):
            text = "cut the transaction, and the function went on; it did not commit, run it again"
            raise SwitchoverInterrupted(self._gate.describe(text))
        if aware.bgpool_refused and connection.pgconn.transaction_status == TransactionStatus.INERROR:
            text = self._gate.describe("no longer takes writes; run the transaction again")
            raise like(psycopg.errors.ReadOnlySqlTransaction(), SwitchoverInterrupted, text) from _failed()


class _Awaited:
    """A blocking context manager, for ``async with``."""

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


def ask_old_blue(recipe: Recipe, trace: Trace, left_s: Callable[[], float]) -> Outcome:
    """Return the outcome of the transaction of *trace* by old blue, at the trace's address. Blocks.

    Args:
        recipe: The recipe of the endpoint's connections: old blue has the same accounts, under the names of `-old1`.
        trace: The trace of the transaction.
        left_s: Returns the remaining time, in seconds: for a COMMIT that old blue has not completed yet. If old blue
            refuses the login, or does not answer, the limit is OLD_BLUE_S.
    """
    names = names_when_old(recipe.endpoint.name)
    decision = Decision(Action.ROUTE, addresses=(trace.address,), names=names)
    trials = recipe.for_trials()

    async def ask_once() -> Outcome:
        connection: Any = await trials.aconnect(decision, trials.TRIAL)
        try:
            return await outcome_of(trace, connection, promoted=False)
        finally:
            connection.bgpool_discard()

    async def ask(seconds: float) -> Outcome:
        # A stopped server accepts connections and does not answer.
        return within(seconds, lambda: finish(ask_once()))

    return finish(until_told(ask, BLOCKING, left_s))


async def until_told(ask: Callable[[float], Awaitable[Outcome]], waits: Waits, left_s: Callable[[], float]) -> Outcome:
    """Return the result of *ask* about a COMMIT that old blue may not have completed yet.

    A refused login is retried for OLD_BLUE_S at most. *ask* gets the seconds that it may take.
    """
    deadline_ns, pause_s = waits.now_ns() + int(OLD_BLUE_S * 1e9), UNIT_PAUSE_S
    while (seconds := min(left_s(), (deadline_ns - waits.now_ns()) / 1e9)) > 0:
        try:
            outcome = await ask(seconds)
        except psycopg.OperationalError:
            # Old blue refuses the login at this time.
            pass
        except Exception:
            # The server refuses it, and would do so every time; or it did not answer.
            return Outcome.UNKNOWN
        else:
            if outcome is not Outcome.PENDING or left_s() <= 0:
                return outcome
            deadline_ns = waits.now_ns() + int(OLD_BLUE_S * 1e9)
        await waits.sleep(min(pause_s, max(0.001, left_s())))
        pause_s = min(2 * pause_s, UNIT_PAUSE_MAX_S)
    return Outcome.UNKNOWN
