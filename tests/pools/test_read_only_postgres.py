"""Writes that PostgreSQL refuses as read-only: by the caller's setting, the catalog's, or the server's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from bgpool.pools.postgres import connection
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.conftest import Work
from tests.pools.test_read_only import PHASES, SESSION, assert_own, refused, session_of

pytestmark = pytest.mark.lab

ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., Pool[Any]]

CATALOG = ("ROLE app", "DATABASE app", "ROLE app IN DATABASE app", "ROLE ALL")


@pytest.fixture(params=["14", "13"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return the server's version; PostgreSQL 13 does not report this state by itself."""
    if request.param == "13":
        monkeypatch.setattr(connection, "reports_read_only", lambda _conn: None)


@PHASES
@pytest.mark.usefixtures("version")
def test_a_read_only_transaction_of_the_caller_costs_no_connection(
    kit: Kit, deployment: Deployment, make_pool: MakePool, nudges: Any, phase: Phase
) -> None:
    deployment.phase(phase)
    pool = make_pool(max_size=1)
    assert_own(kit, pool, nudges(pool), lambda conn: conn.execute("SET TRANSACTION READ ONLY"))


@pytest.mark.parametrize("whose", CATALOG)
def test_a_read_only_setting_of_the_catalog_costs_no_connection(
    kit: Kit, deployment: Deployment, make_pool: MakePool, pair: Pair, nudges: Any, whose: str
) -> None:
    deployment.phase(Phase.PREPARATION)
    pair.blue.execute(f"ALTER {whose} SET default_transaction_read_only = on")
    try:
        pool = make_pool(max_size=1)
        assert_own(kit, pool, nudges(pool), lambda _conn: None)
    finally:
        pair.blue.execute(f"SET default_transaction_read_only = off; ALTER {whose} RESET default_transaction_read_only")


def test_a_connection_made_read_only_by_psycopg_is_kept(kit: Kit, deployment: Deployment, make_pool: MakePool) -> None:
    deployment.phase(Phase.PREPARATION)
    pool = make_pool(max_size=1)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection() as conn:
        conn.read_only = True
        session = kit.session(conn)
        kit.write(conn)
    assert session_of(kit, pool) == session


def test_a_swallowed_refusal_is_noticed(kit: Kit, deployment: Deployment, make_pool: MakePool, work: Work) -> None:
    def configure(conn: Any) -> None:
        conn.execute(SESSION[Engine.POSTGRESQL])
        conn.commit()

    def swallow(conn: Any) -> None:
        work.calls += 1
        with contextlib.suppress(psycopg.Error):
            kit.write(conn)

    deployment.phase(Phase.PREPARATION)
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        make_pool(configure=configure).run(swallow)
    assert work.calls == 1


def test_a_refusal_in_recovery_replaces_all_connections(kit: Kit, make_pool: MakePool, pair: Pair) -> None:
    pool = make_pool(pair.direct_dsn(pair.green), max_size=2)
    with pool.connection() as conn, pool.connection() as other:
        old = {kit.session(conn), kit.session(other)}
    assert refused(kit, pool) in old
    with pool.connection() as conn, pool.connection() as other:
        assert not old & {kit.session(conn), kit.session(other)}


@pytest.mark.usefixtures("deployment", "cut_at_the_question")
@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.PREPARATION])
def test_a_connection_cut_during_the_check_of_a_refusal_is_closed(
    kit: Kit, deployment: Deployment, make_pool: MakePool, nudges: Any, phase: Phase
) -> None:
    deployment.phase(phase)
    pool = make_pool(max_size=1)
    nudged = nudges(pool)
    conn = pool.getconn()
    with pytest.raises(psycopg.Error):
        kit.write(conn)
    conn.rollback()
    assert (conn.bgpool_is_open, conn.broken, conn.bgpool_in_doubt) == (False, True, "")
    assert nudged
    pool.putconn(conn)
    with pool.connection() as conn:
        kit.write(conn)
