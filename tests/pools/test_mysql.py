"""A MySQL pool's promises beyond those of all pools: no wait under a lock, and no guess about commits."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pymysql
import pytest
from dbutils.pooled_db import PooledDB

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.errors import PoolClosed, PoolTimeout, TooManyRequests
from bgpool.lab import Pair
from bgpool.lab.ledger import INSERT_SQL
from bgpool.mysql import BoundedConnection
from bgpool.pools.mysql import receipts
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.pool import MysqlPool
from bgpool.pools.mysql.slots import Waiter
from bgpool.pools.mysql.store import Store
from bgpool.testing import Deployment
from tests.engines import Kit, sleepers
from tests.pools.callers import Caller, wait_until
from tests.pools.conftest import Work
from tests.pools.proxy import CommitCutter
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.lab

ENGINES = (Engine.MYSQL,)

MakePool = Callable[..., MysqlPool]


class Connector:
    """Opens real connections, when the test allows it.

    Attributes:
        wait: Called before each connection is opened.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.wait: Callable[[], object] = lambda: None
        self.failures: list[Exception] = []
        self.opened = 0
        self.live = memoryview(bytearray(b"\1" * 8))

    def connect(self) -> MysqlConnection:
        self.wait()
        if self.failures:
            raise self.failures.pop()
        self.opened += 1
        connection = MysqlConnection(
            host=self._pair.blue.address, port=self._pair.port, user="app", password=self._pair.app_password,
            database="app", read_timeout=10, write_timeout=10,
        )  # fmt: skip
        self.inherited = False
        connection.bgpool_generation = self  # type: ignore[assignment]  # has the parts that a store uses
        return connection

    def note_cut(self) -> None:
        """See Generation."""

    def take_lost(self, connection: MysqlConnection) -> None:
        """See Generation; here, no caller waits for the slot."""
        connection._force_close()

    def note_refusal(self) -> bool:
        """See Generation."""
        return True

    def is_switching(self) -> bool:
        """See Generation."""
        return False


@pytest.fixture
def connector(pair: Pair) -> Connector:
    return Connector(pair)


@pytest.fixture
def make_store(connector: Connector) -> Iterator[Callable[..., Store]]:
    made: list[Store] = []

    def make(**options: Any) -> Store:
        store = Store(connector, **{"min_size": 0, "max_size": 2, "timeout": 5.0} | options)
        store.open()
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


MakeStore = Callable[..., Store]


