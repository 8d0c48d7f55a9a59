"""Units of work with SQLAlchemy: a function is called with a session, or a connection, in a transaction of its own.

Every decision is the same as for pool.run: whether the function is called again, and the outcome of a COMMIT that was
cut.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeAlias, TypeVar, cast, overload

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.exc import TimeoutError as QueuePoolTimeout
from sqlalchemy.orm import Session, make_transient, scoped_session, sessionmaker
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from bgpool.errors import ConfigurationError, Error, PoolTimeout
from bgpool.integrations.sqlalchemy.attempt import Attempt, MaybeApplied, Work
from bgpool.pools.connector import AnyConnector
from bgpool.pools.options import check_unit
from bgpool.pools.receipts import AlreadyApplied
from bgpool.pools.units import Unit, check_chooser, hide_connection, plain
from bgpool.pools.waits import finish

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )

__all__ = ["run", "transactional"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S", bound=Session)
A = TypeVar("A", bound="AsyncSession")

#: The source of a unit's sessions or connections.
Maker: TypeAlias = "sessionmaker[Any] | scoped_session[Any] | Engine"
_Sessions: TypeAlias = "sessionmaker[S] | scoped_session[S]"

#: The description of the function's first argument.
GIVEN: Final = "a session or a connection"
_ALLOWED: Final = "a sessionmaker, a scoped_session or an Engine is allowed"


@overload
def run(maker: Maker, fn: Callable[..., R], *args: Any, timeout: float | None = ..., idempotent: bool = ...) -> R: ...


@overload
def run(
    maker: Maker,
    fn: Callable[..., R],
    *args: Any,
    timeout: float | None = ...,
    idempotent: bool = ...,
    receipt_id: str | None,
) -> R | AlreadyApplied: ...


def run(
    maker: Maker,
    fn: Callable[..., R],
    *args: Any,
    timeout: float | None = None,
    idempotent: bool = False,
    receipt_id: str | None = None,
) -> R | AlreadyApplied:
    """Call ``fn(session, *args)`` in a transaction and commit it; repeat it if a switchover cut it before that.

    Each call gets a new session, which is closed afterwards; with an engine, a Connection. *fn* may be called several
    times, but only one call is applied. Its effects outside its transaction happen once per call. It must not commit,
    roll back or close, and must not use objects of another session: pass keys. ``begin_nested()`` is a savepoint. To
    pass keywords, use functools.partial, or a lambda.

    Objects that it returns are detached, and with ``expire_on_commit``, SQLAlchemy's default, expired. Return values,
    or create the sessionmaker with ``expire_on_commit=False``.

    Args:
        maker: A sessionmaker, or an Engine, of ``create_engine("postgresql+bgpool://…")`` or ``mysql+bgpool://``. With
            a scoped_session, the new session is the current one while *fn* is called.
        fn: A function with the work of one transaction.
        args: Its arguments after the session.
        timeout: Longest time until the last call begins, in seconds, in addition to a wait for a place in the engine's
            pool; None for the longest hold and ``pool_timeout`` together.
        idempotent: *fn* may be applied twice. It is then also called again if the outcome of its COMMIT is unknown.
        receipt_id: The unit's id, 1 to 200 letters, digits and ``._:@/+=~#-``: the unit is applied once, however often
            and in however many processes it is run with this id. Needs bg_receipts_table. None for a generated id.

    Returns:
        The result of *fn*; AlreadyApplied(receipt_id) if an earlier run with the same *receipt_id* was applied.

    Raises:
        CommitOutcomeUnknown: COMMIT was cut, and its outcome cannot be determined.
        SwitchoverInterrupted: The unit was cut repeatedly until its time was used up.
        SwitchoverHoldTimeout, GreenHostRejected: The same as for a checkout. These errors are bgpool's own, not wrapped
            by SQLAlchemy.
        ConfigurationError: *maker* or another argument cannot be used; the engine is not bgpool's, or in AUTOCOMMIT;
            more than one connection was used; the session is a two-phase one; *receipt_id* has no table.
        TypeError: *fn* is an ``async`` or a generator function: see arun.
        Exception: Any error of *fn*, a checkout or SQLAlchemy; the transaction was rolled back.

    Source: docs/units-of-work.md.
    """
    check_unit("run", fn, timeout, GIVEN)
    return Runner[R](UnitBackend(maker), fn, args, timeout, idempotent=idempotent, receipt_id=receipt_id).run()


@overload
def transactional(
    maker: _Sessions[S], *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[P, R]]: ...


@overload
def transactional(
    maker: Engine, *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[[Callable[Concatenate[Connection, P], R]], Callable[P, R]]: ...


@overload
def transactional(
    maker: async_sessionmaker[A] | async_scoped_session[A], *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[[Callable[Concatenate[A, P], Awaitable[R]]], Callable[P, Coroutine[Any, Any, R]]]: ...


@overload
def transactional(
    maker: AsyncEngine, *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[[Callable[Concatenate[AsyncConnection, P], Awaitable[R]]], Callable[P, Coroutine[Any, Any, R]]]: ...


@overload
def transactional(
    maker: _Sessions[S], *, timeout: float | None = ..., idempotent: bool = ..., receipt_id: Callable[P, str]
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[P, R | AlreadyApplied]]: ...


@overload
def transactional(
    maker: Engine, *, timeout: float | None = ..., idempotent: bool = ..., receipt_id: Callable[P, str]
) -> Callable[[Callable[Concatenate[Connection, P], R]], Callable[P, R | AlreadyApplied]]: ...


@overload
def transactional(
    maker: async_sessionmaker[A] | async_scoped_session[A],
    *,
    timeout: float | None = ...,
    idempotent: bool = ...,
    receipt_id: Callable[P, str],
) -> Callable[[Callable[Concatenate[A, P], Awaitable[R]]], Callable[P, Coroutine[Any, Any, R | AlreadyApplied]]]: ...


@overload
def transactional(
    maker: AsyncEngine, *, timeout: float | None = ..., idempotent: bool = ..., receipt_id: Callable[P, str]
) -> Callable[
    [Callable[Concatenate[AsyncConnection, P], Awaitable[R]]], Callable[P, Coroutine[Any, Any, R | AlreadyApplied]]
]: ...


def transactional(
    maker: Any,
    *,
    timeout: float | None = None,
    idempotent: bool = False,
    receipt_id: Callable[..., str] | None = None,
) -> Callable[[Any], Any]:
    """Decorate a function of a session, or a connection, so that every call of it is a unit of work.

    The session is the function's first argument, and its callers leave it out. Frameworks that inspect signatures
    (FastAPI, Typer) do not see it. With an async_sessionmaker, an async_scoped_session or an AsyncEngine the function
    must be a coroutine function, and stays one. Arguments and errors are those of run, or arun, except for
    *receipt_id*: it is a function that is called with the arguments of each call and returns the id.
    """
    works = _works_of(maker)
    check_chooser(receipt_id)

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        check_unit("transactional", fn, timeout, GIVEN)

        def runner(args: Any, kwargs: Any) -> Runner[Any]:
            chosen = receipt_id(*args, **kwargs) if receipt_id is not None else None
            call = functools.partial(fn, **kwargs)
            return Runner(works, call, args, timeout, idempotent=idempotent, receipt_id=chosen)

        @functools.wraps(fn)
        def unit(*args: Any, **kwargs: Any) -> Any:
            return runner(args, kwargs).run()

        @functools.wraps(fn)
        async def aunit(*args: Any, **kwargs: Any) -> Any:
            return await runner(args, kwargs).arun()

        made = aunit if is_async(maker) else unit
        hide_connection(made, fn)
        return made

    return decorate


def _works_of(maker: Any) -> UnitBackend:
    if not is_async(maker):
        return UnitBackend(maker)
    from bgpool.integrations.sqlalchemy.async_units import (
        AsyncUnitBackend,  # not before there is one: it needs greenlet
    )

    return AsyncUnitBackend(maker)


class UnitBackend:
    """The source of a unit's sessions or connections, and the way in which its steps are run.

    Attributes:
        maker: A sessionmaker, a scoped_session or an Engine.
        spawn: Calls a function whose waits are completed in the connector's way.
    """

    def __init__(self, maker: Maker) -> None:
        """Create the backend of *maker*.

        Raises:
            ConfigurationError: *maker* is of another type.
        """
        _check_kind(maker)
        self.maker: Any = maker

    async def spawn(self, function: Callable[..., T], *args: Any) -> T:
        """Call *function* and return its result."""
        return function(*args)

    def result(self, fn: Callable[..., object], returned: Any) -> Any:
        """Return the result of *fn*, given the value *returned* by its call.

        Raises:
            TypeError: The value must be awaited, or iterated over.
        """
        return plain(fn, returned)

    def engine(self) -> Engine:
        """Return the engine of the sessions; the default one."""
        maker = self.maker
        engine = maker
        if not isinstance(maker, Engine):
            engine = engine_of(maker if isinstance(maker, sessionmaker) else maker.session_factory)
        if engine.dialect.is_async:
            raise ConfigurationError(
                "run: the engine is of create_async_engine, and run does not await: write await arun(…)"
            )
        found: Engine = engine
        return found

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[Work, Any]]:
        """Open a session or connection, closed at the end of the block; yield it and the argument of the function."""
        maker = self.maker
        if isinstance(maker, Engine):
            with maker.connect() as connection:
                yield connection, connection
        elif isinstance(maker, sessionmaker):
            with new_session(maker()) as session:
                yield session, session
        else:
            with new_session(maker.session_factory()) as session, as_current(maker.registry, session):
                yield session, session


class Runner(Generic[R]):
    """One unit of work, with the SQLAlchemy objects that it needs."""

    def __init__(
        self,
        works: UnitBackend,
        fn: Callable[..., Any],
        args: Sequence[Any],
        timeout: float | None,
        *,
        idempotent: bool,
        receipt_id: str | None,
    ) -> None:
        """Create a unit that calls *fn* with the object that *works* opens, and *args*; the others are run's."""
        self._works: Final = works
        self._fn: Final = fn
        self._args: Final = args
        self._engine: Final = works.engine()
        self._connector: Final = _connector_of(self._engine)
        self._timeout: Final = timeout
        self._idempotent: Final = idempotent
        self._receipt_id: Final = receipt_id
        # The error that SQLAlchemy raised in the last attempt.
        self._raised: DBAPIError | None = None
        # The number of the attempt whose outcome is unknown, and the state that it left.
        self._doubted: tuple[int, MaybeApplied] | None = None

    def run(self) -> R | AlreadyApplied:
        """Like arun, for a caller that cannot await."""
        return finish(self.arun())

    async def arun(self) -> R | AlreadyApplied:
        """Run the unit; for arguments and errors see the function run."""
        try:
            return await self._arun()
        finally:
            self._take_back()

    def _take_back(self) -> None:
        """Make the objects that the attempt in doubt inserted new again, like a rollback: it was not applied."""
        if self._doubted is not None:
            (_, remains), self._doubted = self._doubted, None
            for inserted in remains.inserted:
                make_transient(inserted)

    async def _arun(self) -> R | AlreadyApplied:
        timeout = self._timeout
        if timeout is None:
            pool = self._engine.pool
            timeout = self._connector.timeout + (pool.timeout() if isinstance(pool, QueuePool) else 0.0)
        lender = _Lender(self._works, self._engine, self._connector)
        unit: Unit[Any, R] = self._connector.amake_unit(
            self._aattempt, lender, timeout_s=timeout, idempotent=self._idempotent, receipt_id=self._receipt_id
        )
        try:
            result = await unit.arun()
        except unit.driver_error as error:
            if self._raised is None or self._raised.orig is not error or isinstance(error, Error):
                raise
            raise self._raised from error
        doubted = self._doubted
        if doubted is not None and doubted[0] == unit.applied:
            # Its COMMIT was cut, and proved to be applied.
            self._doubted = None
            session = doubted[1].session
            await self._works.spawn(session.dispatch.after_commit, session)
        return result

    async def _aattempt(self, unit: Unit[Any, R]) -> R:
        return await self._works.spawn(self._attempt, unit)

    def _attempt(self, unit: Unit[Any, R]) -> R:
        self._raised = None
        before = self._doubted
        try:
            # Before it takes a place in the pool; the unit's time may be shorter than that of a checkout.
            self._connector.wait_admitted(unit.left_s())
            with self._works.open() as (work, given):

                def call() -> R:
                    # An attempt that was in doubt was not applied: this one has inserted its receipt, or the server was
                    # queried.
                    self._take_back()
                    result: R = self._works.result(self._fn, self._fn(given, *self._args))
                    return result

                attempt = Attempt(unit, self._connector, self._engine, work, before[1].options if before else None)
                try:
                    return cast(R, attempt.make(call))
                finally:
                    if attempt.remains is not None:
                        self._doubted = unit.attempt, attempt.remains
        except DBAPIError as error:
            if unit.is_applied or not isinstance(error.orig, unit.driver_error):
                raise
            self._raised, cause = error, error.orig
            raise cause from cause.__cause__


