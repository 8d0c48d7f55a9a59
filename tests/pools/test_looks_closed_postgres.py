"""A connection in a psycopg transaction looks open: no COMMIT is skipped because of a due replacement."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.lab.ledger import INSERT_SQL
from bgpool.pools.connector import Connector
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.pools.callers import drain
from tests.pools.conftest import Work

pytestmark = pytest.mark.lab

ENGINES = (Engine.POSTGRESQL,)
ON_ASYNC_POOL = ()

MakePool = Callable[..., Pool[Any]]
#: The drain leaves these connections alone: they are replaced because they look closed.
UNCUT = {"bg_drop_blue_connections": False}


def test_a_connection_in_its_own_block_looks_open(
    pair: Pair, deployment: Deployment, make_pool: MakePool, work: Work
) -> None:
    with contextlib.closing(make_pool(max_size=1, **UNCUT).getconn()) as conn:
        with conn:
            work(conn)
            drain(deployment, conn)
        assert work.rows(pair) == 1
        assert conn.closed


@pytest.mark.threads
def test_the_block_of_a_connectors_connection_closes_it(
    pair: Pair, deployment: Deployment, make_connector: Callable[..., Connector[Any]], work: Work
) -> None:
    """The block also closes a connection that looks closed at the end, which psycopg would leave open."""
    connector = make_connector(**UNCUT)
    with connector.connect() as conn:
        work(conn)
        conn.commit()
        drain(deployment, conn)
        assert conn.closed
    assert not conn.bgpool_is_open
    assert work.rows(pair) == 1


def test_a_connection_in_a_pipeline_looks_open(
    pair: Pair, deployment: Deployment, make_pool: MakePool, work: Work
) -> None:
    pool = make_pool(max_size=1, **UNCUT)
    with pool.connection() as conn, conn.pipeline():
        work(conn)
        drain(deployment, conn)
        assert not conn.closed
    assert work.rows(pair) == 1


def test_a_connection_in_a_transaction_block_looks_open(
    pair: Pair, deployment: Deployment, make_pool: MakePool, work: Work
) -> None:
    pool = make_pool(max_size=1, kwargs={"autocommit": True}, **UNCUT)
    with pool.connection() as conn, conn.transaction():
        work(conn)
        drain(deployment, conn)
        assert not conn.closed
        with conn.transaction():
            work(conn)
    assert work.rows(pair) == 2


def test_a_connection_with_a_failed_savepoint_looks_open(
    pair: Pair, deployment: Deployment, make_pool: MakePool, work: Work
) -> None:
    pool = make_pool(max_size=1, **UNCUT)
    with pool.connection() as conn:
        work(conn)
        conn.execute("SAVEPOINT mine")
        drain(deployment, conn)
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1/0")
        assert not conn.closed
        conn.execute("ROLLBACK TO SAVEPOINT mine")
    assert work.rows(pair) == 1


def test_a_connection_in_a_two_phase_transaction_looks_open(deployment: Deployment, make_pool: MakePool) -> None:
    with contextlib.closing(make_pool(max_size=1, **UNCUT).getconn()) as conn:
        conn.tpc_begin("looks")
        drain(deployment, conn)
        assert not conn.closed
        conn.tpc_rollback()
        assert conn.closed


def test_a_connection_with_a_server_side_cursor_looks_open(deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, **UNCUT)
    with pool.connection() as conn, conn.cursor("mine") as cursor:
        cursor.execute("SELECT generate_series(1, 1000)")
        assert cursor.fetchone() == (1,)
        drain(deployment, conn)
        assert not conn.closed
        assert len(cursor.fetchall()) == 999


def test_a_connection_with_unread_rows_looks_open(deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, kwargs={"autocommit": True}, **UNCUT)
    with pool.connection() as conn, conn.cursor() as cursor:
        rows = cursor.stream("SELECT generate_series(1, 1000)")
        next(rows)
        drain(deployment, conn)
        assert not conn.closed
        assert sum(1 for _ in rows) == 999
        assert conn.closed


def test_a_connection_in_autocommit_looks_closed_between_statements(
    deployment: Deployment, make_pool: MakePool
) -> None:
    pool = make_pool(max_size=1, kwargs={"autocommit": True}, **UNCUT)
    with pool.connection() as conn:
        conn.execute("SELECT 1")
        drain(deployment, conn)
        assert conn.closed


@pytest.mark.threads
def test_a_refused_write_makes_sqlalchemy_replace_the_connection(pair: Pair, make_pool: MakePool) -> None:
    """In a failover without a deployment, its pool would otherwise keep connections to a read-only server."""
    pool = make_pool(max_size=2)
    engine = sa.create_engine("postgresql+psycopg://", creator=pool.getconn, pool_size=2, max_overflow=0)
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            connection.execute(sa.text("SELECT 1"))
    pair.blue.set_read_only(True)
    try:
        with pytest.raises(sa.exc.DBAPIError) as caught, engine.begin() as connection:
            connection.exec_driver_sql(INSERT_SQL, (77, 7, 7))
    finally:
        pair.blue.set_read_only(False)
    assert caught.value.connection_invalidated
    for _ in range(4):
        with engine.begin() as connection:
            connection.exec_driver_sql(INSERT_SQL, (77, 7, 7))
    engine.dispose()
