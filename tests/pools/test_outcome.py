"""Traces on servers that lack, or deny, functions of the newest PostgreSQL: units of work still succeed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

import bgpool
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from bgpool.pools.postgres import unit
from bgpool.pools.postgres.outcome import TRACE, Trace, lineage_of, outcome_of, saved
from bgpool.pools.units import Outcome
from bgpool.pools.waits import finish
from tests.engines import Kit
from tests.pools.conftest import Work
from tests.pools.proxy import CommitCutter

pytestmark = pytest.mark.lab

ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., Pool[Any]]

#: The errors by which a server refuses a function; Aurora raises 0A000.
REFUSALS = ("undefined_function", "insufficient_privilege", "feature_not_supported")


def in_app(pair: Pair, sql: str) -> None:
    """Run a statement as superuser in the application's database."""
    pair.blue.execute(sql, database="app")


@contextlib.contextmanager
def refused(pair: Pair, function: str, how: str = "undefined_function") -> Iterator[None]:
    """Within the block, blue refuses *function*, given with its types; the function must have no overload."""
    name, _, types = function.partition("(")
    away = f"away_{name}"
    in_app(pair, f"ALTER FUNCTION pg_catalog.{function} RENAME TO {away}")
    body = "PERFORM pg_catalog.pg_sleep(30);" if how == "slow" else f"RAISE {how};"
    try:
        if how != "undefined_function":
            in_app(
                pair,
                f"CREATE FUNCTION pg_catalog.{function} RETURNS pg_lsn LANGUAGE plpgsql AS "
                f"$$ BEGIN {body} RETURN NULL; END $$",
            )
        yield
    finally:
        if how != "undefined_function":
            in_app(pair, f"DROP FUNCTION pg_catalog.{function}")
        in_app(pair, f"ALTER FUNCTION pg_catalog.{away}({types} RENAME TO {name}")


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(("when", "answer"), [("after", "call 1"), ("before", "call 2")])
def test_postgresql_12_gives_traces_and_their_outcomes(
    make_runner: MakePool, pair: Pair, cutter: CommitCutter, work: Work, when: Any, answer: str
) -> None:
    """RDS offers 12.21 and newer; the functions that this version lacks are those of PostgreSQL 13."""
    pool = make_runner(max_size=1)
    cutter.when = when
    with refused(pair, "pg_current_xact_id_if_assigned()"), refused(pair, "pg_xact_status(xid8)"):
        assert pool.run(work) == answer
    assert (work.rows(pair), cutter.when) == (1, "never")


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("how", REFUSALS)
def test_a_unit_without_a_trace_still_runs(
    make_runner: MakePool, pair: Pair, cutter: CommitCutter, work: Work, how: str
) -> None:
    pool = make_runner(max_size=1)
    with refused(pair, "pg_current_wal_insert_lsn()", how):
        assert [pool.run(work) for _ in range(2)] == ["call 1", "call 2"]
        assert work.rows(pair) == 2
        cutter.when = "after"
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            pool.run(work)
    assert (work.calls, work.rows(pair)) == (3, 3)