class _Lender:
    """Lends connections of an engine's pool to a unit."""

    def __init__(self, works: UnitBackend, engine: Engine, connector: Any) -> None:
        self._works: Final = works
        self._engine: Final = engine
        self._connector: Final = connector
        self._lent: dict[Any, PoolProxiedConnection] = {}

    async def getconn(self, timeout: float | None = None) -> Any:
        """See Lender."""
        return await self._works.spawn(self._get, timeout)

    async def putconn(self, conn: Any) -> None:
        """See Lender."""
        await self._works.spawn(self._lent.pop(conn).close)

    def _get(self, timeout: float | None) -> Any:
        self._connector.wait_admitted(timeout)
        try:
            proxied = self._engine.raw_connection()
        except QueuePoolTimeout as error:
            raise PoolTimeout(str(error)) from error
        self._lent[proxied.driver_connection] = proxied
        return proxied.driver_connection


def new_session(session: Session) -> Session:
    """Return *session*, which was created for an attempt.

    Raises:
        ConfigurationError: It is for two-phase transactions.
    """
    if session.twophase:
        session.close()
        raise ConfigurationError(
            "run: the session has twophase=True, and a unit of work is one transaction on one engine"
        )
    return session


@contextlib.contextmanager
def as_current(registry: Any, session: object) -> Iterator[None]:
    """Make *session* the current one of a scoped session's *registry*."""
    before = registry() if registry.has() else None
    registry.set(session)
    try:
        yield
    finally:
        registry.clear()
        if before is not None:
            registry.set(before)


