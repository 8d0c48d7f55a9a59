"""Units of work on real servers: cut before COMMIT and in it, asked about afterwards, and never applied twice."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

import bgpool
from bgpool.core.phase import Phase
from bgpool.lab import Pair, ledger
from bgpool.lab.ledger import INSERT_SQL
from bgpool.lab.postgres import PostgresServer
from bgpool.pools.postgres.pool import PostgresPool
from tests.pools.conftest import Hand
from tests.pools.proxy import CommitCutter

pytestmark = pytest.mark.lab

MakePool = Callable[..., PostgresPool]
_numbers = iter(range(1, 10_000))


class Work:
    """A function of a connection that inserts one row of its own, and how often it was called."""

    def __init__(self) -> None:
        self.key = (99, 0, next(_numbers))
        self.calls = 0
        self.meanwhile: Callable[[psycopg.Connection[Any]], object] = lambda _conn: None

    def __call__(self, conn: psycopg.Connection[Any]) -> str:
        self.calls += 1
        conn.execute(INSERT_SQL, self.key)
        self.meanwhile(conn)
        return f"call {self.calls}"

    def rows(self, pair: Pair, colour: str = "blue") -> int:
        server = pair.blue if colour == "blue" else pair.green
        return sum(row.key == self.key for row in ledger.read(server))


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def cutter(pair: Pair) -> Iterator[CommitCutter]:
    """Stands where blue's name leads to."""
    address = pair.blue.address.rsplit(".", 1)[0] + ".99"
    with CommitCutter(address, pair.port, (pair.blue.address, pair.port)) as cutter:
        yield cutter


@pytest.fixture
def prepared(hand: Hand, cutter: CommitCutter) -> Hand:
    """A switchover is prepared, and blue is behind the cutter."""
    blue, green = hand.snapshot.hosts
    hand.publish(
        Phase.PREPARATION,
        hosts=(replace(blue, addresses=(cutter.address,)), green),
        green_was_read_only=True,
        green_was_replica=True,
    )
    return hand


# -- before COMMIT -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prepared")
def test_what_is_cut_before_commit_is_called_again(make_pool: MakePool, pair: Pair, work: Work) -> None:
    def cut(conn: psycopg.Connection[Any]) -> None:
        if work.calls == 1:
            pair.blue.cut_clients()
            conn.execute("SELECT 1")

    work.meanwhile = cut
    assert make_pool().run(work) == "call 2"
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("prepared")
def test_a_cut_that_the_function_swallowed_is_no_success(make_pool: MakePool, pair: Pair, work: Work) -> None:
    def cut(conn: psycopg.Connection[Any]) -> None:
        if work.calls == 1:
            pair.blue.cut_clients()
            with contextlib.suppress(bgpool.SwitchoverInterrupted):
                conn.execute("SELECT 1")

    work.meanwhile = cut
    assert make_pool().run(work) == "call 2"
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("prepared")
def test_a_blue_that_takes_no_writes_any_more_is_waited_out(make_pool: MakePool, pair: Pair, work: Work) -> None:
    pool = make_pool()
    pair.blue.set_read_only(True)
    timer = threading.Timer(0.5, lambda: pair.blue.set_read_only(False))
    timer.start()
    try:
        pool.run(work)
    finally:
        timer.join()
    assert work.calls > 1
    assert work.rows(pair) == 1


@pytest.mark.usefixtures("hand")
def test_a_cut_that_no_switchover_explains_yet_is_tried_again_for_a_while(
    make_pool: MakePool, pair: Pair, work: Work
) -> None:
    work.meanwhile = lambda conn: (pair.blue.cut_clients(), conn.execute("SELECT 1"))
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError):
        make_pool().run(work)
    assert 5 < time.monotonic() - began < 12
    assert work.calls > 1
    assert work.rows(pair) == 0


def test_without_a_deployment_a_cut_is_nobodys_business(make_pool: MakePool, pair: Pair, work: Work) -> None:
    work.meanwhile = lambda conn: (pair.blue.cut_clients(), conn.execute("SELECT 1"))
    with pytest.raises(psycopg.errors.AdminShutdown):
        make_pool().run(work)
    assert work.calls == 1


@pytest.mark.usefixtures("prepared")
def test_the_time_for_it_ends(make_pool: MakePool, pair: Pair, work: Work) -> None:
    work.meanwhile = lambda conn: (pair.blue.cut_clients(), conn.execute("SELECT 1"))
    began = time.monotonic()
    with pytest.raises((bgpool.SwitchoverInterrupted, psycopg.OperationalError)):
        make_pool().run(work, timeout=1.0)
    assert time.monotonic() - began < 4


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("error", [ValueError("mine"), psycopg.errors.UniqueViolation("theirs")])
def test_errors_of_the_function_are_its_own(make_pool: MakePool, pair: Pair, work: Work, error: Exception) -> None:
    def fail(_conn: psycopg.Connection[Any]) -> None:
        raise error

    work.meanwhile = fail
    with pytest.raises(type(error)):
        make_pool().run(work)
    assert work.calls == 1
    assert work.rows(pair) == 0


@pytest.mark.usefixtures("prepared")
def test_a_failed_statement_that_was_swallowed_commits_nothing(make_pool: MakePool, pair: Pair, work: Work) -> None:
    def swallow(conn: psycopg.Connection[Any]) -> None:
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1/0")

    work.meanwhile = swallow
    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="rolled back"):
        make_pool().run(work)
    assert work.calls == 1
    assert work.rows(pair) == 0


