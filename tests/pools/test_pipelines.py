"""Pipelines whose answers are fetched without a sync: libpq then reports the transaction state of the previous sync."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg import sql
from psycopg.types.string import StrDumper

import bgpool
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.pools.callers import wait_until
from tests.pools.conftest import Work
from tests.pools.test_classify import INSERT, cut_in

pytestmark = pytest.mark.lab

ON_ASYNC_POOL = ()

MakePool = Callable[..., Pool[Any]]


def cut_after(*statements: str) -> Callable[[Any, Callable[[], object]], None]:
    """Return a use of a pipeline that fetches the results of *statements*, sends one more statement, and is cut."""

    def use(conn: Any, cut: Callable[[], object]) -> None:
        with conn.pipeline() as pipeline:
            for statement in statements:
                pipeline.sync() if statement == "sync" else conn.execute(statement)
            conn.execute("SELECT 1").fetchone()
            conn.execute(INSERT)
            cut()
            pipeline.sync()

    return use


@pytest.mark.parametrize(
    ("autocommit", "statements"),
    [(False, (INSERT, "COMMIT")), (True, ("BEGIN", "sync", INSERT, "COMMIT")), (False, (INSERT, "ROLLBACK"))],
)
def test_a_cut_after_a_fetched_commit_statement_is_in_doubt(
    make_pool: MakePool, deployment: Deployment, pair: Pair, autocommit: bool, statements: tuple[str, ...]
) -> None:
    error = cut_in(cut_after(*statements), make_pool, deployment, pair, autocommit)
    assert type(error) is bgpool.CommitOutcomeUnknown


def test_a_composed_statement_uses_the_connections_adapters(make_pool: MakePool) -> None:
    class Own:
        pass

    class OwnDumper(StrDumper):
        def dump(self, _obj: Any) -> bytes:
            return b"own"

    def configure(conn: Any) -> None:
        conn.adapters.register_dumper(Own, OwnDumper)

    with make_pool(configure=configure).connection() as conn, conn.pipeline():
        assert conn.execute(sql.SQL("SELECT {}").format(sql.Literal(Own()))).fetchone() == ("own",)


@pytest.mark.parametrize("synced", [False, True])
def test_a_running_pipeline_continues_while_callers_are_held(
    make_pool: MakePool, deployment: Deployment, pair: Pair, work: Work, synced: bool
) -> None:
    """Otherwise its end would be refused, and statements that were sent would be reported as not sent."""
    deployment.phase(Phase.CREATED)
    pool = make_pool(max_size=1, kwargs={"autocommit": True}, bg_connect_timeout_ms=300)
    with pool.connection() as conn, conn.pipeline() as pipeline:
        work(conn)
        assert conn.execute("SELECT 1").fetchone() == (1,)
        if synced:
            pipeline.sync()
        deployment.phase(Phase.IN_PROGRESS)
        wait_until(lambda: not conn.bgpool_generation.live[0])
        if synced:
            with pytest.raises(bgpool.SwitchoverHoldTimeout):
                conn.execute("SELECT 1")
        else:
            work(conn)
    assert work.rows(pair) == work.calls
