"""Units of work: a function that is called in a transaction, and again when a switchover cut that transaction.

A unit is begun again only if it is certain that nothing of it was applied. Where COMMIT itself was cut, the unit's
receipt decides (bgpool.pools.receipts). Where it has none, the servers are asked, and where these cannot tell, the
caller is told so.
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

#: What a unit says whose function has closed the connection: nothing was committed, and it would be so every time.
CLOSED_BY_FUNCTION: Final = "the function closed its connection; a unit of work is committed by its runner"

#: What calling a function gives whose body has not run.
_LATER: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")


class Outcome(Enum):
    """What became of a transaction."""

    COMMITTED = "committed"
    NOT_COMMITTED = "not committed"
    PENDING = "the server is still at it"
    UNKNOWN = "the server cannot tell"


class Lender(Protocol[C]):
    """Where a unit gets a connection to ask what became of a COMMIT. A pool is one."""

    def getconn(self, timeout: float | None = None) -> C | Awaitable[C]:
        """A connection, within *timeout* seconds; a coroutine where callers await."""
        ...

    def putconn(self, conn: C) -> object:
        """Give it back; a coroutine where callers await."""
        ...


@dataclass(frozen=True, slots=True)
class CutAttempt:
    """An attempt whose COMMIT was cut, while it is not known whether it was applied.

    Attributes:
        attempt: Its number, from 1.
        error: What the COMMIT raised.
        doubt: Why it may have been applied; see bgpool.pools.doubt.
        result: What the function returned.
        has_receipt: Whether its transaction holds the unit's receipt, so that the next attempt's INSERT decides.
    """

    attempt: int
    error: Exception
    doubt: str
    result: Any
    has_receipt: bool


class UnitContext:
    """What all units of one pool or connector have in common.

    Attributes:
        recipe: How connections to the endpoint are made.
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
    """One unit of work, to be run once: whether its attempts are repeated, and what became of a COMMIT that was cut.

    How one attempt is made is not decided here: *attempt* is called once for each. It checks a connection out, begins a
    transaction, calls the function and commits, and it calls ``abegin``, ``afinish`` and ``afail`` of the unit in
    between: a pool's is ``aapply``. Those of SQLAlchemy and Django cannot await, and call ``begin``,
    ``finish`` and ``fail``.
    What differs from engine to engine is in the unit's subclasses.

    Attributes:
        driver_error: The root of the driver's errors.
        is_applied: The server has answered that it has committed. What fails after that, in a listener of SQLAlchemy's
            say, is not the unit's: it is neither called again nor in doubt.
        needs_begin: Whether BEGIN must have been sent when ``begin`` is called: not every first statement begins a
            transaction there, even where autocommit is off.
        attempt: The number of the attempt at hand, from 1.
        applied: The number of the attempt that was applied, once that is known; 0 before, and if another run of the
            unit was.
    """

    driver_error: ClassVar[type[Exception]]
    needs_begin: ClassVar[bool] = False
    _make_attempt: Callable[[Unit[C, R]], Awaitable[R]] | None = None
    _idempotent: bool = False
    _is_given: bool = False
    _id: str = ""
    _cancels: int = 0
    # What a unit is before anything has gone wrong is its class's: most end like that, and each is made anew.
    is_applied: bool = False
    attempt: int = 0
    applied: int = 0
    _unexplained_since_ns: int | None = None
    # How often the function was called.
    _calls: int = 0
    # Whether the receipt can be inserted before that: not in a transaction that is read-only when it begins.
    _can_claim: bool = True
    # Whether the endpoint had a part in a deployment when an earlier attempt began.
    _took_part: bool = False
    _unit: str = ""
    # The attempt that is in doubt; and all that were and left a receipt, by its writer. What is not there yet may come
    # by replication.
    _cut: CutAttempt | None = None
    _cuts: Mapping[str, CutAttempt] = MappingProxyType({})
    # Of the attempt at hand. Why it may have been applied (see bgpool.pools.doubt), and what the function returned.
    _doubt: str = NO_DOUBT
    _result: Any = None
    # Whether the function may have ended the attempt's transaction itself, and begun another one.
    _ended: bool = False
    # Whether the attempt met a refused write that any server would refuse.
    _is_own_refusal: bool = False
    # Whether the attempt is inserting the receipt before it calls the function, and whether its transaction has it.
    _is_claiming: bool = False
    _has_receipt: bool = False
    # Whether the function has returned, and COMMIT is sent next.
    _is_finished: bool = False
    # What was true when it began.
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
        """A unit whose attempts are made by *attempt*.

        Args:
            unit_context: What it has in common with all units of its pool or connector.
            attempt: Makes one attempt and returns what the function returned; raises the driver's errors as they are.
                None for ``aapply``.
            lender: Where a connection for questions comes from.
            timeout_s: Longest time until the last attempt begins, waits included, in seconds.
            idempotent: The function may be applied twice.
            receipt_id: The unit's id, if its caller has chosen one: it is not applied if a unit with this id was.
            work: For ``aapply``: the function, and its arguments after the connection.
        """
        self._unit_context: Final = unit_context
        self._lender: Final = lender
        self._timeout_s: Final = timeout_s
        self._began_ns: Final = unit_context.waits.now_ns()
        self._work = work
        # What few have is set where they have it.
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
        """Forget what is known of the last attempt."""
        self._doubt, self._result = NO_DOUBT, None
        self._ended = self._is_own_refusal = self._is_claiming = self._has_receipt = self._is_finished = False

    def run(self) -> R | AlreadyApplied:
        """As arun, for a caller that cannot await."""
        return self._waits.finish(self.arun())

    async def arun(self) -> R | AlreadyApplied:
        """Make attempts until one was applied.

        Returns:
            What the function returned in the attempt that was applied; AlreadyApplied if that was none of this unit's.

        Raises:
            CommitOutcomeUnknown: COMMIT was cut, and nobody can tell what became of it.
            SwitchoverInterrupted: Cut again and again, until the time or the attempts were used up.
            Exception: Whatever the function or a checkout raised.
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
        """Whether the unit was applied although an attempt ended with *error*; if not, another one may begin.

        Raises:
            CommitOutcomeUnknown: Nobody can tell.
            Exception: *error*, which is the caller's.
        """
        if self.is_applied or not isinstance(error, (self.driver_error, Error, OSError, Undecided)):
            raise error
        if self._cut is None and not isinstance(error, (self.driver_error, Undecided)):
            raise error
        # Who is told to end is not served again, though the function may have caught that.
        last = self._calls >= UNIT_ATTEMPTS or self._waits.cancels() > self._cancels
        if isinstance(error, self.driver_error):
            if self._doubt and not self._is_claiming and self.was_cut(error):
                # What the function itself has committed, and was cut in, is not what the receipt stands for.
                has_receipt = self._has_receipt and self._is_finished
                self._cut = CutAttempt(self.attempt, error, self._doubt, self._result, has_receipt)
                if has_receipt:
                    self._cuts = {**self._cuts, self._writer(): self._cut}
            elif self._is_claiming and self._is_own_refusal and self._cut is None and not last:
                # The transaction begins as one that is read-only. Should the function make it another, the receipt is
                # inserted at its end.
                self._can_claim = False
            elif self._cut is None and (last or not self._may_claim_again(error)):
                self._check_again(error, last)
        if self._cut is not None and await self._ahas_committed(self._cut, error, last):
            return True
        self._gate.tally.repeat(error)
        return False

    def _check_again(self, error: Exception, last: bool) -> None:
        """Raise *error*, or what it means, unless the unit may be begun again after it."""
        if self._ended and not self._idempotent and self._may_begin_again(error):
            self._doubt = ENDED_BY_FUNCTION
            raise self._unknown(error, self._doubt) from error
        if last or not self._may_begin_again(error) or self.left_s() <= 0:
            if isinstance(error, Error):
                self._gate.tally.count_error(error)
            raise error

    async def _ahas_committed(self, cut: CutAttempt, error: Exception, last: bool) -> bool:
        """Whether *cut* has committed; if not, or if that is for the next attempt's INSERT to decide, False.

        Args:
            cut: The attempt in doubt.
            error: What the attempt at hand ended with: the COMMIT itself, or the attempt to insert the receipt.
            last: There is no next attempt.

        Raises:
            CommitOutcomeUnknown: Nobody can tell.
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
        """The result of a unit that was applied by an earlier attempt, or by another run with the same id."""
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
        """Seconds until the time for attempts is up, >= 0."""
        return max(0.0, self._timeout_s - (self._waits.now_ns() - self._began_ns) / 1e9)

    @property
    def _takes_part(self) -> bool:
        """Whether the endpoint had a part in a deployment when the unit began, or when the attempt at hand did.

        A deployment that a frozen process sleeps through may be gone when it wakes.
        """
        return self._took_part or self._gate.takes_part(self._began_by)

    @property
    def in_doubt(self) -> bool:
        """Whether the last attempt may have been applied although it failed."""
        return bool(self._doubt)

    @property
    def is_undecided(self) -> bool:
        """Whether the COMMIT of an attempt was cut, and it is not known yet whether that was applied."""
        return self._cut is not None

    @property
    def claims(self) -> bool:
        """Whether an attempt has to insert the unit's receipt before it calls the function: ``begin`` does.

        Because an earlier one may have been applied, be it another run with the same id.
        """
        return bool(self._cuts) or (self._receipts is not None and self._can_claim and self._is_given)

    # -- one attempt, where bgpool makes it ----------------------------------------------------------------------

    async def aapply(self) -> R:
        """Do the work in a transaction on a connection of the lender's, and commit that, as one attempt.

        What is awaited here is what the common attempt has to wait for: each step that is a coroutine costs.
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
                # Before the transaction is ended, which is no doing of the function's.
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

        For the methods of this kind: what they return is to be awaited where callers await.
        """

    @abstractmethod
    def commit_block(self, connection: C) -> Any:
        """Commit it."""

    @abstractmethod
    async def aabandon(self, connection: C, error: BaseException) -> None:
        """Roll back, where COMMIT was not sent, and call ``afail`` with *error*, which the attempt ends with.

        Raises:
            Exception: As ``afail``.
        """

    # -- what an attempt calls -----------------------------------------------------------------------------------

    def begin(self, connection: C) -> None:
        """As abegin, for a caller that cannot await."""
        self._waits.finish(self.abegin(connection))

    async def abegin(self, connection: C) -> None:
        """The attempt's transaction is open, or begins with the next statement; the function is called next.

        Raises:
            KeyTaken, Undecided: The function is not to be called in this attempt; the transaction is rolled back.
            Exception: The driver's.
        """
        if (step := self.begin_soon(connection)) is not None:
            await step

    def begin_soon(self, connection: C) -> Coroutine[Any, Any, None] | None:
        """As abegin, and what of it is to be awaited; None if that is nothing."""
        # By now somebody has looked: whoever has a connection was let through by what is true.
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
        """The function has the transaction on *connection* from now on."""
        aware: Any = connection
        aware.bgpool_in_unit, aware.bgpool_refused, aware.bgpool_ended = True, None, False

    def leave(self, connection: C) -> None:
        """The function is done with the transaction, which its runner may end now. To call it again does nothing."""
        aware: Any = connection
        if aware.bgpool_in_unit:
            aware.bgpool_in_unit, self._ended = False, aware.bgpool_ended

    def finish(self, connection: C, result: R) -> None:
        """As afinish, for a caller that cannot await."""
        self._waits.finish(self.afinish(connection, result))

    async def afinish(self, connection: C, result: R) -> None:
        """The function returned *result*, and COMMIT is sent next.

        Raises:
            Exception: The driver's, or bgpool's own: there is no transaction to be committed.
        """
        if (step := self.finish_soon(connection, result)) is not None:
            await step

    def finish_soon(self, connection: C, result: R) -> Coroutine[Any, Any, None] | None:
        """As afinish, and what of it is to be awaited; None if that is nothing."""
        self._result, unit_context = result, self._unit_context
        self.check(connection)
        self.leave(connection)
        meaning = unit_context.gate.newest_gate_state()
        if meaning is not self._began_by:
            # The process may have been frozen meanwhile: nothing has drained or cut the connection yet.
            cast(Aware, connection).bgpool_generation.check_commit(meaning.snapshot)
        if unit_context.receipts is not None or meaning.is_switching:
            return self._awrite_and_finish(connection)
        # Whatever goes wrong from here on may have gone wrong after the server had committed.
        self._doubt, self._is_finished = DURING_COMMIT, True
        return None

    async def _awrite_and_finish(self, connection: C) -> None:
        await self.awrite_receipt(connection)
        self._doubt, self._is_finished = DURING_COMMIT, True

    def note_applied(self) -> None:
        """The server has answered the COMMIT that followed ``finish``, and the connection is not returned yet."""
        self.is_applied, self._doubt = True, NO_DOUBT

    def fail(self, connection: C, error: BaseException, *, held: bool = True) -> None:
        """As afail, for a caller that cannot await."""
        self._waits.finish(self.afail(connection, error, held=held))

    async def afail(self, connection: C, error: BaseException, *, held: bool = True) -> None:
        """The attempt ends with *error*.

        Args:
            connection: Not returned yet, unless *held* is false. Its transaction is over, or is rolled back by this.
            error: What the function, ``finish``, or the COMMIT raised.
            held: Whether the attempt still has the connection, which may be asked something then.

        Raises:
            Exception: The error that *error* stands for: it is not the switchover's doing, though it seemed to be.
        """
        self.leave(connection)
        aware = cast(Aware, connection)
        # What the function sent may have committed by itself: its own COMMIT, a procedure, DDL.
        self._doubt = self._doubt or aware.bgpool_in_doubt or NO_DOUBT
        if held and isinstance(error, self.driver_error) and self.was_refused(error):
            await self._asettle_refusal(aware, error)

    # -- what an engine says of itself ---------------------------------------------------------------------------

    @abstractmethod
    def is_autocommit(self, connection: C) -> bool:
        """Whether each statement on *connection* commits by itself unless a transaction was begun."""

    @abstractmethod
    def check(self, connection: C) -> None:
        """Make sure that there is a transaction to be committed; the function may have swallowed what ended it.

        Raises:
            Exception: The driver's, or bgpool's own.
        """

    @abstractmethod
    def check_lost(self, connection: C) -> None:
        """The part of ``check`` that a switchover has to do with: a lost connection, a refused write. Sends nothing.

        Raises:
            CommitOutcomeUnknown, SwitchoverInterrupted: What the function may have swallowed.
        """

    @abstractmethod
    async def alook(self, connection: C) -> str:
        """What is wrong with the receipts table on the server of *connection*; empty if nothing is.

        Raises:
            Exception: The driver's, be the transaction at hand as it was before or not.
        """

    @abstractmethod
    async def ainsert(self, connection: C) -> bool:
        """Insert the unit's receipt; whether that was done: False if it is there, committed.

        Waits for a transaction that is about to commit it, and no longer than ``left_s``.

        Raises:
            Exception: The driver's.
        """

    @abstractmethod
    async def awriter(self, connection: C) -> str:
        """Which attempt wrote the receipt that is there, by its name; empty if none is to be seen."""

    def note_receipt(self, connection: C) -> None:  # noqa:ARG002  # PostgreSQL's notes where
        """The transaction on *connection* holds the receipt.

        So no earlier attempt was applied on this server, and none can be any more while the transaction is open.
        """
        self._has_receipt, self._cut = True, None
        if self._receipts is not None:
            self._receipts.note_left()

    @abstractmethod
    def reads_only(self, connection: C) -> bool:
        """Whether *connection* is known to take no writes, so that none is tried for a receipt.

        A role's transactions may be read-only unless the function says otherwise: an id of the caller's is tried.
        """

    @abstractmethod
    def decides(self, connection: C) -> bool:
        """Whether the receipts on the server of *connection* are those of the server where COMMIT was cut."""

    @abstractmethod
    async def awrite_receipt(self, connection: C) -> None:
        """COMMIT is sent next: insert the receipt, and note what servers can be asked about the transaction.

        Raises:
            Exception: The driver's: the transaction cannot go on.
        """

    @abstractmethod
    async def adelete_old(self, connection: C) -> int:
        """Delete the oldest receipts beyond the retention, RECEIPTS_DELETED_AT_ONCE at most; how many there were.

        In a transaction of its own, on a connection that is in none. Waits for nobody: who is second does nothing.

        Raises:
            Exception: The driver's.
        """

    @abstractmethod
    def is_lost(self, connection: C) -> bool:
        """Whether *connection* is closed, or its transaction is over or has failed for good."""

    @abstractmethod
    def is_wait(self, error: Exception) -> bool:
        """Whether *error* says that what the statement waited for was not over in time, or that it was in the way."""

    @abstractmethod
    def is_tables(self, error: Exception) -> bool:
        """Whether *error* says that the receipts table takes none: it is not there, say, or another one than thought.

        Any other is no reason to go on without: another run with the same id may be under way.
        """

    @abstractmethod
    def was_cut(self, error: Exception) -> bool:
        """Whether the server or the network ended the connection; a refused checkout is nobody's cut."""

    @abstractmethod
    def was_refused(self, error: Exception) -> bool:
        """Whether a write was refused as read-only: by the server, or in a transaction that is."""

    @abstractmethod
    async def afind_out(self) -> Outcome:
        """What became of the COMMIT that was cut."""

    @abstractmethod
    def like(self, error: Exception, kind: Callable[..., Exception], text: str) -> Exception:
        """A *kind* of error that still answers for the code of *error*."""

    # -- receipts ------------------------------------------------------------------------------------------------

    def leaves_receipt(self) -> bool:
        """Whether the attempt's transaction is to hold a receipt, if it has written anything and holds none yet."""
        receipts = self._receipts
        if receipts is None or self._has_receipt or self._ended:
            return False
        return receipts.always or self._is_given or self.is_switching()

    def is_switching(self) -> bool:
        """Whether a switchover is under way that the endpoint takes part in, as it did when the unit began or not."""
        is_so = self._gate.switching()
        self._took_part = self._took_part or is_so
        return is_so

    def name_receipt(self) -> None:
        """Choose the ids of the unit and of its receipt."""
        if not self._cuts:
            # New ones for each attempt until one is in doubt: the transaction of one that was cut before its COMMIT may
            # still be open on the server, and its row would be waited for.
            self._unit = new_id()
            self._id = self._id if self._is_given else self._unit

    def _writer(self) -> str:
        """What the attempt at hand is named in the table."""
        return attempt_name(self._unit, self.attempt)

    async def acan_use(self, connection: C) -> bool:
        """Whether the receipts table can be used on *connection*; it is looked at once for each generation.

        Raises:
            Exception: The driver's: the transaction cannot go on.
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
                why = f"cannot be looked at: {first_line(error)}"
            if why:
                receipts.refuse(generation, why)
            else:
                receipts.accept(generation)
            usable = not why
        return usable

    async def _aclaim(self, connection: C) -> None:
        """Insert the receipt before the function is called: it is called only if no earlier attempt was applied.

        Raises:
            KeyTaken: One was.
            Undecided: The table cannot tell whether one was.
            Exception: The driver's: the connection was cut, say, or the earlier COMMIT is still under way.
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
                # A trigger, another unique index or a policy has its way with the table: it proves nothing.
                self._refuse(connection, "takes a receipt and does not have it afterwards")
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
        """The receipts table has refused the receipt with *error*, for good."""
        self._refuse(connection, f"cannot be used: {first_line(error)}")

    def _refuse(self, connection: C, why: str) -> None:
        if self._receipts is not None:
            self._receipts.refuse(cast(Aware, connection).bgpool_generation, why)

    def housekeep(self, connection: C) -> None:
        """As ahousekeep, for a caller that cannot await."""
        self._waits.finish(self.ahousekeep(connection))

    async def ahousekeep(self, connection: C) -> None:
        """The unit was applied, and its *connection* is not returned yet: delete old receipts, if it is time to.

        No unit fails for it, or waits.
        """
        receipts = self._receipts
        if receipts is None or not receipts.is_deletion_due():
            return
        aware = cast(Aware, connection)
        # A connection on its way out may be cut at any moment; and what would be held is not begun.
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
        """What the servers could be asked about the COMMIT that was cut is known without."""

    # -- the unit's own ------------------------------------------------------------------------------------------

    async def _asettle_refusal(self, connection: Aware, error: Exception) -> None:
        """Find out, now that the transaction is over, whether any server would refuse what was refused with *error*."""
        await connection.bgpool_asettle_refusal()
        self._is_own_refusal = connection.bgpool_refused is False
        if self._is_own_refusal and isinstance(error, SwitchoverInterrupted) and error.__cause__ is not None:
            # It seemed to be the switchover's doing, and was said to be.
            self._gate.tally.absorb(error)
            raise error.__cause__ from None

    def _may_claim_again(self, error: Exception) -> bool:
        """Whether *error* says that the receipt is another transaction's, which was not over in time."""
        return self._is_claiming and self.is_wait(error) and self.left_s() > 0

    def _may_begin_again(self, error: Exception) -> bool:
        """Whether *error* means that a switchover has cut the unit before its COMMIT."""
        if self._is_own_refusal:
            return False
        if isinstance(error, SwitchoverInterrupted):
            return True
        if isinstance(error, CommitOutcomeUnknown):
            # Not the unit's own COMMIT: what the function did on a connection of another pool, say.
            return False
        if not self.was_cut(error) and not self.was_refused(error):
            return False
        if self._receipts is not None and self._receipts.always and not login_was_refused(error):
            # A failover needs no deployment, and the receipt says what was applied.
            return True
        # Not yet, or no longer, a switchover that the monitor knows of.
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

    The connection is the function's first argument and is left out by its callers; frameworks that inspect signatures
    (FastAPI, Typer) see none. With an AsyncPool it is a coroutine function, and stays one. Arguments and errors are
    those of the pool's run, but *receipt_id* is a function: called with the arguments of each call, it returns the id.

    Raises:
        ConfigurationError: *pool* is no pool, *timeout* no number of seconds, or what is decorated, or *receipt_id*,
            cannot be called.
    """
    if not callable(getattr(pool, "run", None)):
        raise ConfigurationError(
            f"transactional: pool={kind_of(pool)}; a pool of get_pool or get_async_pool is allowed "
            "(SQLAlchemy's and Django's transactional are those of bgpool.integrations)"
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
    """Raise ConfigurationError for a *receipt_id* of transactional that is no function: all calls would have one id."""
    if receipt_id is not None and not callable(receipt_id):
        raise ConfigurationError(
            f"transactional: receipt_id={kind_of(receipt_id)}; a function of the call's arguments that returns the id "
            "of this call is allowed"
        )


def plain(fn: Callable[..., object], result: R) -> R:
    """The *result* of *fn*, whose body has run.

    Raises:
        TypeError: *fn* is an ``async`` or a generator function: its body would run after the transaction, on a
            connection that is another caller's by then.
    """
    # One call for the three of them.
    if not isinstance(result, _LATER):
        return result
    if inspect.iscoroutine(result):
        name = result.__qualname__
        result.close()
        raise TypeError(
            f"{name} is asynchronous, and run awaits nothing: give it a plain function; those that await are run of "
            "get_async_pool, and arun of SQLAlchemy's integration"
        )
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        code = result.gi_code if inspect.isgenerator(result) else result.ag_code
        # A generator that it was given, or made of what it has read, is a result like any other.
        if code is _code_of(fn):
            name = result.__qualname__
            raise TypeError(
                f"{name} is a generator: a unit of work is a plain function; return a list of what it yields"
            )
    return result


def awaitable(fn: Callable[..., object], result: object) -> Awaitable[Any]:
    """The *result* of *fn*, to be awaited.

    Raises:
        TypeError: It cannot be.
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
    """What a call of *fn* runs, where that is Python."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    return getattr(fn if hasattr(fn, "__code__") else type(fn).__call__, "__code__", None)


def hide_connection(unit: Callable[..., object], fn: Callable[..., object]) -> None:
    """Give *unit* the signature and the annotations of *fn* without the connection, its first parameter."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # Some callables that are written in C have none.
    connection, *rest = signature.parameters.values() or (None,)
    if connection is None or connection.kind is inspect.Parameter.VAR_POSITIONAL:
        return
    hidden: Any = unit
    hidden.__signature__ = signature.replace(parameters=rest)
    hidden.__annotations__ = {name: kind for name, kind in unit.__annotations__.items() if name != connection.name}
