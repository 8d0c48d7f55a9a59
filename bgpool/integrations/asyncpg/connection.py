"""An asyncpg connection that knows its generation: it holds new transactions, and says what a cut has done."""

from __future__ import annotations

import contextlib
import re
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg import compat
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction

from bgpool.core.limits import CANCEL_TIMEOUT_S
from bgpool.errors import SwitchoverInterrupted
from bgpool.integrations.asyncpg.wire import Wire
from bgpool.pools.doubt import IN_AUTOCOMMIT, NO_DOUBT
from bgpool.pools.fork import keep_forever
from bgpool.pools.postgres.refusal import QUESTION, REPORTED, is_servers_by
from bgpool.pools.postgres.text import doubt_of_text, is_harmless

if TYPE_CHECKING:
    from asyncpg import Connection as _Base

    from bgpool.pools.generation import Generation
else:
    _Base = object

__all__ = ["AsyncpgAware", "aware"]

#: Sent at the end of a block, or by its user: it needs no new transaction, nor a connection that is there.
_ROLLS_BACK: Final = re.compile(r"\s*ROLLBACK\b[^;]*;?\s*", re.IGNORECASE)


class AsyncpgAware(_Base):
    """Mixed in before asyncpg's Connection, or a subclass of it.

    Attributes:
        bgpool_generation: What it was opened under; None while it is being made.
        bgpool_address: The IP address of its server; empty for a Unix socket.
        bgpool_lent: Whether a user has it, who waits in a switchover; not while the pool resets it.
        bgpool_busy: Whether it is in use, and not idle in a pool.
        bgpool_keeps_place: Whether its place in the pool is its user's until they release it, also once it is lost.
        bgpool_met_error: Whether a statement has failed since a unit of work began.
        bgpool_began_read_only: What the server reported when the unit began.
        bgpool_unfit, bgpool_cut, bgpool_refused, bgpool_in_unit, bgpool_ended, bgpool_in_doubt: As Aware has them.
    """

    bgpool_generation: Generation | None = None
    bgpool_lent: bool = False
    bgpool_busy: bool = True
    bgpool_keeps_place: bool = False
    bgpool_unfit: bool = False
    bgpool_cut: bool = False
    bgpool_refused: bool | None = None
    bgpool_in_unit: bool = False
    bgpool_ended: bool = False
    bgpool_in_doubt: str | None = None
    bgpool_met_error: bool = False
    bgpool_began_read_only: bool = False
    # What the server had reported when it refused a write; and whether it is still to be asked.
    _reported_read_only: bool | None = None
    _unsettled: bool = False
    # Its user, or the pool, has ended it.
    _ending: bool = False

    def __init__(self, protocol: Any, transport: Any, *args: Any, **kwargs: Any) -> None:
        self._wire: Final = Wire(protocol, self)
        self._fd: Final[int] = transport.get_extra_info("socket").fileno()
        peer = transport.get_extra_info("peername")
        self.bgpool_address: Final = str(peer[0]) if isinstance(peer, tuple) else ""
        super().__init__(self._wire, transport, *args, **kwargs)

    def __del__(self) -> None:
        generation = self.bgpool_generation
        if generation is None or not generation.inherited:
            super().__del__()

    # -- what its generation asks --------------------------------------------------------------------------------

    @property
    def bgpool_is_open(self) -> bool:
        """As Aware says; asked by other threads as well."""
        connected: bool = self._wire.is_connected()
        return connected and not self._aborted

    @property
    def bgpool_is_idle(self) -> bool:
        """As Aware says."""
        return not self._wire.is_in_transaction() and self._top_xact is None

    def fileno(self) -> int:
        """As Aware says; by the time that it is used the number may be another's."""
        return self._fd

    def bgpool_discard(self) -> None:
        """As Aware says."""
        self.terminate()

    # -- before a statement is sent ------------------------------------------------------------------------------

    async def bgpool_await_usable(self, text: str, timeout: float | None) -> None:
        """Wait before *text* is sent, as long as a switchover holds new transactions.

        Raises:
            SwitchoverHoldTimeout: Held for as long as it may be.
            TimeoutError: For as long as the statement may take, *timeout* seconds.
            SwitchoverInterrupted: The connection was cut, or is from before the switchover. Nothing was sent.
            InheritedConnection: It is the parent's.
        """
        generation = self.bgpool_generation
        assert generation is not None
        if self.bgpool_cut and not generation.inherited:
            raise self._lose() or asyncpg.ConnectionDoesNotExistError("connection was closed by its pool")
        begins = self.bgpool_lent and not self._wire.is_in_transaction() and _ROLLS_BACK.fullmatch(text) is None
        if not generation.inherited and not begins:
            return
        try:
            # Before Python 3.12 asyncio.wait_for swallows a cancellation that comes in the turn in which the wait ends.
            async with compat.timeout(timeout):
                await generation.await_usable()
        except SwitchoverInterrupted:
            self.bgpool_in_doubt = NO_DOUBT
            self._end()
            raise

    # -- what an error means -------------------------------------------------------------------------------------

    def bgpool_explain(self, text: str, error: BaseException, *, in_transaction: bool) -> BaseException:
        """*error* of sending *text*, or what it means in a switchover."""
        generation = self.bgpool_generation
        assert generation is not None
        self.bgpool_met_error = True
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            return self._refused(error)
        if self.bgpool_is_open or self._ending:
            return error
        if self.bgpool_in_doubt is None:
            if not text:
                self.bgpool_in_doubt = NO_DOUBT
            elif in_transaction:
                self.bgpool_in_doubt = doubt_of_text(text)
            else:
                self.bgpool_in_doubt = NO_DOUBT if is_harmless(text) else IN_AUTOCOMMIT
        generation.note_cut()
        if isinstance(error, Exception) and generation.is_switching():
            return generation.explain_cut(error, self.bgpool_in_doubt)
        return error

    def _lose(self) -> Exception | None:
        """Note that it was lost between two statements; what that means in a switchover, None outside of one."""
        if self.bgpool_in_doubt is None:
            self.bgpool_in_doubt = NO_DOUBT
        self._end()
        generation = self.bgpool_generation
        if generation is None:
            return None
        generation.note_cut()
        if not generation.is_switching():
            return None
        return generation.explain_cut(asyncpg.ConnectionDoesNotExistError("connection was closed"), NO_DOUBT)

    @property
    def bgpool_is_lost(self) -> bool:
        """Whether it is closed, and neither its user nor the pool has closed it."""
        return self.bgpool_generation is not None and not self.bgpool_is_open and not self._ending

    def bgpool_is_standby(self) -> bool:
        """Whether the server says that it is in recovery; PostgreSQL 14 and later say it."""
        return getattr(self._wire.protocol.get_settings(), "in_hot_standby", None) == "on"

    def bgpool_reports_read_only(self) -> bool | None:
        """As reports_read_only of psycopg's connections."""
        settings = self._wire.protocol.get_settings()
        reports = [getattr(settings, name, None) for name in REPORTED]
        return None if None in reports else "on" in reports

    def _refused(self, error: Exception) -> BaseException:
        """A write was refused: by the server, or in a transaction that the user has made read-only."""
        generation = self.bgpool_generation
        assert generation is not None
        # A transaction stays as it was begun, and the server may take writes again by now.
        began_read_only = self.bgpool_in_unit and self.bgpool_began_read_only
        self._reported_read_only = began_read_only or self.bgpool_reports_read_only()
        self.bgpool_refused = self._reported_read_only is not False
        # The transaction has failed: the server is asked once it is over.
        self._unsettled = self.bgpool_unfit = True
        if self.bgpool_refused and generation.is_switching():
            return generation.explain_read_only(error)
        return error

    async def bgpool_asettle_refusal(self) -> None:
        """As Aware says."""
        generation = self.bgpool_generation
        if not self._unsettled or generation is None or not self.bgpool_is_open:
            return
        self._unsettled = False
        if generation.drained or generation.retired:
            return
        lent, self.bgpool_lent = self.bgpool_lent, False
        try:
            if self._wire.is_in_transaction():
                await self.execute("ROLLBACK")
            in_recovery, setting, source = await self.fetchrow(QUESTION)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return
        finally:
            self.bgpool_lent = lent
        self.bgpool_refused = is_servers_by(
            in_recovery=in_recovery,
            setting=setting,
            source=source,
            reported=self._reported_read_only,
            role_is_servers=generation.role_is_servers(),
        )
        self.bgpool_unfit = self.bgpool_refused and generation.note_refusal()

    # -- what its user calls -------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.bgpool_is_lost and self.bgpool_in_doubt is None:
            lost = self._lose()
            if lost is not None:
                raise lost
        super()._check_open()

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """As asyncpg's; what is lost is rolled back."""
        if not self.bgpool_is_open and self._is_gone() and not args and _ROLLS_BACK.fullmatch(query):
            return "ROLLBACK"
        return await super().execute(query, *args, timeout=timeout)

    def _is_gone(self) -> bool:
        return self.bgpool_is_lost or self.bgpool_in_doubt is not None

    def is_in_transaction(self) -> bool:
        """As asyncpg's; where it is closed it is in none."""
        return self.bgpool_is_open and bool(self._wire.is_in_transaction())

    def transaction(self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False) -> Any:
        """As asyncpg's; where the connection is lost in the block, the block ends with what says so."""
        self._check_open()
        return _Transaction(self, isolation, readonly, deferrable)

    async def _prepare(self, *args: Any, **kwargs: Any) -> Any:
        # For prepare(), and for SQLAlchemy, which prepares everything and keeps it.
        statement = await super()._prepare(*args, **kwargs)
        if type(statement) is PreparedStatement:
            statement.__class__ = _PreparedStatement
        return statement

    # -- its place in a pool -------------------------------------------------------------------------------------

    def _set_proxy(self, proxy: Any) -> None:
        self.bgpool_lent = self.bgpool_busy = proxy is not None
        super()._set_proxy(proxy)

    def _on_release(self, *args: Any, **kwargs: Any) -> None:
        # What follows is the pool's: it ends what is open, and wipes the session.
        self.bgpool_lent = False
        super()._on_release(*args, **kwargs)

    def _cleanup(self) -> None:
        if self.bgpool_keeps_place and self._proxy is not None and not self._ending:
            # Lost while in use. asyncpg would take the proxy out of its user's hands, who would be told that it was
            # released.
            self._clean_tasks()
            self._call_termination_listeners()
            return
        super()._cleanup()

    async def close(self, *, timeout: float | None = None) -> None:
        """As asyncpg's; a connection of the parent of a fork is left alone."""
        if self._is_inherited():
            keep_forever(self)
            return
        self._ending = True
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        """As asyncpg's; a connection of the parent of a fork is left alone."""
        if self._is_inherited():
            keep_forever(self)
            return
        self._ending = True
        # The transport of a closed loop closes its socket when it is collected: it cannot tell anybody any more.
        with contextlib.suppress(*(RuntimeError,) if self._loop.is_closed() else ()):
            super().terminate()

    def _end(self) -> None:
        """End it, and leave its place to its user as if it was lost."""
        if not self._is_inherited() and not self._aborted:
            self._abort()
            self._cleanup()

    async def _cancel(self, waiter: Any, *args: Any) -> None:
        # A silent server is not waited for: asyncpg would do so at the rollback, or the release, that comes next.
        late = self._loop.call_later(CANCEL_TIMEOUT_S, self._end)
        try:
            await super()._cancel(waiter, *args)
        finally:
            late.cancel()
        if waiter.done() and not waiter.cancelled() and waiter.exception() is not None:
            # asyncpg before 0.32 would raise it at the next statement. What becomes of the one at hand nobody knows.
            self._end()

    def _is_inherited(self) -> bool:
        return self.bgpool_generation is not None and self.bgpool_generation.inherited


