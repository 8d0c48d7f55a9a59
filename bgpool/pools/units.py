"""Units of work: a function that is called in a transaction, and again when a switchover cut that transaction.

A unit is begun again only if it is certain that nothing of it was applied. Where COMMIT itself was cut the server is
asked, and where that cannot tell, the caller is told so.
"""

from __future__ import annotations

import functools
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum
from types import AsyncGeneratorType, CoroutineType, GeneratorType
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
from bgpool.errors import CommitOutcomeUnknown, ConfigurationError, Error, SwitchoverInterrupted
from bgpool.pools.doubt import DURING_COMMIT, ENDED_BY_FUNCTION, NO_DOUBT
from bgpool.pools.gate import Gate
from bgpool.pools.options import check_unit, kind_of
from bgpool.pools.recipe import Aware

if TYPE_CHECKING:
    import psycopg

    from bgpool.pools.pool import Pool
    from bgpool.pools.postgres.async_pool import AsyncPool

__all__ = [
    "CLOSED_BY_FUNCTION",
    "Lender",
    "Outcome",
    "Unit",
    "awaitable",
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


class Unit(ABC, Generic[C, R]):
    """One unit of work, to be run once: whether its attempts are repeated, and what became of a COMMIT that was cut.

    How one attempt is made is not decided here: *attempt* is called once for each. It checks a connection out, begins a
    transaction, calls the function and commits, and it calls ``begin``, ``afinish`` and ``afail`` of the unit in
    between; those of SQLAlchemy and Django cannot await, and call ``finish`` and ``fail``.
    What differs from engine to engine is in the unit's subclasses.

    Attributes:
        driver_error: The root of the driver's errors.
        is_applied: The server has answered that it has committed. What fails after that, in a listener of SQLAlchemy's
            say, is not the unit's: it is neither called again nor in doubt.
        needs_begin: Whether BEGIN must have been sent when ``begin`` is called: not every first statement begins a
            transaction there, even where autocommit is off.
    """

    driver_error: ClassVar[type[Exception]]
    needs_begin: ClassVar[bool] = False

    def __init__(
        self,
        gate: Gate,
        attempt: Callable[[Unit[C, R]], Awaitable[R]],
        lender: Lender[C],
        *,
        timeout_s: float,
        idempotent: bool,
    ) -> None:
        """A unit whose attempts are made by *attempt*.

        Args:
            gate: What the segment means for the endpoint.
            attempt: Makes one attempt and returns what the function returned; raises the driver's errors as they are.
            lender: Where a connection for questions comes from.
            timeout_s: Longest time until the last attempt begins, waits included, in seconds.
            idempotent: The function may be applied twice.
        """
        self._gate: Final = gate
        self._waits: Final = gate.waits
        self._make_attempt: Final = attempt
        self._lender: Final = lender
        self._idempotent: Final = idempotent
        self._deadline: Final = time.monotonic() + timeout_s
        self._cancels: Final = self._waits.cancels()
        self._unexplained_since: float | None = None
        self.is_applied = False
        # Whether the endpoint had a part in a deployment when the unit began, or does now: a deployment that a frozen
        # process sleeps through may be gone when it wakes.
        self._takes_part = False
        self._reset()

    def _reset(self) -> None:
        """Forget what is known of the last attempt."""
        # Why it may have been applied (see bgpool.pools.doubt), and what the function returned.
        self._doubt = NO_DOUBT
        self._result: Any = None
        # Whether the function may have ended the attempt's transaction itself, and begun another one.
        self._ended = False
        # Whether the attempt met a refused write that any server would refuse.
        self._is_own_refusal = False

    def run(self) -> R:
        """As arun, for a caller that cannot await."""
        return self._waits.finish(self.arun())

    async def arun(self) -> R:
        """Make attempts until one was applied.

        Raises:
            CommitOutcomeUnknown: COMMIT was cut, and nobody can tell what became of it.
            SwitchoverInterrupted: Cut again and again, until the time or the attempts were used up.
            Exception: Whatever the function or a checkout raised.
        """
        pause_s = UNIT_PAUSE_S
        for attempt in range(1, UNIT_ATTEMPTS + 1):
            if attempt > 1:
                self._reset()
            self._takes_part = self._gate.takes_part() or self._takes_part
            try:
                return await self._make_attempt(self)
            except self.driver_error as error:
                if self.is_applied:
                    raise
                # Who is told to end is not served again, though the function may have caught that.
                last = attempt == UNIT_ATTEMPTS or self._waits.cancels() > self._cancels
                if self._doubt and self.was_cut(error):
                    outcome = await self.afind_out()
                    if outcome is Outcome.COMMITTED:
                        self._gate.tally.absorb(error)
                        result: R = self._result
                        return result
                    again = self._idempotent or outcome is Outcome.NOT_COMMITTED
                    if last or not again or self.left_s() <= 0:
                        raise self._unknown(error) from error
                elif self._ended and not self._idempotent and self._may_begin_again(error):
                    self._doubt = ENDED_BY_FUNCTION
                    raise self._unknown(error) from error
                elif last or not self._may_begin_again(error) or self.left_s() <= 0:
                    if isinstance(error, Error):
                        self._gate.tally.count_error(error)
                    raise
                self._gate.tally.repeat(error)
            await self._waits.sleep(min(pause_s, self.left_s()))
            pause_s = min(2 * pause_s, UNIT_PAUSE_MAX_S)
        raise AssertionError("the last attempt returns or raises")

    def left_s(self) -> float:
        """Seconds until the time for attempts is up, >= 0."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def in_doubt(self) -> bool:
        """Whether the last attempt may have been applied although it failed."""
        return bool(self._doubt)

    # -- what an attempt calls -----------------------------------------------------------------------------------

    def begin(self, connection: C) -> None:
        """The attempt's transaction is open, or begins with the next statement; the function is called next."""
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
        self._result = result
        self.check(connection)
        self.leave(connection)
        await self.atake_receipt(connection)
        # Whatever goes wrong from here on may have gone wrong after the server had committed.
        self._doubt = DURING_COMMIT

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

    async def atake_receipt(self, connection: C) -> None:
        """Note what the transaction is known by, so that its COMMIT can be asked for."""

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

    # -- the unit's own ------------------------------------------------------------------------------------------

    async def _asettle_refusal(self, connection: Aware, error: Exception) -> None:
        """Find out, now that the transaction is over, whether any server would refuse what was refused with *error*."""
        await connection.bgpool_asettle_refusal()
        self._is_own_refusal = connection.bgpool_refused is False
        if self._is_own_refusal and isinstance(error, SwitchoverInterrupted) and error.__cause__ is not None:
            # It seemed to be the switchover's doing, and was said to be.
            self._gate.tally.absorb(error)
            raise error.__cause__ from None

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
        # Not yet, or no longer, a switchover that the monitor knows of.
        now = time.monotonic()
        self._unexplained_since = self._unexplained_since or now
        took_part = self._takes_part or self._gate.takes_part()
        return took_part and now - self._unexplained_since < UNIT_UNEXPLAINED_S

    def _unknown(self, error: Exception) -> Exception:
        if isinstance(error, CommitOutcomeUnknown):
            return error
        unknown = self.like(error, CommitOutcomeUnknown, self._gate.describe(self._doubt))
        self._gate.tally.absorb(error)
        self._gate.tally.count_error(unknown)
        return unknown


@overload
def transactional(
    pool: Pool[C], *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[[Callable[Concatenate[C, P], R]], Callable[P, R]]: ...


@overload
def transactional(
    pool: AsyncPool, *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[
    [Callable[Concatenate[psycopg.AsyncConnection[Any], P], Awaitable[R]]], Callable[P, Coroutine[Any, Any, R]]
]: ...


def transactional(pool: Any, *, timeout: float | None = None, idempotent: bool = False) -> Callable[[Any], Any]:
    """Decorate a function of a connection so that every call of it is a unit of work on *pool*.

    The connection is the function's first argument and is left out by its callers; frameworks that inspect signatures
    (FastAPI, Typer) see none. With an AsyncPool it is a coroutine function, and stays one. Arguments and errors are
    those of the pool's run.

    Raises:
        ConfigurationError: *pool* is no pool, *timeout* no number of seconds, or what is decorated cannot be called.
    """
    if not callable(getattr(pool, "run", None)):
        raise ConfigurationError(
            f"transactional: pool={kind_of(pool)}; a pool of get_pool or get_async_pool is allowed "
            "(SQLAlchemy's and Django's transactional are those of bgpool.integrations)"
        )

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        check_unit("transactional", fn, timeout)

        @functools.wraps(fn)
        def unit(*args: Any, **kwargs: Any) -> Any:
            return pool.run(functools.partial(fn, **kwargs), *args, timeout=timeout, idempotent=idempotent)

        @functools.wraps(fn)
        async def aunit(*args: Any, **kwargs: Any) -> Any:
            return await unit(*args, **kwargs)

        made = aunit if inspect.iscoroutinefunction(pool.run) else unit
        hide_connection(made, fn)
        return made

    return decorate


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
