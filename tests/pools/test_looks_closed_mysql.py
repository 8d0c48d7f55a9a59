"""A connection in a PyMySQL transaction or result looks open, and a ping reports one that looks closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pymysql
import pytest

from bgpool.core.engine import Engine
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.pools.callers import drain

pytestmark = pytest.mark.lab

ENGINES = (Engine.MYSQL,)

MakePool = Callable[..., Pool[Any]]
#: The drain leaves these connections alone: they are replaced because they look closed.
UNCUT = {"bg_drop_blue_connections": False}


def test_a_connection_with_unread_rows_looks_open(deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, kwargs={"autocommit": True}, **UNCUT)
    with pool.connection() as conn, conn.cursor(pymysql.cursors.SSCursor) as cursor:
        cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
        cursor.fetchone()
        drain(deployment, conn)
        assert conn.open
        assert len(cursor.fetchall()) == 2
        assert not conn.open


def test_a_connection_with_an_unread_result_looks_open(deployment: Deployment, make_pool: MakePool) -> None:
    many = {"autocommit": True, "client_flag": pymysql.constants.CLIENT.MULTI_STATEMENTS}
    pool = make_pool(max_size=1, kwargs=many, **UNCUT)
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT 1; SELECT 2")
        drain(deployment, conn)
        assert conn.open
        assert cursor.nextset()
        assert not conn.open


def test_a_ping_reports_a_connection_that_looks_closed(deployment: Deployment, make_pool: MakePool) -> None:
    """The ping is the only check of SQLAlchemy's pre-ping and of DBUtils."""
    with make_pool(max_size=1, **UNCUT).connection() as conn:
        conn.ping()
        drain(deployment, conn)
        with pytest.raises(pymysql.err.OperationalError) as caught:
            conn.ping()
        assert caught.value.args[0] == 2006
        deployment.roll_back()
        conn.ping()