# -- checks of arguments -----------------------------------------------------------------------------------------


def _check_kind(maker: object) -> None:
    if isinstance(maker, (Engine, sessionmaker, scoped_session)):
        return
    advice = ""
    if isinstance(maker, Session):
        advice = "; each attempt needs a new session, so give what makes them"
    elif isinstance(maker, Connection):
        advice = "; each attempt needs a new connection, so give connection.engine"
    elif is_async(maker):
        advice = "; it is asyncio's: write await arun(…)"
    raise refused("run", maker, f"{_ALLOWED}{advice}")


def refused(what: str, maker: object, text: str) -> ConfigurationError:
    """Return the error that *what* raises for an unsupported *maker*."""
    name = type(maker).__name__
    name = f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}" if maker is not None else "None"
    return ConfigurationError(f"{what}: {name} was given, and {text}")


def is_async(maker: object) -> bool:
    """Return whether *maker* is of SQLAlchemy's asyncio extension, which is imported if the caller has such a maker."""
    module: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    kinds = ("AsyncEngine", "async_sessionmaker", "async_scoped_session", "AsyncSession", "AsyncConnection")
    return module is not None and isinstance(maker, tuple(getattr(module, name) for name in kinds))


def engine_of(factory: Any) -> Engine:
    """Return the engine of the sessions that *factory* creates; the default one.

    Raises:
        ConfigurationError: There is none.
    """
    bind: object = getattr(factory, "kw", {}).get("bind")
    bind = getattr(bind, "sync_engine", bind)
    if isinstance(bind, Engine):
        return bind
    session = factory()
    with getattr(session, "sync_session", session) as plain_session:
        try:
            bound: Engine | Connection = plain_session.get_bind()
        except UnboundExecutionError:
            raise ConfigurationError(
                "run: the sessions are bound to no engine, or only through binds=; give a sessionmaker with bind=engine"
            ) from None
    if isinstance(bound, Connection):
        raise ConfigurationError(
            "run: the sessions are bound to a Connection, and each attempt needs a new one; bind them to its engine"
        )
    return bound


def _connector_of(engine: Engine) -> Any:
    connector = getattr(engine.dialect, "bgpool_connector", None)
    if isinstance(connector, AnyConnector):
        return connector
    name = engine.dialect.name
    known = {"postgresql": "postgresql+bgpool://", "mysql": "mysql+bgpool://", "mariadb": "mysql+bgpool://"}
    instead = f"make it with {known[name]}" if name in known else "postgresql+bgpool:// and mysql+bgpool:// are allowed"
    raise ConfigurationError(f"run: the engine of {engine.url.drivername}:// is not bgpool's; {instead}")
