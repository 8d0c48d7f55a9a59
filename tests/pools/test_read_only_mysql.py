"""Writes that MySQL refuses as read-only: whose refusal the numbers and texts are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pymysql
import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.mysql import is_servers_refusal, is_transactions_refusal
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.conftest import Work
from tests.pools.test_read_only import refused, session_of

ENGINES = (Engine.MYSQL,)

MakePool = Callable[..., Pool[Any]]


@pytest.mark.lab
def test_a_transaction_that_is_read_only_costs_no_connection(
    kit: Kit, deployment: Deployment, make_pool: MakePool
) -> None:
    deployment.phase(Phase.PREPARATION)
    pool = make_pool(max_size=1)
    with pytest.raises(pymysql.err.OperationalError) as caught, pool.connection() as conn:
        session = kit.session(conn)
        kit.execute(conn, "START TRANSACTION READ ONLY")
        kit.write(conn)
    assert not isinstance(caught.value, bgpool.Error)
    assert session_of(kit, pool) == session


@pytest.mark.parametrize(
    ("code", "text", "servers"),
    [
        (1290, "The MySQL server is running with the --read-only option so it cannot execute this statement", True),
        (1290, "The MySQL server is running with the --super-read-only option so it cannot execute this", True),
        (1290, "The MySQL server is running with the --secure-file-priv option so it cannot execute this", False),
        (1290, "The MariaDB server is running with the --skip-grant-tables option so it cannot", False),
        (1836, "Running in read-only mode", True),
        (1792, "Cannot execute statement in a READ ONLY transaction", False),
        (1062, "Duplicate entry '--read-only' for key 'PRIMARY'", False),
    ],
)
def test_whose_a_refusal_is(code: int, text: str, servers: bool) -> None:
    error = pymysql.err.OperationalError(code, text)
    assert is_servers_refusal(error) is servers
    assert is_transactions_refusal(error) is (code == 1792)


@pytest.mark.lab
def test_a_default_of_the_servers_is_not_the_callers(kit: Kit, make_pool: MakePool, pair: Pair) -> None:
    pair.blue.execute("SET GLOBAL TRANSACTION READ ONLY")
    try:
        pool = make_pool(max_size=1)
        assert refused(kit, pool) != session_of(kit, pool)
    finally:
        pair.blue.execute("SET GLOBAL TRANSACTION READ WRITE")


@pytest.mark.lab
def test_a_commit_that_was_refused_does_not_succeed_when_it_is_repeated(
    make_pool: MakePool, pair: Pair, work: Work
) -> None:
    """The server has rolled back, and would say OK to the second one."""
    pool = make_pool(max_size=1)
    with pool.connection() as conn:
        work(conn)
        pair.blue.set_read_only(True)
        try:
            for _ in range(2):
                with pytest.raises(pymysql.err.OperationalError) as caught:
                    conn.commit()
                assert caught.value.args[0] == 1290
        finally:
            pair.blue.set_read_only(False)
        conn.rollback()
        work(conn)
    assert work.rows(pair) == 1
