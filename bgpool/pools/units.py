"""Units of work: a function that is called in a transaction, and called again if a switchover cuts that transaction.

A unit is repeated only if it is certain that none of its work was applied. If COMMIT itself was cut, the unit's receipt
decides (bgpool.pools.receipts). Without a receipt, the servers are queried. If they cannot answer, the caller gets
CommitOutcomeUnknown.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import AsyncGeneratorType, CoroutineType, GeneratorType, MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from bgpool.core.limits import UNIT_ATTEMPTS, UNIT_PAUSE_MAX_S, UNIT_PAUSE_S, UNIT_UNEXPLAINED_S
from bgpool.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    Error,
    GreenHostRejected,
    PoolClosed,
    SwitchoverInterrupted,
)
from bgpool.failures import first_line, login_was_refused
from bgpool.pools.doubt import DURING_COMMIT, ENDED_BY_FUNCTION, NO_DOUBT
from bgpool.pools.options import check_unit, kind_of
from bgpool.pools.receipts import AlreadyApplied, KeyTaken, Receipts, Undecided, attempt_name, new_id
from bgpool.pools.recipe import Aware, Recipe

if TYPE_CHECKING:
    import psycopg

    from bgpool.pools.gate import Gate, GateState
    from bgpool.pools.pool import Pool
    from bgpool.pools.postgres.async_pool import AsyncPool
    from bgpool.pools.waits import Waits

__all__ = [
    "CLOSED_BY_FUNCTION",
    "Lender",
    "Outcome",
    "UnitContext",
    "Unit",
    "awaitable",
    "check_chooser",
    "hide_connection",
    "plain",
    "transactional",
]

#: The error of a unit whose function has closed the connection. Nothing was committed, and every attempt would end
#: alike.
CLOSED_BY_FUNCTION: Final = "the function closed its connection; a unit of work is committed by its runner"

#: The result types of a call whose function body has not run yet.
_LATER: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")


class Outcome(Enum):
    """The outcome of a transaction."""

    COMMITTED = "committed"
    NOT_COMMITTED = "not committed"
    PENDING = "still in progress"
    UNKNOWN = "unknown"


class Lender(Protocol[C]):
    """The source of the connection with which a unit queries the outcome of a COMMIT. A pool is one."""

    def getconn(self, timeout: float | None = None) -> C | Awaitable[C]:
        """Return a connection within *timeout* seconds; a coroutine if callers await."""
        ...

    def putconn(self, conn: C) -> object:
        """Return the connection to the lender; a coroutine if callers await."""
        ...


@dataclass(frozen=True, slots=True)
class CutAttempt:
    """An attempt whose COMMIT was cut, while its outcome is unknown.

    Attributes:
        attempt: Its number, from 1.
        error: The error that the COMMIT raised.
        doubt: The reason for which it may have been applied; see bgpool.pools.doubt.
        result: The function's return value.
        has_receipt: True if its transaction contains the unit's receipt, so that the next attempt's INSERT decides.
    """

    attempt: int
    error: Exception
    doubt: str
    result: Any
    has_receipt: bool


class UnitContext:
    """The data that all units of one pool or connector share.

    Attributes:
        recipe: The way to open connections to the endpoint.
        gate, waits: The recipe's.
        receipts: The receipts table; None for none.
    """

    __slots__ = ("gate", "receipts", "recipe", "waits")

    def __init__(self, recipe: Recipe, receipts: Receipts | None) -> None:
        self.recipe: Final = recipe
        self.gate: Final = recipe.gate
        self.waits: Final = recipe.gate.waits
        self.receipts: Final = receipts


class Unit(ABC, Generic[C, R]):
    """One run of a unit of work. It decides whether attempts are repeated, and finds the outcome of a cut COMMIT.

    It does not decide how an attempt is made: *attempt* is called once for each. It checks out a connection, begins a
    transaction, calls the function and commits. In between it calls ``abegin``, ``afinish`` and ``afail`` of the unit.
    A pool's attempt is ``aapply``. The attempts of SQLAlchemy and Django cannot await; they call ``begin``, ``finish``
    and ``fail``.
    The unit's subclasses contain the differences between the engines.

    Attributes:
        driver_error: The root of the driver's errors.
        needs_begin: True if BEGIN must have been sent before ``begin`` is called. On such an engine not every first
            statement begins a transaction, even if autocommit is off.
        is_applied: True once the server has answered that the unit has committed. A later failure, for example in a
            listener of SQLAlchemy, is not the unit's: the unit is neither called again nor in doubt.
        attempt: The number of the current attempt, from 1.
        applied: The number of the attempt that was applied, once that is known; 0 before, and if another run of the
            unit was applied.
    """

    driver_error: ClassVar[type[Exception]]
    needs_begin: ClassVar[bool] = False
    _make_attempt: Callable[[Unit[C, R]], Awaitable[R]] | None = None
    _idempotent: bool = False
    _is_given: bool = False
    _id: str = ""
    _cancels: int = 0
    # The state of a unit before any error is stored in its class: a unit is created for each call, and most end without
    # one.
    is_applied: bool = False
    attempt: int = 0
    applied: int = 0
    _unexplained_since_ns: int | None = None
    # The number of calls of the function.
    _calls: int = 0
    # True if the receipt can be inserted before the call; not in a transaction that is read-only when it begins.
    _can_claim: bool = True
    # True if the endpoint took part in a deployment when an earlier attempt began.
    _took_part: bool = False
    _unit: str = ""
    # The attempt that is in doubt; and all attempts that were in doubt and have a receipt, by its writer. A receipt
    # that is not visible yet may still arrive by replication.
    _cut: CutAttempt | None = None
    _cuts: Mapping[str, CutAttempt] = MappingProxyType({})
    # For the current attempt: the reason for which it may have been applied (see bgpool.pools.doubt), and the
    # function's return value.
    _doubt: str = NO_DOUBT
    _result: Any = None
    # True if the function may have ended the attempt's transaction itself, and begun another one.
    _ended: bool = False
    # True if a write of the attempt was refused, and any server would refuse it.
    _is_own_refusal: bool = False
    # True while the attempt inserts the receipt before it calls the function; and true if its transaction contains it.
    _is_claiming: bool = False
    _has_receipt: bool = False
    # True once the function has returned and COMMIT is sent next.
    _is_finished: bool = False
    # The state of the gate when the attempt began.
    _began_by: GateState | None = None

    def __init__(
        self,
        unit_context: UnitContext,
        attempt: Callable[[Unit[C, R]], Awaitable[R]] | None,
        lender: Lender[C],
        timeout_s: float,
        *,
        idempotent: bool = False,
        receipt_id: str | None = None,
        work: tuple[Callable[..., Any], Sequence[object]] | None = None,
    ) -> None:
        """Create a unit whose attempts are made by *attempt*.

        Args:
            unit_context: The data that it shares with all units of its pool or connector.
            attempt: Makes one attempt and returns the function's return value; raises the driver's errors as they are.
                None for ``aapply``.
            lender: The source of a connection for queries.
            timeout_s: The longest time until the last attempt begins, waits included, in seconds.
            idempotent: True if the function may be applied twice.
            receipt_id: The unit's id, if its caller has chosen one. The unit is not applied if a unit with this id was.
            work: For ``aapply``: the function, and its arguments after the connection.
        """
        self._unit_context: Final = unit_context
        self._lender: Final = lender
        self._timeout_s: Final = timeout_s
        self._began_ns: Final = unit_context.waits.now_ns()
        self._work = work
        # Attributes that few units need are set only for those units.
        if attempt is not None:
            self._make_attempt = attempt
        if idempotent:
            self._idempotent = True
        if receipt_id is not None:
            self._is_given, self._id = True, receipt_id
        if unit_context.waits.awaits:
            self._cancels = unit_context.waits.cancels()

    @property
    def _gate(self) -> Gate:
        return self._unit_context.gate

    @property
    def _waits(self) -> Waits:
        return self._unit_context.waits

    @property
    def _receipts(self) -> Receipts | None:
        return self._unit_context.receipts

    @property
    def _recipe(self) -> Recipe:
        return self._unit_context.recipe

    def _reset(self) -> None:
        """Reset the state of the last attempt."""
        self._doubt, self._result = NO_DOUBT, None
        self._ended = self._is_own_refusal = self._is_claiming = self._has_receipt = self._is_finished = False

    def run(self) -> R | AlreadyApplied:
        """Like arun, for a caller that cannot await."""
        return self._waits.finish(self.arun())

    async def arun(self) -> R | AlreadyApplied:
        """Make attempts until one is applied.

        Returns:
            The function's return value in the attempt that was applied; AlreadyApplied if no attempt of this unit was.

        Raises:
            CommitOutcomeUnknown: COMMIT was cut, and its outcome cannot be found.
            SwitchoverInterrupted: Attempts were cut until the time or the number of attempts was used up.
            Exception: Any error that the function or a checkout raised.
        """
        pause_s = UNIT_PAUSE_S
        while True:
            if self.attempt:
                self._reset()
                self._took_part = self._takes_part
            self.attempt += 1
            self._began_by = self._unit_context.gate.seen
            try:
                make = self._make_attempt
                result = await (self.aapply() if make is None else make(self))
            except KeyTaken as taken:
                return self._earlier(taken)
            except Exception as error:
                if await self._ahas_applied(error):
                    return self._earlier()
            else:
                self.applied = self.attempt
                return result
            await self._waits.sleep(min(pause_s, self.left_s()))
            pause_s = min(2 * pause_s, UNIT_PAUSE_MAX_S)

    async def _ahas_applied(self, error: Exception) -> bool:
        """Return whether the unit was applied although an attempt ended with *error*; if not, it may be repeated.

        Raises:
            CommitOutcomeUnknown: The outcome cannot be found.
            Exception: *error*, if it must reach the caller.
        """
        if self.is_applied or not isinstance(error, (self.driver_error, Error, OSError, Undecided)):
            raise error
        if self._cut is None and not isinstance(error, (self.driver_error, Undecided)):
            raise error
        # A task that was cancelled makes no further attempt, even if the function has caught the cancellation.
        last = self._calls >= UNIT_ATTEMPTS or self._waits.cancels() > self._cancels
        if isinstance(error, self.driver_error):
            if self._doubt and not self._is_claiming and self.was_cut(error):
                # If the function itself has committed and was cut during that, the receipt does not prove the outcome.
                has_receipt = self._has_receipt and self._is_finished
                self._cut = CutAttempt(self.attempt, error, self._doubt, self._result, has_receipt)
                if has_receipt:
                    self._cuts = {**self._cuts, self._writer(): self._cut}
            elif self._is_claiming and self._is_own_refusal and self._cut is None and not last:
                # The transaction is read-only when it begins. In case the function makes it read-write, the receipt is
                # inserted at its end.
                self._can_claim = False
            elif self._cut is None and (last or not self._may_claim_again(error)):
                self._check_again(error, last)
        if self._cut is not None and await self._ahas_committed(self._cut, error, last):
            return True
        self._gate.tally.repeat(error)
        return False

    def _check_again(self, error: Exception, last: bool) -> None:
        """Raise *error*, or the error that it stands for, unless the unit may be repeated after it."""
        if self._ended and not self._idempotent and self._may_begin_again(error):
            self._doubt = ENDED_BY_FUNCTION
            raise self._unknown(error, self._doubt) from error
        if last or not self._may_begin_again(error) or self.left_s() <= 0:
            if isinstance(error, Error):
                self._gate.tally.count_error(error)
            raise error

    async def _ahas_committed(self, cut: CutAttempt, error: Exception, last: bool) -> bool:
        """Return whether *cut* has committed; False if not, or if the next attempt's INSERT decides it.

        Args:
            cut: The attempt in doubt.
            error: The error of the current attempt: of the COMMIT itself, or of the INSERT of the receipt.
            last: True if there is no next attempt.

        Raises:
            CommitOutcomeUnknown: The outcome cannot be found.
        """
        hopeless = isinstance(error, (Undecided, GreenHostRejected, PoolClosed))
        if cut.has_receipt and not (last or hopeless) and self.left_s() > 0:
            return False
        outcome = await self.afind_out()
        if outcome is Outcome.COMMITTED:
            self._gate.tally.absorb(error)
            return True
        again = self._idempotent or outcome is Outcome.NOT_COMMITTED
        if last or not again or self.left_s() <= 0:
            raise self._unknown(cut.error, cut.doubt) from cut.error
        self._cut = None
        return False

    def _earlier(self, taken: KeyTaken | None = None) -> R | AlreadyApplied:
        """Return the result of a unit that was applied by an earlier attempt, or by another run with the same id."""
        cut = self._cut if taken is None else self._cuts.get(taken.writer)
        if cut is None:
            self._gate.tally.count_receipts("already_applied")
            return AlreadyApplied(self._id)
        if taken is not None:
            self._gate.tally.count_receipts("receipts_found")
        self.applied = cut.attempt
        result: R = cut.result
        return result

    def left_s(self) -> float:
        """Return the remaining time for attempts in seconds, >= 0."""
        return max(0.0, self._timeout_s - (self._waits.now_ns() - self._began_ns) / 1e9)

    @property
    def _takes_part(self) -> bool:
        """True if the endpoint took part in a deployment when the unit began, or when the current attempt began.

        While a process is frozen, a deployment may pass and be gone when the process continues.
        """
        return self._took_part or self._gate.takes_part(self._began_by)

    @property
    def in_doubt(self) -> bool:
        """True if the last attempt may have been applied although it failed."""
        return bool(self._doubt)

    @property
    def is_undecided(self) -> bool:
        """True if the COMMIT of an attempt was cut, and its outcome is not known yet."""
        return self._cut is not None

    @property
    def claims(self) -> bool:
        """True if an attempt must insert the unit's receipt before it calls the function, which ``begin`` does.

        An earlier attempt may have been applied, or another run with the same id.
        """
        return bool(self._cuts) or (self._receipts is not None and self._can_claim and self._is_given)

    # -- one attempt, made by bgpool -----------------------------------------------------------------------------

    async def aapply(self) -> R:
        """Call the function in a transaction on a connection of the lender and commit it, as one attempt.

        It awaits only where a common attempt must wait, because every step that is a coroutine costs time.
        """
        assert self._work is not None
        (fn, args), unit_context = self._work, self._unit_context
        lender: Any = self._lender
        awaits = unit_context.waits.awaits
        connection = lender.getconn(self._timeout_s if self.attempt == 1 else self.left_s())
        if awaits:
            connection = await connection
        try:
            try:
                step = self.begin_block(connection)
                if awaits:
                    await step
                if (step := self.begin_soon(connection)) is not None:
                    await step
                result = fn(connection, *args)
                if awaits:
                    result = await (result if result.__class__ is CoroutineType else awaitable(fn, result))
                elif isinstance(result, _LATER):
                    result = plain(fn, result)
                if (step := self.finish_soon(connection, result)) is not None:
                    await step
                step = self.commit_block(connection)
                if awaits:
                    await step
            except BaseException as error:
                # Before the transaction is ended, because the function does not do that.
                self.leave(connection)
                await self.aabandon(connection, error)
                raise
            if unit_context.receipts is not None:
                await self.ahousekeep(connection)
            made: R = result
            return made
        finally:
            if (step := lender.putconn(connection)) is not None:
                await step

    @abstractmethod
    def begin_block(self, connection: C) -> Any:
        """Begin a transaction, whatever the connection's autocommit is.

        This method and the other ones with `_block` return an awaitable if callers await.
        """

    @abstractmethod
    def commit_block(self, connection: C) -> Any:
        """Commit the transaction."""

    @abstractmethod
    async def aabandon(self, connection: C, error: BaseException) -> None:
        """Roll back if COMMIT was not sent, and call ``afail`` with *error*, which ends the attempt.

        Raises:
            Exception: The same as in ``afail``.
        """

    # -- the calls of an attempt ---------------------------------------------------------------------------------

    def begin(self, connection: C) -> None:
        """Like abegin, for a caller that cannot await."""
        self._waits.finish(self.abegin(connection))

    async def abegin(self, connection: C) -> None:
        """Record that the transaction is open, or begins with the next statement; the function is called next.

        Raises:
            KeyTaken, Undecided: The function must not be called in this attempt; the transaction is rolled back.
            Exception: The driver's.
        """
        if (step := self.begin_soon(connection)) is not None:
            await step

    def begin_soon(self, connection: C) -> Coroutine[Any, Any, None] | None:
        """Do the part of abegin that needs no wait, and return a coroutine for the rest; None if there is no rest."""
        # The gate's state is current here: the checkout of the connection passed the gate with it.
        self._began_by = self._unit_context.gate.seen
        if self._is_given or self._cuts:
            return self._aclaim_and_begin(connection)
        self._calls += 1
        self.note_begun(connection)
        return None

    async def _aclaim_and_begin(self, connection: C) -> None:
        await self._aclaim(connection)
        self._calls += 1
        self.note_begun(connection)

    def note_begun(self, connection: C) -> None:
        """Record that the function has the transaction on *connection* from now on."""
        aware: Any = connection
        aware.bgpool_in_unit, aware.bgpool_refused, aware.bgpool_ended = True, None, False

    def leave(self, connection: C) -> None:
        """Record that the function has ended, so that the runner may end the transaction; idempotent."""
        aware: Any = connection
        if aware.bgpool_in_unit:
            aware.bgpool_in_unit, self._ended = False, aware.bgpool_ended

    def finish(self, connection: C, result: R) -> None:
        """Like afinish, for a caller that cannot await."""
        self._waits.finish(self.afinish(connection, result))

    async def afinish(self, connection: C, result: R) -> None:
        """Record that the function returned *result*, and that COMMIT is sent next.

        Raises:
            Exception: The driver's, or bgpool's own: there is no transaction to commit.
        """
        if (step := self.finish_soon(connection, result)) is not None:
            await step

    def finish_soon(self, connection: C, result: R) -> Coroutine[Any, Any, None] | None:
        """Do the part of afinish that needs no wait, and return a coroutine for the rest; None if there is no rest."""
        self._result, unit_context = result, self._unit_context
        self.check(connection)
        self.leave(connection)
        meaning = unit_context.gate.newest_gate_state()
        if meaning is not self._began_by:
            # The process may have been frozen since it began, so that the connection was neither drained nor cut yet.
            cast(Aware, connection).bgpool_generation.check_commit(meaning.snapshot)
        if unit_context.receipts is not None or meaning.is_switching:
            return self._awrite_and_finish(connection)
        # An error from here on may have occurred after the server committed.
        self._doubt, self._is_finished = DURING_COMMIT, True
        return None

    async def _awrite_and_finish(self, connection: C) -> None:
        await self.awrite_receipt(connection)
        self._doubt, self._is_finished = DURING_COMMIT, True

    def note_applied(self) -> None:
        """Record that the server has answered the COMMIT after ``finish``; the connection is not returned yet."""
        self.is_applied, self._doubt = True, NO_DOUBT

    def fail(self, connection: C, error: BaseException, *, held: bool = True) -> None:
        """Like afail, for a caller that cannot await."""
        self._waits.finish(self.afail(connection, error, held=held))

    async def afail(self, connection: C, error: BaseException, *, held: bool = True) -> None:
        """Record that the attempt ends with *error*.

        Args:
            connection: Not returned yet, unless *held* is false. Its transaction has ended, or this call rolls it back.
            error: The error that the function, ``finish``, or the COMMIT raised.
            held: True if the attempt still has the connection, so that queries on it are possible.

        Raises:
            Exception: The error behind *error*, which was not caused by the switchover although it seemed to be.
        """
        self.leave(connection)
        aware = cast(Aware, connection)
        # A statement of the function may have committed by itself: its own COMMIT, a procedure, DDL.
        self._doubt = self._doubt or aware.bgpool_in_doubt or NO_DOUBT
        if held and isinstance(error, self.driver_error) and self.was_refused(error):
            await self._asettle_refusal(aware, error)

    # -- implemented by each engine ------------------------------------------------------------------------------

    @abstractmethod
    def is_autocommit(self, connection: C) -> bool:
        """Return whether each statement on *connection* commits by itself unless a transaction was begun."""

    @abstractmethod
    def check(self, connection: C) -> None:
        """Check that there is a transaction to commit; the function may have swallowed the error that ended it.

        Raises:
            Exception: The driver's, or bgpool's own.
        """

    @abstractmethod
    def check_lost(self, connection: C) -> None:
        """Do the part of ``check`` that concerns a switchover: a lost connection, a refused write. It sends nothing.

        Raises:
            CommitOutcomeUnknown, SwitchoverInterrupted: The error that the function may have swallowed.
        """

    @abstractmethod
    async def alook(self, connection: C) -> str:
        """Return the problem with the receipts table on the server of *connection*; empty if there is none.

        Raises:
            Exception: The driver's. The current transaction may or may not have been affected.
        """

    @abstractmethod
    async def ainsert(self, connection: C) -> bool:
        """Insert the unit's receipt and return True; return False if it exists already and is committed.

        It waits for a transaction that is about to commit the receipt, but no longer than ``left_s``.

        Raises:
            Exception: The driver's.
        """

    @abstractmethod
    async def awriter(self, connection: C) -> str:
        """Return the name of the attempt that wrote the existing receipt; empty if none is visible."""

    def note_receipt(self, connection: C) -> None:  # noqa:ARG002  # PostgreSQL's notes where
        """Record that the transaction on *connection* contains the receipt.

        So no earlier attempt was applied on this server, and none can be while the transaction is open.
        """
        self._has_receipt, self._cut = True, None
        if self._receipts is not None:
            self._receipts.note_left()

    @abstractmethod
    def reads_only(self, connection: C) -> bool:
        """Return whether *connection* is known to accept no writes, so that no INSERT of a receipt is tried.

        A role's transactions may be read-only by default, and the function may change that. So for an id that the
        caller has chosen, the INSERT is tried.
        """

    @abstractmethod
    def decides(self, connection: C) -> bool:
        """Return whether *connection* sees the receipts of the server on which COMMIT was cut."""

    @abstractmethod
    async def awrite_receipt(self, connection: C) -> None:
        """Insert the receipt just before COMMIT, and record the data for queries about the transaction.

        Raises:
            Exception: The driver's: the transaction cannot continue.
        """

    @abstractmethod
    async def adelete_old(self, connection: C) -> int:
        """Delete the oldest receipts beyond the retention, at most RECEIPTS_DELETED_AT_ONCE, and return their number.

        It uses a transaction of its own, on a connection that is in none. It waits for no other process: of two that
        delete at the same time, the second does nothing.

        Raises:
            Exception: The driver's.
        """

    @abstractmethod
    def is_lost(self, connection: C) -> bool:
        """Return whether *connection* is closed, or its transaction has ended or has failed for good."""

    @abstractmethod
    def is_wait(self, error: Exception) -> bool:
        """Return whether *error* means that another transaction did not end in time, or conflicted."""

    @abstractmethod
    def is_tables(self, error: Exception) -> bool:
        """Return whether *error* means that the receipts table accepts no receipts.

        For example, it does not exist, or has an unexpected form. No other error is a reason to continue without a
        receipt: another run with the same id may be in progress.
        """

    @abstractmethod
    def was_cut(self, error: Exception) -> bool:
        """Return whether the server or the network ended the connection. A refused checkout does not count."""

    @abstractmethod
    def was_refused(self, error: Exception) -> bool:
        """Return whether a write was refused as read-only: by the server, or in a read-only transaction."""

    @abstractmethod
    async def afind_out(self) -> Outcome:
        """Find the outcome of the COMMIT that was cut."""

    @abstractmethod
    def like(self, error: Exception, kind: Callable[..., Exception], text: str) -> Exception:
        """Return an error of *kind* that keeps the error code of *error*."""

    # -- receipts ------------------------------------------------------------------------------------------------

    def leaves_receipt(self) -> bool:
        """Return whether the attempt's transaction must get a receipt, if it has written data and contains none yet."""
        receipts = self._receipts
        if receipts is None or self._has_receipt or self._ended:
            return False
        return receipts.always or self._is_given or self.is_switching()

    def is_switching(self) -> bool:
        """Return whether a switchover is under way in which the endpoint takes part; record it if so."""
        is_so = self._gate.switching()
        self._took_part = self._took_part or is_so
        return is_so

    def name_receipt(self) -> None:
        """Choose the ids of the unit and of its receipt."""
        if not self._cuts:
            # Each attempt gets new ids until one is in doubt. The transaction of an attempt that was cut before its
            # COMMIT may still be open on the server, and an INSERT of the same id would wait for its row.
            self._unit = new_id()
            self._id = self._id if self._is_given else self._unit

    def _writer(self) -> str:
        """Return the name of the current attempt in the receipts table."""
        return attempt_name(self._unit, self.attempt)

    async def acan_use(self, connection: C) -> bool:
        """Return whether the receipts table can be used on *connection*. It is checked once for each generation.

        Raises:
            Exception: The driver's: the transaction cannot continue.
        """
        receipts, aware = self._receipts, cast(Aware, connection)
        if receipts is None:
            return False
        generation = aware.bgpool_generation
        usable = receipts.is_usable(generation)
        if usable is None:
            try:
                why = await self.alook(connection)
            except self.driver_error as error:
                if self.is_lost(connection) or (self._is_claiming and not self.is_tables(error)):
                    raise
                if not self.is_tables(error):
                    return False
                why = f"cannot be checked: {first_line(error)}"
            if why:
                receipts.refuse(generation, why)
            else:
                receipts.accept(generation)
            usable = not why
        return usable

    async def _aclaim(self, connection: C) -> None:
        """Insert the receipt before the function, which is called only if no earlier attempt was applied.

        Raises:
            KeyTaken: An earlier attempt was applied.
            Undecided: The table cannot show whether one was applied.
            Exception: The driver's: the connection was cut, say, or the earlier COMMIT is still in progress.
        """
        cut = self._cut
        if not self._can_claim or (cut is None and self.reads_only(connection)):
            return
        self._is_claiming = True
        if not await self.acan_use(connection) or (cut is not None and not self.decides(connection)):
            if cut is not None:
                raise Undecided
            self._is_claiming = False
            return
        self.name_receipt()
        try:
            inserted = await self.ainsert(connection)
        except self.driver_error as error:
            if self.is_lost(connection) or not self.is_tables(error):
                raise
            self.refuse_table(connection, error)
            if cut is not None:
                raise Undecided from error
        else:
            if not inserted:
                if writer := await self.awriter(connection):
                    raise KeyTaken(writer)
                # A trigger, another unique index or a policy changes what is inserted, so the table proves nothing.
                self._refuse(connection, "accepts a receipt but does not contain it afterwards")
                if cut is not None:
                    raise Undecided
                self._is_claiming = False
                return
            if cut is not None:
                self._gate.tally.count_receipts("receipts_missing")
            self.forget()
            self.note_receipt(connection)
        self._is_claiming = False

    def refuse_table(self, connection: C, error: Exception) -> None:
        """Record that the receipts table has refused the receipt with *error*, and will refuse the next ones."""
        self._refuse(connection, f"cannot be used: {first_line(error)}")

    def _refuse(self, connection: C, why: str) -> None:
        if self._receipts is not None:
            self._receipts.refuse(cast(Aware, connection).bgpool_generation, why)

    def housekeep(self, connection: C) -> None:
        """Like ahousekeep, for a caller that cannot await."""
        self._waits.finish(self.ahousekeep(connection))

    async def ahousekeep(self, connection: C) -> None:
        """Delete old receipts if that is due. The unit was applied, and its *connection* is not returned yet.

        This never makes a unit fail, and never makes it wait.
        """
        receipts = self._receipts
        if receipts is None or not receipts.is_deletion_due():
            return
        aware = cast(Aware, connection)
        # A drained connection may be cut at any time; and a statement that would be held is not begun.
        is_fit = not self.is_lost(connection) and not aware.bgpool_unfit and aware.bgpool_generation.live[0]
        if not is_fit or self._gate.switching() or receipts.is_usable(aware.bgpool_generation) is False:
            return
        try:
            rows = await self.adelete_old(connection)
            receipts.note_deleted(rows)
            self._gate.tally.count_receipts("receipts_deleted", rows)
        except (self.driver_error, Error) as error:
            self._gate.tally.absorb(error)
            receipts.note_not_deleted(error)

    def forget(self) -> None:
        """Discard the data for queries about the COMMIT that was cut; its outcome is known without them."""

    # -- internal steps ------------------------------------------------------------------------------------------

    async def _asettle_refusal(self, connection: Aware, error: Exception) -> None:
        """Find out, after the transaction, whether any server would refuse the write that failed with *error*."""
        await connection.bgpool_asettle_refusal()
        self._is_own_refusal = connection.bgpool_refused is False
        if self._is_own_refusal and isinstance(error, SwitchoverInterrupted) and error.__cause__ is not None:
            # The error seemed to be caused by the switchover, and was reported as such.
            self._gate.tally.absorb(error)
            raise error.__cause__ from None

    def _may_claim_again(self, error: Exception) -> bool:
        """Return whether *error* means that another transaction inserts the same receipt and did not end in time."""
        return self._is_claiming and self.is_wait(error) and self.left_s() > 0

    def _may_begin_again(self, error: Exception) -> bool:
        """Return whether *error* means that a switchover has cut the unit before its COMMIT."""
        if self._is_own_refusal:
            return False
        if isinstance(error, SwitchoverInterrupted):
            return True
        if isinstance(error, CommitOutcomeUnknown):
            # Not the unit's own COMMIT, but for example one of the function on a connection of another pool.
            return False
        if not self.was_cut(error) and not self.was_refused(error):
            return False
        if self._receipts is not None and self._receipts.always and not login_was_refused(error):
            # A failover happens without a deployment, and the receipt shows whether the unit was applied.
            return True
        # The monitor does not know of the switchover yet, or no longer.
        now_ns = self._waits.now_ns()
        if self._unexplained_since_ns is None:
            self._unexplained_since_ns = now_ns
        took_part = self._takes_part or self._gate.takes_part()
        return took_part and now_ns - self._unexplained_since_ns < UNIT_UNEXPLAINED_S * 1e9

    def _unknown(self, error: Exception, doubt: str) -> Exception:
        unknown = error
        if not isinstance(error, CommitOutcomeUnknown):
            unknown = self.like(error, CommitOutcomeUnknown, self._gate.describe(doubt))
            self._gate.tally.absorb(error)
        self._gate.tally.count_error(unknown)
        return unknown


