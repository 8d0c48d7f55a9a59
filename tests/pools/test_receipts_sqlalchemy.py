"""Receipts of units of work through SQLAlchemy: only the aspects that test_receipts does not cover for every way."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import bgpool
from bgpool.core.engine import Engine
from bgpool.integrations.sqlalchemy import transactional
from bgpool.lab import Pair
from tests.engines import Kit
from tests.greenlets import run
from tests.pools.proxy import CommitCutter
from tests.pools.test_receipts import TABLE, receipts, run_sql
from tests.pools.test_receipts import table as table
from tests.pools.test_units_sqlalchemy import MakeEngine, Order, Shop, _insert, items
from tests.pools.test_units_sqlalchemy import orders as orders
from tests.pools.test_units_sqlalchemy import shop as shop

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("table", "orders")]

ENGINES = tuple(Engine)
ASYNCIO = True


@pytest.fixture
def engine(make_engine: MakeEngine) -> sqlalchemy.Engine:
    """An engine of one connection whose units leave receipts."""
    return make_engine(pool_size=1, bg_receipts_table=TABLE)


def another_run(pair: Pair, receipt_id: str = "task-1") -> None:
    """Apply another run with the same id."""
    run_sql(pair, f"INSERT INTO {TABLE} (id, unit) VALUES ('{receipt_id}', 'another')")


@pytest.fixture
def another(pair: Pair) -> Iterator[Callable[[], None]]:
    """Begin a transaction that inserts ``task-1`` and commits after 0.6 s; on blue, in a thread."""
    threads: list[threading.Thread] = []
    began = threading.Event()

    def insert() -> None:
        connection = sqlalchemy.create_engine(
            sqlalchemy.make_url(pair.direct_dsn(pair.blue)).set(
                drivername="mysql+pymysql" if pair.engine is Engine.MYSQL else "postgresql+psycopg"
            ),
            poolclass=sqlalchemy.NullPool,
        ).connect()
        with connection, connection.begin():
            connection.execute(text(f"INSERT INTO {TABLE} (id, unit) VALUES ('task-1', 'another')"))
            began.set()
            _sleep(0.6)

    def begin() -> None:
        threads.append(threading.Thread(target=insert))
        threads[-1].start()
        assert began.wait(30)

    yield begin
    for thread in threads:
        thread.join()


_sleep = time.sleep


# -- sessions ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_applied_session_commits_once_and_keeps_its_objects(
    engine: sqlalchemy.Engine, cutter: CommitCutter, shop: Shop, when: Any
) -> None:
    maker = sessionmaker(engine, expire_on_commit=False)
    committed: list[Session] = []
    event.listen(maker, "before_commit", lambda session: session.execute(_insert(2, "outbox")))
    event.listen(maker, "after_commit", committed.append)
    cutter.when = when
    order = run(maker, shop)
    assert (order.number, order.item) == (1, "tea")
    assert sqlalchemy.inspect(order).detached
    assert committed == [shop.sessions[-1]]
    assert shop.calls == (1 if when == "after" else 2)
    assert items(engine) == ["tea", "outbox"]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_new_object_from_outside_is_inserted_by_the_attempt_that_is_applied(
    engine: sqlalchemy.Engine, cutter: CommitCutter, when: Any
) -> None:
    """Also if the attempt that first inserts the receipt is itself cut."""
    order, cutter.when = Order(number=1, item="tea"), when
    sessions: list[Session] = []

    def add(session: Session) -> None:
        sessions.append(session)
        session.add(order)
        session.flush()

    run(sessionmaker(engine), add)
    assert sqlalchemy.inspect(order).detached
    assert len(sessions) == (1 if when == "after" else 2)
    assert items(engine) == ["tea"]


@pytest.mark.usefixtures("prepared")
def test_work_applied_by_another_run_is_not_attributed_to_the_attempt(
    engine: sqlalchemy.Engine, pair: Pair, cutter: CommitCutter
) -> None:
    maker = sessionmaker(engine)
    committed: list[Session] = []
    event.listen(maker, "after_commit", committed.append)
    order = Order(number=1, item="tea")
    cutter.when, cutter.on_cut = "before", lambda: another_run(pair)
    assert run(maker, Session.add, order, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert sqlalchemy.inspect(order).transient
    assert committed == []
    assert items(engine) == []


@pytest.mark.usefixtures("deployment")
def test_an_existing_key_loses_neither_connection_nor_slot(kit: Kit, engine: sqlalchemy.Engine, pair: Pair) -> None:
    maker: Any = sessionmaker(engine)
    session = run(maker, lambda session: kit.session(_drivers(session.connection())))
    another_run(pair)
    for given in (maker, engine):
        assert run(given, lambda _work: pytest.fail("called"), receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert run(maker, lambda session: kit.session(_drivers(session.connection()))) == session
    assert len(receipts(pair)) == 1


def _drivers(connection: Connection) -> Any:
    return connection.connection.driver_connection


@pytest.mark.threads_alone
@pytest.mark.usefixtures("deployment")
def test_a_function_that_sends_nothing_is_applied_once_as_well(engine: sqlalchemy.Engine) -> None:
    maker = sessionmaker(engine)
    assert run(maker, lambda _session: 1, receipt_id="task-1") == 1
    assert run(maker, lambda _session: 2, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")


@pytest.mark.threads_alone
@pytest.mark.usefixtures("prepared")
def test_a_session_that_sends_nothing_again_is_still_checked_for_its_receipt(
    engine: sqlalchemy.Engine, cutter: CommitCutter, shop: Shop
) -> None:
    """The first call was applied. The second call, which connects with its first statement, does not happen."""
    cutter.when = "after"

    def call(session: Session) -> str:
        if not shop.calls:
            shop(session)
            return "applied"
        return "nothing"

    assert run(sessionmaker(engine), call) == "applied"
    assert items(engine) == ["tea"]


@pytest.mark.threads_alone
@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_savepoints_work_with_receipts(engine: sqlalchemy.Engine, cutter: CommitCutter, shop: Shop, when: Any) -> None:
    def call(session: Session) -> int:
        with session.begin_nested():
            shop(session)
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(_insert(1, "again"))
        return shop.calls

    cutter.when = when
    assert run(sessionmaker(engine), call) == (1 if when == "after" else 2)
    assert items(engine) == ["tea"]


@pytest.mark.threads_alone
@pytest.mark.usefixtures("deployment")
def test_the_previous_scoped_session_is_restored(engine: sqlalchemy.Engine, pair: Pair) -> None:
    scoped = scoped_session(sessionmaker(engine))
    outer = scoped()
    run(scoped, lambda _session: scoped.execute(_insert(1, "tea")), receipt_id="task-1")
    taken = run(scoped, lambda _session: scoped.execute(_insert(1, "tea")), receipt_id="task-1")
    assert taken == bgpool.AlreadyApplied("task-1")
    assert scoped() is outer
    scoped.remove()
    assert items(engine) == ["tea"]
    assert len(receipts(pair)) == 1


@pytest.mark.threads_alone
@pytest.mark.usefixtures("deployment")
def test_decorated_functions_choose_their_ids(engine: sqlalchemy.Engine) -> None:
    @transactional(sessionmaker(engine), receipt_id=lambda item, *, number: f"{item}-{number}")
    def place(session: Session, item: str, *, number: int) -> int:
        session.add(Order(number=number, item=item))
        return number

    @transactional(engine, receipt_id=lambda number: f"direct-{number}")
    def insert(connection: Connection, number: int) -> int:
        connection.execute(_insert(number, "milk"))
        return number

    assert [place("tea", number=1), insert(2)] == [1, 2]
    assert place("tea", number=1) == bgpool.AlreadyApplied("tea-1")
    assert insert(2) == bgpool.AlreadyApplied("direct-2")
    assert items(engine) == ["tea", "milk"]
    with pytest.raises(bgpool.ConfigurationError, match="receipt_id=str; a function"):
        transactional(engine, receipt_id="task-1")  # type: ignore[call-overload]  # must be refused


# -- isolation levels and other kinds of transactions ----------------------------------------------------------------


@pytest.mark.threads_alone
@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_key_decides_in_every_isolation_level(
    engine: sqlalchemy.Engine, cutter: CommitCutter, shop: Shop, level: str
) -> None:
    maker = sessionmaker(engine.execution_options(isolation_level=level))
    cutter.when = "after"
    run(maker, shop, receipt_id="task-1")
    assert (shop.calls, items(engine)) == (1, ["tea"])
    assert run(maker, shop, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    cutter.when = "before"
    run(maker, lambda session: session.execute(_insert(2, "coffee")))
    assert items(engine) == ["tea", "coffee"]


@pytest.mark.threads_alone
@pytest.mark.usefixtures("deployment")
@pytest.mark.parametrize(
    "level",
    ["REPEATABLE READ", *(pytest.param(one, marks=pytest.mark.full) for one in ("READ COMMITTED", "SERIALIZABLE"))],
)
def test_another_run_that_is_about_to_commit_is_waited_for_in_every_isolation_level(
    make_engine: MakeEngine, another: Callable[[], None], shop: Shop, level: str
) -> None:
    """PostgreSQL then reports a serialization failure; a user's own statement timeout must not cause a second call."""
    engine = make_engine(bg_receipts_table=TABLE)
    postgres = engine.dialect.name == "postgresql"
    if postgres:
        event.listen(engine, "begin", lambda conn: conn.exec_driver_sql("SET LOCAL statement_timeout = '200ms'"))
    else:
        event.listen(engine, "begin", lambda conn: conn.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 1"))
    another()
    maker = sessionmaker(engine.execution_options(isolation_level=level))
    assert run(maker, shop, receipt_id="task-1") == bgpool.AlreadyApplied("task-1")
    assert shop.calls == 0


@pytest.mark.threads_alone
@pytest.mark.usefixtures("deployment")
def test_the_time_for_it_ends_with_sqlalchemy_s_error(
    make_engine: MakeEngine, another: Callable[[], None], shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(bg_receipts_table=TABLE)
    may_end = threading.Event()
    monkeypatch.setattr("tests.pools.test_receipts_sqlalchemy._sleep", lambda _: may_end.wait(30))
    another()
    try:
        with pytest.raises(OperationalError):
            run(sessionmaker(engine), shop, receipt_id="task-1", timeout=0.2)
    finally:
        may_end.set()
    assert shop.calls == 0


@pytest.mark.threads_alone
@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_next_attempt_keeps_the_isolation_level_of_the_function(
    kit: Kit, engine: sqlalchemy.Engine, cutter: CommitCutter, shop: Shop, when: Any
) -> None:
    shown = {
        Engine.POSTGRESQL: "SELECT current_setting('transaction_isolation')",
        Engine.MYSQL: "SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')",
    }[kit.engine]
    found: list[str] = []

    def call(session: Session) -> None:
        options = {"isolation_level": "SERIALIZABLE"}
        if shop.calls:
            # SQLAlchemy warns that the session is already connected.
            with pytest.warns(sqlalchemy.exc.SAWarning):
                session.connection(execution_options=options)
        else:
            session.connection(execution_options=options)
            # Do not cut at the COMMIT that MySQL's dialect sends after it has set the level.
            cutter.when = when
        found.append(session.execute(text(shown)).all()[0][-1].upper())
        shop(session)

    run(sessionmaker(engine), call)
    assert found == ["SERIALIZABLE"] * (1 if when == "after" else 2)
    assert items(engine) == ["tea"]


@pytest.mark.threads_alone
@pytest.mark.usefixtures("prepared")
def test_a_transaction_that_is_read_only_has_no_receipt(kit: Kit, engine: sqlalchemy.Engine, pair: Pair) -> None:
    reads = engine.execution_options(postgresql_readonly=True)
    if kit.engine is Engine.MYSQL:
        event.listen(reads, "begin", lambda connection: connection.exec_driver_sql("START TRANSACTION READ ONLY"))
    for given in (sessionmaker(reads), reads):
        assert run(given, lambda work: work.scalar(text("SELECT 3"))) == 3
        for _ in range(2):
            assert run(given, lambda work: work.scalar(text("SELECT 4")), receipt_id="task-1") == 4
    assert receipts(pair) == []


# -- the options of receipts -------------------------------------------------------------------------------------------


@pytest.mark.threads_alone
@pytest.mark.usefixtures("deployment")
def test_the_table_may_be_given_in_connect_args(make_engine: MakeEngine, pair: Pair, shop: Shop) -> None:
    given = {"bg_receipts_table": TABLE, "bg_receipts": "always"}
    engine = make_engine(connect_args=given)
    run(sessionmaker(engine), shop)
    assert (len(receipts(pair)), items(engine)) == (1, ["tea"])
    with pytest.raises(bgpool.ConfigurationError, match="bg_receipts='sometimes'"):
        make_engine(connect_args={**given, "bg_receipts": "sometimes"})


@pytest.mark.threads_alone
@pytest.mark.usefixtures("prepared", "cutter")
def test_a_missing_table_is_logged_once(make_engine: MakeEngine, pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    run_sql(pair, f"DROP TABLE {TABLE}")
    engine = make_engine(bg_receipts_table=TABLE)
    with caplog.at_level(logging.WARNING, logger="bgpool"):
        for number, given in enumerate((sessionmaker(engine), engine)):
            run(given, lambda work, number=number: work.execute(_insert(number, "tea")))
            run(given, lambda work, number=number: work.execute(_insert(number + 5, "milk")), receipt_id="task-1")
    assert sorted(items(engine)) == ["milk", "milk", "tea", "tea"]
    lines = [record.getMessage() for record in caplog.records if "receipts" in record.getMessage()]
    assert len(lines) == 1, lines
    assert "does not exist" in lines[0]
