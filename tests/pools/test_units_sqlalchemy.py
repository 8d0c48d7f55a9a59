"""Units of work through SQLAlchemy: only the aspects that test_units does not cover for every way."""

from __future__ import annotations

import contextlib
import gc
import inspect
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pymysql
import pytest
import sqlalchemy
from sqlalchemy import Connection, create_engine, event, func, select, text
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InvalidRequestError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.util.concurrency import await_only

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.integrations.sqlalchemy import transactional
from bgpool.integrations.sqlalchemy.attempt import Attempt
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.greenlets import run
from tests.pools.proxy import CommitCutter

pytestmark = pytest.mark.lab

ENGINES = tuple(Engine)
ASYNCIO = True

MakeEngine = Callable[..., sqlalchemy.Engine]


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders_of_units"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    item: Mapped[str] = mapped_column(sqlalchemy.String(20))


class Elsewhere(Base):
    __tablename__ = "elsewhere"
    number: Mapped[int] = mapped_column(primary_key=True)


class Cache(Base):
    __tablename__ = "cache"
    number: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(autouse=True)
def orders(pair: Pair, kit: Kit) -> None:
    """An empty table."""
    for sql in (
        "CREATE TABLE IF NOT EXISTS {}orders_of_units (number int PRIMARY KEY, item varchar(20) NOT NULL)",
        "DELETE FROM {}orders_of_units",
    ):
        conn = kit.connect(pair)
        try:
            kit.execute(conn, sql.format(""))
            conn.commit()
        finally:
            conn.close()


def items(engine: sqlalchemy.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Order.item).order_by(Order.number)))


