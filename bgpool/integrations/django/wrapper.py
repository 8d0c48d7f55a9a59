"""The common base of the engines: a database's connections come from bgpool, and a stale one is replaced in time.

The engines are subclasses of Django's own. They override the methods that open, check and close a connection. A
connection that a request keeps is checked where Django would check its health: before each cursor, and before a
transaction begins.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, Error
from django.utils.functional import cached_property

from bgpool.core.engine import Engine
from bgpool.errors import PoolClosed, SwitchoverInterrupted
from bgpool.integrations.django import sources
from bgpool.integrations.django.checks import ChecksSettings
from bgpool.integrations.django.shell import AsksForPassword
from bgpool.integrations.django.sources import Source
from bgpool.integrations.django.under_test import MarksTestDatabases
from bgpool.integrations.drivers import is_bgpools

if TYPE_CHECKING:
    # mypy need not know which class it is mixed in before.
    from django.db.backends.base.base import BaseDatabaseWrapper as _Base
else:
    _Base = object

__all__ = ["CommitListener", "SwitchoverWrapper"]


class CommitListener(Protocol):
    """The interface by which a unit of work observes its transaction."""

    def before_save(self, instance: object) -> None:
        """Called before a model's *instance* is saved."""
        ...

    def before_commit(self) -> None:
        """Called before COMMIT is sent."""
        ...

    def after_commit(self) -> None:
        """Called after the server has confirmed the COMMIT."""
        ...


#: The mixins for the classes that a backend names.
_MIXINS: Final[tuple[tuple[str, type], ...]] = (
    ("creation_class", MarksTestDatabases),
    ("client_class", AsksForPassword),
    ("validation_class", ChecksSettings),
)


