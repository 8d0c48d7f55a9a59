"""Units of work on PostgreSQL: after a cut COMMIT, the server that remains, or the promoted one, is queried."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import bgpool
from bgpool.core.events import Resolved
from bgpool.core.phase import Phase, Role
from bgpool.lab import Pair, ledger
from bgpool.lab.ledger import INSERT_SQL
from bgpool.lab.postgres import PostgresServer
from bgpool.monitor.probe import now
from bgpool.pools.pool import Pool
from bgpool.pools.postgres import unit
from bgpool.testing import Deployment
from tests.pools.callers import wait_until
from tests.pools.conftest import Work
from tests.pools.proxy import CommitCutter

pytestmark = pytest.mark.lab

ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., Pool[Any]]


def test_a_failed_statement_that_was_swallowed_commits_nothing(make_pool: MakePool, pair: Pair, work: Work) -> None:
    def swallow(conn: Any) -> None:
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1/0")

    work.meanwhile = swallow
    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="rolled back"):
        make_pool().run(work)
    assert work.calls == 1
    assert work.rows(pair) == 0


def test_savepoints_arguments_and_autocommit_pools_work(make_pool: MakePool, pair: Pair, work: Work) -> None:
    def nested(conn: Any, word: str) -> str:
        with contextlib.suppress(ZeroDivisionError), conn.transaction():
            conn.execute(INSERT_SQL, (work.key[0], work.key[1], 0))
            raise ZeroDivisionError
        return word + work(conn)

    for options in ({}, {"kwargs": {"autocommit": True}}):
        work.calls = 0
        assert make_pool(**options).run(nested, "it was ") == "it was call 1"
    assert work.rows(pair) == 2
    assert not any(row.key == (*work.key[:2], 0) for row in ledger.read(pair.blue))


# -- a cut COMMIT, and the server remains ------------------------------------------------------------------------


@pytest.mark.usefixtures("prepared")
def test_a_commit_that_took_effect_is_not_repeated(
    make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work
) -> None:
    cutter.when = "after"
    assert make_pool(max_size=1).run(work) == "call 1"
    assert (work.calls, work.rows(pair), cutter.when) == (1, 1, "never")


@pytest.mark.usefixtures("prepared")
def test_a_commit_that_never_arrived_is_repeated(
    make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work
) -> None:
    cutter.when = "before"
    assert make_pool(max_size=1).run(work) == "call 2"
    assert (work.rows(pair), cutter.when) == (1, "never")


@pytest.mark.usefixtures("prepared")
def test_a_unit_without_writes_needs_no_query(make_pool: MakePool, cutter: CommitCutter) -> None:
    calls: list[int] = []

    def read(conn: psycopg.Connection[Any]) -> Any:
        calls.append(1)
        row = conn.execute("SELECT count(*) FROM ledger WHERE worker = 95").fetchone()
        assert row is not None
        return row[0]

    cutter.when = "after"
    assert make_pool(max_size=1).run(read) == 0
    assert len(calls) == 2


@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.PREPARATION])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_commit_sent_by_the_function_is_not_repeated(
    deployment: Deployment, make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work, phase: Phase,
    swallowed: bool,
) -> None:  # fmt: skip
    """It may have been applied, even before a switchover is known."""

    def commit(conn: psycopg.Connection[Any]) -> None:
        with contextlib.suppress(psycopg.OperationalError) if swallowed else contextlib.nullcontext():
            conn.execute("COMMIT")

    pair.hosts.set(pair.names.blue.primary, cutter.address)
    blue = deployment.snapshot.hosts_of(Role.SOURCE)[0].name
    deployment.tell(Resolved(now(), {blue: (cutter.address,)}))
    deployment.phase(phase)
    cutter.when, work.meanwhile = "after", commit
    try:
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            make_pool(max_size=1).run(work)
    finally:
        pair.hosts.set(pair.names.blue.primary, pair.blue.address)
    assert (work.calls, work.rows(pair)) == (1, 1)


@pytest.mark.usefixtures("prepared")
def test_a_prepared_transaction_is_never_run_again(deployment: Deployment, make_pool: MakePool) -> None:
    pool = make_pool(max_size=1, bg_drop_blue_connections=False)
    with pytest.raises(bgpool.CommitOutcomeUnknown, match="pg_prepared_xacts"), pool.connection() as conn:
        conn.tpc_begin("bgpool-test")
        assert conn._tpc is not None
        # The state after tpc_prepare(), which needs a server that allows it; the session is idle then.
        conn.execute("ROLLBACK")
        conn._tpc = (conn._tpc[0], True)
        deployment.phase(Phase.IN_PROGRESS)
        deployment.release()
        wait_until(lambda: not conn.bgpool_generation.live[0])
        conn.tpc_commit()


# -- a cut COMMIT, and another server is promoted ----------------------------------------------------------------


class Promotion:
    """A separate pair that is switched over when a COMMIT is cut."""

    def __init__(self, pair: Pair, deployment: Deployment, cutter: CommitCutter) -> None:
        self.pair, self.deployment, self.cutter = pair, deployment, cutter
        self.before_release: Callable[[], None] = lambda: None
        self.caught_up = True
        cutter.on_cut = self._switch_over

    def _switch_over(self) -> None:
        self.deployment.phase(Phase.IN_PROGRESS)
        if self.caught_up:
            self.pair.green.wait_replayed(self.pair.blue.position(), 10.0)
        self.pair.green.promote(10.0)
        self.before_release()
        self.deployment.release()

    def stop_replication(self) -> None:
        """Stop the replication from blue to green."""
        self.caught_up = False
        self.pair.green.execute("ALTER SYSTEM SET primary_conninfo = ''")
        assert isinstance(self.pair.green, PostgresServer)
        self.pair.green.reload()
        deadline = time.monotonic() + 10
        while self.pair.green.execute("SELECT count(*) FROM pg_stat_wal_receiver")[0][0]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


class TestPromotion:
    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        with Pair() as pair:
            ledger.create(pair)
            # Replicated before a test stops the replication: otherwise green may have the table, but not its
            # privileges.
            pair.green.wait_replayed(pair.blue.position(), 30.0)
            yield pair

    @pytest.fixture
    def promotion(self, pair: Pair, prepared: Deployment, cutter: CommitCutter) -> Promotion:
        return Promotion(pair, prepared, cutter)

    def test_the_promoted_replica_knows_a_commit_that_took_effect(
        self, make_pool: MakePool, pair: Pair, promotion: Promotion, work: Work
    ) -> None:
        promotion.cutter.when = "after"
        assert make_pool(max_size=1).run(work) == "call 1"
        assert work.rows(pair, "green") == 1

    def test_the_promoted_replica_knows_a_commit_that_never_arrived(
        self, make_pool: MakePool, pair: Pair, promotion: Promotion, work: Work
    ) -> None:
        promotion.cutter.when = "before"
        assert make_pool(max_size=1).run(work) == "call 2"
        assert work.rows(pair, "green") == 1
        assert work.rows(pair, "blue") == 0

    def test_a_reused_transaction_id_is_not_mistaken_for_the_units(
        self, make_pool: MakePool, pair: Pair, promotion: Promotion, work: Work
    ) -> None:
        ids: list[int] = []

        def note_id(conn: psycopg.Connection[Any]) -> None:
            if work.calls == 1:
                row = conn.execute("SELECT pg_current_xact_id()::text").fetchone()
                assert row is not None
                ids.append(int(row[0]))

        def use_ids_up() -> None:
            with pair.green.superuser() as conn:
                while True:
                    row = conn.execute("SELECT pg_current_xact_id()::text").fetchone()
                    assert row is not None
                    if int(row[0]) > ids[0]:
                        break
                # This query would return the status of an unrelated transaction.
                row = conn.execute("SELECT pg_xact_status(%s::xid8)", (str(ids[0]),)).fetchone()
                assert row == ("committed",)

        work.meanwhile, promotion.before_release = note_id, use_ids_up
        promotion.stop_replication()
        promotion.cutter.when = "before"
        assert make_pool(max_size=1).run(work) == "call 2"
        assert work.rows(pair, "green") == 1

    @pytest.mark.parametrize(("reason", "replica"), [("restarted", True), ("no replica", False)])
    @pytest.mark.parametrize("old_blue", ["there", "gone"])
    def test_old_blue_is_queried_for_what_green_does_not_know(
        self,
        make_pool: MakePool,
        pair: Pair,
        promotion: Promotion,
        work: Work,
        monkeypatch: pytest.MonkeyPatch,
        reason: str,
        old_blue: str,
    ) -> None:
        def before_release() -> None:
            if reason == "restarted":
                # A crash: recovery replays green's own log, whose end is unrelated to blue's.
                pair.green.kill()
                pair.green.start()
            if old_blue == "gone":
                pair.blue.stop("immediate")

        monkeypatch.setattr(unit, "OLD_BLUE_S", 0.5 if old_blue == "gone" else 15.0)
        promotion.before_release = before_release
        promotion.cutter.when = "after"
        pool = make_pool(max_size=1)
        if old_blue == "there":
            assert pool.run(work) == "call 1"
            assert work.rows(pair, "green") == 1
        else:
            with pytest.raises(bgpool.CommitOutcomeUnknown, match="find out"):
                pool.run(work)
        assert work.calls == 1

    @pytest.mark.parametrize("replica", [False])
    def test_an_idempotent_unit_is_called_again_if_its_outcome_is_unknown(
        self, make_pool: MakePool, pair: Pair, promotion: Promotion, work: Work, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(unit, "OLD_BLUE_S", 0.5)
        promotion.before_release = lambda: pair.blue.stop("immediate")
        promotion.cutter.when = "after"
        assert make_pool(max_size=1).run(work, idempotent=True) == "call 2"
        assert work.rows(pair, "green") == 2


# -- a lost connection stays lost --------------------------------------------------------------------------------


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("how", ["nothing", "commit", "in words"])
@pytest.mark.threads
def test_an_interrupt_in_commit_leaves_it_in_doubt(
    make_pool: MakePool, work: Work, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """psycopg closes a connection that is interrupted while psycopg cancels an interrupted statement."""

    def interrupt(*args: Any, **_kwargs: Any) -> None:
        for gen in args:
            if hasattr(gen, "send"):
                next(gen)
        raise KeyboardInterrupt

    pool = make_pool(max_size=1)
    conn = pool.getconn()
    work(conn)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(psycopg.waiting, "wait", interrupt)
        patch.setattr(conn, "_try_cancel", interrupt)
        {"nothing": lambda: work(conn), "commit": conn.commit, "in words": lambda: conn.execute("COMMIT")}[how]()
    assert conn.broken
    with pytest.raises(bgpool.SwitchoverInterrupted if how == "nothing" else bgpool.CommitOutcomeUnknown):
        conn.rollback()
    pool.putconn(conn)


@pytest.mark.threads
def test_an_error_is_freed_with_its_last_reference(make_pool: MakePool) -> None:
    gc.disable()
    try:
        with make_pool().connection() as conn:
            conn.execute("CREATE TEMP TABLE twice (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            conn.execute("INSERT INTO twice VALUES (1), (1)")
            try:
                conn.commit()
            except psycopg.errors.UniqueViolation as error:
                failed = weakref.ref(error)
            assert failed() is None
    finally:
        gc.enable()