class Shop:
    """A function of a session that adds an order, and records the session."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.meanwhile: Callable[[Session], object] = lambda _session: None

    def __call__(self, session: Session) -> Order:
        self.sessions.append(session)
        order = Order(number=1, item="tea")
        session.add(order)
        self.meanwhile(session)
        return order

    @property
    def calls(self) -> int:
        return len(self.sessions)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def cut_at(shop: Shop, pair: Pair, *, call: int = 1) -> Callable[[Session], None]:
    def cut(session: Session) -> None:
        if shop.calls == call:
            session.connection()
            pair.blue.cut_clients()

    return cut


# -- sessions ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prepared")
def test_each_attempt_has_its_own_session_and_a_cut_flush_is_repeated(
    make_engine: MakeEngine, pair: Pair, shop: Shop
) -> None:
    engine = make_engine()
    shop.meanwhile = cut_at(shop, pair)
    assert isinstance(run(sessionmaker(engine), shop), Order)
    assert len(set(map(id, shop.sessions))) == shop.calls == 2
    assert items(engine) == ["tea"]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_rows_written_only_by_the_commit_are_covered_by_the_receipt(
    kit: Kit, make_engine: MakeEngine, cutter: CommitCutter, shop: Shop, when: Any
) -> None:
    """The session flushes at its commit, and listeners write more: a transaction id queried before that is missing."""
    engine = make_engine()
    maker = sessionmaker(engine, expire_on_commit=False)
    committed: list[Session] = []
    event.listen(maker, "before_commit", lambda session: session.execute(_insert(2, "outbox")))
    event.listen(maker, "after_commit", committed.append)
    cutter.when = when
    if kit.engine is Engine.MYSQL:
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            run(maker, shop)
    else:
        order = run(maker, shop)
        assert (order.number, order.item) == (1, "tea")
        assert committed == [shop.sessions[-1]]
        assert shop.calls == (1 if when == "after" else 2)
        assert items(engine) == ["tea", "outbox"]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_new_object_from_outside_is_inserted_by_the_attempt_that_is_applied(
    kit: Kit, make_engine: MakeEngine, cutter: CommitCutter, when: Any
) -> None:
    """For SQLAlchemy, a flushed object has a row, unless the session was rolled back."""
    engine = make_engine()
    maker = sessionmaker(engine)
    order, cutter.when = Order(number=1, item="tea"), when
    if kit.engine is Engine.MYSQL:
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            run(maker, Session.add, order)
        assert sqlalchemy.inspect(order).transient
    else:
        run(maker, Session.add, order)
        assert sqlalchemy.inspect(order).detached
        assert items(engine) == ["tea"]


def _insert(number: int, item: str) -> Any:
    return sqlalchemy.insert(Order).values(number=number, item=item)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("end", [Session.commit, Session.rollback, Session.close])
def test_the_function_must_not_end_the_sessions_transaction(
    make_engine: MakeEngine, shop: Shop, end: Callable[[Session], None]
) -> None:
    engine = make_engine()

    def call(session: Session) -> None:
        shop(session)
        session.flush()
        end(session)

    with pytest.raises(InvalidRequestError, match="ended the transaction"):
        run(sessionmaker(engine), call)
    assert (shop.calls, items(engine)) == (1, [])


@pytest.mark.usefixtures("prepared")
def test_savepoints_are_allowed(make_engine: MakeEngine, pair: Pair, shop: Shop) -> None:
    engine = make_engine()

    def call(session: Session) -> int:
        shop(session)
        session.flush()
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(_insert(1, "again"))
        with session.begin_nested():
            session.execute(_insert(2, "coffee"))
            if shop.calls == 1:
                pair.blue.cut_clients()
        return shop.calls

    assert run(sessionmaker(engine), call) == 2
    assert items(engine) == ["tea", "coffee"]


@pytest.mark.usefixtures("prepared")
def test_a_swallowed_flush_error_is_sqlalchemys_error(make_engine: MakeEngine, shop: Shop) -> None:
    engine = make_engine()

    def call(session: Session) -> None:
        shop(session)
        session.add(Order(number=2, item=None))
        with pytest.raises(DBAPIError):
            session.flush()

    with pytest.raises(PendingRollbackError):
        run(sessionmaker(engine), call)
    assert (shop.calls, items(engine)) == (1, [])


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("go_on", [False, True])
def test_a_cut_that_only_shows_as_a_pending_rollback_is_a_cut(
    make_engine: MakeEngine, pair: Pair, shop: Shop, go_on: bool
) -> None:
    engine = make_engine()

    def call(session: Session) -> int:
        cut_at(shop, pair, call=0)(session)
        shop(session)
        if shop.calls == 1:
            session.connection()
            pair.blue.cut_clients()
            with pytest.raises(OperationalError):
                session.flush()
            if go_on:
                session.execute(text("SELECT 1"))
        return shop.calls

    assert run(sessionmaker(engine), call) == 2
    assert items(engine) == ["tea"]


@pytest.mark.usefixtures("prepared")
def test_errors_are_sqlalchemys_except_for_those_of_bgpool(make_engine: MakeEngine, pair: Pair, shop: Shop) -> None:
    engine = make_engine()
    shop.meanwhile = lambda session: session.execute(_insert(1, "twice"))
    with pytest.raises(IntegrityError) as caught:
        run(sessionmaker(engine), shop)
    assert caught.value.statement
    assert shop.calls == 1
    shop.meanwhile = lambda session: (session.connection(), pair.blue.cut_clients(), session.execute(text("SELECT 1")))
    with pytest.raises(bgpool.SwitchoverInterrupted) as cut:
        run(sessionmaker(engine), shop, timeout=2.0)
    assert not isinstance(cut.value, DBAPIError)
    assert items(engine) == []


@pytest.mark.usefixtures("deployment")
def test_a_function_that_sends_nothing_needs_no_connection(make_engine: MakeEngine) -> None:
    engine: Any = make_engine()
    assert run(sessionmaker(engine), lambda _session: 1) == 1
    assert engine.pool.checkedin() == 0
    assert run(sessionmaker(engine), lambda session: session.connection() and 2) == 2
    assert run(engine, lambda _connection: 3) == 3
    assert run(engine, lambda connection: connection.scalar(text("SELECT 4"))) == 4


@pytest.mark.usefixtures("prepared")
def test_a_statement_that_failed_and_was_swallowed_is_no_silent_rollback(kit: Kit, make_engine: MakeEngine) -> None:
    engine = make_engine()

    def call(connection: Connection) -> None:
        connection.execute(_insert(1, "tea"))
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT nothing FROM nowhere"))

    if kit.engine is Engine.POSTGRESQL:
        with pytest.raises(DBAPIError, match="the function went on"):
            run(engine, call)
        assert items(engine) == []
    else:
        run(engine, call)
        assert items(engine) == ["tea"]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_isolation_levels_are_applied(
    kit: Kit, make_engine: MakeEngine, cutter: CommitCutter, shop: Shop, level: str
) -> None:
    engine = make_engine().execution_options(isolation_level=level)
    shown = {
        Engine.POSTGRESQL: "SELECT current_setting('transaction_isolation')",
        Engine.MYSQL: "SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')",
    }[kit.engine]
    found: list[str] = []
    shop.meanwhile = lambda session: found.append(session.execute(text(shown)).all()[0][-1])
    if kit.engine is Engine.POSTGRESQL:
        cutter.when = "after"
    run(sessionmaker(engine), shop)
    assert found[0].replace("-", " ").upper() == level
    assert items(engine) == ["tea"]


@pytest.mark.usefixtures("prepared")
def test_an_interrupt_leaves_nothing_behind(make_engine: MakeEngine, shop: Shop) -> None:
    engine = make_engine(pool_size=1)

    def interrupt(session: Session) -> None:
        session.flush()
        raise KeyboardInterrupt

    shop.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(sessionmaker(engine), shop)
    assert items(engine) == []


@pytest.mark.usefixtures("prepared")
def test_an_interrupt_anywhere_in_an_attempt_leaves_a_connection_for_the_next(make_engine: MakeEngine) -> None:
    """The interrupt comes at each line of the attempt's code in turn; after the last line, the unit is committed."""
    engine = make_engine(pool_size=1, pool_timeout=10.0)
    file = inspect.getsourcefile(Attempt)
    line, left = 0, -1

    def trace(frame: FrameType, kind: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != file:
            return None
        left -= kind == "line"
        if left < 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    while left < 0:
        left = line = line + 1
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                run(sessionmaker(engine), lambda session: session.execute(_insert(1, "tea")))
        finally:
            sys.settrace(before)
        assert items(engine) in ([], ["tea"])
        with engine.begin() as connection:
            connection.execute(sqlalchemy.delete(Order))
            drivers: Any = connection.connection.driver_connection
            assert not drivers.bgpool_in_unit
            assert getattr(drivers, "bgpool_attempt", None) is None
    assert line > 20


@pytest.mark.usefixtures("prepared")
def test_a_kept_session_does_not_belong_to_the_unit(make_engine: MakeEngine, shop: Shop) -> None:
    engine = make_engine(pool_size=1)
    run(sessionmaker(engine), shop)
    with shop.sessions[0] as kept:
        kept.execute(_insert(2, "coffee"))
        kept.commit()
        kept.execute(_insert(3, "milk"))
        kept.rollback()
    assert items(engine) == ["tea", "coffee"]


@pytest.mark.usefixtures("prepared")
def test_an_invalidated_connection_fails_the_unit_and_a_detached_one_does_not(
    make_engine: MakeEngine, shop: Shop
) -> None:
    engine = make_engine(pool_size=1)

    def throw_away(session: Session) -> None:
        session.flush()
        session.connection().invalidate()

    shop.meanwhile = throw_away
    with pytest.raises(PendingRollbackError):
        run(sessionmaker(engine), shop)
    assert (shop.calls, items(engine)) == (1, [])
    shop.meanwhile = lambda session: session.connection().detach()
    run(sessionmaker(engine), shop)
    assert items(engine) == ["tea"]


@pytest.mark.usefixtures("prepared")
def test_a_commit_refused_by_a_listener_is_rolled_back(make_engine: MakeEngine, shop: Shop) -> None:
    """SQLAlchemy itself leaves the transaction open, and the connection's next user commits it."""
    engine = make_engine(pool_size=1)

    def refuse(_connection: object) -> None:
        raise ValueError("not this one")

    event.listen(engine, "commit", refuse)
    with pytest.raises(ValueError, match="not this one"):
        run(sessionmaker(engine), shop)
    event.remove(engine, "commit", refuse)
    run(sessionmaker(engine), lambda session: session.execute(text("SELECT 1")))
    assert (shop.calls, items(engine)) == (1, [])


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("way", ["engine", "pool"])
def test_a_cut_after_the_commit_is_not_attributed_to_the_unit(
    make_engine: MakeEngine, make_pool: Callable[..., Any], kit: Kit, pair: Pair, shop: Shop, way: str
) -> None:
    """A listener uses another connection once the unit is committed: calling the unit again would apply it twice."""
    engine, elsewhere, pool = make_engine(), make_engine(pool_pre_ping=True), make_pool()
    maker = sessionmaker(engine)

    def look(_session: Session) -> None:
        if way == "engine":
            with elsewhere.connect() as connection:
                connection.execute(text("SELECT 1"))
                pair.blue.cut_clients()
                connection.execute(text("SELECT 1"))
        with pool.connection() as conn:
            kit.execute(conn, "SELECT 1")
            pair.blue.cut_clients()
            kit.execute(conn, "SELECT 1")

    event.listen(maker, "after_commit", look)
    expected = {"engine": OperationalError, "pool": bgpool.SwitchoverInterrupted}
    with pytest.raises(expected[way]):
        run(maker, shop)
    assert (shop.calls, items(elsewhere)) == (1, ["tea"])


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("when", ["before", "after"])
def test_rows_written_by_a_commit_listener_are_covered_by_the_receipt(
    kit: Kit, make_engine: MakeEngine, cutter: CommitCutter, when: Any
) -> None:
    engine = make_engine()
    calls: list[int] = []

    def call(connection: Connection) -> None:
        calls.append(1)
        connection.execute(text("SELECT 1"))
        number = len(calls)
        event.listen(connection, "commit", lambda connection: connection.execute(_insert(number, "late")))

    cutter.when = when
    if kit.engine is Engine.MYSQL:
        with pytest.raises(bgpool.CommitOutcomeUnknown):
            run(engine, call)
    else:
        run(engine, call)
        assert (len(calls), items(engine)) == (1 if when == "after" else 2, ["late"])


@pytest.mark.usefixtures("prepared")
def test_a_failed_query_of_the_outcome_leaves_the_commit_in_doubt(
    make_engine: MakeEngine, cutter: CommitCutter, shop: Shop
) -> None:
    """The application's own code for new connections fails, and its error is unrelated to the COMMIT."""
    engine = make_engine()
    tokens = ["token"]

    def log_in(*_: object) -> None:
        # One token for each connection: the unit has the first, and the query needs another.
        if not tokens:
            raise LookupError("no token")
        tokens.pop()

    event.listen(engine, "do_connect", log_in)
    cutter.when = "after"
    with pytest.raises(bgpool.CommitOutcomeUnknown):
        run(sessionmaker(engine), shop, timeout=2.0)
    tokens.append("token")
    assert (shop.calls, items(engine)) == (1, ["tea"])


@pytest.mark.usefixtures("prepared")
def test_a_cut_of_the_first_statement_may_be_swallowed(make_engine: MakeEngine, pair: Pair, shop: Shop) -> None:
    engine = make_engine(pool_size=1)
    assert items(engine) == []

    def call(session: Session) -> None:
        shop.sessions.append(session)
        if shop.calls == 1:
            pair.blue.cut_clients()
        with contextlib.suppress(DBAPIError):
            session.execute(text("SELECT 1"))
        session.execute(_insert(1, "tea"))

    run(sessionmaker(engine), call)
    assert (shop.calls, items(engine)) == (2, ["tea"])


@pytest.mark.usefixtures("prepared")
def test_a_unit_in_its_own_read_only_transaction_is_not_repeated(kit: Kit, make_engine: MakeEngine, shop: Shop) -> None:
    engine = make_engine().execution_options(postgresql_readonly=True)
    if kit.engine is Engine.MYSQL:
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("START TRANSACTION READ ONLY"))
    with pytest.raises(DBAPIError) as caught:
        run(sessionmaker(engine), shop)
    assert not isinstance(caught.value.orig, bgpool.Error)
    assert shop.calls == 1


