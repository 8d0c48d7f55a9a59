"""SQL of the user's own, executed before the application starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import psycopg
import pymysql
from pymysql.constants import CLIENT

from bgpool.core.engine import Engine
from bgpool.lab.errors import DRIVER_ERRORS
from bgpool.lab.pair import CONNECT_TIMEOUT_S, DATABASE, ROLE, Pair

__all__ = ["ScriptError", "run_script"]

SCRIPT_TIMEOUT_S: Final = 60
"""The time limit of each statement."""


class ScriptError(Exception):
    """The file cannot be read, or the server rejects its contents; the text contains the reason."""


def run_script(pair: Pair, file: Path) -> None:
    """Execute *file* on blue as the applications' role, which may create tables there.

    The file is sent unchanged, all at once. Commands of the engines' shells (``\\copy``, ``DELIMITER``) do not work.

    Raises:
        ScriptError: The file cannot be executed.
    """
    try:
        _RUN[pair.engine](pair, file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, *DRIVER_ERRORS) as error:
        raise ScriptError(f"{file}: {str(error).strip()}") from None


def _run_postgres(pair: Pair, text: str) -> None:
    with psycopg.connect(
        host=pair.blue.address,
        port=pair.port,
        user=ROLE,
        password=pair.app_password,
        dbname=DATABASE,
        connect_timeout=CONNECT_TIMEOUT_S,
        options=f"-c statement_timeout={SCRIPT_TIMEOUT_S}s",
        autocommit=True,
    ) as connection:
        connection.execute(text.encode())


def _run_mysql(pair: Pair, text: str) -> None:
    connection = pymysql.connect(
        host=pair.blue.address,
        port=pair.port,
        user=ROLE,
        password=pair.app_password,
        database=DATABASE,
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=SCRIPT_TIMEOUT_S,
        client_flag=CLIENT.MULTI_STATEMENTS,
        autocommit=True,
    )
    with connection, connection.cursor() as cursor:
        cursor.execute(text)
        # Each statement has a result of its own, and each may be an error.
        while cursor.nextset():
            pass


_RUN: Final[Mapping[Engine, Callable[[Pair, str], None]]] = {
    Engine.POSTGRESQL: _run_postgres,
    Engine.MYSQL: _run_mysql,
}
