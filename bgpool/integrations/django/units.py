"""Units of work with Django: a function is called in ``atomic``, and again when a switchover cut its transaction.

Every decision is that of pool.run: whether the function is called again, and what became of a COMMIT that was cut.
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

#: Aliases of engines that are not bgpool's, and what was warned of.
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
    """Call ``fn(*args)`` in ``atomic(durable=True)``; again, when a switchover cut it before its COMMIT.

    *fn* may be called several times, of which one is applied: what it does beside its transaction it does several
    times. Hooks of ``transaction.on_commit`` run once, and exactly when it is known that the transaction is committed.
    Keywords for *fn*: functools.partial, or a lambda.

    Args:
        fn: What is to be done in one transaction.
        args: Its arguments.
        using: The alias of the database. *fn* may use others; what it does there is not in the transaction.
        timeout: Longest time until the last call begins, in seconds; None for the longest hold, and with
            ``OPTIONS["pool"]`` the pool's timeout after it.
        idempotent: *fn* may be applied twice. Then it is called again also where nobody can tell whether it was.
        receipt_id: The unit's id, 1 to 200 letters, digits and ``._:@/+=~#-``: it is applied once, however often and
            in how many processes it is run with this id. Needs bg_receipts_table. None for an id of its own. In the
            transaction of a TestCase, and with an engine that is not bgpool's, the id is checked and *fn* is called.

    Returns:
        What *fn* returned; AlreadyApplied(receipt_id) if an earlier run with the same *receipt_id* was applied.

    Raises:
        CommitOutcomeUnknown: COMMIT was cut, and the server cannot tell what became of it.
        SwitchoverInterrupted: Cut again and again, until the time was used up.
        SwitchoverHoldTimeout, GreenHostRejected: As a checkout. These errors are bgpool's own, without Django's around
            them.
        ConfigurationError: An argument cannot be used; *receipt_id* is no id or has no table; or autocommit is off, by
            hand or by ``AUTOCOMMIT``.
        RuntimeError: Called within ``atomic``, Django's own error for ``durable=True``.
        TypeError: *fn* is an ``async`` or a generator function.
        Exception: Whatever *fn*, a hook or Django raised; unless a hook raised it the transaction was rolled back.

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

    A view can be decorated. It is one of ``non_atomic_requests`` then: ATOMIC_REQUESTS would begin a transaction
    around it. Arguments and errors are those of run, but *receipt_id* is a function: called with the arguments of each
    call, it returns the id.
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
    """Whether *error* says that a switchover has cut a transaction, which did not commit and can be run again.

    For retry decorators. It is SwitchoverInterrupted, or the ``django.db.OperationalError`` that Django makes of it.
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
        # Django's own affair; or in the transaction of a TestCase, which cannot be begun again. In any other Django
        # raises.
        with transaction.atomic(using=using, durable=True):
            return call()
    assert isinstance(wrapper, SwitchoverWrapper)
    runner = _Runner(call, using, wrapper, source, timeout, idempotent=idempotent, receipt_id=receipt_id)
    return runner.run()


def _check_autocommit(wrapper: Any) -> None:
    """Refuse a database without autocommit: ``atomic`` leaves the COMMIT to the caller there.

    Raises:
        ConfigurationError: It was turned off by hand, or in the settings.
    """
    if wrapper.in_atomic_block:
        return
    if wrapper.connection is None:
        # What the next one begins with.
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
    # SQLite in tests, say. In production it is an ENGINE that was forgotten.
    if (wrapper.alias, "engine") not in _warned and not is_under_test(wrapper.settings_dict):
        _warned.add((wrapper.alias, "engine"))
        _logger.warning(
            "units of work on DATABASES[%r] are not run again after a switchover: its ENGINE %s is not one of bgpool's "
            "engines",
            wrapper.alias,
            wrapper.settings_dict["ENGINE"],
            extra=log_fields("django_engine_not_bgpool"),
        )
    return None


def _warn_of_id(wrapper: Any) -> None:
    """Warn once that a unit with an id of the caller's is applied each time it is run."""
    if (wrapper.alias, "receipt_id") in _warned or is_under_test(wrapper.settings_dict):
        return
    _warned.add((wrapper.alias, "receipt_id"))
    _logger.warning(
        "receipt_id has no effect on DATABASES[%r], so that each run of a unit of work is applied: set one of bgpool's "
        "engines as its ENGINE, with a bg_id",
        wrapper.alias,
        extra=log_fields("django_engine_not_bgpool"),
    )


