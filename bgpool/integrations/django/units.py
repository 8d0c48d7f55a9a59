"""Units of work with Django: a function is called in ``atomic``, and again when a switchover cut its transaction.

Every decision is the same as for pool.run: whether the function is called again, and the outcome of a COMMIT that was
cut.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final, Generic, ParamSpec, TypeVar, overload

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction
from django.db import Error as DjangoError

from bgpool.errors import CommitOutcomeUnknown, ConfigurationError, Error, PoolClosed, SwitchoverInterrupted
from bgpool.integrations.django.instances import NewInstances, watch_saves
from bgpool.integrations.django.sources import Source
from bgpool.integrations.django.under_test import is_under_test
from bgpool.integrations.django.wrapper import SwitchoverWrapper
from bgpool.logs import log_fields
from bgpool.pools.connector import Connector
from bgpool.pools.options import check_timeout, kind_of
from bgpool.pools.receipts import AlreadyApplied, check_receipt_id
from bgpool.pools.source import BlockingSource
from bgpool.pools.units import Unit, check_chooser, plain

__all__ = ["is_interrupted", "run", "transactional"]

_logger: Final = logging.getLogger("bgpool.pool")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: The aliases of engines that are not bgpool's, and the warnings that were logged for them.
_warned: Final[set[tuple[str, str]]] = set()


@overload
def run(
    fn: Callable[..., R], *args: Any, using: str = ..., timeout: float | None = ..., idempotent: bool = ...
) -> R: ...


@overload
def run(
    fn: Callable[..., R],
    *args: Any,
    using: str = ...,
    timeout: float | None = ...,
    idempotent: bool = ...,
    receipt_id: str | None,
) -> R | AlreadyApplied: ...


def run(
    fn: Callable[..., R],
    *args: Any,
    using: str = DEFAULT_DB_ALIAS,
    timeout: float | None = None,
    idempotent: bool = False,
    receipt_id: str | None = None,
) -> R | AlreadyApplied:
    """Call ``fn(*args)`` in ``atomic(durable=True)``; repeat it if a switchover cut it before its COMMIT.

    *fn* may be called several times, but only one call is applied. Its effects outside its transaction happen once per
    call. Hooks of ``transaction.on_commit`` run once, and only when the transaction is known to be committed. To pass
    keywords, use functools.partial, or a lambda.

    Args:
        fn: A function with the work of one transaction.
        args: Its arguments.
        using: The alias of the database. *fn* may use others, but outside of the transaction.
        timeout: Longest time until the last call begins, in seconds; None for the longest hold, and with
            ``OPTIONS["pool"]`` the pool's timeout after it.
        idempotent: *fn* may be applied twice. It is then also called again if the outcome of its COMMIT is unknown.
        receipt_id: The unit's id, 1 to 200 letters, digits and ``._:@/+=~#-``: the unit is applied once, however often
            and in however many processes it is run with this id. Needs bg_receipts_table. None for a generated id. In
            the transaction of a TestCase, and with an engine that is not bgpool's, the id is checked and *fn* is
            called.

    Returns:
        The result of *fn*; AlreadyApplied(receipt_id) if an earlier run with the same *receipt_id* was applied.

    Raises:
        CommitOutcomeUnknown: COMMIT was cut, and the server cannot tell its outcome.
        SwitchoverInterrupted: The unit was cut repeatedly until its time was used up.
        SwitchoverHoldTimeout, GreenHostRejected: The same as for a checkout. These errors are bgpool's own, not wrapped
            by Django.
        ConfigurationError: An argument cannot be used; *receipt_id* is not a valid id or has no table; or autocommit is
            off, by a call or by ``AUTOCOMMIT``.
        RuntimeError: Called within ``atomic``; Django's own error for ``durable=True``.
        TypeError: *fn* is an ``async`` or a generator function.
        Exception: Any error of *fn*, a hook or Django. The transaction was rolled back, unless a hook raised the error.

    Source: docs/units-of-work.md.
    """
    _check(using, timeout)
    if not callable(fn):
        raise ConfigurationError(f"run: fn={kind_of(fn)} cannot be called; a function is allowed")
    return _run(lambda: plain(fn, fn(*args)), using, timeout, idempotent=idempotent, receipt_id=receipt_id)


@overload
def transactional(using: Callable[P, R]) -> Callable[P, R]: ...


@overload
def transactional(
    using: str = ..., *, timeout: float | None = ..., idempotent: bool = ...
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


@overload
def transactional(
    using: str = ..., *, timeout: float | None = ..., idempotent: bool = ..., receipt_id: Callable[P, str]
) -> Callable[[Callable[P, R]], Callable[P, R | AlreadyApplied]]: ...


def transactional(
    using: Any = DEFAULT_DB_ALIAS,
    *,
    timeout: float | None = None,
    idempotent: bool = False,
    receipt_id: Callable[..., str] | None = None,
) -> Any:
    """Decorate a function so that every call of it is a unit of work: ``@transactional``, ``@transactional(using=…)``.

    A view can be decorated. It is then marked with ``non_atomic_requests``, because ATOMIC_REQUESTS would begin a
    transaction around it. Arguments and errors are those of run, except for *receipt_id*: it is a function that is
    called with the arguments of each call and returns the id.
    """
    if callable(using):
        return transactional()(using)
    _check(using, timeout)
    check_chooser(receipt_id)

    def decorate(fn: Callable[..., R]) -> Callable[..., R | AlreadyApplied]:
        @functools.wraps(fn)
        def unit(*args: Any, **kwargs: Any) -> R | AlreadyApplied:
            chosen = receipt_id(*args, **kwargs) if receipt_id is not None else None
            call = functools.partial(fn, *args, **kwargs)
            return _run(lambda: plain(fn, call()), using, timeout, idempotent=idempotent, receipt_id=chosen)

        marked: Callable[..., R | AlreadyApplied] = transaction.non_atomic_requests(using)(unit)
        return marked

    return decorate


def is_interrupted(error: BaseException | None) -> bool:
    """Return whether *error* shows that a switchover cut a transaction that did not commit and can be run again.

    For retry decorators. The error is SwitchoverInterrupted, or the ``django.db.OperationalError`` that wraps it.
    """
    cause = error.__cause__ if isinstance(error, DjangoError) else error
    return isinstance(cause, SwitchoverInterrupted)


def _run(
    call: Callable[[], R], using: str, timeout: float | None, *, idempotent: bool, receipt_id: str | None
) -> R | AlreadyApplied:
    wrapper = connections[using]
    _check_autocommit(wrapper)
    source = _source_of(wrapper)
    if source is not None:
        source.connections.check_receipt_id(receipt_id)
    elif receipt_id is not None:
        check_receipt_id("run", receipt_id)
        _warn_of_id(wrapper)
    if source is None or wrapper.in_atomic_block:
        # The engine is Django's own, or this is the transaction of a TestCase, which cannot be begun again. In any
        # other transaction Django raises.
        with transaction.atomic(using=using, durable=True):
            return call()
    assert isinstance(wrapper, SwitchoverWrapper)
    runner = _Runner(call, using, wrapper, source, timeout, idempotent=idempotent, receipt_id=receipt_id)
    return runner.run()


def _check_autocommit(wrapper: Any) -> None:
    """Refuse a database without autocommit: there ``atomic`` leaves the COMMIT to the caller.

    Raises:
        ConfigurationError: It was turned off by a call, or in the settings.
    """
    if wrapper.in_atomic_block:
        return
    if wrapper.connection is None:
        # The autocommit state of the next connection.
        kept = getattr(wrapper, "bgpool_autocommit", None)
        is_on = wrapper.settings_dict["AUTOCOMMIT"] if kept is None else kept
    else:
        is_on = wrapper.get_autocommit()
    if not is_on:
        raise ConfigurationError(
            f"run: autocommit of DATABASES[{wrapper.alias!r}] is off, by hand or by its setting AUTOCOMMIT, and a unit "
            "of work is a transaction of its own; turn it on before"
        )


def _source_of(wrapper: Any) -> Source | None:
    if isinstance(wrapper, SwitchoverWrapper):
        wrapper.bgpool_leave_behind()
        source = wrapper.bgpool_find(wrapper.get_connection_params()) if wrapper.connection is None else None
        return source or wrapper.bgpool_source
    # For example SQLite in tests. In production the ENGINE was probably forgotten.
    if (wrapper.alias, "engine") not in _warned and not is_under_test(wrapper.settings_dict):
        _warned.add((wrapper.alias, "engine"))
        _logger.warning(
            "units of work on DATABASES[%r] are not run again after a switchover: its ENGINE %s is not a bgpool engine",
            wrapper.alias,
            wrapper.settings_dict["ENGINE"],
            extra=log_fields("django_engine_not_bgpool"),
        )
    return None


def _warn_of_id(wrapper: Any) -> None:
    """Warn once that a unit with the caller's id is applied each time that it is run."""
    if (wrapper.alias, "receipt_id") in _warned or is_under_test(wrapper.settings_dict):
        return
    _warned.add((wrapper.alias, "receipt_id"))
    _logger.warning(
        "receipt_id has no effect on DATABASES[%r], so that each run of a unit of work is applied: set a bgpool engine "
        "as its ENGINE, with a bg_id",
        wrapper.alias,
        extra=log_fields("django_engine_not_bgpool"),
    )