@pytest.mark.usefixtures("prepared")
def test_the_function_must_not_end_the_transaction(make_pool: MakePool, work: Work) -> None:
    for end in (lambda conn: conn.commit(), lambda conn: conn.rollback(), lambda conn: conn.execute("COMMIT")):
        work.meanwhile = end
        with pytest.raises(psycopg.ProgrammingError):
            make_pool().run(work)


@pytest.mark.usefixtures("prepared")
def test_savepoints_arguments_and_autocommit_pools(make_pool: MakePool, pair: Pair, work: Work) -> None:
    def nested(conn: psycopg.Connection[Any], word: str) -> str:
        with contextlib.suppress(ZeroDivisionError), conn.transaction():
            conn.execute(INSERT_SQL, (work.key[0], work.key[1], 0))
            raise ZeroDivisionError
        return word + work(conn)

    for options in ({}, {"kwargs": {"autocommit": True}}):
        work.calls = 0
        assert make_pool(**options).run(nested, "it was ") == "it was call 1"
    assert work.rows(pair) == 2
    assert not any(row.key == (*work.key[:2], 0) for row in ledger.read(pair.blue))


@pytest.mark.usefixtures("hand")
def test_decorated_functions_are_called_without_a_connection(make_pool: MakePool, pair: Pair, work: Work) -> None:
    @bgpool.transactional(make_pool())
    def place_order(conn: psycopg.Connection[Any], item: str, *, count: int = 1) -> str:
        """Write an order down."""
        return f"{count} {item}: {work(conn)}"

    assert place_order("tea", count=2) == "2 tea: call 1"
    assert (place_order.__name__, place_order.__doc__) == ("place_order", "Write an order down.")
    assert work.rows(pair) == 1


# -- in COMMIT, on a server that goes on -------------------------------------------------------------------------


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
def test_nothing_written_is_nothing_to_ask_about(make_pool: MakePool, cutter: CommitCutter) -> None:
    calls: list[int] = []

    def read(conn: psycopg.Connection[Any]) -> Any:
        calls.append(1)
        row = conn.execute("SELECT count(*) FROM ledger WHERE worker = 98").fetchone()
        assert row is not None
        return row[0]

    cutter.when = "after"
    assert make_pool(max_size=1).run(read) == 0
    assert len(calls) == 2


@pytest.mark.usefixtures("cutter")
def test_without_a_receipt_it_is_unknown(make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work) -> None:
    """No switchover is under way: no id was asked for, and nobody guesses."""
    pair.hosts.set(pair.names.blue.primary, cutter.address)
    try:
        cutter.when = "after"
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            make_pool(max_size=1).run(work)
        cutter.when = "before"
        assert make_pool(max_size=1).run(work, idempotent=True) == "call 3"
    finally:
        pair.hosts.set(pair.names.blue.primary, pair.blue.address)
    assert work.rows(pair) == 2


# -- in COMMIT, and another server is promoted -------------------------------------------------------------------


class Promotion:
    """A pair of its own that is switched over when a COMMIT is cut."""

    def __init__(self, pair: Pair, hand: Hand, cutter: CommitCutter) -> None:
        self.pair, self.hand, self.cutter = pair, hand, cutter
        self.before_release: Callable[[], None] = lambda: None
        self.caught_up = True
        self.replica = True
        cutter.on_cut = self._switch_over

    def _switch_over(self) -> None:
        self.hand.publish(Phase.IN_PROGRESS)
        if self.caught_up:
            self.pair.green.wait_replayed(self.pair.blue.position(), 10.0)
        self.pair.green.promote(10.0)
        self.before_release()
        self.hand.publish(Phase.POST, pinned=True, green_was_replica=self.replica)

    def stop_replication(self) -> None:
        """Let green hear no more of blue."""
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
            yield pair

    @pytest.fixture
    def promotion(self, pair: Pair, prepared: Hand, cutter: CommitCutter) -> Promotion:
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

    def test_an_id_that_was_given_out_again_is_not_mistaken_for_ours(
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
                # The very question whose answer would be about somebody else's transaction.
                row = conn.execute("SELECT pg_xact_status(%s::xid8)", (str(ids[0]),)).fetchone()
                assert row == ("committed",)

        work.meanwhile, promotion.before_release = note_id, use_ids_up
        promotion.stop_replication()
        promotion.cutter.when = "before"
        assert make_pool(max_size=1).run(work) == "call 2"
        assert work.rows(pair, "green") == 1

    @pytest.mark.parametrize("reason", ["restarted", "no replica"])
    def test_what_cannot_be_told_is_said(
        self, make_pool: MakePool, pair: Pair, promotion: Promotion, work: Work, reason: str
    ) -> None:
        def restart() -> None:
            # A crash: recovery replays a log of green's own, and has an end that says nothing about blue's.
            pair.green.kill()
            pair.green.start()

        if reason == "restarted":
            promotion.before_release = restart
        else:
            promotion.replica = False
        promotion.cutter.when = "after"
        with pytest.raises(bgpool.CommitOutcomeUnknown, match="find out"):
            make_pool(max_size=1).run(work)
        assert work.calls == 1

    def test_what_may_be_applied_twice_is_called_again_where_nobody_can_tell(
        self, make_pool: MakePool, pair: Pair, promotion: Promotion, work: Work
    ) -> None:
        promotion.replica = False
        promotion.cutter.when = "after"
        assert make_pool(max_size=1).run(work, idempotent=True) == "call 2"
        assert work.rows(pair, "green") == 2


@pytest.mark.usefixtures("hand")
def test_only_a_hold_that_timed_out_is_advised_to_hold_longer(make_pool: MakePool) -> None:
    describe = make_pool()._gate.describe
    assert "bg_connect_timeout_ms" in describe("was held for 1.0 s; ")
    assert "bg_connect_timeout_ms" not in describe("was cut during COMMIT; find out whether it took effect")