class _Runner(Generic[R]):
    """One unit of work, with what it needs of Django. A Lender of the connections for its questions."""

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
        # What Django raised in the last attempt.
        self._raised: DjangoError | None = None
        # The last attempt that has called the function. While it is in doubt, none calls it again: if any attempt was
        # applied, then this one.
        self._called: _Attempt | None = None
        self._instances: Final = NewInstances()

    def run(self) -> R | AlreadyApplied:
        """Run the unit; arguments and errors as the function's."""
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
            # By another run.
            self._instances.undo()
        elif not unit.is_applied and called.hooks:
            # Its COMMIT was cut, and has turned out to be applied.
            self._wrapper.run_on_commit = called.hooks
            self._wrapper.run_and_clear_commit_hooks()
        return result

    def _undo_after(self, error: BaseException, unit: Unit[Any, R]) -> None:
        """Make instances new again, unless they may have been saved; what the function's own error leaves is its."""
        called = self._called
        if called is None or unit.is_applied or unit.is_undecided or isinstance(error, CommitOutcomeUnknown):
            return
        if isinstance(error, SwitchoverInterrupted) or called.number != unit.attempt:
            # It says: run it again. Or a later attempt has failed, and has not come as far as the function.
            self._instances.undo()

    def _attempt(self, unit: Unit[Any, R]) -> R:
        self._raised = None
        attempt = _Attempt(unit, self._wrapper, self._instances)
        try:
            # Before it takes a connection; and the unit's time is shorter than that of a checkout, perhaps.
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

    # -- where its connections come from -------------------------------------------------------------------------

    def getconn(self, timeout: float | None = None) -> Any:
        """As Lender says."""

        def connect(made: Any) -> Any:
            if not isinstance(made, Connector):
                return made.getconn(timeout)
            made.wait_admitted(timeout)
            return made.connect()

        return self._from_source(connect)

    def putconn(self, conn: Any) -> None:
        """As Lender says."""
        made: Any = self._source.connections
        if isinstance(made, Connector):
            conn.close()
        else:
            made.putconn(conn)

    def _from_source(self, take: Callable[[BlockingSource[Any]], T]) -> T:
        """What *take* gets from the pool or connector; where that was closed meanwhile, from the next one.

        As callers without a unit do: Celery closes the pool behind each task, whatever other threads do. Another
        database, which the settings may name by now, knows nothing of what this one has committed.
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
    """One transaction of a unit of work, begun, committed or rolled back by Django.

    Attributes:
        number: Its number in the unit, from 1.
        has_called: Whether it has come as far as the function.
        hooks: Those that wait for its COMMIT, once that is sent.
    """

    def __init__(self, unit: Unit[Any, Any], wrapper: SwitchoverWrapper, instances: NewInstances) -> None:
        """An attempt of *unit* on *wrapper*; to *instances* it adds what its function saves."""
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
                    # The function went on after an error that it had caught: the switchover's, perhaps.
                    self._check_lost()
                    raise
                finally:
                    # Before Django ends the transaction after an error, which is no doing of the function's.
                    unit.leave(self._drivers)
                if wrapper.needs_rollback or wrapper.closed_in_transaction:
                    # Nothing is committed, and Django would say nothing. As the function wants it, or what it caught?
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
                # At once: Django ends the transaction, and would drop a connection that is to be asked something.
                self._unit.fail(drivers, error)
                raise
        self._drivers = drivers
        # No earlier attempt was applied: that was found out by now.
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

    # -- what the wrapper tells ----------------------------------------------------------------------------------

    def before_save(self, instance: object) -> None:
        """A model's *instance* is saved next."""
        self._instances.note(instance)

    def before_commit(self) -> None:
        """COMMIT is sent next."""
        wrapper = self._wrapper
        self.hooks = [*wrapper.run_on_commit]
        try:
            with wrapper.wrap_database_errors:
                self._unit.finish(self._drivers, self._result)
        except DatabaseError:
            # Django rolls back.
            raise
        except BaseException:
            # An interrupt, a time limit of Celery's. Django would turn autocommit on, which commits on MySQL.
            try:
                wrapper.rollback()
            except DjangoError:
                wrapper.close()
            raise

    def after_commit(self) -> None:
        """The server has answered that it has committed."""
        self._unit.note_applied()
        self._unit.housekeep(self._drivers)
        # Hooks run next, before the block's end; they may commit something of their own.
        self._wrapper.bgpool_listener = None


# -- what was given ----------------------------------------------------------------------------------------------


def _check(using: object, timeout: object) -> None:
    if not isinstance(using, str) or using not in connections:
        known = ", ".join(map(repr, connections))
        raise ConfigurationError(f"run: using={using!r}; the alias of a database is allowed: {known}")
    check_timeout("run: timeout", timeout)
