"""One attempt of a unit of work through SQLAlchemy: what its Session or Connection does, and what that is to the unit.

The unit's hooks belong around what SQLAlchemy does to the driver's connection, and not around what the function does: a
session connects with its first statement, it flushes when it commits, and listeners may write more until then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session

from bgpool.errors import ConfigurationError, Error
from bgpool.pools.connector import AnyConnector
from bgpool.pools.receipts import KeyTaken, Undecided
from bgpool.pools.units import Unit

__all__ = ["Attempt", "MaybeApplied", "Work"]

#: What the function is called with.
Work: TypeAlias = Session | Connection

_ENDED: Final = "the function ended the transaction that it was called in; a unit of work is committed by its runner"


@dataclass(frozen=True, slots=True)
class MaybeApplied:
    """What an attempt with a session has left that may have been applied although it failed.

    Attributes:
        session: Its session, closed.
        inserted: The new objects whose rows it has inserted: they are detached, and SQLAlchemy would not insert them
            again.
        options: The execution options of its connection, such as an isolation level that the function has chosen.
    """

    session: Session
    inserted: list[object]
    options: Mapping[str, Any]


class Attempt:
    """One transaction of a unit of work, begun, committed or rolled back by SQLAlchemy.

    The driver's connection has it as ``bgpool_attempt`` meanwhile, by which the dialect finds it.

    Attributes:
        remains: What it has left, if it had a session and ends in doubt.
    """

    def __init__(
        self,
        unit: Unit[Any, Any],
        connector: AnyConnector[Any],
        engine: Engine,
        work: Work,
        options: Mapping[str, Any] | None,
    ) -> None:
        """An attempt of *unit* with *work*, which is used for nothing else.

        Args:
            unit: The unit.
            connector: That of the engine.
            engine: The engine of *work*.
            work: Its session, or connection.
            options: The execution options for a connection that a session is to have before its function is called.
        """
        self.remains: MaybeApplied | None = None
        self._unit: Final = unit
        self._connector: Final = connector
        self._engine: Final = engine
        self._options: Final = options
        self._work = work
        # What the transaction is on, once there is one.
        self._connection: Connection | None = None
        self._drivers: Any = None
        self._result: Any = None
        self._is_called = self._is_committing = self._is_over = False
        # What the function did that no unit can do, and what it met that a unit must know of. It may catch either.
        self._misuse: Exception | None = None
        self._met: Exception | None = None

    def make(self, call: Callable[[], Any]) -> Any:
        """Call *call* in a transaction of the session or connection, commit that, and return the result.

        Raises:
            KeyTaken, Undecided: It was not called.
            Exception: As the function and SQLAlchemy raise it; but what stands behind an error that only follows from
                another one that the function has caught.
        """
        try:
            return self._make(self._work, call)
        finally:
            self._is_over = True
            # The session knows it by its listener, and would wait for the garbage collector with it.
            del self._work
            self._connection = self._drivers = None

    def _make(self, work: Work, call: Callable[[], Any]) -> Any:
        with work.begin() as transaction:
            try:
                if not isinstance(work, Session):
                    self._join(work)
                else:
                    event.listen(work, "after_begin", self._after_begin)
                    if self._unit.claims:
                        # It connects with its first statement, and the receipt comes before the function.
                        work.connection({"bind": self._engine}, self._options)
                self._is_called = True
                self._result = call()
                if self._misuse is not None:
                    raise self._misuse
                if work.get_transaction() is not transaction:
                    raise InvalidRequestError(_ENDED)
                self._is_committing = True
                work.commit()
            except BaseException as error:
                self._fail(error)
                raise
        return self._result

    # -- what SQLAlchemy tells -----------------------------------------------------------------------------------

    def _after_begin(self, _session: object, _transaction: object, connection: Connection) -> None:
        # The function may have kept the session, and savepoints begin, too.
        if not self._is_over and connection is not self._connection:
            self._join(connection)

    def _join(self, connection: Connection) -> None:
        """The unit's transaction is on *connection*.

        Raises:
            Exception: It cannot be. The function may catch that, and go on outside of the unit.
        """
        drivers: Any = connection.connection.driver_connection
        try:
            refusal = self._refusal(connection, drivers)
            if refusal is not None:
                raise refusal
            self._connection, self._drivers = connection, drivers
            drivers.bgpool_attempt = self
            if self._unit.needs_begin and not drivers.bgpool_in_transaction:
                connection.exec_driver_sql("BEGIN")
            elif self._unit.claims:
                dialect: Any = connection.dialect
                dialect.bgpool_begin(connection)
            try:
                self._unit.begin(drivers)
            except (KeyTaken, Undecided):
                raise
            except self._unit.driver_error as error:
                raise self._wrapped(error) from error
        except Exception as error:
            self._misuse = error
            raise

    def _refusal(self, connection: Connection, drivers: Any) -> Exception | None:
        """Why the unit cannot have its transaction on *connection*."""
        if self._connection is not None:
            return ConfigurationError(
                f"run: the function used {_place(connection)} beside {_place(self._connection)}, and a unit of work is "
                "one transaction on one connection; call run once for each engine"
            )
        if getattr(connection.dialect, "bgpool_connector", None) is not self._connector:
            return ConfigurationError(
                f"run: the function used {_place(connection)}, and the session's own engine is "
                f"another one ({self._connector.name}); give run a sessionmaker that is bound to the engine it uses"
            )
        if self._unit.is_autocommit(drivers):
            return ConfigurationError(
                "run: isolation_level='AUTOCOMMIT' is set, and a unit of work is a transaction; give it "
                "engine.execution_options(isolation_level=…) with a level that has one"
            )
        return None

    # -- what the dialect tells ----------------------------------------------------------------------------------

    def before_commit(self) -> None:
        """COMMIT is sent next: all that sessions and listeners had to write was written.

        Raises:
            InvalidRequestError: It must not be.
        """
        if self._is_over or not self._is_held():
            return
        if not self._is_committing:
            self._misuse = InvalidRequestError(_ENDED)
            raise self._misuse
        try:
            self._unit.finish(self._drivers, self._result)
        except self._unit.driver_error as error:
            # Not as the driver's error: SQLAlchemy would throw the connection away, which may have to be asked.
            self._met = error
            raise InvalidRequestError("the transaction of the unit of work cannot be committed") from error

    def after_commit(self) -> None:
        """The server has answered that it has committed; the connection is returned next."""
        if self._is_committing and not self._is_over and self._is_held():
            self._drivers.bgpool_attempt = None
            self._unit.note_applied()
            self._unit.housekeep(self._drivers)

    def before_rollback(self) -> None:
        """A flush has failed, or the function rolls back: after this the connection may be another user's."""
        if not self._is_held():
            return
        if self._is_over:
            self._drivers.bgpool_attempt = None
        else:
            self._met = self._met or self._swallowed()
        self._unit.leave(self._drivers)

    # -- what it means -------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Tell the unit of *error*, before SQLAlchemy rolls back.

        Raises:
            Exception: What the unit takes it for.
        """
        self._is_over = True
        if self._drivers is None or self._unit.is_applied:
            return
        cause: Any = error
        if isinstance(error, DBAPIError) and error.orig is not None:
            cause = error.orig
        elif isinstance(error, InvalidRequestError):
            # "Can't reconnect until invalid transaction is rolled back", say.
            cause = self._met or self._swallowed() or error
        try:
            self._unit.fail(self._drivers, cause, held=self._is_held())
        except self._unit.driver_error as settled:
            raise self._wrapped(settled) from settled
        finally:
            self._roll_back()
        if self._unit.in_doubt and self._is_called and isinstance(self._work, Session):
            # What the rollback would expire or take back may be what was committed, and be in the result.
            transaction: Any = self._work.get_transaction()
            # None where the function has rolled back itself.
            states = list(transaction._new) if transaction is not None else []
            inserted = [entity for state in states if (entity := state.obj()) is not None]
            options = self._connection.get_execution_options() if self._connection is not None else {}
            self.remains = MaybeApplied(self._work, inserted, options)
            self._work.expunge_all()
        if isinstance(error, InvalidRequestError) and cause is not error:
            raise cause if isinstance(cause, Error) else self._wrapped(cause) from error

    def _roll_back(self) -> None:
        """Roll back: after an error in a ``commit`` listener SQLAlchemy does not. A lost connection needs none."""
        connection = self._connection
        if connection is not None and self._is_held():
            with contextlib.suppress(self._unit.driver_error):
                connection.dialect.do_rollback(connection.connection)

    def _wrapped(self, error: Exception) -> DBAPIError:
        """The driver's *error* as SQLAlchemy raises it."""
        wrapped = DBAPIError.instance(None, None, error, self._unit.driver_error)
        assert isinstance(wrapped, DBAPIError)
        return wrapped

    def _swallowed(self) -> Exception | None:
        """What a switchover has done to the connection; the function may have caught it."""
        if not self._is_held() and self._drivers.bgpool_in_doubt is None:
            return None
        try:
            self._unit.check_lost(self._drivers)
        except self._unit.driver_error as error:
            return error
        return None

    def _is_held(self) -> bool:
        """Whether the connection is still the attempt's own: it is back in the pool once its transaction has ended."""
        connection = self._connection
        return connection is not None and not (connection.closed or connection.invalidated)


def _place(connection: Connection) -> str:
    """The URL of *connection* without its query, in which SQLAlchemy shows what is secret."""
    return connection.engine.url.set(query={}).render_as_string()