class _Runner(Generic[R]):
    """One unit of work, with the Django objects that it needs. It lends the connections for queries about outcomes."""

    def __init__(
        self,
        call: Callable[[], R],
        using: str,
        wrapper: SwitchoverWrapper,
        source: Source,
        timeout: float | None,
        *,
        idempotent: bool,
        receipt_id: str | None,
    ) -> None:
        self._call: Final = call
        self._using: Final = using
        self._wrapper: Final = wrapper
        self._source = source
        self._timeout: Final = timeout
        self._idempotent: Final = idempotent
        self._receipt_id: Final = receipt_id
        # The error that Django raised in the last attempt.
        self._raised: DjangoError | None = None
        # The last attempt that has called the function. While it is in doubt, no other calls the function: if any
        # attempt was applied, it is this one.
        self._called: _Attempt | None = None
        self._instances: Final = NewInstances()

    def run(self) -> R | AlreadyApplied:
        """Run the unit; for arguments and errors see the function run."""
        watch_saves()
        made = self._source.connections
        timeout_s = self._timeout
        if timeout_s is None:
            timeout_s = made.hold_s if isinstance(made, Connector) else made.hold_s + made.timeout
        unit: Unit[Any, R] = made.make_unit(
            self._attempt, self, timeout_s=timeout_s, idempotent=self._idempotent, receipt_id=self._receipt_id
        )
        try:
            result = unit.run()
        except BaseException as error:
            self._undo_after(error, unit)
            if not isinstance(error, unit.driver_error):
                raise
            if self._raised is None or self._raised.__cause__ is not error or isinstance(error, Error):
                raise
            raise self._raised from error
        called = self._called
        if called is None or unit.applied != called.number:
            # The unit was applied by another run.
            self._instances.undo()
        elif not unit.is_applied and called.hooks:
            # Its COMMIT was cut, and proved to be applied.
            self._wrapper.run_on_commit = called.hooks
            self._wrapper.run_and_clear_commit_hooks()
        return result

    def _undo_after(self, error: BaseException, unit: Unit[Any, R]) -> None:
        """Make instances new again, unless they may be saved; the state after the function's own error is unchanged."""
        called = self._called
        if called is None or unit.is_applied or unit.is_undecided or isinstance(error, CommitOutcomeUnknown):
            return
        if isinstance(error, SwitchoverInterrupted) or called.number != unit.attempt:
            # The error asks the caller to run it again. Or a later attempt has failed before it called the function.
            self._instances.undo()

    def _attempt(self, unit: Unit[Any, R]) -> R:
        self._raised = None
        attempt = _Attempt(unit, self._wrapper, self._instances)
        try:
            # Before it takes a connection; the unit's time may be shorter than that of a checkout.
            self._from_source(lambda made: made.wait_admitted(unit.left_s()))
            result: R = attempt.make(self._call, self._using)
            return result
        except DjangoError as error:
            cause = error.__cause__
            if unit.is_applied or not isinstance(cause, unit.driver_error):
                raise
            self._raised = error
            raise cause from cause.__cause__
        finally:
            if attempt.has_called:
                self._called = attempt

    # -- source of its connections -------------------------------------------------------------------------------

    def getconn(self, timeout: float | None = None) -> Any:
        """See Lender."""

        def connect(made: Any) -> Any:
            if not isinstance(made, Connector):
                return made.getconn(timeout)
            made.wait_admitted(timeout)
            return made.connect()

        return self._from_source(connect)

    def putconn(self, conn: Any) -> None:
        """See Lender."""
        made: Any = self._source.connections
        if isinstance(made, Connector):
            conn.close()
        else:
            made.putconn(conn)

    def _from_source(self, take: Callable[[BlockingSource[Any]], T]) -> T:
        """Return the result of *take* with the pool or connector; if that was closed by now, with the next one.

        This is what happens without a unit: Celery closes the pool after each task, even if other threads use it.
        Another database, which the settings may name by now, cannot know the outcome of this one's transactions.
        """
        while True:
            try:
                return take(self._source.connections)
            except PoolClosed:
                source = _source_of(self._wrapper) if self._source.connections.closed else None
                if source is None or source.connections.closed or source.params != self._source.params:
                    raise
                self._source = source


