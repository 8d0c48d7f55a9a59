"""What the engines have in common: a database's connections come from bgpool, and a stale one is replaced in time.

They are subclasses of Django's own, and override where a connection is made, judged and ended. A connection that a
request keeps is looked at where Django would check its health: before each cursor, and before a transaction begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from django.db import Error
from django.utils.functional import cached_property

from bgpool.core.engine import Engine
from bgpool.integrations.django import sources
from bgpool.integrations.django.sources import Source
from bgpool.integrations.django.under_test import MarksTestDatabases
from bgpool.integrations.drivers import split

if TYPE_CHECKING:
    # Which one it is mixed in before, mypy need not know.
    from django.db.backends.base.base import BaseDatabaseWrapper as _Base
else:
    _Base = object

__all__ = ["CommitListener", "SwitchoverWrapper"]


class CommitListener(Protocol):
    """What a unit of work wants to know of its transaction."""

    def before_commit(self) -> None:
        """COMMIT is sent next."""
        ...

    def after_commit(self) -> None:
        """The server has answered that it has committed."""
        ...


class SwitchoverWrapper(_Base):
    """Mixed in before a DatabaseWrapper.

    Attributes:
        bgpool_engine: Of which engine the servers are.
        bgpool_source: Where the connection comes from; None before the first, and without *bg_id*.
        bgpool_listener: Is told of COMMIT, while a unit of work runs.
    """

    bgpool_engine: ClassVar[Engine]
    bgpool_source: Source | None = None
    bgpool_listener: CommitListener | None = None
    # Under which epoch what is remembered of the server was read.
    _bgpool_epoch: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        creation = getattr(cls, "creation_class", None)
        if creation is not None and not issubclass(creation, MarksTestDatabases):
            names = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.{creation.__name__}"}
            cls.creation_class = type(creation.__name__, (MarksTestDatabases, creation), names)

    # -- where connections come from -----------------------------------------------------------------------------

    def get_connection_params(self) -> dict[str, Any]:
        """As Django's, without what is bgpool's own."""
        return split(super().get_connection_params())[0]

    def bgpool_find(self, params: Mapping[str, Any]) -> Source | None:
        """Where a connection with *params* is to come from; None without *bg_id*, where it is Django's own affair.

        Raises:
            ImproperlyConfigured: The settings cannot be used.
        """
        wanted = sources.is_wanted(self.settings_dict)
        self.bgpool_source = (
            sources.find(self.bgpool_engine, self.alias, self.settings_dict, params, self._bgpool_configure())
            if wanted
            else None
        )
        return self.bgpool_source

    def bgpool_note(self, connection: Any) -> None:
        """Note that *connection* is new: after a switchover it leads to a server that may have another version."""
        epoch = connection.bgpool_generation.epoch
        if epoch != self._bgpool_epoch:
            if self._bgpool_epoch is not None:
                for kept in (self, self.features, self.ops, self.introspection):
                    _forget(kept)
            self._bgpool_epoch = epoch

    @property
    def pool(self) -> Any:
        """The pool, if ``OPTIONS["pool"]`` asks for one."""
        if not sources.is_wanted(self.settings_dict):
            return getattr(super(), "pool", None)
        source = self.bgpool_source
        if source is None and self.settings_dict["OPTIONS"].get("pool"):
            source = self.bgpool_find(self.get_connection_params())
        return source.pool if source is not None else None

    def close_pool(self) -> None:
        """Close the pool, if there is one; connections that are out are closed when they are returned."""
        if not sources.is_wanted(self.settings_dict):
            close_pool = getattr(super(), "close_pool", None)
            if close_pool is not None:
                close_pool()
            return
        sources.close_pools(self.alias)
        if self.connection is None:
            self.bgpool_source = None

    def _bgpool_configure(self) -> Callable[[Any], None]:
        return _Configure(type(self), self.alias, self.settings_dict, self._bgpool_configured_by())

    def _bgpool_configured_by(self) -> object:
        """What of the settings a pool's connections are configured by, beside their parameters."""
        raise NotImplementedError

    def bgpool_configure_connection(self, connection: Any) -> None:
        """Configure *connection*, which a pool has opened, as ``init_connection_state`` does without a pool."""
        raise NotImplementedError

    def _close(self) -> None:
        source, connection = self.bgpool_source, self.connection
        if connection is None or source is None or source.pool is None:
            super()._close()  # type: ignore[misc]  # not in the stubs
            return
        # In Django's place, whose way passes by what the connection knows of itself.
        self.connection = None
        with self.wrap_database_errors:
            source.pool.putconn(connection)

    # -- the gate ------------------------------------------------------------------------------------------------

    def close_if_health_check_failed(self) -> None:
        """As Django's; and outside ``atomic`` wait while a switchover lasts, and have a stale connection replaced."""
        source, connection = self.bgpool_source, self.connection
        if source is not None and connection is not None and not self.in_atomic_block:
            of_its = source.connections
            if not (of_its.admits() and of_its.is_fit(connection)):
                self._bgpool_renew(source, connection)
        super().close_if_health_check_failed()

    def _bgpool_renew(self, source: Source, connection: Any) -> None:
        """Wait, and have *connection* replaced if it is stale by then, unless it is in a transaction.

        Raises:
            django.db.OperationalError: Held for as long as it may be; or the endpoint is green.
        """
        is_open = connection.bgpool_is_open
        if (is_open and not connection.bgpool_is_idle) or (not is_open and not self.autocommit):
            # The connection itself says what becomes of the transaction.
            return
        try:
            with self.wrap_database_errors:
                source.connections.wait_admitted()
        except Error:
            # Closed meanwhile: the next connection comes from another pool.
            if not source.connections.closed:
                raise
        else:
            if source.connections.is_fit(connection):
                return
        autocommit = self.autocommit
        self.close()
        if autocommit != self.settings_dict["AUTOCOMMIT"]:
            with self.wrap_database_errors:
                self.connect()
            self.set_autocommit(autocommit)

    def is_usable(self) -> bool:
        """As Django's; a stale connection is not asked, which would be held."""
        source, connection = self.bgpool_source, self.connection
        if source is not None and connection is not None and not source.connections.is_fit(connection):
            return False
        return super().is_usable()

    # -- transactions --------------------------------------------------------------------------------------------

    def set_autocommit(self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False) -> None:
        """As Django's; at the end of ``atomic`` nothing is asked of a connection that is stale, and nobody is held.

        The transaction has been committed or rolled back by then. What follows is its hooks, or its error.
        """
        source, connection = self.bgpool_source, self.connection
        if autocommit and source is not None and not self.in_atomic_block and self._bgpool_is_over(source, connection):
            self.validate_thread_sharing()
            self._bgpool_drop()
            self.autocommit = True
            if self.run_commit_hooks_on_set_autocommit_on:
                self.run_and_clear_commit_hooks()
                self.run_commit_hooks_on_set_autocommit_on = False
            return
        super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)

    def _set_autocommit(self, autocommit: bool) -> None:
        connection = self.connection
        was_idle = autocommit and self.bgpool_source is not None and connection.bgpool_is_idle
        try:
            super()._set_autocommit(autocommit)  # type: ignore[misc]  # not in the stubs
        except Error:
            # Cut behind the end of its transaction: nothing but the connection is lost.
            if not was_idle or connection.bgpool_is_open or connection.bgpool_in_doubt:
                raise
            self._bgpool_drop()

    def _bgpool_is_over(self, source: Source, connection: Any) -> bool:
        """Whether *connection*, whose transaction has ended, is not worth a question."""
        admits = source.connections.would_admit()
        if connection is None:
            return not admits
        if admits and source.connections.is_fit(connection):
            return False
        return not connection.bgpool_is_open or bool(connection.bgpool_is_idle)

    def _bgpool_drop(self) -> None:
        """Close the connection, and keep the hooks of the transaction that it has committed."""
        hooks = self.run_on_commit
        self.close()
        self.run_on_commit = hooks

    def _commit(self) -> None:
        listener = self.bgpool_listener
        if listener is None:
            super()._commit()  # type: ignore[misc]  # not in the stubs
            return
        listener.before_commit()
        super()._commit()  # type: ignore[misc]  # not in the stubs
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
        wrapper.bgpool_configure_connection(connection)

    def __repr__(self) -> str:
        return f"<configure {self.alias!r}>"


#: What Django computes once, of the settings as well; that is not worth telling apart.
_REMEMBERED: Final = cached_property


def _forget(kept: object) -> None:
    """Forget what was remembered of the server in *kept*."""
    for name in [*vars(kept)]:
        if isinstance(getattr(type(kept), name, None), _REMEMBERED):
            del vars(kept)[name]
