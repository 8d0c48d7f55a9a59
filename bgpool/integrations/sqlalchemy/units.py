"""Units of work with SQLAlchemy: a function is called with a session, or a connection, in a transaction of its own.

Every decision is that of pool.run: whether the function is called again, and what became of a COMMIT that was cut.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeAlias, TypeVar, overload

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.exc import TimeoutError as QueuePoolTimeout
from sqlalchemy.orm import Session, make_transient, scoped_session, sessionmaker
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from bgpool.errors import ConfigurationError, Error, PoolTimeout
from bgpool.integrations.sqlalchemy.attempt import Attempt, Work
from bgpool.pools.connector import Connector
from bgpool.pools.units import Unit, hide_connection, plain

__all__ = ["run", "transactional"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Session)

#: Where the sessions, or connections, of a unit come from.
Maker: TypeAlias = "sessionmaker[Any] | scoped_session[Any] | Engine"
_Sessions: TypeAlias = "sessionmaker[S] | scoped_session[S]"

_ALLOWED: Final = "a sessionmaker, a scoped_session or an Engine is allowed"


def run(maker: Maker, fn: Callable[..., R], *args: Any, timeout: float | None = None, idempotent: bool = False) -> R:
    """Call ``fn(session, *args)`` in a transaction and commit it; again, when a switchover cut it before that.

    Each call gets a new session, which is closed afterwards; with an engine, a Connection. *fn* may be called several
    times, of which one is applied: what it does beside its transaction it does several times. It must not commit, roll
    back or close, and must not use objects of another session: pass keys. ``begin_nested()`` is a savepoint. Keywords
    for it: functools.partial, or a lambda.

    What it returns is detached, and with ``expire_on_commit``, SQLAlchemy's default, expired: return values, or make
    the sessionmaker with ``expire_on_commit=False``.

    Args:
        maker: A sessionmaker, or an Engine, of ``create_engine("postgresql+bgpool://…")`` or ``mysql+bgpool://``. Of a
            scoped_session the new session is the current one while *fn* is called.
        fn: What is to be done in one transaction.
        args: Its arguments after the session.
        timeout: Longest time until the last call begins, in seconds, beside a wait for a place in the engine's pool;
            None for the longest hold and ``pool_timeout`` together.
        idempotent: *fn* may be applied twice. Then it is called again also where nobody can tell whether it was.

    Returns:
        What *fn* returned.

    Raises:
        CommitOutcomeUnknown: COMMIT was cut, and the server cannot tell what became of it.
        SwitchoverInterrupted: Cut again and again, until the time was used up.
        SwitchoverHoldTimeout, GreenHostRejected: As a checkout. These errors are bgpool's own, without SQLAlchemy's
            around them.
        ConfigurationError: *maker* or another argument cannot be used; the engine is not bgpool's, or in AUTOCOMMIT;
            more than one connection was used; the session is a two-phase one.
        TypeError: *fn* is an ``async`` or a generator function.
        Exception: Whatever *fn*, a checkout or SQLAlchemy raised; the transaction was rolled back.

    Source: docs/units-of-work.md.
    """
    _check_kind(maker)
    _check_time(timeout)
    if not callable(fn):
        raise ConfigurationError(
            f"run: fn={fn!r} cannot be called; a function of a session, or a connection, is allowed"
        )
    return _Runner(maker, lambda work: plain(fn, fn(work, *args)), timeout, idempotent=idempotent).run()


@overload
def transactional(
    maker: _Sessions[S], *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[P, R]]: ...


@overload
def transactional(
    maker: Engine, *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[[Callable[Concatenate[Connection, P], R]], Callable[P, R]]: ...


def transactional(
    maker: Any, *, timeout: float | None = None, idempotent: bool = False
) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[P, R]]:
    """Decorate a function of a session, or a connection, so that every call of it is a unit of work.

    The session is the function's first argument and is left out by its callers; frameworks that inspect signatures
    (FastAPI, Typer) see none. Arguments and errors are those of run.
    """
    _check_kind(maker)
    _check_time(timeout)

    def decorate(fn: Callable[Concatenate[Any, P], R]) -> Callable[P, R]:
        @functools.wraps(fn)
        def unit(*args: P.args, **kwargs: P.kwargs) -> R:
            def call(work: Any) -> R:
                return plain(fn, fn(work, *args, **kwargs))

            return _Runner(maker, call, timeout, idempotent=idempotent).run()

        hide_connection(unit, fn)
        return unit

    return decorate


class _Runner(Generic[R]):
    """One unit of work, with what it needs of SQLAlchemy."""

    def __init__(self, maker: Maker, call: Callable[[Any], R], timeout: float | None, *, idempotent: bool) -> None:
        self._maker: Final = maker
        self._call: Final = call
        self._engine: Final = _engine_of(maker)
        self._connector: Final = _connector_of(self._engine)
        self._timeout: Final = timeout
        self._idempotent: Final = idempotent
        # Of the last attempt, unless it came to its end: its session, and what SQLAlchemy raised.
        self._work: Work | None = None
        self._raised: DBAPIError | None = None
        # The new objects that an attempt has inserted, if it is in doubt.
        self._inserted: Final[list[object]] = []

    def run(self) -> R:
        """Run the unit; arguments and errors as the function's."""
        try:
            return self._run()
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """Have the objects that the last attempt has inserted be new again, as a rollback does: it is not applied."""
        while self._inserted:
            make_transient(self._inserted.pop())

    def _run(self) -> R:
        timeout = self._timeout
        if timeout is None:
            pool = self._engine.pool
            timeout = self._connector.timeout + (pool.timeout() if isinstance(pool, QueuePool) else 0.0)
        lender = _Lender(self._engine, self._connector)
        unit: Unit[Any, R] = self._connector.make_unit(
            self._attempt, lender, timeout_s=timeout, idempotent=self._idempotent
        )
        try:
            result = unit.run()
        except unit.driver_error as error:
            if self._raised is None or self._raised.orig is not error or isinstance(error, Error):
                raise
            raise self._raised from error
        if isinstance(self._work, Session):
            # The COMMIT of the last attempt was cut, and has turned out to be applied.
            self._work.dispatch.after_commit(self._work)
        return result

    def _attempt(self, unit: Unit[Any, R]) -> R:
        self._take_back()
        self._work = self._raised = None
        try:
            # Before it takes a place in the pool; and the unit's time is shorter than that of a checkout, perhaps.
            self._connector.wait_admitted(unit.left_s())
            with self._open() as work:
                self._work = work
                result: R = Attempt(unit, self._connector, work, self._inserted).make(self._call)
        except DBAPIError as error:
            if unit.is_applied or not isinstance(error.orig, unit.driver_error):
                raise
            self._raised, cause = error, error.orig
            raise cause from cause.__cause__
        self._work = None
        return result

    @contextlib.contextmanager
    def _open(self) -> Iterator[Work]:
        """A new session or connection, closed at the end of the block."""
        if isinstance(self._maker, Engine):
            with self._maker.connect() as connection:
                yield connection
        elif isinstance(self._maker, sessionmaker):
            with _new_session(self._maker) as session:
                yield session
        else:
            with _new_session(self._maker.session_factory) as session, _as_current(self._maker, session):
                yield session