class TestStore:
    def test_a_slow_connect_does_not_delay_a_returned_connection(
        self, make_store: MakeStore, connector: Connector
    ) -> None:
        store = make_store()
        first = store.getconn()
        opened = threading.Event()
        connector.wait = lambda: opened.wait(30.0)
        caller = Caller(store.getconn)
        wait_until(lambda: store.get_stats()["requests_waiting"] == 1)
        store.putconn(first)
        assert caller.wait() is first
        opened.set()
        wait_until(lambda: connector.opened == 2)

    def test_connects_run_side_by_side(self, make_store: MakeStore, connector: Connector) -> None:
        store = make_store(max_size=5, timeout=20.0)
        # No connect completes before all five have begun.
        connector.wait = threading.Barrier(5, timeout=15.0).wait
        callers = [Caller(store.getconn) for _ in range(5)]
        for caller in callers:
            store.putconn(caller.wait())
        assert connector.opened == 5

    def test_first_come_first_served_and_never_more_than_max_size(
        self, make_store: MakeStore, connector: Connector
    ) -> None:
        store = make_store(max_size=1)
        held = store.getconn()
        order: list[int] = []

        def use(n: int) -> None:
            connection = store.getconn()
            order.append(n)
            store.putconn(connection)

        def is_waiting(count: int) -> bool:
            return store.get_stats()["requests_waiting"] == count

        callers = []
        for n in range(8):
            callers.append(Caller(partial(use, n)))
            wait_until(partial(is_waiting, n + 1))
        store.putconn(held)
        for caller in callers:
            assert caller.wait() is None
        assert order == list(range(8))
        assert connector.opened == 1

    def test_a_wait_that_times_out_reports_the_reason(self, make_store: MakeStore, connector: Connector) -> None:
        store = make_store(max_size=1)
        held = store.getconn()
        with pytest.raises(PoolTimeout, match=r"after 0.10 sec") as caught:
            store.getconn(0.1)
        assert isinstance(caught.value, pymysql.err.OperationalError)
        assert store.failure == ""
        store.putconn(held)
        other = make_store(max_size=1)
        connector.failures = [pymysql.err.OperationalError(1045, "Access denied for user 'app'")] * 100
        with pytest.raises(PoolTimeout):
            other.getconn(0.2)
        wait_until(lambda: "1045: Access denied" in other.failure)

    def test_a_full_queue_refuses_callers(self, make_store: MakeStore) -> None:
        store = make_store(max_size=1, max_waiting=1)
        held = store.getconn()
        caller = Caller(store.getconn)
        wait_until(lambda: store.get_stats()["requests_waiting"] == 1)
        with pytest.raises(TooManyRequests, match="1 requests waiting"):
            store.getconn()
        store.putconn(held)
        store.putconn(caller.wait())

    def test_closing_refuses_waiting_callers(self, make_store: MakeStore) -> None:
        store = make_store(max_size=1)
        held = store.getconn()
        caller = Caller(store.getconn)
        wait_until(lambda: store.get_stats()["requests_waiting"] == 1)
        store.close()
        assert isinstance(caller.wait(), PoolClosed)
        store.putconn(held)
        assert held.closed

    def test_a_failed_connect_is_retried_while_a_caller_waits(
        self, make_store: MakeStore, connector: Connector
    ) -> None:
        store = make_store()
        connector.failures = [pymysql.err.OperationalError(2003, "refused")] * 3
        store.putconn(store.getconn())
        assert store.get_stats()["connections_errors"] == 3

    def test_a_connection_ended_by_the_server_is_not_handed_out(
        self, make_store: MakeStore, kit: Kit, pair: Pair
    ) -> None:
        store = make_store()
        connection = store.getconn()
        store.putconn(connection)
        kit.kill(pair, kit.session(connection))
        wait_until(connection.bgpool_is_readable)
        fresh = store.getconn()
        assert kit.execute(fresh, "SELECT 1") == [(1,)]
        assert fresh is not connection
        store.putconn(fresh)

    def test_only_idle_connections_are_checked_and_without_a_lock(self, make_store: MakeStore) -> None:
        asked, answered = threading.Event(), threading.Event()

        def check(_connection: MysqlConnection) -> None:
            asked.set()
            assert answered.wait(30.0)

        store = make_store(check=check)
        store.putconn(store.getconn())
        time.sleep(0.6)
        caller = Caller(store.getconn)
        assert asked.wait(10.0)
        store.putconn(store.getconn())
        answered.set()
        store.putconn(caller.wait())

    def test_an_open_transaction_is_rolled_back_and_autocommit_is_reset(self, make_store: MakeStore, kit: Kit) -> None:
        store = make_store(max_size=1)
        connection = store.getconn()
        kit.execute(connection, "INSERT INTO ledger (worker, thread, n) VALUES (55, 1, 1)")
        store.putconn(connection)
        assert store.getconn() is connection
        assert kit.execute(connection, "SELECT count(*) FROM ledger WHERE worker = 55") == [(0,)]
        connection.rollback()
        connection.autocommit(True)
        store.putconn(connection)
        assert not store.getconn().get_autocommit()
        store.putconn(connection)

    def test_a_result_left_unread_closes_the_connection(self, make_store: MakeStore) -> None:
        store = make_store(max_size=1)
        connection = store.getconn()
        cursor = connection.cursor(pymysql.cursors.SSCursor)
        cursor.execute("SELECT 1 UNION SELECT 2")
        store.putconn(connection)
        assert connection.closed
        assert store.get_stats()["returns_bad"] == 1

    def test_an_interrupted_caller_loses_no_slot(self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Like gevent's time limits and Ctrl-C: in the queue, when a connection was just given, and in the check."""

        class Limit(BaseException):
            pass

        store = make_store(max_size=1)
        connection = store.getconn()
        for give in (False, True):

            def wait(_waiter: Waiter, _timeout_s: float, give: bool = give) -> bool:
                if give:
                    store.putconn(connection)
                raise Limit

            with monkeypatch.context() as patch, pytest.raises(Limit):
                patch.setattr(Waiter, "wait", wait)
                store.getconn()
            assert store.get_stats()["requests_waiting"] == 0
        assert store.getconn(1.0) is connection
        monkeypatch.setattr(store, "_make_sure", lambda *_: (_ for _ in ()).throw(Limit))
        store.putconn(connection)
        with pytest.raises(Limit):
            store.getconn()
        assert store.get_stats()["pool_size"] == 0

    def test_lifetime_idle_time_and_min_size(self, make_store: MakeStore) -> None:
        store = make_store(min_size=1, max_size=3, max_idle=0.2, max_lifetime=3600)
        wait_until(lambda: store.get_stats()["pool_available"] == 1)
        lent = [store.getconn() for _ in range(3)]
        assert store.get_stats()["pool_size"] == 3
        for connection in lent:
            store.putconn(connection)
        wait_until(lambda: store.get_stats()["pool_size"] == 1)
        old = make_store(min_size=1, max_size=1, max_lifetime=0.5)
        first = old.getconn()
        time.sleep(0.6)
        old.putconn(first)
        assert first.closed
        second = old.getconn()
        assert second is not first
        old.putconn(second)

    def test_a_forgotten_connection_is_closed_and_not_kept(self, make_store: MakeStore, kit: Kit, pair: Pair) -> None:
        store = make_store(max_size=1)
        connection = store.getconn()
        session = kit.session(connection)
        kit.write(connection)
        del connection
        import gc

        gc.collect()
        assert store.get_stats()["pool_available"] == 0
        query = f"SELECT count(*) FROM information_schema.processlist WHERE id = {session}"
        wait_until(lambda: pair.blue.execute(query)[0][0] == 0)

    @pytest.mark.parametrize(
        "options", [{"max_size": 0}, {"min_size": 3, "max_size": 2}, {"max_lifetime": 0}, {"min_size": -1}]
    )
    def test_numbers_out_of_range_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be"):
            Store(object(), **{"max_size": 2, "min_size": 0} | options)

    def test_many_threads_share_a_store(self, make_store: MakeStore, kit: Kit, connector: Connector) -> None:
        store = make_store(max_size=3)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(50):
                    connection = store.getconn()
                    assert kit.execute(connection, "SELECT 1") == [(1,)]
                    store.putconn(connection)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []
        wait_until(lambda: store.get_stats()["pool_available"] == store.get_stats()["pool_size"])
        assert store.get_stats()["pool_size"] == connector.opened <= 3


class Limit(BaseException):
    """Like gevent's time limits and Ctrl-C: not a subclass of Exception."""


class Threads:
    """Threads that cannot be started for a while.

    Attributes:
        missing: The number of starts that still fail; a thousand for all.
        names: A text that is part of the names of threads that fail.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.missing = 0
        self.names = "bgpool-"
        start = threading.Thread.start

        def try_to_start(thread: threading.Thread) -> None:
            if self.missing and self.names in thread.name:
                self.missing -= 1
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", try_to_start)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


class TestWithoutThreads:
    """The machine cannot start another thread: this loses no slot, and the pool recovers once threads are available."""

    @pytest.mark.parametrize("missing", [1, 3])
    def test_a_caller_gets_its_connection_as_soon_as_there_is_a_thread(
        self, make_store: MakeStore, threads: Threads, missing: int
    ) -> None:
        store = make_store(max_size=1)
        threads.names, threads.missing = "bgpool-open", missing
        connection = store.getconn(PATIENCE_S)
        assert store.get_stats()["pool_size"] == 1
        store.putconn(connection)

    def test_the_wait_for_a_thread_times_out_with_the_reason(self, make_store: MakeStore, threads: Threads) -> None:
        store = make_store(max_size=1)
        threads.names, threads.missing = "bgpool-open", 1000
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            store.getconn(0.5)
        assert "can't start new thread" in store.failure
        assert time.monotonic() - began < 10.0
        assert store.get_stats()["pool_size"] == 0
        threads.missing = 0
        store.putconn(store.getconn(PATIENCE_S))

    def test_a_caller_that_waits_for_a_slot_is_served_after_a_bad_return(
        self, make_store: MakeStore, threads: Threads
    ) -> None:
        store = make_store(max_size=1)
        held = store.getconn()
        caller = Caller(store.getconn)
        wait_until(lambda: store.get_stats()["requests_waiting"] == 1)
        threads.names, threads.missing = "bgpool-open", 1
        held.close()
        store.putconn(held)
        store.putconn(caller.wait())
        assert store.get_stats()["pool_size"] == 1

    def test_the_size_of_a_pool_is_still_maintained(self, make_store: MakeStore, threads: Threads) -> None:
        threads.names, threads.missing = "bgpool-open", 3
        store = make_store(min_size=2, max_size=2)
        wait_until(lambda: store.get_stats()["pool_available"] == 2)

    def test_a_pool_opens_without_its_maintenance_thread_and_starts_it_later(
        self, make_store: MakeStore, threads: Threads
    ) -> None:
        threads.missing = 1000
        store = make_store(min_size=1, max_size=2, max_idle=0.2)
        with pytest.raises(PoolTimeout):
            store.getconn(0.2)
        assert "can't start new thread" in store.failure
        assert store.get_stats()["pool_size"] == 0
        caller = Caller(store.getconn)
        wait_until(lambda: store.get_stats()["requests_waiting"] == 1)
        threads.missing = 0
        lent = [caller.wait(), store.getconn()]
        for connection in lent:
            store.putconn(connection)
        wait_until(lambda: store.get_stats()["pool_size"] == 1)

    def test_opening_works_once_a_thread_is_available(self, make_store: MakeStore, threads: Threads) -> None:
        threads.missing = 1000
        store = make_store(min_size=1)
        threads.missing = 0
        store.open()
        wait_until(lambda: store.get_stats()["pool_available"] == 1)

    def test_closing_refuses_callers_that_wait_for_a_thread(self, make_store: MakeStore, threads: Threads) -> None:
        threads.missing = 1000
        store = make_store()
        caller = Caller(store.getconn)
        wait_until(lambda: store.get_stats()["requests_waiting"] == 1)
        store.close()
        assert isinstance(caller.wait(), PoolClosed)


class TestInterrupts:
    """Like gevent's time limits and Ctrl-C, which may come wherever a caller waits: no interrupt loses a slot."""

    @pytest.mark.parametrize("begun", [False, True])
    def test_an_interrupt_while_a_thread_is_started_loses_no_slot(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, begun: bool
    ) -> None:
        store = make_store(max_size=1)
        start = threading.Thread.start

        def interrupted(thread: threading.Thread) -> None:
            if begun:
                start(thread)
            raise Limit

        with monkeypatch.context() as patch, pytest.raises(Limit):
            patch.setattr(threading.Thread, "start", interrupted)
            store.getconn()
        store.putconn(store.getconn(PATIENCE_S))
        assert store.get_stats()["pool_size"] == 1

    @pytest.mark.parametrize("when", ["checkout", "return"])
    def test_an_interrupt_while_a_connection_is_closed_loses_no_slot(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        def discard(_connection: MysqlConnection) -> None:
            raise Limit

        store = make_store(min_size=1, max_size=1)
        connection = store.getconn()
        if when == "checkout":
            store.putconn(connection)
            monkeypatch.setattr(store, "_make_sure", lambda *_: (_ for _ in ()).throw(pymysql.err.Error))
        else:
            connection.bgpool_expires_at = 0.0
        with monkeypatch.context() as patch, pytest.raises(Limit):
            patch.setattr(MysqlConnection, "bgpool_discard", discard)
            if when == "checkout":
                store.getconn()
            else:
                store.putconn(connection)
        monkeypatch.undo()
        store.putconn(store.getconn(PATIENCE_S))
        assert store.get_stats()["pool_size"] == 1

    def test_an_interrupt_just_after_a_connection_was_given_loses_no_slot(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The interrupt comes before the caller can take the lock to look."""
        store = make_store(max_size=1)
        held = store.getconn()
        wait = Waiter.wait

        def give_and_break(waiter: Waiter, timeout_s: float) -> bool:
            store.putconn(held)
            monkeypatch.setattr(store, "_lock", _Interrupted(store._lock))
            return wait(waiter, timeout_s)

        with monkeypatch.context() as patch, pytest.raises(Limit):
            patch.setattr(Waiter, "wait", give_and_break)
            store.getconn()
        assert store.getconn(5.0) is held

    def test_an_interrupt_in_the_thread_that_opens_loses_no_slot(self, make_store: MakeStore) -> None:
        def end_thread(_connection: MysqlConnection) -> None:
            raise SystemExit

        store = make_store(max_size=1, configure=end_thread)
        with pytest.raises(PoolTimeout):
            store.getconn(0.5)
        assert (store.failure, store.get_stats()["pool_size"]) == ("SystemExit", 0)


class _Interrupted:
    """A lock that is interrupted once."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._interrupts = 1

    def __enter__(self) -> None:
        if self._interrupts:
            self._interrupts -= 1
            raise Limit
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_connection_that_fails_to_configure_is_closed_at_once(make_store: MakeStore) -> None:
    made: list[MysqlConnection] = []

    def refuse(connection: MysqlConnection) -> None:
        made.append(connection)
        raise ValueError("not like that")

    store = make_store(configure=refuse)
    with pytest.raises(PoolTimeout):
        store.getconn(0.3)
    assert store.failure == "ValueError"
    assert made
    assert all(connection.closed for connection in made)


class TestStatements:
    def test_a_select_shows_whether_it_opened_a_transaction(self, make_pool: MakePool, kit: Kit) -> None:
        with make_pool().connection() as conn:
            assert not conn.bgpool_in_transaction
            kit.execute(conn, "SELECT 1")
            assert not conn.bgpool_in_transaction
            kit.read(conn)
            assert conn.bgpool_in_transaction
            conn.commit()
            assert not conn.bgpool_in_transaction
            with pytest.raises(pymysql.err.ProgrammingError):
                kit.execute(conn, "SELECT * FROM nowhere")
            assert conn.bgpool_in_transaction, "a transaction may be open until the next answer"

    @pytest.mark.parametrize(
        ("statement", "unknown"),
        [("INSERT INTO ledger (worker, thread, n) SELECT 1, 1, sleep(60)", False), ("EXECUTE slow", True)],
    )
    def test_only_statements_that_never_commit_are_reported_as_not_committed(
        self, deployment: Deployment, make_pool: MakePool, pair: Pair, kit: Kit, statement: str, unknown: bool
    ) -> None:
        pool = make_pool(bg_drain_timeout_ms=100)
        conn = pool.getconn()
        kit.read(conn)
        kit.execute(conn, "PREPARE slow FROM 'DO sleep(60)'")
        session = kit.session(conn)
        caller = Caller(lambda: kit.execute(conn, statement))
        wait_until(lambda: session in sleepers(pair))
        deployment.phase(Phase.IN_PROGRESS)
        assert type(caller.wait()) is (bgpool.CommitOutcomeUnknown if unknown else bgpool.SwitchoverInterrupted)
        pool.putconn(conn)

    @pytest.mark.parametrize("commits", [False, True])
    def test_an_interrupt_in_commit_leaves_it_in_doubt(
        self, deployment: Deployment, make_pool: MakePool, kit: Kit, commits: bool
    ) -> None:
        """PyMySQL closes a connection whose read was interrupted: by Ctrl-C, or a time limit of gevent or Celery."""

        class Limit(BaseException):
            pass

        class Interrupted:
            def read(self, _count: int) -> bytes:
                raise Limit

            def close(self) -> None:
                pass

        deployment.phase(Phase.PREPARATION)
        pool = make_pool()
        conn = pool.getconn()
        kit.write(conn)
        conn._rfile = Interrupted()
        with pytest.raises(Limit):
            conn.commit() if commits else kit.write(conn)
        with pytest.raises(bgpool.CommitOutcomeUnknown if commits else bgpool.SwitchoverInterrupted):
            conn.rollback()
        pool.putconn(conn)

    def test_a_transaction_with_a_refused_write_cannot_be_committed(
        self, deployment: Deployment, make_pool: MakePool, kit: Kit, pair: Pair, work: Work
    ) -> None:
        """The rest of the transaction still exists, and would succeed after a rollback of the switchover."""
        deployment.phase(Phase.PREPARATION)
        with make_pool().connection() as conn:
            work(conn)
            pair.blue.set_read_only(True)
            try:
                with pytest.raises(bgpool.SwitchoverInterrupted):
                    kit.write(conn)
            finally:
                pair.blue.set_read_only(False)
            with pytest.raises(bgpool.SwitchoverInterrupted):
                conn.commit()
            conn.rollback()
        assert work.rows(pair) == 0

    @pytest.mark.parametrize("autocommit", [True, False])
    @pytest.mark.parametrize("reached", [0, 2])
    def test_rows_committed_by_executemany_are_taken_into_account(
        self, deployment: Deployment, make_pool: MakePool, autocommit: bool, reached: int
    ) -> None:
        """In autocommit each row has its own statement and commit: running all of them again would double some."""
        pool = make_pool(bg_drain_timeout_ms=0, kwargs={"autocommit": autocommit})
        conn = pool.getconn()

        def rows() -> Iterator[tuple[int]]:
            for n in range(3):
                if n == reached:
                    deployment.phase(Phase.IN_PROGRESS)
                    wait_until(lambda: conn.bgpool_cut)
                    deployment.release()
                yield (n,)

        unknown = autocommit and reached > 0
        with (
            conn.cursor() as cursor,
            pytest.raises(bgpool.CommitOutcomeUnknown if unknown else bgpool.SwitchoverInterrupted) as caught,
        ):
            cursor.executemany("UPDATE ledger SET n = n WHERE worker = -%s", rows())
        assert ("executemany" in str(caught.value)) == unknown
        assert caught.value.args[0] == 2006
        pool.putconn(conn)

    def test_cursors_keep_their_classes(self, make_pool: MakePool) -> None:
        pool = make_pool(kwargs={"cursorclass": pymysql.cursors.DictCursor})
        with pool.connection() as conn:
            assert type(conn.cursor()).__name__ == "DictCursor"
            assert isinstance(conn.cursor(), pymysql.cursors.DictCursor)
            with conn.cursor(pymysql.cursors.SSCursor) as cursor:
                cursor.execute("SELECT 1")
                cursor.executemany("DO 1", [])
                assert isinstance(cursor, pymysql.cursors.SSCursor)
                assert cursor.fetchall() == [(1,)]
            assert conn.cursor(lambda of: of) is conn

    @pytest.mark.filterwarnings("ignore:Previous unbuffered result")
    @pytest.mark.parametrize("read", [0, 2, 3])
    def test_rows_dropped_by_another_statement_raise_an_error(self, make_pool: MakePool, read: int) -> None:
        """PyMySQL alone ends the loop as if all rows had been read."""
        with make_pool().connection() as conn, conn.cursor(pymysql.cursors.SSCursor) as cursor:
            cursor.execute("SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3")
            assert [cursor.fetchone() for _ in range(read)] == [(1,), (2,), (3,)][:read]
            with conn.cursor() as other:
                other.execute("SELECT 4")
                assert other.fetchall() == ((4,),)
            if read == 3:
                assert cursor.fetchall() == []
                return
            for fetch in (cursor.fetchone, cursor.fetchall, cursor.fetchmany, lambda: next(iter(cursor))):
                with pytest.raises(pymysql.err.ProgrammingError, match=r"2014.* dropped the rows"):
                    fetch()

    def test_errors_have_a_number_and_a_text(self, deployment: Deployment, make_pool: MakePool) -> None:
        deployment.phase(Phase.IN_PROGRESS)
        with pytest.raises(bgpool.SwitchoverHoldTimeout) as caught:
            make_pool().getconn(timeout=0.05)
        number, text = caught.value.args
        assert number == 2003
        assert "was held for" in text

    def test_a_pooled_connection_is_not_reconnected(self, make_pool: MakePool, kit: Kit, pair: Pair) -> None:
        pool = make_pool()
        conn = pool.getconn()
        kit.kill(pair, kit.session(conn))
        wait_until(conn.bgpool_is_readable)
        with pytest.raises(pymysql.err.Error):
            conn.ping(reconnect=True)
        with pytest.raises(pymysql.err.InterfaceError, match="check out a new one"):
            conn.ping(reconnect=True)
        with pytest.raises(pymysql.err.InterfaceError, match="check out a new one"):
            conn.connect()
        pool.putconn(conn)


#: Each procedure answers first and continues then: the state after the first answer is not the final state.
PROCEDURES = {
    "writes": "SELECT 'begun'; INSERT INTO ledger (worker, thread, n) VALUES (44, 4, k);",
    "fails": "SELECT 'begun'; INSERT INTO ledger (worker, thread, n) VALUES (44, 4, k); SIGNAL SQLSTATE '45000';",
    "begins": "START TRANSACTION; INSERT INTO ledger (worker, thread, n) VALUES (44, 4, k); SIGNAL SQLSTATE '45000';",
    "ends": "INSERT INTO ledger (worker, thread, n) VALUES (44, 4, k); SELECT 'begun'; COMMIT; SELECT 'ended';",
}

#: The ways in which an application may continue after a CALL of which it has read only the first result.
ENDINGS: dict[str, Callable[[Kit, Any], object]] = {
    "commit": lambda _, conn: conn.commit(),
    "commit twice": lambda _, conn: (conn.commit(), conn.commit()),
    "rollback": lambda kit, conn: (conn.rollback(), kit.execute(conn, "SELECT 1"), conn.commit()),
    "commit after an error": lambda _, conn: (_error_of(conn.commit), conn.commit()),
    "rollback after an error": lambda kit, conn: (
        _error_of(conn.rollback), conn.rollback(), kit.execute(conn, "SELECT 1"), conn.commit(),
    ),
}  # fmt: skip


def make_procedure(pair: Pair, signature: str, body: str) -> None:
    """Create or replace a procedure on blue: MySQL has no OR REPLACE."""
    pair.blue.execute(f"DROP PROCEDURE IF EXISTS app.{signature.partition('(')[0]}")
    pair.blue.execute(f"CREATE PROCEDURE app.{signature} BEGIN {body} END")


class TestUnreadResults:
    @pytest.fixture(autouse=True)
    def procedures(self, pair: Pair) -> None:
        pair.blue.execute("GRANT EXECUTE ON app.* TO app@'%'")
        for name, body in PROCEDURES.items():
            make_procedure(pair, f"{name}(k INT)", body)

    @pytest.mark.filterwarnings("ignore:Previous unbuffered result")
    @pytest.mark.parametrize("cursor_class", [pymysql.cursors.Cursor, pymysql.cursors.SSCursor])
    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("procedure", PROCEDURES)
    def test_a_transaction_with_a_procedure_ends_as_with_pymysql_alone(
        self, make_pool: MakePool, kit: Kit, pair: Pair, procedure: str, ending: str, cursor_class: Any
    ) -> None:
        def call(conn: Any, n: int) -> tuple[object, ...]:
            first = _error_of(lambda: self.begin_reading(conn, procedure, n, cursor_class))
            return first, _error_of(lambda: ENDINGS[ending](kit, conn))

        for autocommit in (False, True):
            theirs = kit.connect(pair)
            theirs.autocommit(autocommit)
            pool = make_pool(max_size=1, kwargs={"autocommit": autocommit})
            ours = pool.getconn()
            n = next(_keys)
            errors = call(theirs, n), call(ours, n + 1)
            if theirs.open:
                theirs.close()
            pool.putconn(ours)
            assert errors[1] == errors[0]
            assert self.count(pair, n + 1) == self.count(pair, n)
            # The connection's next user finds no remains of it.
            with pool.connection() as conn:
                kit.execute(conn, "SELECT 1")
            assert self.count(pair, n + 1) == self.count(pair, n)
            pool.close()

    def test_a_block_commits_all_of_it(self, make_pool: MakePool, pair: Pair) -> None:
        n = next(_keys)
        with make_pool().connection() as conn:
            self.begin_reading(conn, "writes", n, pymysql.cursors.Cursor)
        assert self.count(pair, n) == 1

    def test_a_block_gets_the_error_of_an_unread_result(self, make_pool: MakePool, pair: Pair) -> None:
        n = next(_keys)
        with pytest.raises(pymysql.err.MySQLError, match="1644"), make_pool().connection() as conn:
            self.begin_reading(conn, "fails", n, pymysql.cursors.Cursor)
        assert self.count(pair, n) == 0

    @pytest.mark.usefixtures("prepared")
    def test_exactly_one_commit_is_sent_and_it_is_in_doubt(
        self, make_pool: MakePool, pair: Pair, cutter: CommitCutter
    ) -> None:
        n = next(_keys)
        with pytest.raises(bgpool.CommitOutcomeUnknown), make_pool().connection() as conn:
            self.begin_reading(conn, "writes", n, pymysql.cursors.Cursor)
            cutter.when = "after"
        assert (cutter.when, self.count(pair, n)) == ("never", 1)

    @pytest.mark.filterwarnings("ignore:Previous unbuffered result")
    @pytest.mark.usefixtures("prepared")
    @pytest.mark.parametrize("calls", [False, True])
    def test_a_cut_before_the_commit_is_in_doubt_only_for_procedures(
        self, make_pool: MakePool, kit: Kit, pair: Pair, work: Work, calls: bool
    ) -> None:
        """A SELECT certainly has not committed; a procedure may have."""
        many = (
            "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 900) "
            "SELECT repeat('x', 1000) FROM g a, g b"
        )
        make_procedure(pair, "much()", f"{many};")
        with (
            pytest.raises(bgpool.CommitOutcomeUnknown if calls else bgpool.SwitchoverInterrupted),
            make_pool().connection() as conn,
        ):
            work(conn)
            cursor = conn.cursor(pymysql.cursors.SSCursor)
            cursor.execute("CALL much()" if calls else many)
            kit.kill(pair, kit.session(conn))
            wait_until(
                lambda: (
                    not pair.blue.execute(
                        f"SELECT 1 FROM information_schema.processlist WHERE id = {kit.session(conn)}"
                    )
                )
            )
        assert work.rows(pair) == 0

    @pytest.mark.parametrize("autocommit", [False, True])
    def test_the_work_of_a_refused_procedure_is_not_committed(
        self, deployment: Deployment, make_pool: MakePool, pair: Pair, kit: Kit, autocommit: bool
    ) -> None:
        n = next(_keys)
        make_procedure(
            pair,
            "refused(k INT)",
            "SELECT 'begun'; START TRANSACTION; INSERT INTO ledger (worker, thread, n) VALUES (44, 4, k); "
            "DO GET_LOCK('read only', 60); INSERT INTO ledger (worker, thread, n) VALUES (44, 4, k);",
        )
        deployment.phase(Phase.PREPARATION)
        with (
            contextlib.closing(kit.connect(pair)) as other,
            make_pool(kwargs={"autocommit": autocommit}).connection() as conn,
        ):
            kit.execute(other, "DO GET_LOCK('read only', 60)")
            self.begin_reading(conn, "refused", n, pymysql.cursors.Cursor)
            pair.blue.set_read_only(True)
            kit.execute(other, "DO RELEASE_LOCK('read only')")
            try:
                with pytest.raises(bgpool.SwitchoverInterrupted):
                    conn.commit()
            finally:
                pair.blue.set_read_only(False)
            with pytest.raises(bgpool.SwitchoverInterrupted):
                conn.commit()
            conn.rollback()
            kit.execute(conn, "SELECT 1")
        assert self.count(pair, n) == 0

    def begin_reading(self, conn: Any, procedure: str, n: int, cursor_class: Any) -> None:
        """Call the procedure, and read its first row."""
        cursor = conn.cursor(cursor_class)
        _kept.append(cursor)  # because the end of an SSCursor reads the rest
        cursor.execute(f"CALL {procedure}({n})")
        assert cursor.fetchone() == ("begun",)

    def count(self, pair: Pair, n: int) -> int:
        return int(pair.blue.execute(f"SELECT count(*) FROM app.ledger WHERE worker = 44 AND n = {n}")[0][0])


_keys = iter(range(0, 10_000, 2))
_kept: list[object] = []


def _error_of(function: Callable[[], object]) -> object:
    """Return the number of the error that *function* raises; None if it raises none."""
    try:
        function()
    except pymysql.err.MySQLError as error:
        return error.args[0]
    return None


class TestUnits:
    @pytest.mark.usefixtures("prepared")
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_commit_that_was_cut_is_unknown(
        self, make_pool: MakePool, pair: Pair, cutter: CommitCutter, work: Work, when: Any
    ) -> None:
        cutter.when = when
        with pytest.raises(bgpool.CommitOutcomeUnknown, match="find out") as caught:
            make_pool(max_size=1).run(work)
        assert caught.value.args[0] in (2006, 2013)
        assert (work.calls, work.rows(pair)) == (1, int(when == "after"))

    @pytest.mark.usefixtures("deployment")
    def test_ending_the_transaction_in_sql_or_by_ddl_is_refused(self, make_pool: MakePool, kit: Kit) -> None:
        pool = make_pool()
        for statement in ("COMMIT", "ROLLBACK", "BEGIN", "START TRANSACTION", "CREATE TEMPORARY TABLE x (n int)"):
            expected = (
                contextlib.nullcontext() if "TEMPORARY" in statement else pytest.raises(Exception, match="runner")
            )
            with expected:
                pool.run(lambda conn, statement=statement: kit.execute(conn, statement))
        with pytest.raises(pymysql.err.ProgrammingError, match="DDL"):
            pool.run(lambda conn: kit.execute(conn, "ANALYZE TABLE ledger"))

    @pytest.mark.usefixtures("deployment")
    def test_savepoints_are_the_functions_own(self, make_pool: MakePool, kit: Kit, pair: Pair, work: Work) -> None:
        def nested(conn: MysqlConnection) -> str:
            kit.execute(conn, "SAVEPOINT s")
            kit.execute(conn, "INSERT INTO ledger (worker, thread, n) VALUES (99, 0, 0)")
            kit.execute(conn, "ROLLBACK TO SAVEPOINT s")
            return work(conn)

        assert make_pool().run(nested) == "call 1"
        assert work.rows(pair) == 1
        assert pair.blue.execute("SELECT count(*) FROM app.ledger WHERE worker = 99 AND n = 0")[0][0] == 0


@pytest.mark.parametrize("in_transaction", [False, True])
def test_no_statement_is_sent_twice(make_pool: MakePool, pair: Pair, work: Work, in_transaction: bool) -> None:
    """DBUtils does this by itself: after a cut behind an INSERT, it sends the INSERT again on a new connection."""
    address = pair.blue.address.rsplit(".", 1)[0] + ".98"
    key = ", ".join(map(str, work.key)).encode()
    with CommitCutter(address, pair.port, (pair.blue.address, pair.port), lambda data: key in data) as cutter:
        pair.hosts.set(pair.names.blue.primary, address)
        try:
            pool = make_pool(kwargs={"autocommit": not in_transaction})
            cutter.when = "after"
            with pytest.raises(pymysql.err.OperationalError), pool.connection() as conn:
                work(conn)
            wait_until(lambda: work.rows(pair) == int(not in_transaction))

            theirs = PooledDB(
                pymysql, host=address, port=pair.port, user="app", password=pair.app_password, database="app",
                autocommit=not in_transaction, ssl_disabled=True,
            )  # fmt: skip
            cutter.when = "after"
            peer = theirs.connection()
            with peer.cursor() as cursor:
                cursor.execute(INSERT_SQL, work.key)
            peer.commit()
            peer.close()
            theirs.close()
        finally:
            pair.hosts.set(pair.names.blue.primary, pair.blue.address)
    assert work.rows(pair) == (1 if in_transaction else 3), (
        "the other client's row is there, twice if each statement commits"
    )


def test_every_wait_of_a_connection_ends(pair: Pair) -> None:
    """The host accepts the connection and sends nothing."""
    pair.blue.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(pymysql.err.OperationalError):
            BoundedConnection(host=pair.blue.address, port=pair.port, user="app", password="x", connect_timeout=1)
        assert time.monotonic() - began < 15
    finally:
        pair.blue.thaw()


def test_contexts_are_shared_until_a_certificate_is_renewed(tmp_path: Any) -> None:
    import trustme

    def context(ca: Any) -> object:
        return BoundedConnection(host="127.0.0.1", ssl_ca=str(ca), defer_connect=True).ctx  # type: ignore[attr-defined]  # not in the stubs

    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    first = context(ca)
    assert context(ca) is first
    trustme.CA().cert_pem.write_to_path(ca)
    assert context(ca) is not first


class TestUnitsOfProcedures:
    """The effects of a procedure are known when its last result was read, and its own commits stay."""

    @pytest.fixture
    def cutter(self, pair: Pair) -> Iterator[CommitCutter]:
        address = pair.blue.address.rsplit(".", 1)[0] + ".99"
        with CommitCutter(
            address,
            pair.port,
            (pair.blue.address, pair.port),
            lambda data: b"CALL commits" in data or data[5:] == b"COMMIT",
        ) as cutter:
            yield cutter

    @pytest.fixture(autouse=True)
    def procedures(self, pair: Pair) -> None:
        insert = "INSERT INTO ledger (worker, thread, n) VALUES (45, 4, k)"
        make_procedure(pair, "commits(k INT)", f"{insert}; COMMIT;")
        make_procedure(pair, "rolls_back()", "SELECT 'begun'; ROLLBACK;")
        pair.blue.execute("GRANT EXECUTE ON app.* TO app@'%'")

    @pytest.mark.usefixtures("prepared")
    @pytest.mark.parametrize("swallowed", [False, True])
    def test_a_procedure_that_commits_is_not_called_again(
        self, make_pool: MakePool, pair: Pair, cutter: CommitCutter, swallowed: bool
    ) -> None:
        calls: list[int] = []
        key = 10 + swallowed

        def work(conn: MysqlConnection) -> None:
            calls.append(1)
            with contextlib.suppress(*([pymysql.err.MySQLError] if swallowed else [])):
                conn.cursor().execute(f"CALL commits({key})")

        cutter.when = "after"
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            make_pool(max_size=1).run(work)
        assert len(calls) == 1
        assert pair.blue.execute(f"SELECT count(*) FROM app.ledger WHERE worker = 45 AND n = {key}") == [(1,)]

    @pytest.mark.usefixtures("prepared")
    @pytest.mark.parametrize("swallowed", [False, True])
    def test_a_procedure_that_commits_after_reads_is_not_called_again(
        self, make_pool: MakePool, pair: Pair, cutter: CommitCutter, swallowed: bool
    ) -> None:
        """The reads of one attempt do not tell what the next attempt writes."""
        pair.blue.execute(receipts.DDL.split(";")[0].format(table="app.bgpool_receipts"))
        pair.blue.execute("GRANT ALL ON app.bgpool_receipts TO app@'%'")
        calls: list[int] = []
        key = 20 + swallowed

        def work(conn: MysqlConnection) -> None:
            calls.append(1)
            with contextlib.suppress(*([pymysql.err.MySQLError] if swallowed else [])):
                conn.cursor().execute("SELECT n FROM ledger" if len(calls) == 1 else f"CALL commits({key})")

        def again() -> None:
            cutter.when, cutter.on_cut = "after", lambda: None

        cutter.when, cutter.on_cut = "before", again
        try:
            with pytest.raises(bgpool.CommitOutcomeUnknown):
                make_pool(max_size=1, bg_receipts_table="bgpool_receipts").run(work)
        finally:
            pair.blue.execute("DROP TABLE app.bgpool_receipts")
        assert len(calls) == 2
        assert pair.blue.execute(f"SELECT count(*) FROM app.ledger WHERE worker = 45 AND n = {key}") == [(1,)]

    @pytest.mark.usefixtures("prepared")
    def test_several_statements_with_a_commit_are_not_run_again(self, make_pool: MakePool, pair: Pair) -> None:
        calls: list[int] = []

        def work(conn: MysqlConnection) -> None:
            calls.append(1)
            with conn.cursor() as cursor:
                cursor.execute("SELECT 1; COMMIT; INSERT INTO ledger (worker, thread, n) VALUES (45, 4, 30)")
                if len(calls) == 1:
                    pair.blue.cut_clients()
                cursor.execute("SELECT 1")

        many = {"client_flag": pymysql.constants.CLIENT.MULTI_STATEMENTS}
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            make_pool(max_size=1, kwargs=many).run(work)
        assert len(calls) == 1

    @pytest.mark.usefixtures("prepared")
    def test_a_rollback_behind_an_unread_result_is_no_success(self, make_pool: MakePool) -> None:
        def work(conn: MysqlConnection) -> None:
            # So that the first result, too, shows that a transaction is open.
            conn.cursor().execute("INSERT INTO ledger (worker, thread, n) VALUES (45, 4, 31)")
            conn.cursor().execute("CALL rolls_back()")

        with pytest.raises(pymysql.err.ProgrammingError, match="ended the transaction"):
            make_pool(max_size=1).run(work)


class TestInterruptedStatements:
    """An answer that was not awaited is never taken for the answer to another statement."""

    class TimeIsUp(BaseException):
        """Like the timeouts of gevent and Celery."""

    @pytest.fixture
    def interrupted(self, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, MysqlConnection]:
        """A pool, and a connection on which a statement was sent and its answer not read."""

        def interrupt(*_: object, **__: object) -> None:
            raise self.TimeIsUp

        pool = make_pool(max_size=1, kwargs={"autocommit": True})
        conn = pool.getconn()
        monkeypatch.setattr(conn, "_read_query_result", interrupt)
        with pytest.raises(self.TimeIsUp):
            conn.cursor().execute("SELECT SLEEP(0.3), 'late'")
        monkeypatch.undo()
        return pool, conn

    @pytest.mark.usefixtures("deployment")
    def test_an_interrupted_connection_is_not_kept(self, interrupted: tuple[Any, MysqlConnection]) -> None:
        pool, conn = interrupted
        pool.putconn(conn)
        with pool.connection() as fresh, fresh.cursor() as cursor:
            assert fresh is not conn
            for number in range(3):
                cursor.execute(f"SELECT {number}")
                assert cursor.fetchall() == ((number,),)

    @pytest.mark.usefixtures("deployment")
    def test_an_interrupted_connection_is_not_used(self, interrupted: tuple[Any, MysqlConnection]) -> None:
        pool, conn = interrupted
        with pytest.raises(pymysql.err.InterfaceError):
            conn.cursor().execute("SELECT 2")
        pool.putconn(conn)

    @pytest.mark.usefixtures("deployment")
    def test_a_statement_that_was_sent_in_part_ends_the_connection(
        self, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise self.TimeIsUp

        pool = make_pool(max_size=1)
        conn = pool.getconn()
        monkeypatch.setattr(conn, "_write_bytes", interrupt)
        with pytest.raises(self.TimeIsUp):
            conn.cursor().execute("SELECT 1")
        assert conn.closed
        pool.putconn(conn)


def test_of_two_threads_that_close_a_connection_neither_fails(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(max_size=1)
    closing = pymysql.connections.Connection.close

    def meanwhile(self: Any) -> None:
        closing(self)  # by another thread at the same moment
        closing(self)

    conn = pool.getconn()
    with monkeypatch.context() as patch:
        patch.setattr(pymysql.connections.Connection, "close", meanwhile)
        conn.close()
    with pool.connection(timeout=30) as after:
        after.ping()


def test_the_rest_of_an_answer_is_not_read_by_another_statement(make_pool: MakePool) -> None:
    def interrupted(_value: object) -> None:
        raise KeyboardInterrupt

    pool = make_pool(max_size=1)
    with pytest.raises(KeyboardInterrupt), pool.connection() as conn:
        conn.decoders = dict.fromkeys(range(256), interrupted)
        conn.query("SELECT 1 UNION SELECT 2 UNION SELECT 3")
    with pool.connection() as conn:
        cursor = conn.cursor()
        cursor.execute("SELECT 'mine'")
        assert cursor.fetchall() == (("mine",),)


def test_a_password_that_cannot_be_sent_leaves_nothing_on_standard_error(
    make_pool: MakePool, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    dsn = pair.direct_dsn(pair.blue).replace(f":{pair.app_password}@", "@")
    made = iter(["s3cr\u20act"])
    pool = make_pool(dsn, max_size=1, password=lambda *_: next(made, pair.app_password))
    with pool.connection(timeout=30) as conn:
        conn.ping()
    gc.collect()
    assert ignored == []
