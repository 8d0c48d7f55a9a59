"""reset="session" removes all of a user's settings and objects from the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from tests.engines import Kit

pytestmark = pytest.mark.lab

ENGINES = (Engine.POSTGRESQL, Engine.MYSQL)
ON_ASYNC_POOL = ()

MakePool = Callable[..., Pool[Any]]

#: Objects and settings that a user leaves in a session, and the statements by which the next user would find them.
LEFTOVERS = {
    Engine.POSTGRESQL: {
        "a setting": ("SET timezone = 'Pacific/Chatham'", "SHOW timezone"),
        "a setting of the connection's": ("SET application_name = 'left'", "SHOW application_name"),
        "an advisory lock": (
            "SELECT pg_advisory_lock(7)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
        "a temporary table": ("CREATE TEMPORARY TABLE left_over (n int)", "SELECT to_regclass('left_over')"),
        "a subscription": ("LISTEN news", "SELECT count(*) FROM pg_listening_channels()"),
        "a cursor": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors"),
        "a prepared statement": ("PREPARE p AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements"),
    },
    Engine.MYSQL: {
        "a setting": ("SET SESSION time_zone = '+05:00'", "SELECT @@time_zone"),
        "an isolation level": (
            "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')",
        ),
        "a variable": ("SET @mine = 1", "SELECT @mine"),
        "a named lock": ("SELECT GET_LOCK('mine', 1)", "SELECT IS_USED_LOCK('mine')"),
        "a temporary table": ("CREATE TEMPORARY TABLE ledger (n int)", "SHOW COLUMNS FROM ledger"),
        "a character set": ("SET NAMES latin1", "SELECT @@character_set_client, @@collation_connection"),
        "a database": ("USE information_schema", "SELECT DATABASE()"),
        "a setting of the connection's": ("SET SESSION sql_mode = ''", "SELECT @@sql_mode"),
        "what the connection began with": ("SET @begun = 0", "SELECT @begun"),
    },
}
KWARGS: dict[Engine, dict[str, Any]] = {
    Engine.POSTGRESQL: {"application_name": "ledger"},
    Engine.MYSQL: {"sql_mode": "ANSI", "init_command": "SET @begun = 1"},
}


@pytest.mark.parametrize("option", ["session", None])
def test_a_users_remains_are_gone_from_the_same_session(kit: Kit, make_pool: MakePool, option: str | None) -> None:
    pool = make_pool(max_size=1, reset=option, kwargs=KWARGS[kit.engine])
    for what, (statement, question) in LEFTOVERS[kit.engine].items():
        with pool.connection() as conn:
            session = kit.session(conn)
            before = kit.execute(conn, question)
            kit.execute(conn, statement)
        with pool.connection() as conn:
            assert kit.session(conn) == session
            assert (kit.execute(conn, question) == before) == (option == "session"), what


def test_configure_runs_again(kit: Kit, make_pool: MakePool) -> None:
    configured = []

    def configure(conn: Any) -> None:
        configured.append(kit.session(conn))
        kit.execute(conn, "SET timezone = '+05:00'" if kit.engine is Engine.POSTGRESQL else "SET time_zone = '+05:00'")
        conn.commit()

    pool = make_pool(max_size=1, reset="session", configure=configure)
    question = "SHOW timezone" if kit.engine is Engine.POSTGRESQL else "SELECT @@time_zone"
    with pool.connection() as conn:
        before = kit.execute(conn, question)
        assert "05" in str(before)
    with pool.connection() as conn:
        assert kit.execute(conn, question) == before
        assert configured == [kit.session(conn)] * 2


def test_a_callable_is_called_as_before(kit: Kit, make_pool: MakePool) -> None:
    called: list[Any] = []
    pool = make_pool(max_size=1, reset=called.append)
    with pool.connection() as conn:
        session = kit.session(conn)
    with pool.connection() as conn:
        assert called == [conn]
        assert kit.session(conn) == session


def test_a_session_that_cannot_be_reset_is_replaced(kit: Kit, pair: Pair, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, reset="session")
    with pool.connection() as conn:
        session = kit.session(conn)
    conn = pool.getconn()
    kit.kill(pair, session)
    pool.putconn(conn)
    with pool.connection() as after:
        assert kit.session(after) != session
