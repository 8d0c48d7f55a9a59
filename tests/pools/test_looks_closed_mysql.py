"""What PyMySQL has open looks open, and a ping says what looks closed."""

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
#: Left alone by the drain: what is lost here is lost by its looks.
UNCUT = {"bg_drop_blue_connections": False}


def test_rows_that_are_still_coming(deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, kwargs={"autocommit": True}, **UNCUT)
    with pool.connection() as conn, conn.cursor(pymysql.cursors.SSCursor) as cursor:
        cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
        cursor.fetchone()
        drain(deployment, conn)
        assert conn.open
        assert len(cursor.fetchall()) == 2
        assert not conn.open


def test_a_result_that_is_still_to_come(deployment: Deployment, make_pool: MakePool) -> None:
    many = {"autocommit": True, "client_flag": pymysql.constants.CLIENT.MULTI_STATEMENTS}
    pool = make_pool(max_size=1, kwargs=many, **UNCUT)
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT 1; SELECT 2")
        drain(deployment, conn)
        assert conn.open
        assert cursor.nextset()
        assert not conn.open


def test_a_ping_says_so_too(deployment: Deployment, make_pool: MakePool) -> None:
    """SQLAlchemy's pre-ping and DBUtils' check ask for nothing else."""
    with make_pool(max_size=1, **UNCUT).connection() as conn:
        conn.ping()
        drain(deployment, conn)
        with pytest.raises(pymysql.err.OperationalError) as caught:
            conn.ping()
        assert caught.value.args[0] == 2006
        deployment.roll_back()
        conn.ping()
