"""All traffic between an asyncpg connection and its server.

asyncpg's protocol is written in Cython and cannot usefully be subclassed in Python. A connection keeps its protocol in
an attribute, and uses only the methods that this module wraps or that have no effect here. So a Wire takes its place.
The Wire consults the connection before anything is sent, and the connection translates errors.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from bgpool.pools.postgres.text import ends_transaction

if TYPE_CHECKING:
    from bgpool.integrations.asyncpg.connection import AsyncpgAware

__all__ = ["Wire"]


class Wire:
    """A proxy of the protocol of one connection."""

    def __init__(self, protocol: Any, connection: AsyncpgAware) -> None:
        self.protocol: Final = protocol
        # asyncpg warns of a connection that is collected while it is open; a reference cycle would delay that.
        self._connection: Final = weakref.ref(connection)
        # Called with every statement, so passed on directly.
        self.is_connected: Final = protocol.is_connected
        self.is_in_transaction: Final = protocol.is_in_transaction
        self._get_timeout: Final = protocol._get_timeout
        self._is_cancelling: Final = protocol._is_cancelling

    def __getattr__(self, name: str) -> Any:
        return getattr(self.protocol, name)

    async def query(self, query: str, timeout: Any) -> Any:
        """Run one statement, or several, by the simple protocol."""
        return await self._exchange(query, timeout, self.protocol.query, query, timeout)

    async def prepare(self, stmt_name: str, query: str, timeout: Any = None, **kwargs: Any) -> Any:
        """Prepare a statement without running it."""
        return await self._exchange("", timeout, self.protocol.prepare, stmt_name, query, timeout, **kwargs)

    async def bind_execute(
        self, state: Any, args: Any, portal_name: str, limit: int, return_extra: bool, timeout: Any
    ) -> Any:
        """Run a prepared statement."""
        send = self.protocol.bind_execute
        return await self._exchange(state.query, timeout, send, state, args, portal_name, limit, return_extra, timeout)

    async def bind_execute_many(
        self, state: Any, args: Any, portal_name: str, timeout: Any, return_rows: bool = False
    ) -> Any:
        """Run a prepared statement for each of several tuples."""
        send = self.protocol.bind_execute_many
        # asyncpg 0.29 and older have no return_rows.
        return await self._exchange(
            state.query, timeout, send, state, args, portal_name, timeout, return_rows=return_rows
        )

    async def bind(self, state: Any, args: Any, portal_name: str, timeout: Any) -> Any:
        """Open a cursor."""
        return await self._exchange(state.query, timeout, self.protocol.bind, state, args, portal_name, timeout)

    async def execute(self, state: Any, portal_name: str, limit: int, return_extra: bool, timeout: Any) -> Any:
        """Fetch rows of a cursor."""
        send = self.protocol.execute
        return await self._exchange(state.query, timeout, send, state, portal_name, limit, return_extra, timeout)

    async def copy_out(self, copy_stmt: str, sink: Any, timeout: Any) -> Any:
        """Run COPY TO."""
        return await self._exchange(copy_stmt, timeout, self.protocol.copy_out, copy_stmt, sink, timeout)

    async def copy_in(
        self, copy_stmt: str, reader: Any, data: Any, records: Any, record_stmt: Any, timeout: Any
    ) -> Any:
        """Run COPY FROM."""
        send = self.protocol.copy_in
        return await self._exchange(copy_stmt, timeout, send, copy_stmt, reader, data, records, record_stmt, timeout)

    async def close_portal(self, portal_name: str, timeout: Any) -> Any:
        """Close a cursor."""
        return await self._exchange("", timeout, self.protocol.close_portal, portal_name, timeout)

    async def close_statement(self, state: Any, timeout: Any) -> Any:
        """Close a prepared statement."""
        return await self._exchange("", timeout, self.protocol.close_statement, state, timeout)

    async def _exchange(
        self, text: str, timeout: Any, send: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
    ) -> Any:
        """Call *send*, which sends *text*; *text* is empty if the call cannot commit anything."""
        connection = self._connection()
        if connection is None or connection.bgpool_generation is None:
            # The connection is still being opened.
            return await send(*args, **kwargs)
        if not connection.bgpool_generation.live[0] or connection.bgpool_cut:
            await connection.bgpool_await_usable(text, self._get_timeout(timeout))
        if connection.bgpool_in_unit and text:
            connection.bgpool_ended = connection.bgpool_ended or ends_transaction(text)
        in_transaction = self.is_in_transaction()
        try:
            return await send(*args, **kwargs)
        except BaseException as error:
            explained = connection.bgpool_explain(text, error, in_transaction=in_transaction)
            try:
                if explained is error:
                    raise
                raise explained from error
            finally:
                # Otherwise it would keep itself and this frame alive until the garbage collector runs.
                del explained
