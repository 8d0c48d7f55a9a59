"""A switchover as seen by an application that uses SQLAlchemy: its errors, its log, and its work afterwards."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from bgpool.core.engine import Engine
from bgpool.core.events import Resolved
from bgpool.core.phase import Phase, Role
from bgpool.errors import CommitOutcomeUnknown, SwitchoverInterrupted
from bgpool.lab import Pair, ledger
from bgpool.monitor.probe import now
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.proxy import CommitCutter
from tests.waiting import wait_until

pytestmark = pytest.mark.lab

ASYNCIO = True

MakeEngine = Callable[..., sqlalchemy.Engine]

INSERT = text("INSERT INTO ledger (worker, thread, n) VALUES (55, 5, :n)")
ONE = text("SELECT 1")


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the log records of errors or with a traceback."""
    caplog.set_level(logging.INFO)

    def found() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno >= logging.ERROR or (record.exc_info and record.exc_info[0])
        ]

    return found


def where(kit: Kit, connection: sqlalchemy.Connection) -> str:
    return kit.where(connection.connection.dbapi_connection)


def wait_cut(connection: sqlalchemy.Connection) -> None:
    """Wait until the connection was cut at its socket."""
    drivers: Any = connection.connection.driver_connection
    wait_until(lambda: drivers.bgpool_cut)


def switch(deployment: Deployment, connection: sqlalchemy.Connection) -> None:
    """A switchover that cuts *connection*, which is in a transaction."""
    deployment.phase(Phase.IN_PROGRESS)
    wait_cut(connection)
    deployment.release()


def test_a_transaction_that_was_cut(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment, complaints: Callable[[], list[str]]
) -> None:
    engine = make_engine(bg_drain_timeout_ms=50)
    with pytest.raises(OperationalError) as caught, engine.begin() as connection:
        connection.execute(INSERT, {"n": 1})
        switch(deployment, connection)
        connection.execute(ONE)
    assert isinstance(caught.value.orig, SwitchoverInterrupted)
    assert caught.value.connection_invalidated
    with engine.connect() as connection:
        assert where(kit, connection) == pair.green.address
    assert complaints() == []


def test_a_session_whose_commit_was_cut(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment, complaints: Callable[[], list[str]]
) -> None:
    maker = sessionmaker(make_engine(bg_drain_timeout_ms=50))
    with pytest.raises(OperationalError) as caught, maker.begin() as session:
        session.execute(INSERT, {"n": 2})
        switch(deployment, session.connection())
    assert caught.value.connection_invalidated
    with maker() as session:
        assert where(kit, session.connection()) == pair.green.address
    assert complaints() == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_that_was_cut_has_an_unknown_outcome(
    kit: Kit,
    pair: Pair,
    make_engine: MakeEngine,
    deployment: Deployment,
    complaints: Callable[[], list[str]],
    when: Any,
) -> None:
    # Servers of MySQL offer TLS by themselves, in which the cutter sees no COMMIT.
    plain: dict[str, Any] = {"ssl_disabled": True} if kit.engine is Engine.MYSQL else {}
    address = pair.blue.address.rsplit(".", 1)[0] + ".98"
    with CommitCutter(address, pair.port, (pair.blue.address, pair.port)) as cutter:
        blue = deployment.snapshot.hosts_of(Role.SOURCE)[0].name
        deployment.tell(Resolved(now(), {blue: (cutter.address,)}))
        deployment.phase(Phase.PREPARATION)
        engine = make_engine(connect_args=plain)
        with pytest.raises(OperationalError) as caught, engine.begin() as connection:
            connection.execute(INSERT, {"n": 20})
            cutter.when = when
        assert isinstance(caught.value.orig, CommitOutcomeUnknown)
        assert caught.value.statement is None
        assert caught.value.connection_invalidated
        engine.dispose()
    assert complaints() == []


def test_a_connection_to_a_server_that_takes_no_writes_is_not_used_again(
    kit: Kit, pair: Pair, make_engine: MakeEngine
) -> None:
    """Blue stops writes before the monitor has read of the switchover."""
    with make_engine().connect() as connection:
        before = kit.session(connection.connection.dbapi_connection)
        connection.rollback()
        pair.blue.set_read_only(True)
        try:
            with pytest.raises(DBAPIError) as caught:
                connection.execute(INSERT, {"n": 30})
        finally:
            pair.blue.set_read_only(False)
        assert caught.value.connection_invalidated
        connection.rollback()
        assert kit.session(connection.connection.dbapi_connection) != before


def test_one_session_goes_on_after_rollback(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment
) -> None:
    with Session(make_engine(bg_drain_timeout_ms=50)) as session:
        session.execute(INSERT, {"n": 3})
        switch(deployment, session.connection())
        with pytest.raises(OperationalError):
            session.execute(ONE)
        session.rollback()
        assert session.execute(ONE).scalar_one() == 1
        assert where(kit, session.connection()) == pair.green.address


@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
def test_a_long_lived_connection_goes_on_after_rollback(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment, level: Any
) -> None:
    options: dict[str, Any] = {"isolation_level": level} if level else {}
    with make_engine(bg_drain_timeout_ms=50, **options).connect() as connection:
        connection.execute(ONE)
        connection.rollback()
        switch(deployment, connection)
        with pytest.raises(OperationalError) as caught:
            connection.execute(ONE)
        assert isinstance(caught.value.orig, SwitchoverInterrupted)
        assert connection.invalidated
        connection.rollback()
        assert connection.execute(ONE).scalar_one() == 1
        assert where(kit, connection) == pair.green.address


