"""An asyncpg connection with a generation: it holds new transactions and explains the effect of a cut in errors."""

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

#: Sent at the end of a block, or by the user. It needs no new transaction, and no open connection.
_ROLLS_BACK: Final = re.compile(r"\s*ROLLBACK\b[^;]*;?\s*", re.IGNORECASE)


class AsyncpgAware(_Base):
    """Mixed in before asyncpg's Connection, or a subclass of it.

    Attributes:
        bgpool_generation: The generation under which it was opened; None while it is being opened.
        bgpool_address: The IP address of its server; empty for a Unix socket.
        bgpool_lent: True if a user has it, and waits in a switchover; False while the pool resets it.
        bgpool_busy: True if it is in use; False if it is idle in a pool.
        bgpool_keeps_place: True if its place in the pool belongs to its user until they release it, even if it is lost.
        bgpool_met_error: True if a statement has failed since a unit of work began.
        bgpool_began_read_only: The read-only state that the server reported when the unit began.
        bgpool_unfit, bgpool_cut, bgpool_refused, bgpool_in_unit, bgpool_ended, bgpool_in_doubt: See Aware.
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
    # The state that the server had reported when it refused a write; and whether the server must still be queried.
    _reported_read_only: bool | None = None
    _unsettled: bool = False
    # True once its user, or the pool, has closed it.
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

    # -- the interface for its generation ------------------------------------------------------------------------

    @property
    def bgpool_is_open(self) -> bool:
        """See Aware; other threads also call it."""
        connected: bool = self._wire.is_connected()
        return connected and not self._aborted

    @property
    def bgpool_is_idle(self) -> bool:
        """See Aware."""
        return not self._wire.is_in_transaction() and self._top_xact is None

    def fileno(self) -> int:
        """See Aware; when the number is used, it may already belong to another file."""
        return self._fd

    def bgpool_discard(self) -> None:
        """See Aware."""
        self.terminate()

    # -- before a statement is sent ------------------------------------------------------------------------------

    async def bgpool_await_usable(self, text: str, timeout: float | None) -> None:
        """Wait before *text* is sent, while a switchover holds new transactions.

        Raises:
            SwitchoverHoldTimeout: The caller was held for the maximum time.
            TimeoutError: The caller was held for the statement's timeout, *timeout* seconds.
            SwitchoverInterrupted: The connection was cut, or is from before the switchover. Nothing was sent.
            InheritedConnection: The connection belongs to the parent process.
        """
        generation = self.bgpool_generation
        assert generation is not None
        if self.bgpool_cut and not generation.inherited:
            raise self._lose() or asyncpg.ConnectionDoesNotExistError("connection was closed by its pool")
        begins = self.bgpool_lent and not self._wire.is_in_transaction() and _ROLLS_BACK.fullmatch(text) is None
        if not generation.inherited and not begins:
            return
        try:
            # Before Python 3.12, asyncio.wait_for swallows a cancellation in the loop iteration in which the wait ends.
            async with compat.timeout(timeout):
                await generation.await_usable()
        except SwitchoverInterrupted:
            self.bgpool_in_doubt = NO_DOUBT
            self._end()
            raise

    # -- translation of errors -----------------------------------------------------------------------------------

    def bgpool_explain(self, text: str, error: BaseException, *, in_transaction: bool) -> BaseException:
        """Return *error* of sending *text*, or the error that it stands for in a switchover."""
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
        """Note a loss between two statements; return its meaning in a switchover, None outside of one."""
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
        """Return whether it is closed, although neither its user nor the pool has closed it."""
        return self.bgpool_generation is not None and not self.bgpool_is_open and not self._ending

    def bgpool_is_standby(self) -> bool:
        """Return whether the server reports that it is in recovery; PostgreSQL 14 and later report it."""
        return getattr(self._wire.protocol.get_settings(), "in_hot_standby", None) == "on"

    def bgpool_reports_read_only(self) -> bool | None:
        """Like reports_read_only of psycopg's connections."""
        settings = self._wire.protocol.get_settings()
        reports = [getattr(settings, name, None) for name in REPORTED]
        return None if None in reports else "on" in reports

    def _refused(self, error: Exception) -> BaseException:
        """Handle a refused write: refused by the server, or in a transaction that the user has made read-only."""
        generation = self.bgpool_generation
        assert generation is not None
        # A transaction keeps the mode in which it began, and the server may accept writes again by now.
        began_read_only = self.bgpool_in_unit and self.bgpool_began_read_only
        self._reported_read_only = began_read_only or self.bgpool_reports_read_only()
        self.bgpool_refused = self._reported_read_only is not False
        # The transaction has failed: the server is queried when it is over.
        self._unsettled = self.bgpool_unfit = True
        if self.bgpool_refused and generation.is_switching():
            return generation.explain_read_only(error)
        return error

    async def bgpool_asettle_refusal(self) -> None:
        """See Aware."""
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

    # -- methods for the user ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.bgpool_is_lost and self.bgpool_in_doubt is None:
            lost = self._lose()
            if lost is not None:
                raise lost
        super()._check_open()

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Like asyncpg's; on a lost connection, ROLLBACK succeeds."""
        if not self.bgpool_is_open and self._is_gone() and not args and _ROLLS_BACK.fullmatch(query):
            return "ROLLBACK"
        return await super().execute(query, *args, timeout=timeout)

    def _is_gone(self) -> bool:
        return self.bgpool_is_lost or self.bgpool_in_doubt is not None

    def is_in_transaction(self) -> bool:
        """Like asyncpg's; False on a closed connection."""
        return self.bgpool_is_open and bool(self._wire.is_in_transaction())

    def transaction(self, *, isolation: Any = None, readonly: bool = False, deferrable: bool = False) -> Any:
        """Like asyncpg's. If the connection is lost in the block, the block ends with the error that explains it."""
        self._check_open()
        return _Transaction(self, isolation, readonly, deferrable)

    async def _prepare(self, *args: Any, **kwargs: Any) -> Any:
        # For prepare(), and for SQLAlchemy, which prepares and keeps all statements.
        statement = await super()._prepare(*args, **kwargs)
        if type(statement) is PreparedStatement:
            statement.__class__ = _PreparedStatement
        return statement

    # -- its place in a pool -------------------------------------------------------------------------------------

    def _set_proxy(self, proxy: Any) -> None:
        self.bgpool_lent = self.bgpool_busy = proxy is not None
        super()._set_proxy(proxy)

    def _on_release(self, *args: Any, **kwargs: Any) -> None:
        # The pool does what follows: it ends what is open, and resets the session.
        self.bgpool_lent = False
        super()._on_release(*args, **kwargs)

    def _cleanup(self) -> None:
        if self.bgpool_keeps_place and self._proxy is not None and not self._ending:
            # Lost while in use. asyncpg would detach the user's proxy, and the user would get the error that it was
            # released.
            self._clean_tasks()
            self._call_termination_listeners()
            return
        super()._cleanup()

    async def close(self, *, timeout: float | None = None) -> None:
        """Like asyncpg's; a connection of the parent process is not closed."""
        if self._is_inherited():
            keep_forever(self)
            return
        self._ending = True
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        """Like asyncpg's; a connection of the parent process is not closed."""
        if self._is_inherited():
            keep_forever(self)
            return
        self._ending = True
        # The transport of a closed loop closes its socket when it is collected; it can call nothing in the loop.
        with contextlib.suppress(*(RuntimeError,) if self._loop.is_closed() else ()):
            super().terminate()

    def _end(self) -> None:
        """Close it, and keep its place for its user as if it was lost."""
        if not self._is_inherited() and not self._aborted:
            self._abort()
            self._cleanup()

    async def _cancel(self, waiter: Any, *args: Any) -> None:
        # Do not wait for a silent server: asyncpg would do so at the next rollback or release.
        late = self._loop.call_later(CANCEL_TIMEOUT_S, self._end)
        try:
            await super()._cancel(waiter, *args)
        finally:
            late.cancel()
        if waiter.done() and not waiter.cancelled() and waiter.exception() is not None:
            # asyncpg before 0.32 would raise it at the next statement. The outcome of the current one is unknown.
            self._end()

    def _is_inherited(self) -> bool:
        return self.bgpool_generation is not None and self.bgpool_generation.inherited


class _PreparedStatement(PreparedStatement):
    """asyncpg's prepared statement; on a lost connection it raises the error that explains the loss."""

    __slots__ = ()

    def _check_conn_validity(self, name: str) -> None:
        self._connection._check_open()
        super()._check_conn_validity(name)


class _Transaction(Transaction):
    """asyncpg's transaction; its end raises the error that explains the loss of a connection."""

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        connection: AsyncpgAware = self._connection
        if kind is not None and connection._is_gone():
            # It is rolled back, and the error with the reason is being raised.
            self._managed = False
            return
        try:
            await super().__aexit__(kind, error, trace)
        except Exception:
            # If it was lost during the rollback, do the same.
            if kind is None or not connection._is_gone():
                raise

    async def rollback(self) -> None:
        """Like asyncpg's; on a lost connection it succeeds."""
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
    """Return *connection_class* with AsyncpgAware mixed in."""
    if issubclass(connection_class, AsyncpgAware):
        return connection_class
    names = {"__module__": connection_class.__module__, "__doc__": connection_class.__doc__}
    return type(connection_class.__name__, (AsyncpgAware, connection_class), names)
