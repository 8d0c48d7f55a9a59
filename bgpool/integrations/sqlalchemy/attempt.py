"""One attempt of a unit of work through SQLAlchemy: what its Session or Connection does, and what that is to the unit.

The unit's hooks belong around what SQLAlchemy does to the driver's connection, and not around what the function does: a
session connects with its first statement, it flushes when it commits, and listeners may write more until then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session

from bgpool.errors import ConfigurationError, Error
from bgpool.pools.connector import Connector
from bgpool.pools.units import Unit

__all__ = ["Attempt", "Work"]

#: What the function is called with.
Work: TypeAlias = Session | Connection

_ENDED: Final = "the function ended the transaction that it was called in; a unit of work is committed by its runner"


class Attempt:
    """One transaction of a unit of work, begun, committed or rolled back by SQLAlchemy."""

    def __init__(self, unit: Unit[Any, Any], connector: Connector[Any], work: Work) -> None:
        """An attempt of *unit* with *work*, which is used for nothing else."""
        self._unit: Final = unit
        self._connector: Final = connector
        self._work = work
        # What the transaction is on, once there is one.
        self._connection: Connection | None = None
        self._drivers: Any = None
        self._result: Any = None
        self._is_committing = self._is_over = False
        # What the function did that no unit can do, and what it met that a unit must know of. It may catch either.
        self._misuse: Exception | None = None
        self._met: Exception | None = None

    def make(self, call: Callable[[Any], Any]) -> Any:
        """Call *call* with the session or connection in a transaction, commit that, and return the result.

        Raises:
            Exception: As the function and SQLAlchemy raise it; but what stands behind an error that only follows from
                another one that the function has caught.
        """
        try:
            return self._make(self._work, call)
        finally:
            self._is_over = True
            # They know it by its listeners, and would wait for the garbage collector with it.
            del self._work, self._connection, self._drivers

    def _make(self, work: Work, call: Callable[[Any], Any]) -> Any:
        with work.begin() as transaction:
            try:
                if isinstance(work, Session):
                    event.listen(work, "after_begin", self._after_begin)
                else:
                    self._join(work)
                self._result = call(work)
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
        """The unit's transaction is on *connection*."""
        drivers: Any = connection.connection.driver_connection
        self._misuse = self._refusal(connection, drivers)
        if self._misuse is not None:
            raise self._misuse
        if self._unit.needs_begin and not drivers.bgpool_in_transaction:
            connection.exec_driver_sql("BEGIN")
        self._connection, self._drivers = connection, drivers
        event.listen(connection, "commit", self._before_commit)
        event.listen(connection, "rollback", self._before_rollback)
        self._unit.begin(drivers)

    def _refusal(self, connection: Connection, drivers: Any) -> Exception | None:
        """Why the unit cannot have its transaction on *connection*."""
        if self._connection is not None:
            return ConfigurationError(
                f"run: the function used {connection.engine.url.render_as_string()} beside "
                f"{self._connection.engine.url.render_as_string()}, and a unit of work is one transaction on one "
                "connection; call run once for each engine"
            )
        if getattr(connection.dialect, "bgpool_connector", None) is not self._connector:
            return ConfigurationError(
                f"run: the function used {connection.engine.url.render_as_string()}, and the session's own engine is "
                f"another one ({self._connector.name}); give run a sessionmaker that is bound to the engine it uses"
            )
        if self._unit.is_autocommit(drivers):
            return ConfigurationError(
                "run: isolation_level='AUTOCOMMIT' is set, and a unit of work is a transaction; give it "
                "engine.execution_options(isolation_level=…) with a level that has one"
            )
        return None

    def _before_commit(self, _connection: object) -> None:
        """The last moment before COMMIT is sent: all that sessions and listeners had to write was written."""
        if not self._is_committing:
            self._misuse = InvalidRequestError(_ENDED)
            raise self._misuse
        unit = self._unit
        try:
            unit.finish(self._drivers, self._result)
        except unit.driver_error as error:
            if isinstance(error, Error):
                raise
            raise self._wrapped(error) from error

    def _before_rollback(self, _connection: object) -> None:
        """A flush has failed, or the function rolls back: after this the connection may be another user's."""
        if not self._is_over:
            self._met = self._met or self._swallowed()
            self._unit.leave(self._drivers)

    # -- what it means -------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Tell the unit of *error*, before SQLAlchemy rolls back.

        Raises:
            Exception: What the unit takes it for.
        """
        self._is_over = True
        if self._drivers is None:
            return
        cause: BaseException = error
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
        if self._unit.in_doubt and isinstance(self._work, Session):
            # What the rollback would expire or take back may be what was committed, and be in the result.
            self._work.expunge_all()
        if isinstance(error, InvalidRequestError) and cause is not error:
            raise cause from error

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