@pytest.mark.parametrize("reset", ["rollback", "commit", None])
def test_one_that_is_returned_after_the_cut_is_no_error(
    kit: Kit,
    pair: Pair,
    make_engine: MakeEngine,
    deployment: Deployment,
    complaints: Callable[[], list[str]],
    reset: Any,
) -> None:
    engine = make_engine(bg_drain_timeout_ms=50, pool_reset_on_return=reset)
    with engine.connect() as connection:
        connection.execute(INSERT, {"n": 4})
        connection.commit()
        switch(deployment, connection)
    raw = engine.raw_connection()
    assert kit.where(raw.dbapi_connection) == pair.green.address
    raw.close()
    assert complaints() == []


def test_a_transaction_that_is_cut_and_left_is_no_error_in_the_log(
    make_engine: MakeEngine, deployment: Deployment, complaints: Callable[[], list[str]]
) -> None:
    with make_engine(bg_drain_timeout_ms=50).connect() as connection:
        connection.execute(INSERT, {"n": 5})
        switch(deployment, connection)
    assert complaints() == []


def test_a_transaction_may_end_in_the_grace(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment
) -> None:
    n = 106 if kit.in_greenlet else 6
    engine = make_engine(bg_drain_timeout_ms=60_000)
    with engine.begin() as connection:
        connection.execute(INSERT, {"n": n})
        deployment.phase(Phase.IN_PROGRESS)
        time.sleep(0.1)
        with pytest.raises(IntegrityError) as caught, connection.begin_nested():
            connection.execute(INSERT, {"n": n})
            connection.execute(text("INSERT INTO ledger (worker, thread, n) VALUES (55, 5, NULL)"))
        assert not caught.value.connection_invalidated
        connection.execute(INSERT, {"n": n + 1})
        assert where(kit, connection) == pair.blue.address
    deployment.release()
    assert [row.key[2] for row in ledger.read(pair.blue) if row.key[0] == 55 and row.key[2] in (n, n + 1)] == [n, n + 1]


@pytest.mark.threads_alone  # see test_asyncio
# psycopg's cursor, which SQLAlchemy does not close where its connection is lost.
@pytest.mark.filterwarnings("ignore:.*ServerCursor:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_across_the_drain(make_engine: MakeEngine, deployment: Deployment, kit: Kit) -> None:
    tables = "information_schema.collations AS a, information_schema.collations AS b"  # some hundred rows each
    numbers = {
        Engine.POSTGRESQL: "SELECT generate_series(1, 100000)",
        Engine.MYSQL: f"SELECT a.collation_name, b.collation_name FROM {tables}",
    }[kit.engine]
    engine = make_engine(bg_drain_timeout_ms=2000)
    with engine.connect() as connection:
        stream = connection.execution_options(yield_per=10).execute(text(numbers))
        assert len(stream.fetchmany(10)) == 10
        deployment.phase(Phase.IN_PROGRESS)
        time.sleep(0.05)
        assert len(stream.fetchmany(10)) == 10
        wait_cut(connection)
        deployment.release()
        with pytest.raises(DBAPIError) as caught:
            stream.fetchall()
        assert isinstance(caught.value.orig, SwitchoverInterrupted)
    del stream, caught
    gc.collect()


def test_the_others_of_the_pool_stay_where_one_was_cut(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine(bg_drain_timeout_ms=50)
    old = engine.connect()
    old.execute(INSERT, {"n": 8})
    switch(deployment, old)
    with engine.connect() as connection:
        session = kit.session(connection.connection.dbapi_connection)
    with pytest.raises(OperationalError):
        old.execute(ONE)
    old.close()
    found = set()
    for _ in range(2):
        with engine.connect() as connection:
            found.add(kit.session(connection.connection.dbapi_connection))
            assert where(kit, connection) == pair.green.address
    assert session in found


def test_two_phases(kit: Kit, pair: Pair, make_engine: MakeEngine) -> None:
    if kit.engine is Engine.MYSQL and "MariaDB" not in str(pair.blue.execute("SELECT version()")):
        pair.blue.execute("GRANT XA_RECOVER_ADMIN ON *.* TO app@'%'")  # MySQL lets only such users list transactions
    engine = make_engine()
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(INSERT, {"n": 9})
        transaction.prepare()
        with engine.connect() as other:
            # PyMySQL has bytes here.
            found = [xid.decode() if isinstance(xid, bytes) else xid for xid in other.recover_twophase()]
        assert transaction.xid in found
        transaction.commit()
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(INSERT, {"n": 10})
        transaction.rollback()


def test_pre_ping_asks_nothing_stale(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment, complaints: Callable[[], list[str]]
) -> None:
    engine = make_engine(pool_pre_ping=True, pool_use_lifo=True)
    with engine.connect(), engine.connect():
        pass
    deployment.phase(Phase.IN_PROGRESS)
    deployment.release()
    with engine.connect() as one, engine.connect() as other:
        assert where(kit, one) == where(kit, other) == pair.green.address
    assert complaints() == []


def test_where_only_the_server_ends_it_the_return_is_no_error(
    kit: Kit, pair: Pair, make_engine: MakeEngine, complaints: Callable[[], list[str]]
) -> None:
    engine = make_engine()
    with engine.connect() as connection:
        connection.execute(INSERT, {"n": 11})
        kit.kill(pair, kit.session(connection.connection.dbapi_connection))
    with engine.connect() as connection:
        assert connection.execute(ONE).scalar_one() == 1
    assert complaints() == []