@pytest.mark.usefixtures("prepared")
def test_a_refused_trace_is_not_queried_again(
    make_runner: MakePool, pair: Pair, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the server's log would have an error for every unit of a switchover."""
    asked: list[object] = []

    async def count(connection: Any, query: str) -> Any:
        asked.append(connection)
        return await saved(connection, query)

    monkeypatch.setattr(unit, "saved", count)
    pool = make_runner(max_size=1)
    with refused(pair, "pg_current_wal_insert_lsn()"):
        for _ in range(3):
            pool.run(work)
    assert len(asked) == 1


@pytest.mark.usefixtures("prepared")
def test_a_trace_that_timed_out_is_queried_again_by_the_next_unit(
    kit: Kit, make_runner: MakePool, pair: Pair, cutter: CommitCutter, work: Work
) -> None:
    pool = make_runner(max_size=1)
    work.meanwhile = lambda conn: kit.execute(conn, "SET LOCAL statement_timeout = '300ms'")
    with refused(pair, "pg_current_wal_insert_lsn()", "slow"):
        assert pool.run(work) == "call 1"
    cutter.when = "after"
    assert pool.run(work) == "call 2"
    assert work.rows(pair) == 2


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("how", ["undefined", "no grant"])
def test_units_run_on_a_server_without_a_system_identifier(
    make_runner: MakePool, pair: Pair, work: Work, how: str
) -> None:
    pool = make_runner(max_size=1)
    if how == "undefined":
        with refused(pair, "pg_control_system()"):
            assert pool.run(work) == "call 1"
    else:
        in_app(pair, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        try:
            assert pool.run(work) == "call 1"
        finally:
            in_app(pair, "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("autocommit", [False, True])
def test_traces_are_never_prepared(
    make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work, autocommit: bool
) -> None:
    """A trace consists of several statements."""
    pool = make_pool(max_size=1, kwargs={"prepare_threshold": 0, "autocommit": autocommit})
    for _ in range(3):
        pool.run(work)
    cutter.when = "after"
    assert pool.run(work) == "call 4"
    assert work.rows(pair) == 4


@pytest.mark.usefixtures("prepared")
@pytest.mark.threads
def test_a_closed_pool_is_not_used_for_queries(
    make_pool: MakePool, cutter: CommitCutter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(*_: object, **__: object) -> Outcome:
        pool.close()
        raise psycopg.OperationalError("cut again")

    monkeypatch.setattr(unit, "outcome_of", ask)
    pool = make_pool(max_size=1)
    cutter.when = "after"
    began = time.monotonic()
    with pytest.raises(bgpool.CommitOutcomeUnknown):
        pool.run(work, timeout=60.0)
    assert time.monotonic() - began < 30.0


@pytest.mark.usefixtures("prepared")
def test_a_refused_query_is_not_repeated_until_the_deadline(
    make_runner: MakePool, pair: Pair, cutter: CommitCutter, work: Work
) -> None:
    pool = make_runner(max_size=1)
    cutter.when = "after"
    began = time.monotonic()
    with refused(pair, "txid_status(int8)"), pytest.raises(bgpool.CommitOutcomeUnknown):
        pool.run(work, timeout=60.0)
    assert time.monotonic() - began < 30.0
    assert work.calls == 1


@pytest.mark.threads
def test_a_logical_replica_is_not_asked_how_far_it_has_replayed(kit: Kit, pair: Pair) -> None:
    """Aurora refuses this query."""
    with contextlib.closing(kit.connect(pair)) as conn:
        lineage = finish(lineage_of(conn))
        kit.write(conn)
        xid, lsn, taken_at, _ = finish(saved(conn, TRACE))
        trace = Trace(xid, lsn, taken_at, conn.info.hostaddr, lineage)
        conn.rollback()
        elsewhere = replace(trace, address="192.0.2.1")
        with refused(pair, "pg_last_wal_replay_lsn()", "feature_not_supported"):
            assert finish(outcome_of(elsewhere, conn, promoted=False)) is Outcome.UNKNOWN
            assert finish(outcome_of(trace, conn, promoted=False)) is Outcome.NOT_COMMITTED
            with pytest.raises(psycopg.NotSupportedError):
                finish(outcome_of(elsewhere, conn, promoted=True))


@pytest.mark.usefixtures("prepared")
def test_a_cut_after_the_answer_keeps_the_answer_and_the_slot(
    kit: Kit, make_runner: MakePool, pair: Pair, cutter: CommitCutter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Outcome] = []

    async def ask(trace: Any, connection: Any, *, promoted: bool) -> Outcome:
        asked.append(await outcome_of(trace, connection, promoted=promoted))
        kit.kill(pair, kit.session(connection))
        return asked[-1]

    monkeypatch.setattr(unit, "outcome_of", ask)
    pool = make_runner(max_size=1)
    cutter.when = "after"
    assert pool.run(work, timeout=20.0) == "call 1"
    assert asked == [Outcome.COMMITTED]
    assert pool.run(work) == "call 2"


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(("when", "answer"), [("after", "call 1"), ("before", "call 2")])
def test_text_that_the_driver_returns_as_bytes_is_read(
    make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work, when: Any, answer: str
) -> None:
    """In SQL_ASCII, the encoding of the bytes is unknown."""
    pool = make_pool(max_size=1, kwargs={"client_encoding": "SQL_ASCII"})
    cutter.when = when
    assert pool.run(work) == answer
    assert work.rows(pair) == 1


@pytest.mark.threads
def test_a_silent_old_blue_is_not_waited_for_until_the_deadline(
    kit: Kit, make_pool: MakePool, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server was stopped: it accepts connections, and never answers."""
    del kit
    monkeypatch.setattr(unit, "OLD_BLUE_S", 0.5)
    pool = make_pool(max_size=1)
    trace = Trace("1", "0/1", time.time(), pair.blue.address, "7")
    pair.blue.freeze()
    try:
        began = time.monotonic()
        assert unit.ask_old_blue(pool._recipe, trace, lambda: 30.0) is Outcome.UNKNOWN
        assert time.monotonic() - began < 20.0
    finally:
        pair.blue.thaw()
