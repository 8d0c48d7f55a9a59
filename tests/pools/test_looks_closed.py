"""A connection that must not be used again looks closed, so that any owner replaces it; but never in a transaction."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pymysql
import pytest
import sqlalchemy as sa

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import Caller, drain, wait_until
from tests.pools.conftest import Work

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ON_ASYNC_POOL = ()

MakePool = Callable[..., Pool[Any]]
DIALECTS = {Engine.POSTGRESQL: "postgresql+psycopg://", Engine.MYSQL: "mysql+pymysql://"}
#: The drain leaves these connections alone: they are replaced because they look closed.
UNCUT = {"bg_drop_blue_connections": False}


def looks_closed(conn: Any) -> bool:
    """Return whether all the driver's attributes report the connection as closed."""
    if isinstance(conn, MysqlConnection):
        assert conn.closed is not conn.open
    else:
        assert conn.closed or not conn.broken
    return bool(conn.closed)


@pytest.fixture
def kept(kit: Kit, make_pool: MakePool) -> Iterator[Any]:
    """Return a connection that its user keeps, between two transactions."""
    pool = make_pool(max_size=1, **UNCUT)
    conn = pool.getconn()
    kit.read(conn)
    assert not looks_closed(conn), "a transaction is open"
    conn.rollback()
    assert not looks_closed(conn)
    yield conn
    conn.close()


# -- in a switchover -----------------------------------------------------------------------------------------------


def test_a_kept_connection_looks_closed_from_the_drain_on(kit: Kit, deployment: Deployment, kept: Any) -> None:
    drain(deployment, kept)
    assert looks_closed(kept)
    deployment.release()
    assert looks_closed(kept)
    with pytest.raises(bgpool.SwitchoverInterrupted, match="from before the switchover"):
        kit.read(kept)
    assert looks_closed(kept)
    with pytest.raises(kit.error):
        kit.read(kept)


def test_closing_it_frees_its_slot(kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, **UNCUT)
    conn = pool.getconn()
    session = kit.session(conn)
    conn.rollback()
    drain(deployment, conn)
    conn.close()
    assert not conn.bgpool_is_open
    deployment.release()
    with pool.connection() as fresh:
        assert kit.where(fresh) == pair.green.address
        assert fresh is not conn
    column, table = ("pid", "pg_stat_activity") if kit.engine is Engine.POSTGRESQL else (
        "id", "information_schema.processlist",
    )  # fmt: skip
    wait_until(lambda: pair.blue.execute(f"SELECT {column} FROM {table} WHERE {column} = {session}") == [])


def test_a_rollback_makes_it_good_again(kit: Kit, deployment: Deployment, kept: Any) -> None:
    drain(deployment, kept)
    assert looks_closed(kept)
    deployment.roll_back()
    assert not looks_closed(kept)
    kit.read(kept)


def test_a_cut_connection_looks_closed_after_a_rollback_too(
    kit: Kit, deployment: Deployment, make_pool: MakePool
) -> None:
    """The driver has not noticed the cut, because the connection was not used since."""
    with contextlib.closing(make_pool(bg_drain_timeout_ms=0).getconn()) as conn:
        kit.read(conn)
        conn.rollback()
        drain(deployment, conn)
        wait_until(lambda: conn.bgpool_cut)
        deployment.roll_back()
        assert looks_closed(conn)
        assert conn.bgpool_is_open


def test_a_connection_looks_open_during_an_operators_hold(kit: Kit, kept: Any) -> None:
    kept.bgpool_generation.hold(held=True)
    assert not looks_closed(kept)
    kept.bgpool_generation.hold(held=False)
    kit.read(kept)


# -- in a transaction ----------------------------------------------------------------------------------------------


def test_a_block_that_was_drained_commits(pair: Pair, deployment: Deployment, make_pool: MakePool, work: Work) -> None:
    pool = make_pool(max_size=1, **UNCUT)
    with pool.connection() as conn:
        work(conn)
        drain(deployment, conn)
        assert not looks_closed(conn)
    assert work.rows(pair) == 1


def test_a_block_that_was_cut_raises(pair: Pair, deployment: Deployment, make_pool: MakePool, work: Work) -> None:
    """If the connection looked closed, psycopg would skip the COMMIT without an error."""
    pool = make_pool(max_size=1, bg_drain_timeout_ms=0)
    with pytest.raises((bgpool.SwitchoverInterrupted, bgpool.CommitOutcomeUnknown)), pool.connection() as conn:
        work(conn)
        drain(deployment, conn)
        wait_until(lambda: conn.bgpool_cut)
        assert not looks_closed(conn)
    assert work.rows(pair) == 0


# -- for other reasons ---------------------------------------------------------------------------------------------


