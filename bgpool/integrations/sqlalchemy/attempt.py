"""One attempt of a unit of work through SQLAlchemy: maps the steps of its Session or Connection to the unit's hooks.

The unit's hooks surround SQLAlchemy's calls to the driver's connection, not the calls of the function. A session
connects with its first statement, and flushes when it commits. Listeners may write more until then.
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

#: The argument of the function.
Work: TypeAlias = Session | Connection

_ENDED: Final = "the function ended the transaction that it was called in; a unit of work is committed by its runner"


@dataclass(frozen=True, slots=True)
class MaybeApplied:
    """The state of an attempt with a session that failed but may have been applied.

    Attributes:
        session: Its session, closed.
        inserted: The new objects whose rows it has inserted. They are detached, and SQLAlchemy would not insert them
            again.
        options: The execution options of its connection, such as an isolation level that the function has chosen.
    """

    session: Session
    inserted: list[object]
    options: Mapping[str, Any]


class Attempt:
    """One transaction of a unit of work that SQLAlchemy begins, commits and rolls back.

    During the attempt the driver's connection refers to it as ``bgpool_attempt``, where the dialect finds it.

    Attributes:
        remains: The state that it leaves if it had a session and ends in doubt.
    """

    def __init__(
        self,
        unit: Unit[Any, Any],
        connector: AnyConnector[Any],
        engine: Engine,
        work: Work,
        options: Mapping[str, Any] | None,
    ) -> None:
        """Create an attempt of *unit* with *work*, which is used for nothing else.

        Args:
            unit: The unit.
            connector: The engine's connector.
            engine: The engine of *work*.
            work: Its session, or connection.
            options: The execution options of a connection that a session must have before its function is called.
        """
        self.remains: MaybeApplied | None = None
        self._unit: Final = unit
        self._connector: Final = connector
        self._engine: Final = engine
        self._options: Final = options
        self._work = work
        # The connection of the transaction, once there is one.
        self._connection: Connection | None = None
        self._drivers: Any = None
        self._result: Any = None
        self._is_called = self._is_committing = self._is_over = False
        # A misuse by the function, and an error that the unit must handle. The function may catch either.
        self._misuse: Exception | None = None
        self._met: Exception | None = None

    def make(self, call: Callable[[], Any]) -> Any:
        """Call *call* in a transaction of the session or connection, commit that, and return the result.

        Raises:
            KeyTaken, Undecided: *call* was not called.
            Exception: The error of the function or SQLAlchemy. If it only follows from an earlier error that the
                function has caught, the earlier error.
        """
        try:
            return self._make(self._work, call)
        finally:
            self._is_over = True
            # The session refers to it by its listener. The reference cycle would keep both until the garbage collector
            # runs.
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
                        # A session connects with its first statement, and the receipt must precede the function.
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

    # -- SQLAlchemy's events -------------------------------------------------------------------------------------

    def _after_begin(self, _session: object, _transaction: object, connection: Connection) -> None:
        # The function may have kept the session, and savepoints also begin transactions.
        if not self._is_over and connection is not self._connection:
            self._join(connection)

    def _join(self, connection: Connection) -> None:
        """Bind the unit's transaction to *connection*.

        Raises:
            Exception: The unit cannot use it. The function may catch the error, and continue outside of the unit.
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
        """Return the reason why the unit cannot have its transaction on *connection*."""
        if self._connection is not None:
            return ConfigurationError(
                f"run: the function used {_place(connection)} and {_place(self._connection)}; a unit of work is "
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

    # -- calls of the dialect ------------------------------------------------------------------------------------

    def before_commit(self) -> None:
        """Prepare for COMMIT, which is sent next: sessions and listeners have written everything.

        Raises:
            InvalidRequestError: COMMIT must not be sent.
        """
        if self._is_over or not self._is_held():
            return
        if not self._is_committing:
            self._misuse = InvalidRequestError(_ENDED)
            raise self._misuse
        try:
            self._unit.finish(self._drivers, self._result)
        except self._unit.driver_error as error:
            # Not as the driver's error: SQLAlchemy would drop the connection, which may still have to be queried.
            self._met = error
            raise InvalidRequestError("the transaction of the unit of work cannot be committed") from error

    def after_commit(self) -> None:
        """Note that the server has confirmed the COMMIT; the connection is returned next."""
        if self._is_committing and not self._is_over and self._is_held():
            self._drivers.bgpool_attempt = None
            self._unit.note_applied()
            self._unit.housekeep(self._drivers)

    def before_rollback(self) -> None:
        """Handle a failed flush, or a rollback by the function: after this the connection may be another user's."""
        if not self._is_held():
            return
        if self._is_over:
            self._drivers.bgpool_attempt = None
        else:
            self._met = self._met or self._swallowed()
        self._unit.leave(self._drivers)

    # -- meaning of errors ---------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Pass *error* to the unit, before SQLAlchemy rolls back.

        Raises:
            Exception: The unit's translation of it.
        """
        self._is_over = True
        if self._drivers is None or self._unit.is_applied:
            return
        cause: Any = error
        if isinstance(error, DBAPIError) and error.orig is not None:
            cause = error.orig
        elif isinstance(error, InvalidRequestError):
            # For example "Can't reconnect until invalid transaction is rolled back".
            cause = self._met or self._swallowed() or error
        try:
            self._unit.fail(self._drivers, cause, held=self._is_held())
        except self._unit.driver_error as settled:
            raise self._wrapped(settled) from settled
        finally:
            self._roll_back()
        if self._unit.in_doubt and self._is_called and isinstance(self._work, Session):
            # The objects that the rollback would expire or remove may be committed, and be in the result.
            transaction: Any = self._work.get_transaction()
            # There are none if the function itself has rolled back.
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
        """Return the driver's *error* as SQLAlchemy raises it."""
        wrapped = DBAPIError.instance(None, None, error, self._unit.driver_error)
        assert isinstance(wrapped, DBAPIError)
        return wrapped

    def _swallowed(self) -> Exception | None:
        """Return the error of the switchover on the connection; the function may have caught it."""
        if not self._is_held() and self._drivers.bgpool_in_doubt is None:
            return None
        try:
            self._unit.check_lost(self._drivers)
        except self._unit.driver_error as error:
            return error
        return None

    def _is_held(self) -> bool:
        """Return whether the attempt still has the connection: it is returned once its transaction has ended."""
        connection = self._connection
        return connection is not None and not (connection.closed or connection.invalidated)


def _place(connection: Connection) -> str:
    """Return the URL of *connection* without its query, in which SQLAlchemy shows secrets."""
    return connection.engine.url.set(query={}).render_as_string()
