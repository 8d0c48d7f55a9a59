"""The work of ``reset="session"``: no state of a session's last user is left for the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from bgpool.pools.options import RESET_SESSION
from bgpool.pools.waits import finish, settled

__all__ = ["with_session_reset"]

#: Modes that psycopg keeps on its side of a connection.
_MODES: Final = (
    "autocommit", "isolation_level", "read_only", "deferrable", "row_factory", "cursor_factory",
    "server_cursor_factory", "prepare_threshold", "prepared_max",
)  # fmt: skip


#: The modes that are set with a method, which is a coroutine function in an AsyncConnection.
_SERVERS_MODES: Final = frozenset({"autocommit", "isolation_level", "read_only", "deferrable"})


def with_session_reset(options: Mapping[str, Any], *, awaits: bool = False) -> dict[str, Any]:
    """Return psycopg_pool's *options* with ``reset="session"`` replaced; by coroutine functions if it *awaits*."""
    if options.get("reset") != RESET_SESSION:
        return dict(options)
    reset = _SessionReset(options.get("configure"))
    if awaits:
        return {**options, "configure": reset.abegin, "reset": reset.awipe}
    return {**options, "configure": reset.begin, "reset": reset.wipe}


class _SessionReset:
    """Callables for psycopg_pool: *begin* in place of ``configure``, *wipe* as ``reset``; its hooks may await."""

    def __init__(self, configure: Callable[[Any], object] | None) -> None:
        self._configure: Final = configure

    def begin(self, connection: Any) -> None:
        """Like abegin, for psycopg_pool's ConnectionPool."""
        finish(self.abegin(connection))

    def wipe(self, connection: Any) -> None:
        """Like awipe, for psycopg_pool's ConnectionPool."""
        finish(self.awipe(connection))

    async def abegin(self, connection: Any) -> None:
        """Record the modes with which *connection* was opened, and configure it."""
        connection.bgpool_modes = {name: getattr(connection, name) for name in _MODES}
        if self._configure is not None:
            await settled(self._configure(connection))

    async def awipe(self, connection: Any) -> None:
        """Restore *connection*, which is in no transaction, to its state when it was opened, and configure it again.

        Raises:
            Exception: This failed; psycopg_pool closes the connection.
        """
        if connection.bgpool_generation.drained:
            # It must be replaced, and a statement on it would be held until the switchover is over.
            connection.bgpool_discard()
            return
        # DISCARD ALL is refused in a transaction.
        await settled(connection.set_autocommit(True))
        await settled(connection.execute("DISCARD ALL", prepare=False))
        # psycopg may not notice it, and would continue to use prepared statements that are gone.
        connection._prepared = type(connection._prepared)()
        # Notifications that the last user has not read.
        connection._notifies_backlog = deque()
        for name, value in connection.bgpool_modes.items():
            if name in _SERVERS_MODES:
                await settled(getattr(connection, f"set_{name}")(value))
            else:
                setattr(connection, name, value)
        if self._configure is not None:
            await settled(self._configure(connection))