@pytest.mark.usefixtures("deployment")
def test_a_unit_leaves_nothing_for_the_garbage_collector(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for maker in (sessionmaker(engine), engine):
        run(maker, lambda work: work.execute(text("SELECT 1")).all())
        gc.collect()
        gc.disable()
        try:
            before = len(gc.get_objects())
            for _ in range(20):
                run(maker, lambda work: work.execute(text("SELECT 1")).all())
            assert len(gc.get_objects()) - before < 100
        finally:
            gc.enable()


@pytest.mark.usefixtures("prepared")
def test_a_commit_on_the_drivers_connection_counts_as_a_commit(
    kit: Kit, make_engine: MakeEngine, pair: Pair, shop: Shop
) -> None:
    engine = make_engine()

    def commit(session: Session) -> None:
        session.flush()
        drivers: Any = session.connection().connection.driver_connection
        await_only(drivers.commit()) if kit.in_greenlet else drivers.commit()
        if kit.engine is Engine.POSTGRESQL and shop.calls == 1:
            pair.blue.cut_clients()
            session.execute(text("SELECT 1"))

    shop.meanwhile = commit
    with pytest.raises((bgpool.CommitOutcomeUnknown, pymysql.err.ProgrammingError)):
        run(sessionmaker(engine), shop)
    assert shop.calls == 1


# -- waiting -----------------------------------------------------------------------------------------------------


def test_a_hold_is_limited_by_the_units_timeout(make_engine: MakeEngine, deployment: Deployment, shop: Shop) -> None:
    maker = sessionmaker(make_engine())
    deployment.phase(Phase.IN_PROGRESS)
    began = time.monotonic()
    with pytest.raises(bgpool.SwitchoverHoldTimeout):
        run(maker, shop, timeout=0.2)
    assert time.monotonic() - began < 15.0
    assert shop.calls == 0


@pytest.mark.usefixtures("deployment")
def test_a_full_pool_raises_sqlalchemys_error(make_engine: MakeEngine, shop: Shop) -> None:
    engine = make_engine(pool_size=1, pool_timeout=0.1)
    with engine.connect(), pytest.raises(sqlalchemy.exc.TimeoutError):
        run(sessionmaker(engine), shop)
    assert shop.calls == 1


# -- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.threads_alone
@pytest.mark.usefixtures("deployment")
def test_a_scoped_session_returns_the_units_session(make_engine: MakeEngine, shop: Shop) -> None:
    """Code that the function calls may use the scoped session, like Flask-SQLAlchemy's db.session."""
    engine = make_engine()
    scoped = scoped_session(sessionmaker(engine))
    shop.meanwhile = lambda _session: scoped.add(Order(number=2, item="coffee"))
    run(scoped, shop)
    assert not scoped.registry.has()
    outer = scoped()
    run(scoped, lambda session: session.execute(_insert(3, "milk")))
    assert scoped() is outer
    scoped.remove()
    assert items(engine) == ["tea", "coffee", "milk"]


@pytest.mark.threads_alone
@pytest.mark.usefixtures("deployment")
def test_decorated_functions_are_called_without_a_session(make_engine: MakeEngine) -> None:
    engine = make_engine()

    @transactional(sessionmaker(engine))
    def place(session: Session, item: str, *, number: int = 1) -> int:
        """Write an order down."""
        session.add(Order(number=number, item=item))
        return number

    @transactional(engine, timeout=30.0, idempotent=True)
    def count(connection: Connection) -> int:
        return connection.scalar(select(func.count()).select_from(Order)) or 0

    assert (place("tea"), place("coffee", number=2), count()) == (1, 2, 2)
    assert str(inspect.signature(place)) == "(item: 'str', *, number: 'int' = 1) -> 'int'"
    assert (place.__name__, place.__doc__) == ("place", "Write an order down.")


@pytest.mark.threads_alone
@pytest.mark.usefixtures("deployment")
@pytest.mark.filterwarnings("error")
def test_functions_whose_body_runs_later_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def place(session: Session) -> None:
        session.add(Order(number=1, item="tea"))

    def numbers(session: Session) -> Any:
        yield from session.scalars(select(Order.number))

    with pytest.raises(TypeError, match="place is asynchronous"):
        transactional(sessionmaker(engine))(place)()  # type: ignore[unused-coroutine]  # the case under test
    with pytest.raises(TypeError, match="numbers is a generator"):
        transactional(sessionmaker(engine))(numbers)()


@pytest.mark.usefixtures("deployment")
def test_a_unit_on_several_engines_is_refused(make_engine: MakeEngine) -> None:
    engine, other = make_engine(), make_engine(connect_args={"connect_timeout": 7})
    other.url = other.url.update_query_dict({"blue-green-monitoring-password": "s3cret"})

    cache = create_engine("sqlite://")
    maker = sessionmaker(engine, binds={Elsewhere: other, Cache: cache})

    def on_both(session: Session) -> None:
        session.execute(_insert(1, "tea"))
        with pytest.raises(bgpool.ConfigurationError):
            session.execute(select(Elsewhere))

    def beside(session: Session) -> None:
        session.execute(_insert(1, "tea"))
        session.execute(select(Cache))

    with pytest.raises(bgpool.ConfigurationError, match="one connection; call run once for each engine") as refused:
        run(maker, on_both)
    assert "s3cret" not in str(refused.value)
    with pytest.raises(bgpool.ConfigurationError, match="sqlite://"):
        run(maker, beside)
    with pytest.raises(bgpool.ConfigurationError, match="bound to the engine it uses"):
        run(maker, lambda session: session.execute(select(Elsewhere)))
    assert items(engine) == []


@pytest.mark.usefixtures("deployment")
def test_an_object_without_transactions_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine()
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    for maker in (sessionmaker(alone), alone):
        with pytest.raises(bgpool.ConfigurationError, match="AUTOCOMMIT"):
            run(maker, lambda work: work.execute(text("SELECT 1")))
    with pytest.raises(bgpool.ConfigurationError, match="twophase"):
        run(sessionmaker(engine, twophase=True), lambda _session: None)
    with engine.connect() as connection, pytest.raises(bgpool.ConfigurationError, match="bound to a Connection"):
        run(sessionmaker(connection), lambda _session: None)
    with pytest.raises(bgpool.ConfigurationError, match="bound to no engine"):
        run(sessionmaker(), lambda _session: None)


@pytest.mark.threads_alone
def test_an_invalid_maker_or_argument_is_refused() -> None:
    plain = create_engine("postgresql+psycopg://app:secret@127.0.0.1/app")
    wrong: dict[Any, str] = {
        None: "None was given, and a sessionmaker",
        "postgresql+bgpool://": "a str was given",
        Session(plain): "each attempt needs a new session",
        plain: r"the engine of postgresql\+psycopg:// is not bgpool's; make it with postgresql\+bgpool://",
        sessionmaker(plain): "is not bgpool's",
        async_sessionmaker(): r"it is asyncio's: write await arun\(…\)",
        create_async_engine("postgresql+bgpool://127.0.0.1/").sync_engine: r"create_async_engine.*: write await arun",
        create_engine("sqlite://"): r"postgresql\+bgpool:// and mysql\+bgpool:// are allowed",
    }
    for maker, said in wrong.items():
        with pytest.raises(bgpool.ConfigurationError, match=said) as caught:
            run(maker, lambda _session: None)
        assert "secret" not in str(caught.value)
    for timeout in (-1, True, "5", float("nan")):
        with pytest.raises(bgpool.ConfigurationError, match="timeout="):
            run(sessionmaker(plain), lambda _session: None, timeout=timeout)
    with pytest.raises(bgpool.ConfigurationError, match="fn=None cannot be called"):
        run(sessionmaker(plain), None)  # type: ignore[arg-type]  # the case under test
    with pytest.raises(bgpool.ConfigurationError, match="a function was given"):
        transactional(lambda _session: None)  # type: ignore[call-overload]  # called without its argument
