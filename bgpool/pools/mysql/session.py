"""The work of ``reset="session"``: no state of a session's last user is left for the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pymysql.cursors import Cursor

from bgpool.pools.options import RESET_SESSION

__all__ = ["with_session_reset"]

#: COM_RESET_CONNECTION, which PyMySQL does not define. Source: MySQL's and MariaDB's client/server protocol; since
#: MySQL 5.7.3 and MariaDB 10.2.4.
_RESET_CONNECTION: Final = 0x1F


def with_session_reset(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return *options* of the store, with ``reset="session"`` replaced by a function."""
    if options.get("reset") != RESET_SESSION:
        return dict(options)
    configure: Callable[[Any], object] | None = options.get("configure")

    def reset(connection: Any) -> None:
        _wipe(connection)
        if configure is not None:
            configure(connection)
            connection.bgpool_clean()

    return {**options, "reset": reset}


def _wipe(connection: Any) -> None:
    """Reset the session on the server, and restore the settings that PyMySQL made when it connected."""
    connection._execute_command(_RESET_CONNECTION, "")
    connection._read_ok_packet()
    connection.set_character_set(*connection.bgpool_charset)
    if connection.db:
        connection.select_db(connection.db)
    with Cursor(connection) as cursor:
        if connection.sql_mode is not None:
            cursor.execute("SET sql_mode=%s", (connection.sql_mode,))
        if connection.init_command is not None:
            cursor.execute(connection.init_command)
    connection.bgpool_clean()