class _PreparedStatement(PreparedStatement):
    """asyncpg's prepared statement; on a lost connection it tells what happened to that."""

    __slots__ = ()

    def _check_conn_validity(self, name: str) -> None:
        self._connection._check_open()
        super()._check_conn_validity(name)


class _Transaction(Transaction):
    """asyncpg's transaction, whose end tells of a lost connection what happened to it."""

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        connection: AsyncpgAware = self._connection
        if kind is not None and connection._is_gone():
            # Rolled back, and the error that tells why is under way.
            self._managed = False
            return
        try:
            await super().__aexit__(kind, error, trace)
        except Exception:
            # Lost while it rolled back: the same.
            if kind is None or not connection._is_gone():
                raise

    async def rollback(self) -> None:
        """As asyncpg's; what is lost is rolled back."""
        connection: AsyncpgAware = self._connection
        if connection._is_gone():
            return
        try:
            await super().rollback()
        except Exception:
            if not connection._is_gone():
                raise

    def _check_conn_validity(self, name: str) -> None:
        self._connection._check_open()
        super()._check_conn_validity(name)


@cache
def aware(connection_class: type[asyncpg.Connection]) -> type[AsyncpgAware]:
    """*connection_class* with AsyncpgAware mixed in."""
    if issubclass(connection_class, AsyncpgAware):
        return connection_class
    names = {"__module__": connection_class.__module__, "__doc__": connection_class.__doc__}
    return type(connection_class.__name__, (AsyncpgAware, connection_class), names)