class _Lender:
    """Lends connections of an engine's pool to a unit."""

    def __init__(self, engine: Engine, connector: Connector[Any]) -> None:
        self._engine: Final = engine
        self._connector: Final = connector
        self._lent: dict[Any, PoolProxiedConnection] = {}

    def getconn(self, timeout: float | None = None) -> Any:
        """As Lender says."""
        self._connector.wait_admitted(timeout)
        try:
            proxied = self._engine.raw_connection()
        except QueuePoolTimeout as error:
            raise PoolTimeout(str(error)) from error
        self._lent[proxied.driver_connection] = proxied
        return proxied.driver_connection

    def putconn(self, conn: Any) -> None:
        """As Lender says."""
        self._lent.pop(conn).close()


def _new_session(factory: Callable[[], Session]) -> Session:
    session = factory()
    if session.twophase:
        session.close()
        raise ConfigurationError(
            "run: the session has twophase=True, and a unit of work is one transaction on one engine"
        )
    return session


@contextlib.contextmanager
def _as_current(scoped: scoped_session[Any], session: Session) -> Iterator[None]:
    """Have *session* be the one that *scoped* leads to."""
    registry = scoped.registry
    before = registry() if registry.has() else None
    registry.set(session)
    try:
        yield
    finally:
        registry.clear()
        if before is not None:
            registry.set(before)


# -- what was given ----------------------------------------------------------------------------------------------


def _check_kind(maker: object) -> None:
    if isinstance(maker, (Engine, sessionmaker, scoped_session)):
        return
    kind = type(maker)
    advice = ""
    if isinstance(maker, Session):
        advice = "; each attempt needs a new session, so give what makes them"
    elif isinstance(maker, Connection):
        advice = "; each attempt needs a new connection, so give connection.engine"
    elif kind.__module__.startswith("sqlalchemy.ext.asyncio"):
        advice = "; asyncio is not supported yet, use a plain one in threads"
    name = f"a {kind.__name__}" if maker is not None else "None"
    raise ConfigurationError(f"run: {name} was given, and {_ALLOWED}{advice}")


def _check_time(timeout: object) -> None:
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is None or (is_number and 0 <= float(timeout) < math.inf):  # type: ignore[arg-type]  # a number, as seen
        return
    raise ConfigurationError(f"run: timeout={timeout!r}; seconds from 0 on are allowed, or None")


def _engine_of(maker: Maker) -> Engine:
    """The engine of *maker*; of its sessions', the default one."""
    if isinstance(maker, Engine):
        return maker
    factory = maker if isinstance(maker, sessionmaker) else maker.session_factory
    bind: object = getattr(factory, "kw", {}).get("bind")
    if isinstance(bind, Engine):
        return bind
    with factory() as session:
        try:
            bound: Engine | Connection = session.get_bind()
        except UnboundExecutionError:
            raise ConfigurationError(
                "run: the sessions are bound to no engine, or only through binds=; give a sessionmaker with bind=engine"
            ) from None
    if isinstance(bound, Connection):
        raise ConfigurationError(
            "run: the sessions are bound to a Connection, and each attempt needs a new one; bind them to its engine"
        )
    return bound


def _connector_of(engine: Engine) -> Connector[Any]:
    connector = getattr(engine.dialect, "bgpool_connector", None)
    if isinstance(connector, Connector):
        return connector
    name = engine.dialect.name
    known = {"postgresql": "postgresql+bgpool://", "mysql": "mysql+bgpool://", "mariadb": "mysql+bgpool://"}
    instead = f"make it with {known[name]}" if name in known else "postgresql+bgpool:// and mysql+bgpool:// are allowed"
    raise ConfigurationError(f"run: the engine of {engine.url.drivername}:// is not bgpool's; {instead}")
