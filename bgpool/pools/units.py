"""Units of work: a function that is called in a transaction, and again when a switchover cut that transaction.

A unit is begun again only if it is certain that nothing of it was applied. Where COMMIT itself was cut the server is
asked, and where that cannot tell, the caller is told so.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar, cast

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from bgpool.core.limits import UNIT_ATTEMPTS, UNIT_PAUSE_MAX_S, UNIT_PAUSE_S, UNIT_UNEXPLAINED_S
from bgpool.errors import CommitOutcomeUnknown, SwitchoverInterrupted
from bgpool.pools.connection import SwitchoverAware
from bgpool.pools.outcome import Outcome, Receipt, lineage_of, outcome_of, take_receipt

if TYPE_CHECKING:
    from bgpool.pools.gate import Gate
    from bgpool.pools.postgres import PostgresPool

__all__ = ["Unit", "transactional"]

P = ParamSpec("P")
R = TypeVar("R")


class Unit(Generic[R]):
    """One unit of work, to be run once."""

    def __init__(
        self,
        pool: PostgresPool,
        gate: Gate,
        fn: Callable[[psycopg.Connection[Any]], R],
        *,
        timeout_s: float,
        idempotent: bool,
    ) -> None:
        """A unit that calls *fn* with a connection.

        Args:
            pool: Where connections come from.
            gate: What the segment means for the pool's endpoint.
            fn: What is to be done in one transaction.
            timeout_s: Longest time until the last attempt begins, waits included, in seconds.
            idempotent: *fn* may be applied twice.
        """
        self._pool: Final = pool
        self._gate: Final = gate
        self._fn: Final = fn
        self._idempotent: Final = idempotent
        self._deadline: Final = time.monotonic() + timeout_s
        self._unexplained_since: float | None = None
        # Of the attempt at hand.
        self._commit_sent = False
        self._receipt: Receipt | None = None
        self._result: Any = None

    def run(self) -> R:
        """Call the function until it was applied once.

        Raises:
            CommitOutcomeUnknown: COMMIT was cut, and nobody can tell what became of it.
            SwitchoverInterrupted: Cut again and again, until the time or the attempts were used up.
            Exception: Whatever the function or a checkout raised.
        """
        pause_s = UNIT_PAUSE_S
        for attempt in range(1, UNIT_ATTEMPTS + 1):
            last = attempt == UNIT_ATTEMPTS
            try:
                return self._attempt()
            except psycopg.Error as error:
                if self._commit_sent and _was_cut(error):
                    outcome = self._find_out()
                    if outcome is Outcome.COMMITTED:
                        result: R = self._result
                        return result
                    again = self._idempotent or outcome is Outcome.NOT_COMMITTED
                    if last or not again or self._left_s() <= 0:
                        raise self._unknown(error) from error
                elif last or not self._may_begin_again(error) or self._left_s() <= 0:
                    raise
            time.sleep(min(pause_s, max(0.0, self._left_s())))
            pause_s = min(2 * pause_s, UNIT_PAUSE_MAX_S)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self) -> R:
        self._commit_sent, self._receipt = False, None
        connection = self._pool.getconn(max(0.0, self._left_s()))
        try:
            # Beforehand: a transaction that begins before a switchover may end in the middle of it.
            lineage = _lineage(connection) if self._gate.takes_part() else ""
            with connection.transaction():
                self._result = result = self._fn(connection)
                self._check(connection)
                if lineage and self._gate.switching():
                    self._receipt = take_receipt(connection, lineage)
                # Whatever goes wrong from here on may have gone wrong after the server had committed.
                self._commit_sent = True
            return result
        finally:
            self._pool.putconn(connection)

    def _check(self, connection: psycopg.Connection[Any]) -> None:
        """Make sure that there is a transaction to be committed; the function may have swallowed what ended it."""
        if connection.pgconn.status != ConnStatus.OK:
            text = "cut the transaction, and the function went on; it did not commit, run it again"
            raise SwitchoverInterrupted(self._gate.describe(text))
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.INERROR:
            if cast(SwitchoverAware, connection).bgpool_unfit:
                raise SwitchoverInterrupted(self._gate.describe("takes no writes any more; run the transaction again"))
            raise psycopg.errors.InFailedSqlTransaction(
                "a statement failed and the function went on: the unit was rolled back"
            )
        if status != TransactionStatus.INTRANS:
            raise psycopg.ProgrammingError(
                "the function ended the transaction that it was called in; a unit of work is committed by its runner"
            )

    def _may_begin_again(self, error: psycopg.Error) -> bool:
        """Whether *error* means that a switchover has cut the unit before its COMMIT."""
        if isinstance(error, SwitchoverInterrupted):
            return True
        if not _was_cut(error) and not isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            return False
        # Not yet, or no longer, a switchover that the monitor knows of.
        now = time.monotonic()
        self._unexplained_since = self._unexplained_since or now
        return self._gate.takes_part() and now - self._unexplained_since < UNIT_UNEXPLAINED_S

    def _find_out(self) -> Outcome:
        """What became of the COMMIT, as the server that is the primary now tells."""
        receipt = self._receipt
        if receipt is None or receipt.xid is None:
            # Nothing was written: what was not applied can be run again.
            return Outcome.UNKNOWN if receipt is None else Outcome.NOT_COMMITTED
        pause_s = UNIT_PAUSE_S
        while self._left_s() > 0:
            try:
                outcome = self._ask(receipt)
            except psycopg.Error:
                outcome = Outcome.PENDING
            if outcome is not Outcome.PENDING:
                return outcome
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, UNIT_PAUSE_MAX_S)
        return Outcome.UNKNOWN

    def _ask(self, receipt: Receipt) -> Outcome:
        connection = self._pool.getconn(max(0.0, self._left_s()))
        try:
            return outcome_of(receipt, connection, promoted=self._gate.green_was_replica())
        finally:
            if not connection.broken and not connection.autocommit:
                connection.rollback()
            self._pool.putconn(connection)

    def _unknown(self, error: psycopg.Error) -> CommitOutcomeUnknown:
        if isinstance(error, CommitOutcomeUnknown):
            return error
        return CommitOutcomeUnknown(self._gate.describe("was cut during COMMIT; find out whether it took effect"))

    def _left_s(self) -> float:
        return self._deadline - time.monotonic()


#: SQLSTATEs with which a server ends a connection, or says that it was ended.
_CUT: Final = frozenset({"57P01", "57P02", "57P03", "08000", "08003", "08006"})


def _lineage(connection: psycopg.Connection[Any]) -> str:
    """As lineage_of, asked once for all the connections of an epoch."""
    generation = cast(SwitchoverAware, connection).bgpool_generation
    if generation.lineage is None:
        generation.lineage = lineage_of(connection)
    return generation.lineage


def _was_cut(error: psycopg.Error) -> bool:
    """Whether the server or the network ended the connection; a refused checkout is nobody's cut."""
    if isinstance(error, CommitOutcomeUnknown) or error.sqlstate in _CUT:
        return True
    return error.sqlstate is None and error.__class__ is psycopg.OperationalError


def transactional(
    pool: PostgresPool, *, timeout: float | None = None, idempotent: bool = False
) -> Callable[[Callable[Concatenate[psycopg.Connection[Any], P], R]], Callable[P, R]]:
    """Decorate a function of a connection so that every call of it is a unit of work on *pool*.

    The connection is the function's first argument and is left out by its callers. Arguments and errors are those of
    PostgresPool.run.
    """

    def decorate(fn: Callable[Concatenate[psycopg.Connection[Any], P], R]) -> Callable[P, R]:
        @functools.wraps(fn)
        def unit(*args: P.args, **kwargs: P.kwargs) -> R:
            def call(connection: psycopg.Connection[Any]) -> R:
                return fn(connection, *args, **kwargs)

            return pool.run(call, timeout=timeout, idempotent=idempotent)

        return unit

    return decorate
