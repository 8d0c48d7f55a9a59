"""Units of work on PostgreSQL: where a COMMIT was cut, the new primary is asked what became of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar, cast

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from bgpool.core.limits import UNIT_PAUSE_MAX_S, UNIT_PAUSE_S
from bgpool.errors import CommitOutcomeUnknown, Error, GreenHostRejected, PoolClosed, SwitchoverInterrupted
from bgpool.pools.doubt import DURING_COMMIT, NO_DOUBT
from bgpool.pools.postgres.connection import SwitchoverAware
from bgpool.pools.postgres.outcome import Receipt, lineage_of, outcome_of, take_receipt
from bgpool.pools.postgres.recipe import like
from bgpool.pools.units import CLOSED_BY_FUNCTION, Outcome, Unit

__all__ = ["PostgresUnit"]

R = TypeVar("R")

#: SQLSTATEs with which a server ends a connection, or says that it was ended.
_CUT: Final = frozenset({"57P01", "57P02", "57P03", "08000", "08003", "08006"})


class PostgresUnit(Unit[psycopg.Connection[Any], R]):
    """One unit of work on a PostgreSQL pool."""

    driver_error: ClassVar[type[Exception]] = psycopg.Error
    _receipt: Receipt | None = None
    # Whether green was a physical replica when the receipt was taken.
    _promotes: bool = False

    def apply(self, connection: psycopg.Connection[Any]) -> None:
        """As Unit says; during a switchover with a receipt for the COMMIT."""
        self._receipt = None
        aware = cast(SwitchoverAware, connection)
        aware.bgpool_refused, aware.bgpool_ended = None, False
        # Beforehand: a transaction that begins before a switchover may end in the middle of it.
        lineage = _lineage(connection) if self._takes_part else ""
        try:
            with connection.transaction():
                aware.bgpool_in_unit = True
                try:
                    self._result = self._fn(connection)
                finally:
                    aware.bgpool_in_unit, self._ended = False, aware.bgpool_ended
                self._check(connection)
                # A receipt tells of one transaction.
                if lineage and not self._ended and self._gate.switching():
                    self._receipt = _receipt(connection, lineage)
                    self._promotes = self._gate.green_was_replica()
                # Whatever goes wrong from here on may have gone wrong after the server had committed.
                self._doubt = DURING_COMMIT
        except psycopg.Error:
            # The function may have sent a COMMIT of its own.
            self._doubt = self._doubt or aware.bgpool_in_doubt or NO_DOUBT
            raise

    def was_cut(self, error: Exception) -> bool:
        """As Unit says."""
        if not isinstance(error, psycopg.Error):
            return False
        if isinstance(error, CommitOutcomeUnknown) or error.sqlstate in _CUT:
            return True
        return error.sqlstate is None and error.__class__ is psycopg.OperationalError

    def was_refused(self, error: Exception) -> bool:
        """As Unit says."""
        return isinstance(error, psycopg.Error) and error.sqlstate == psycopg.errors.ReadOnlySqlTransaction.sqlstate

    def like(self, error: Exception, kind: Callable[..., Exception], text: str) -> Exception:
        """As Unit says."""
        return like(error, kind, text)

    def find_out(self) -> Outcome:
        """As Unit says; the server that is the primary now tells."""
        receipt = self._receipt
        if receipt is None or receipt.xid is None:
            # Nothing was written: what was not applied can be run again.
            return Outcome.UNKNOWN if receipt is None else Outcome.NOT_COMMITTED
        pause_s = UNIT_PAUSE_S
        while self._left_s() > 0:
            try:
                outcome = self._ask(receipt)
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
            if outcome is not Outcome.PENDING:
                return outcome
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, UNIT_PAUSE_MAX_S)
        return Outcome.UNKNOWN

    def _ask(self, receipt: Receipt) -> Outcome:
        connection = self._pool.getconn(max(0.0, self._left_s()))
        try:
            return outcome_of(receipt, connection, promoted=self._promotes)
        finally:
            try:
                # The pool would do it, and complain. What was answered stands, also where this is cut.
                if not connection.autocommit:
                    with contextlib.suppress(psycopg.Error):
                        connection.rollback()
            finally:
                self._pool.putconn(connection)

    def _check(self, connection: psycopg.Connection[Any]) -> None:
        """Make sure that there is a transaction to be committed; the function may have swallowed what ended it."""
        doubt = cast(SwitchoverAware, connection).bgpool_in_doubt
        if doubt:
            raise CommitOutcomeUnknown(self._gate.describe(doubt))
        if connection.closed and not connection.broken:
            raise psycopg.ProgrammingError(CLOSED_BY_FUNCTION)
        if connection.pgconn.status != ConnStatus.OK:
            text = "cut the transaction, and the function went on; it did not commit, run it again"
            raise SwitchoverInterrupted(self._gate.describe(text))
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.INERROR:
            failed = psycopg.errors.InFailedSqlTransaction(
                "a statement failed and the function went on: the unit was rolled back"
            )
            if cast(SwitchoverAware, connection).bgpool_refused:
                text = self._gate.describe("takes no writes any more; run the transaction again")
                raise like(psycopg.errors.ReadOnlySqlTransaction(), SwitchoverInterrupted, text) from failed
            raise failed
        if status != TransactionStatus.INTRANS:
            raise psycopg.ProgrammingError(
                "the function ended the transaction that it was called in; a unit of work is committed by its runner"
            )


def _lineage(connection: psycopg.Connection[Any]) -> str:
    """As lineage_of, asked once for all the connections of an epoch; empty where no receipt can be had."""
    generation = cast(SwitchoverAware, connection).bgpool_generation
    if generation.lineage is None:
        try:
            generation.lineage = lineage_of(connection)
        except psycopg.Error as error:
            _go_on_without(connection, error)
    return generation.lineage or ""


def _receipt(connection: psycopg.Connection[Any], lineage: str) -> Receipt | None:
    """As take_receipt; None where the server gives none."""
    try:
        return take_receipt(connection, lineage)
    except psycopg.Error as error:
        _go_on_without(connection, error)
        return None


def _go_on_without(connection: psycopg.Connection[Any], error: psycopg.Error) -> None:
    """Raise *error* if the transaction cannot go on after it: receipts are a help, and no unit may fail for one."""
    status = connection.pgconn.transaction_status
    if isinstance(error, Error) or status not in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
        raise error
    if not isinstance(error, psycopg.OperationalError):
        # Not there, or not for us: none of the epoch's units asks again, or each would leave an error in the server's
        # log. A timeout, in contrast, may pass.
        cast(SwitchoverAware, connection).bgpool_generation.lineage = ""