@overload
def transactional(
    pool: Pool[C], *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[[Callable[Concatenate[C, P], R]], Callable[P, R]]: ...


@overload
def transactional(
    pool: Pool[C], *, timeout: float | None = ..., idempotent: bool = ..., receipt_id: Callable[P, str]
) -> Callable[[Callable[Concatenate[C, P], R]], Callable[P, R | AlreadyApplied]]: ...


@overload
def transactional(
    pool: AsyncPool, *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[
    [Callable[Concatenate[psycopg.AsyncConnection[Any], P], Awaitable[R]]], Callable[P, Coroutine[Any, Any, R]]
]: ...


@overload
def transactional(
    pool: AsyncPool, *, timeout: float | None = ..., idempotent: bool = ..., receipt_id: Callable[P, str]
) -> Callable[
    [Callable[Concatenate[psycopg.AsyncConnection[Any], P], Awaitable[R]]],
    Callable[P, Coroutine[Any, Any, R | AlreadyApplied]],
]: ...


def transactional(
    pool: Any,
    *,
    timeout: float | None = None,
    idempotent: bool = False,
    receipt_id: Callable[..., str] | None = None,
) -> Callable[[Any], Any]:
    """Decorate a function of a connection so that every call of it is a unit of work on *pool*.

    The connection is the function's first argument. Callers leave it out, and frameworks that inspect signatures
    (FastAPI, Typer) do not see it. With an AsyncPool the function is a coroutine function, and stays one. Arguments and
    errors are the same as in the pool's run, except for *receipt_id*: a function that is called with the arguments of
    each call and returns the id.

    Raises:
        ConfigurationError: *pool* is no pool, *timeout* is no number of seconds, or the decorated object or
            *receipt_id* cannot be called.
    """
    if not callable(getattr(pool, "run", None)):
        raise ConfigurationError(
            f"transactional: pool={kind_of(pool)}; a pool of get_pool or get_async_pool is allowed "
            "(for SQLAlchemy and Django, use transactional of bgpool.integrations)"
        )
    check_chooser(receipt_id)

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        check_unit("transactional", fn, timeout)

        @functools.wraps(fn)
        def unit(*args: Any, **kwargs: Any) -> Any:
            chosen = receipt_id(*args, **kwargs) if receipt_id is not None else None
            call = functools.partial(fn, **kwargs)
            return pool.run(call, *args, timeout=timeout, idempotent=idempotent, receipt_id=chosen)

        @functools.wraps(fn)
        async def aunit(*args: Any, **kwargs: Any) -> Any:
            return await unit(*args, **kwargs)

        made = aunit if inspect.iscoroutinefunction(pool.run) else unit
        hide_connection(made, fn)
        return made

    return decorate


def check_chooser(receipt_id: object) -> None:
    """Raise ConfigurationError if *receipt_id* of transactional is no function: all calls would share one id."""
    if receipt_id is not None and not callable(receipt_id):
        raise ConfigurationError(
            f"transactional: receipt_id={kind_of(receipt_id)}; a function of the call's arguments that returns the id "
            "of this call is allowed"
        )


def plain(fn: Callable[..., object], result: R) -> R:
    """Return the *result* of *fn*, whose body has run.

    Raises:
        TypeError: *fn* is an ``async`` or a generator function. Its body would run after the transaction, on a
            connection that another caller may have by then.
    """
    # One call checks all three types.
    if not isinstance(result, _LATER):
        return result
    if inspect.iscoroutine(result):
        name = result.__qualname__
        result.close()
        raise TypeError(
            f"{name} is asynchronous, but run does not await: give it a plain function, or use run of get_async_pool's "
            "pools, or arun of SQLAlchemy's integration"
        )
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        code = result.gi_code if inspect.isgenerator(result) else result.ag_code
        # A generator that the function was given, or built from the rows that it read, is an ordinary result.
        if code is _code_of(fn):
            name = result.__qualname__
            raise TypeError(
                f"{name} is a generator: a unit of work is a plain function; return a list of what it yields"
            )
    return result


def awaitable(fn: Callable[..., object], result: object) -> Awaitable[Any]:
    """Return the *result* of *fn*, checked to be awaitable.

    Raises:
        TypeError: It cannot be awaited.
    """
    if isinstance(result, Awaitable):
        return result
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    raise TypeError(
        f"{name} returned {type(result).__name__}, which cannot be awaited: a unit of work for asyncio is a coroutine "
        "function (async def)"
    )


def _code_of(fn: Any) -> object:
    """Return the code object that a call of *fn* runs, if *fn* is written in Python."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    return getattr(fn if hasattr(fn, "__code__") else type(fn).__call__, "__code__", None)


def hide_connection(unit: Callable[..., object], fn: Callable[..., object]) -> None:
    """Give *unit* the signature and the annotations of *fn* without the connection, its first parameter."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # Some callables that are written in C have no signature.
    connection, *rest = signature.parameters.values() or (None,)
    if connection is None or connection.kind is inspect.Parameter.VAR_POSITIONAL:
        return
    hidden: Any = unit
    hidden.__signature__ = signature.replace(parameters=rest)
    hidden.__annotations__ = {name: kind for name, kind in unit.__annotations__.items() if name != connection.name}