def test_connections_to_a_read_only_server_look_closed(kit: Kit, pair: Pair, make_pool: MakePool) -> None:
    """Every connection to it must be replaced, even one that has met no refusal itself."""
    pool = make_pool(max_size=2)
    conn, other = pool.getconn(), pool.getconn()
    pair.blue.set_read_only(True)
    try:
        with pytest.raises((psycopg.Error, pymysql.err.MySQLError)):
            kit.write(conn)
        conn.rollback()
        assert looks_closed(conn)
        assert looks_closed(other)
    finally:
        pair.blue.set_read_only(False)
    for one in (conn, other):
        one.close()
    with pool.connection() as fresh:
        assert not looks_closed(fresh)


def test_a_connection_with_the_callers_read_only_setting_looks_open(kit: Kit, kept: Any) -> None:
    conn = kept
    begin = "SET TRANSACTION READ ONLY" if kit.engine is Engine.POSTGRESQL else "START TRANSACTION READ ONLY"
    kit.execute(conn, begin)
    with pytest.raises((psycopg.Error, pymysql.err.MySQLError)):
        kit.write(conn)
    assert not looks_closed(conn)
    conn.rollback()
    assert not looks_closed(conn)


def test_drain_replaces_connections_of_other_owners(kit: Kit, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    with contextlib.closing(pool.getconn()) as conn:
        kit.read(conn)
        pool.drain()
        assert not looks_closed(conn)
        conn.rollback()
        assert looks_closed(conn)
        assert kit.execute(conn, "SELECT 1") == [(1,)]


def test_the_close_of_the_pool_replaces_nothing(kit: Kit, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    conn = pool.getconn()
    pool.close()
    assert not looks_closed(conn)
    assert kit.execute(conn, "SELECT 1") == [(1,)]
    conn.close()
    assert looks_closed(conn)


def test_inherited_connections_look_closed_in_a_child(kit: Kit, kept: Any) -> None:
    """This also holds in a transaction, which belongs to the parent as well; the end of its block raises an error."""
    kit.read(kept)
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            assert kept.closed
            if kit.engine is Engine.POSTGRESQL:
                with pytest.raises(bgpool.InheritedConnection), kept:
                    pass
            with pytest.raises(bgpool.InheritedConnection):
                kept.commit()
            kept.close()
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not looks_closed(kept)
    kit.read(kept)


# -- owners replace it ---------------------------------------------------------------------------------------------


@pytest.mark.threads
def test_sqlalchemys_pool_replaces_connections_with_its_own_dialect(
    kit: Kit, pair: Pair, deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool(max_size=4, **UNCUT)
    engine = sa.create_engine(DIALECTS[kit.engine], creator=pool.getconn, pool_size=4, max_overflow=0)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(engine.connect()).execute(sa.text("SELECT 1"))
    deployment.phase(Phase.IN_PROGRESS)
    caller = Caller(lambda: transactions(engine, 20))
    deployment.wait_held()
    deployment.release()
    assert len(caller.wait()) <= 1
    with engine.connect() as connection:
        assert kit.where(connection.connection.driver_connection) == pair.green.address
    engine.dispose()


@pytest.mark.threads
def test_sqlalchemys_pre_ping_replaces_connections(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=4, **UNCUT)
    engine = sa.create_engine(
        DIALECTS[kit.engine], creator=pool.getconn, pool_size=4, max_overflow=0, pool_pre_ping=True
    )
    with engine.begin() as connection:
        kept = connection.connection.driver_connection
    drain(deployment, kept)
    deployment.release()
    assert transactions(engine, 20) == []
    engine.dispose()


@pytest.mark.threads
def test_sqlalchemys_pool_replaces_connections_in_a_child(kit: Kit, make_pool: MakePool) -> None:
    """No dispose() is needed, even with a connection that was in a transaction."""
    engine = sa.create_engine(DIALECTS[kit.engine], creator=make_pool(max_size=4).getconn, pool_size=4, max_overflow=0)
    with engine.connect() as mine, engine.connect() as other:
        for connection in (mine, other):
            connection.execute(sa.text("SELECT 1"))
        other.close()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                assert len(transactions(engine, 5)) <= 1
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        mine.execute(sa.text("SELECT 1"))
    assert transactions(engine, 2) == []
    engine.dispose()


def transactions(engine: sa.Engine, count: int) -> list[BaseException]:
    """Return the errors of *count* transactions of the engine."""
    errors: list[BaseException] = []
    for _ in range(count):
        try:
            with engine.begin() as connection:
                connection.execute(sa.text("SELECT 1"))
        except sa.exc.DBAPIError as error:
            errors.append(error)
    return errors