class SwitchoverWrapper(_Base):
    """Mixed in before a DatabaseWrapper.

    Attributes:
        bgpool_engine: The engine of the servers.
        bgpool_source: The source of the connection; None before the first connection, and without *bg_id*.
        bgpool_listener: Notified of COMMIT, and of instances that are saved, while a unit of work runs.
        bgpool_autocommit: If a connection was dropped between two transactions, its autocommit state, which the next
            connection must have as well. None if the settings decide.
    """

    bgpool_engine: ClassVar[Engine]
    bgpool_source: Source | None = None
    bgpool_listener: CommitListener | None = None
    bgpool_autocommit: bool | None = None
    # The database and user of the connection, from the settings at that time.
    _bgpool_place: tuple[object, ...] = ()
    # The source and the generation of the last connection: the cached properties of the server are from there.
    _bgpool_noted: tuple[Source, Any] | None = None
    # True while a connection is set up: it must not be replaced then.
    _bgpool_connects: bool = False
    # True once the user has rolled back a transaction whose connection is gone.
    _bgpool_rolled_back: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, mixin in _MIXINS:
            backends = getattr(cls, name, None)
            if backends is not None and not issubclass(backends, mixin):
                names = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.{backends.__name__}"}
                setattr(cls, name, type(backends.__name__, (mixin, backends), names))

    # -- source of connections -----------------------------------------------------------------------------------

    def get_connection_params(self) -> dict[str, Any]:
        """Like Django's, without bgpool's own parameters."""
        params = super().get_connection_params()
        for name in self.settings_dict["OPTIONS"]:
            if is_bgpools(name):
                params.pop(name, None)
        return params

    def bgpool_find(self, params: Mapping[str, Any]) -> Source | None:
        """Set and return the source of the connection that is now opened with *params*; see bgpool_look.

        Raises:
            ImproperlyConfigured: The settings cannot be used.
        """
        self._bgpool_place = _place_of(self.settings_dict)
        self.bgpool_source = self.bgpool_look(params)
        return self.bgpool_source

    def bgpool_look(self, params: Mapping[str, Any]) -> Source | None:
        """Return the source of a connection with *params*; None without *bg_id*, when only Django handles it.

        Raises:
            ImproperlyConfigured: The settings cannot be used.
        """
        if not sources.is_wanted(self.settings_dict):
            # The settings may have changed and may have required a pool before.
            sources.close_pools(self.alias)
            return None
        return sources.find(
            self.bgpool_engine,
            self.alias,
            self.settings_dict,
            params,
            (type(self), self._bgpool_configured_by()),
            self._bgpool_make_configure,
        )

    def copy(self, alias: str | None = None) -> Any:
        """Like Django's, which would also copy a password callable, so that the copy would get another source."""
        given = (self.settings_dict["PASSWORD"], *self.settings_dict["OPTIONS"].values())
        copied = copy.deepcopy(self.settings_dict, {id(one): one for one in given if callable(one)})
        return type(self)(copied, self.alias if alias is None else alias)

    def bgpool_note(self, source: Source, connection: Any) -> None:
        """Note that *connection* is new: after a switchover it leads to a server that may have another version.

        Raises:
            ImproperlyConfigured: bgpool did not open it.
        """
        generation = getattr(connection, "bgpool_generation", None)
        if generation is None:
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]: {type(self).__module__} opens connections by itself; bgpool needs "
                "a get_new_connection() that gets them from self.Database.connect() or self.pool"
            )
        last, self._bgpool_noted = self._bgpool_noted, (source, generation)
        # A generation receives its epoch later if no monitor has published yet.
        if last is not None and (last[0] is not source or last[1].epoch != generation.epoch):
            for kept in (self, self.features, self.ops, self.introspection):
                _forget(kept)
        self._bgpool_rolled_back = False

    def connect(self) -> None:
        """Like Django's; it is repeated if a switchover begins in the meantime, or its pool is closed.

        A connection whose setup failed is closed: the next statements would run without its time zone, or its role.
        """
        if self._bgpool_connects or not sources.is_wanted(self.settings_dict):
            super().connect()
            return
        autocommit, hooks = self.bgpool_autocommit, self.run_on_commit
        self._bgpool_connects = True
        try:
            self._bgpool_connect(autocommit)
            self.bgpool_autocommit = None
        except BaseException:
            self.bgpool_autocommit = autocommit
            raise
        finally:
            self._bgpool_connects = False
            if autocommit is not None:
                # The hooks of a transaction that was committed on the dropped connection.
                self.run_on_commit = hooks

    def _bgpool_connect(self, autocommit: bool | None) -> None:
        ends_at: float | None = None
        while True:
            try:
                super().connect()
                if autocommit not in (None, self.autocommit):
                    self.set_autocommit(bool(autocommit))
            except BaseException as error:
                source = self.bgpool_source
                outdated = PoolClosed if self.connection is None else SwitchoverInterrupted
                with contextlib.suppress(Error):
                    self.close()
                if source is None or not _is_of(outdated, error) or _is_past(ends_at):
                    raise
            else:
                source = self.bgpool_source
                if source is None or self.bgpool_may_be_asked() or _is_past(ends_at):
                    return
                self.close()
            # None of the caller's statements was sent. The next attempt waits until the switchover has passed, or has
            # another pool.
            ends_at = ends_at or time.monotonic() + source.connections.hold_s

    @property
    def pool(self) -> Any:
        """The pool, if ``OPTIONS["pool"]`` enables one."""
        source = self.bgpool_source
        if source is not None:
            # The common case first: Django reads it at every cursor.
            return source.pool
        if self.settings_dict["OPTIONS"].get(sources.BG_ID) is None:
            return getattr(super(), "pool", None)
        if self.settings_dict["OPTIONS"].get("pool"):
            source = self.bgpool_find(self.get_connection_params())
        return source.pool if source is not None else None

    def close_pool(self) -> None:
        """Close the pool, if any; connections in use are closed when they are returned."""
        if not sources.is_wanted(self.settings_dict):
            close_pool = getattr(super(), "close_pool", None)
            if close_pool is not None:
                close_pool()
            return
        sources.close_pools(self.alias)
        if self.connection is None:
            self.bgpool_source = None

    def _bgpool_make_configure(self) -> Callable[[Any], None]:
        return _Configure(type(self), self.alias, self.settings_dict, self._bgpool_configured_by())

    def _bgpool_configured_by(self) -> object:
        """Return the settings that configure a pool's connections, in addition to their parameters."""
        raise NotImplementedError

    def bgpool_configure_connection(self, connection: Any) -> None:
        """Configure *connection*, which a pool has opened, like ``init_connection_state`` does without a pool."""
        raise NotImplementedError

    def _close(self) -> None:
        source, connection = self.bgpool_source, self.connection
        if connection is None or source is None or source.pool is None:
            super()._close()  # type: ignore[misc]  # not in the stubs
            return
        # Instead of Django's way, which bypasses the state of the connection itself.
        self.connection = None
        with self.wrap_database_errors:
            source.pool.putconn(connection)

    # -- the gate ------------------------------------------------------------------------------------------------

    def close_if_health_check_failed(self) -> None:
        """Like Django's; and outside ``atomic`` wait while a switchover lasts, and have a stale connection replaced.

        A connection to a database that the settings no longer name is also replaced: that of a test run has another
        name.
        """
        source, connection = self.bgpool_source, self.connection
        if source is not None and connection is not None and not self.in_atomic_block:
            of_its, settings = source.connections, self.settings_dict
            # Inlined instead of called: this runs at every cursor.
            place = (settings["NAME"], settings["HOST"], settings["PORT"], settings["USER"])
            if not (of_its.admits() and of_its.is_fit(connection) and place == self._bgpool_place):
                self._bgpool_renew(source, connection)
        super().close_if_health_check_failed()

    def _bgpool_renew(self, source: Source, connection: Any) -> None:
        """Wait, and have *connection* replaced if it is stale by then, unless it is in a transaction.

        Raises:
            django.db.OperationalError: The caller was held for the maximum time; or the endpoint is green.
        """
        if self._bgpool_connects:
            return
        is_open = connection.bgpool_is_open
        is_between = self._bgpool_is_idle(connection) if is_open else self.autocommit or self._bgpool_rolled_back
        if not is_between:
            # The connection itself raises the outcome of the transaction.
            return
        is_same = self._bgpool_place == _place_of(self.settings_dict)
        if is_same and self._bgpool_is_kept(source, connection):
            return
        self._bgpool_drop(self.autocommit)

    def _bgpool_is_idle(self, connection: Any) -> bool:
        """Return whether *connection*, which is open, has no transaction that its user must still end."""
        return bool(connection.bgpool_is_idle)

    def _bgpool_is_kept(self, source: Source, connection: Any) -> bool:
        """Return whether *connection* may still be used after a switchover, if there is one, has passed."""
        try:
            with self.wrap_database_errors:
                source.connections.wait_admitted()
        except Error:
            # Closed in the meantime: the next connection comes from another pool.
            if not source.connections.closed:
                raise
            return False
        return source.connections.is_fit(connection)

    def bgpool_leave_behind(self) -> None:
        """Close a connection between two transactions that the next one will not use, whatever the phase.

        It leads to a database that the settings no longer name, or its pool was closed.
        """
        source, connection = self.bgpool_source, self.connection
        if source is None or connection is None or self.in_atomic_block:
            return
        is_left = source.connections.closed or self._bgpool_place != _place_of(self.settings_dict)
        if is_left and (self._bgpool_is_idle(connection) or not connection.bgpool_is_open):
            self._bgpool_drop(self.autocommit)

    def get_autocommit(self) -> bool:
        """Like Django's; if it is off, an ``atomic`` block makes no other call before it begins."""
        source, connection = self.bgpool_source, self.connection
        if not (self.autocommit or self.in_atomic_block) and source is not None and connection is not None:
            self._bgpool_renew(source, connection)
        return super().get_autocommit()

    def close_if_unusable_or_obsolete(self) -> None:
        """Like Django's, at both ends of a request; no caller is held there."""
        source, connection = self.bgpool_source, self.connection
        if connection is None:
            self.bgpool_autocommit = None
        elif (
            not self.autocommit
            and source is not None
            and self._bgpool_has_ended(source, connection)
            and self._bgpool_is_stale()
        ):
            # Otherwise Django would query whether autocommit is on, which is held.
            self.close()
        super().close_if_unusable_or_obsolete()

    def is_usable(self) -> bool:
        """Like Django's; a stale connection is not queried, because the query would be held."""
        return self.bgpool_may_be_asked() and super().is_usable()

    def bgpool_may_be_asked(self) -> bool:
        """Return whether a query would be sent to the server immediately, on a connection that can still be used."""
        source, connection = self.bgpool_source, self.connection
        if source is None or connection is None:
            return True
        return source.connections.would_admit() and source.connections.is_fit(connection)

    # -- transactions --------------------------------------------------------------------------------------------

    def set_autocommit(self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False) -> None:
        """Like Django's; at the end of ``atomic`` a stale connection is not queried, and no caller is held.

        The transaction has been committed or rolled back by then. Its hooks, or its error, follow.
        """
        source, connection = self.bgpool_source, self.connection
        may_be_the_end = autocommit and not self.in_atomic_block and not self._bgpool_connects
        if not may_be_the_end or source is None or not self._bgpool_has_ended(source, connection):
            super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)
            return
        self.validate_thread_sharing()
        if self._bgpool_is_stale():
            self._bgpool_drop(autocommit)
        else:
            self._set_autocommit(autocommit)
        self.autocommit = True
        if self.run_commit_hooks_on_set_autocommit_on:
            self.run_and_clear_commit_hooks()
            self.run_commit_hooks_on_set_autocommit_on = False

    def _savepoint(self, sid: str) -> None:
        try:
            super()._savepoint(sid)  # type: ignore[misc]  # not in the stubs
        except BaseException:
            begins = not (self.commit_on_exit or self.savepoint_ids or self.atomic_blocks)
            if begins and self.bgpool_source is not None:
                # If it is set, a block begins while autocommit is off. Django would consider it open: this thread could
                # no longer roll back or replace the connection.
                self.in_atomic_block = False
            raise

    def _set_autocommit(self, autocommit: bool) -> None:
        connection = self.connection
        looks = autocommit and self.bgpool_source is not None and not self._bgpool_connects
        was_idle = looks and connection.bgpool_is_open and connection.bgpool_is_idle
        try:
            super()._set_autocommit(autocommit)  # type: ignore[misc]  # not in the stubs
        except BaseException as error:
            if not (autocommit or self._bgpool_connects or isinstance(error, Error) or self.bgpool_source is None):
                # Interrupted: the server may have it off, although Django expects that it is on.
                self.close()
            # After the end of its transaction only the connection is lost.
            if not was_idle or connection.bgpool_in_doubt:
                raise
            if not isinstance(error, Error):
                # An interrupt, or a time limit of Celery: the answer may still arrive.
                self.close()
                raise
            # It was cut, or held.
            self._bgpool_drop(autocommit)

    def _bgpool_has_ended(self, source: Source, connection: Any) -> bool:
        """Return whether the transaction on *connection* has ended; if there is none, no caller is held."""
        if connection is None:
            return not source.connections.would_admit()
        # A transaction that was lost with its connection is also over once the user has rolled it back.
        return self._bgpool_is_idle(connection) if connection.bgpool_is_open else self._bgpool_rolled_back

    def _bgpool_is_stale(self) -> bool:
        """Return whether there is no connection that can usefully be queried."""
        is_same = self.connection is not None and self._bgpool_place == _place_of(self.settings_dict)
        return not (is_same and self.bgpool_may_be_asked())

    def _bgpool_drop(self, autocommit: bool) -> None:
        """Close the connection between two transactions. The hooks of its committed transactions are kept.

        The next connection has *autocommit*, whatever the settings specify for new connections.
        """
        hooks = self.run_on_commit
        self.close()
        self.run_on_commit = hooks
        self.bgpool_autocommit = autocommit

    def close(self) -> None:
        """Like Django's; the next connection begins as the settings specify."""
        self.bgpool_autocommit = None
        super().close()

    def rollback(self) -> None:
        """Like Django's; a transaction on a lost connection is already rolled back."""
        connection = self.connection
        if self.bgpool_source is None or connection is None or self.in_atomic_block:
            super().rollback()
            return
        if connection.bgpool_is_open:
            try:
                super().rollback()
            except BaseException as error:
                if connection.bgpool_is_open or connection.bgpool_in_doubt:
                    raise
                if not isinstance(error, Error):
                    # An interrupt, or a time limit of Celery, has closed it.
                    self._bgpool_note_rolled_back()
                    raise
            else:
                if connection.bgpool_is_open:
                    return
                # It was cut after its answer, when the server was queried for the cause of a refusal.
        self.validate_thread_sharing()
        self._bgpool_note_rolled_back()

    def _bgpool_note_rolled_back(self) -> None:
        self.needs_rollback = False
        self.run_on_commit = []
        self._bgpool_rolled_back = True

    def _commit(self) -> None:
        listener = self.bgpool_listener
        if listener is not None:
            listener.before_commit()
        try:
            super()._commit()  # type: ignore[misc]  # not in the stubs
        except DatabaseError:
            # Django rolls back.
            raise
        except BaseException:
            # An interrupt, or a time limit of Celery: it is unknown whether it has committed. Django would keep the
            # hooks for the next COMMIT, and use the connection while its answer is still to be received.
            if self.bgpool_source is not None:
                self._bgpool_drop(self.autocommit)
                self.run_on_commit = []
            raise
        if listener is not None:
            listener.after_commit()