class _Attempt:
    """One transaction of a unit of work that Django begins, commits and rolls back.

    Attributes:
        number: Its number in the unit, from 1.
        has_called: True if it has called the function.
        hooks: The hooks that wait for its COMMIT, once that is sent.
    """

    def __init__(self, unit: Unit[Any, Any], wrapper: SwitchoverWrapper, instances: NewInstances) -> None:
        """Create an attempt of *unit* on *wrapper*; it adds the instances that its function saves to *instances*."""
        self._unit: Final = unit
        self._wrapper: Final = wrapper
        self._instances: Final = instances
        self._drivers: Any = None
        self._result: Any = None
        self.number: Final = unit.attempt
        self.has_called = False
        self.hooks: list[Any] = []

    def make(self, call: Callable[[], Any], using: str) -> Any:
        """Call *call* in ``atomic``, which commits, and return the result."""
        unit, wrapper = self._unit, self._wrapper
        try:
            with transaction.atomic(using=using, durable=True):
                self._begin()
                try:
                    self._result = call()
                except transaction.TransactionManagementError:
                    # The function continued after an error that it had caught, perhaps the switchover's.
                    self._check_lost()
                    raise
                finally:
                    # Before Django ends the transaction after an error: that end must not count as the function's.
                    unit.leave(self._drivers)
                if wrapper.needs_rollback or wrapper.closed_in_transaction:
                    # Nothing is committed, and Django would raise no error. Either the function wants that, or it
                    # caught an error.
                    self._check_lost()
        except BaseException as error:
            if self._drivers is not None and not unit.is_applied:
                self._fail(error)
            raise
        finally:
            wrapper.bgpool_listener = None
        return self._result

    def _begin(self) -> None:
        wrapper = self._wrapper
        drivers: Any = wrapper.connection
        if self._unit.needs_begin:
            with wrapper.cursor() as cursor:
                cursor.execute("BEGIN")
        with wrapper.wrap_database_errors:
            try:
                self._unit.begin(drivers)
            except Exception as error:
                # Immediately: Django ends the transaction, and would drop a connection that must be queried.
                self._unit.fail(drivers, error)
                raise
        self._drivers = drivers
        # No earlier attempt was applied, as was determined by now.
        self._instances.undo()
        self.has_called = True
        wrapper.bgpool_listener = self

    def _check_lost(self) -> None:
        wrapper = self._wrapper
        with wrapper.wrap_database_errors:
            if wrapper.connection is self._drivers and not wrapper.closed_in_transaction:
                self._unit.check_lost(self._drivers)
            else:
                self._unit.check(self._drivers)

    def _fail(self, error: BaseException) -> None:
        cause = error.__cause__ if isinstance(error, DjangoError) and error.__cause__ is not None else error
        held = self._wrapper.connection is self._drivers
        with self._wrapper.wrap_database_errors:
            self._unit.fail(self._drivers, cause, held=held)

    # -- calls of the wrapper ------------------------------------------------------------------------------------

    def before_save(self, instance: object) -> None:
        """Note that a model's *instance* is saved next."""
        self._instances.note(instance)

    def before_commit(self) -> None:
        """Prepare for COMMIT, which is sent next."""
        wrapper = self._wrapper
        self.hooks = [*wrapper.run_on_commit]
        try:
            with wrapper.wrap_database_errors:
                self._unit.finish(self._drivers, self._result)
        except DatabaseError:
            # Django rolls back.
            raise
        except BaseException:
            # An interrupt, or a time limit of Celery. Django would turn autocommit on, which commits on MySQL.
            try:
                wrapper.rollback()
            except DjangoError:
                wrapper.close()
            raise

    def after_commit(self) -> None:
        """Note that the server has confirmed the COMMIT."""
        self._unit.note_applied()
        self._unit.housekeep(self._drivers)
        # Hooks run next, before the end of the block; they may commit transactions of their own.
        self._wrapper.bgpool_listener = None


# -- checks of arguments -----------------------------------------------------------------------------------------


def _check(using: object, timeout: object) -> None:
    if not isinstance(using, str) or using not in connections:
        known = ", ".join(map(repr, connections))
        raise ConfigurationError(f"run: using={using!r}; the alias of a database is allowed: {known}")
    check_timeout("run: timeout", timeout)