@dataclass(frozen=True)
class _Configure:
    """Configures the connections of a pool. Not a method of the first wrapper, which belongs to a thread."""

    wrapper_class: type[SwitchoverWrapper]
    alias: str
    settings_dict: Mapping[str, Any] = field(compare=False)
    configured_by: object

    def __call__(self, connection: Any) -> None:
        wrapper = self.wrapper_class({**self.settings_dict}, self.alias)
        # Django quotes the name of a role with a cursor of the wrapper, which would request a connection from the pool.
        wrapper.connection = connection
        wrapper.bgpool_configure_connection(connection)

    def __repr__(self) -> str:
        return f"<configure {self.alias!r}>"


def _place_of(settings_dict: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the database and the user that the settings name."""
    return settings_dict["NAME"], settings_dict["HOST"], settings_dict["PORT"], settings_dict["USER"]


def _is_past(moment: float | None) -> bool:
    """Return whether *moment*, on the monotonic clock, has passed; None never has."""
    return moment is not None and time.monotonic() >= moment


def _is_of(kind: type[Exception], error: BaseException) -> bool:
    """Return whether *error*, Django's or the driver's, is one of *kind*."""
    return isinstance(error, kind) or isinstance(error.__cause__, kind)


#: Values that Django computes once, including those from the settings, which need not be distinguished.
_REMEMBERED: Final = cached_property


def _forget(kept: object) -> None:
    """Remove the cached properties of the server in *kept*."""
    for name in [*vars(kept)]:
        if isinstance(getattr(type(kept), name, None), _REMEMBERED):
            del vars(kept)[name]
