"""DBUtils' interface on a bgpool pool: it behaves as users' code expects, and avoids DBUtils' defects."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import dbutils.pooled_db
import dbutils.steady_db
import pymysql
import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.integrations import dbutils as ours
from bgpool.integrations.dbutils import PooledDB
from bgpool.lab import Pair
from bgpool.registry import pools
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import Caller, wait_until
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.lab

ENGINES = (Engine.MYSQL,)

Make = Callable[..., PooledDB]


@pytest.fixture
def make(pair: Pair, deployment: Deployment) -> Iterator[Make]:
    """Make pools as DBUtils' users do, and close them."""
    made: list[PooledDB] = []

    def make(creator: object = pymysql, **options: Any) -> PooledDB:
        place: dict[str, Any] = {}
        if creator is pymysql:
            place = {"host": pair.names.blue.primary, "port": pair.port, "user": "app", "passwd": pair.app_password,
                     "db": "app"}  # fmt: skip
        own = {"bg_run_dir": deployment.run_dir, "bg_resolver": pair.resolver, "timeout": 30.0}
        pool = PooledDB(creator, **{**place, **own, **options})
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()


def session(connection: Any) -> int:
    return int(connection.thread_id())


def rows(pair: Pair, worker: int) -> int:
    return int(pair.blue.execute(f"SELECT count(*) FROM app.ledger WHERE worker = {worker}")[0][0])


def age(db: PooledDB) -> None:
    """Make the pool's one idle connection old enough for a check."""
    generation: Any = db.pool._generations.current
    generation.inner._slots.idle[0].bgpool_idle_since -= 60


INSERT = "INSERT INTO ledger (worker, thread, n) VALUES (%s, 1, 1)"


def test_the_signature_equals_dbutils() -> None:
    theirs = inspect.signature(dbutils.pooled_db.PooledDB).parameters.values()
    mine = inspect.signature(PooledDB).parameters.values()
    assert [(p.name, p.default) for p in mine if p.name != "kwargs"] == [
        (p.name, p.default) for p in theirs if p.name not in ("args", "kwargs")
    ]


def test_every_method_of_dbutils_exists(make: Make) -> None:
    for theirs, mine, left_out in (
        (dbutils.pooled_db.PooledDB, PooledDB, {"cache", "unshare", "version"}),
        (dbutils.steady_db.SteadyDBConnection, make().connection(), {"version"}),
    ):
        names = {name for name in vars(theirs) if not name.startswith("_")}
        assert {name for name in names - left_out if not hasattr(mine, name)} == set()


@pytest.mark.parametrize("how", ["the module", "its function", "a DSN"])
def test_a_program_for_dbutils_runs(make: Make, pair: Pair, how: str) -> None:
    options: dict[str, Any] = {"mincached": 1, "maxcached": 2, "maxshared": 3, "maxconnections": 4, "blocking": True}
    options |= {"maxusage": None, "setsession": ["SET @mine = 7"], "ping": 0, "charset": "utf8mb4"}
    options["cursorclass"] = pymysql.cursors.DictCursor
    creator = {"the module": pymysql, "its function": pymysql.connect, "a DSN": pair.dsn}[how]
    if how == "its function":
        options |= {"host": pair.names.blue.primary, "port": pair.port, "user": "app", "password": pair.app_password,
                    "database": "app"}  # fmt: skip
    db = make(creator, **options)
    with db.connection() as con, con.cursor() as cursor:
        con.begin()
        cursor.execute(INSERT, (90,))
        con.commit()
        cursor.execute("SELECT @mine AS mine")
        assert cursor.fetchall() == [{"mine": 7}]
        cursor.execute(INSERT, (91,))
    assert (rows(pair, 90), rows(pair, 91)) == (1, 0)
    pair.blue.execute("DELETE FROM app.ledger WHERE worker = 90")
    assert db.pool.stats().size == 1


def test_close_returns_the_connection_and_is_final_for_its_user(make: Make) -> None:
    db = make(maxconnections=1, blocking=True)
    first = db.connection()
    cursor = first.cursor()
    was = session(first)
    first.close()
    first.close()
    second = db.connection()
    assert session(second) == was
    assert (first.closed, second.closed) == (True, False)
    for late in (first.cursor, lambda: first.commit(), lambda: first.begin(), lambda: session(first)):
        with pytest.raises(dbutils.pooled_db.InvalidConnectionError, match="returned by close"):
            late()
    with pytest.raises(pymysql.err.InterfaceError):
        cursor.execute("SELECT 1")
    second.ping()


def test_a_broken_connection_frees_its_slot(make: Make, kit: Kit, pair: Pair) -> None:
    db = make(maxconnections=1)
    for _ in range(3):
        con = db.connection()
        kit.kill(pair, session(con))
        with pytest.raises(pymysql.err.OperationalError):
            con.cursor().execute("SELECT 1")
        assert con.closed
        con.close()


def test_a_statement_is_not_sent_again(make: Make, kit: Kit, pair: Pair) -> None:
    """SteadyDB sends it again, on a new connection, outside of begin()."""
    db = make(maxconnections=1, setsession=["SET autocommit = 1"], autocommit=True)
    con = db.connection()
    kit.kill(pair, session(con))
    with pytest.raises(pymysql.err.OperationalError):
        con.cursor().execute(INSERT, (92,))
    assert rows(pair, 92) == 0


# -- a full pool -------------------------------------------------------------------------------------------------


def test_not_blocking_raises_at_once(make: Make) -> None:
    db = make(maxconnections=2)
    held = [db.connection(), db.dedicated_connection()]
    began = time.monotonic()
    with pytest.raises(dbutils.pooled_db.TooManyConnectionsError, match="maxconnections=2") as caught:
        db.connection()
    assert time.monotonic() - began < 10.0
    assert isinstance(caught.value, bgpool.TooManyRequests)
    assert isinstance(caught.value, pymysql.err.OperationalError)
    held.pop().close()
    held.append(db.connection())


def test_blocking_waits_within_the_timeout(make: Make) -> None:
    db = make(maxconnections=1, blocking=True, timeout=PATIENCE_S)
    held = db.connection()
    waiting = Caller(db.connection)
    wait_until(lambda: db.pool.stats().waiting == 1)
    held.close()
    assert not waiting.wait().closed
    hurried = make(maxconnections=1, blocking=True, timeout=0.5)
    held = hurried.connection()
    with pytest.raises(bgpool.PoolTimeout):
        hurried.connection()


def test_without_a_limit_connections_are_opened_on_demand(make: Make) -> None:
    db = make(maxconnections=0)
    held = [db.connection() for _ in range(8)]
    assert len({session(con) for con in held}) == 8


@pytest.mark.parametrize("blocking", [False, True])
def test_a_dropped_connection_is_returned_rolled_back(
    make: Make, pair: Pair, blocking: bool, recwarn: pytest.WarningsRecorder
) -> None:
    db = make(maxconnections=1, blocking=blocking)
    sessions = set()
    for _ in range(5):
        con = db.connection()
        sessions.add(session(con))
        con.cursor().execute(INSERT, (93,))
        del con
    assert len(sessions) == 1
    assert rows(pair, 93) == 0
    assert list(recwarn) == []


def test_a_connection_dropped_after_a_caught_error_is_returned(make: Make) -> None:
    db = make(maxconnections=1)

    def query() -> None:
        con = db.connection()
        with contextlib.suppress(pymysql.err.ProgrammingError):
            con.cursor().execute("SELECT * FROM no_such_table")

    for _ in range(3):
        query()


def test_a_cursor_keeps_its_connection(make: Make) -> None:
    """DBUtils lends the connection to the next user while the cursor is still in use."""
    db = make(maxconnections=1)
    cursor = db.connection().cursor()
    with pytest.raises(ours.TooManyConnections):
        db.connection()
    cursor.execute("SELECT 1")
    assert cursor.fetchall() == ((1,),)
    del cursor
    db.connection().close()


def test_the_collector_may_run_at_any_moment(make: Make) -> None:
    db = make(maxconnections=1)
    con = db.connection()
    lock = con.bgpool_generation.inner._lock
    with lock:
        del con
        gc.collect()
    db.connection().close()


def test_an_interrupted_checkout_loses_no_slot(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    db = make(maxconnections=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(db.pool), "getconn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        db.connection()
    db.connection().close()


# -- the other arguments -----------------------------------------------------------------------------------------


def test_maxusage_maxcached_and_steady_connection(make: Make) -> None:
    def once(db: PooledDB) -> int:
        with contextlib.closing(db.connection()) as con:
            return session(con)

    used = make(maxconnections=1, maxusage=2, blocking=True)
    found = [once(used) for _ in range(4)]
    assert (found[0], found[2]) == (found[1], found[3])
    assert found[0] != found[2]
    cached = make(maxcached=1, maxconnections=3, blocking=True)
    for con in [cached.connection() for _ in range(3)]:
        con.close()
    assert cached.pool.stats().size == 1
    with contextlib.closing(cached.steady_connection()) as steady:
        was = session(steady)
    assert once(cached) != was


def test_ping_checks_connections_that_were_idle(make: Make) -> None:
    asked: list[Any] = []
    answers = iter([None, False, True])

    def ping(connection: Any) -> object:
        asked.append(connection)
        return next(answers)

    db = make(maxconnections=1, ping=(1, ping), blocking=True)
    sessions = []
    for _ in range(3):
        with contextlib.closing(db.connection()) as con:
            sessions.append(session(con))
        age(db)
    assert (sessions[0] == sessions[1], sessions[1] == sessions[2]) == (True, False)
    assert len(asked) == 2
    for sql, good in (("SELECT 1", True), ("SELEKT", False)):
        db = make(maxconnections=1, ping=sql, blocking=True)
        was = None
        for _ in range(2):
            with contextlib.closing(db.connection()) as con:
                same, was = session(con) == was, session(con)
            age(db)
        assert same is good


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"creator": "postgresql://app@127.0.0.1/app"}, "creator"),
        ({"creator": os}, "creator"),
        ({"creator": lambda: None}, "creator"),
        ({"mincached": -1}, "mincached"),
        ({"maxconnections": "5"}, "maxconnections"),
        ({"maxusage": True}, "maxusage"),
        ({"setsession": [1]}, "setsession=[1]"),
        ({"setsession": 5}, "setsession=5"),
        ({"port": "abc"}, "port='abc'"),
        ({"ping": [1]}, "ping"),
        ({"ping": (1, 2)}, "ping"),
        ({"reset": "all"}, "reset"),
        ({"max_size": 5}, "max_size"),
        ({"ssl": {"sl": "x"}}, "ssl"),
        ({"compres": True}, "compres"),
    ],
)
def test_unusable_arguments_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    arguments = {"creator": pymysql, "host": "127.0.0.1", "user": "app", "password": "s3cret", **wrong}
    with pytest.raises(bgpool.ConfigurationError, match=r"allowed|takes") as caught:
        PooledDB(**arguments)
    assert named in str(caught.value)
    assert "s3cret" not in str(caught.value)


# -- the life of a pool ------------------------------------------------------------------------------------------


def test_a_closed_pool_can_be_used_again_and_pools_are_independent(make: Make) -> None:
    one, two = make(), make()
    assert one.pool is not two.pool
    held = one.connection()
    one.close()
    held.close()
    with one.connection() as again:
        again.ping()
    assert two.pool.closed is False


def test_a_forgotten_pool_is_closed(pair: Pair, deployment: Deployment) -> None:
    db: Any = PooledDB(pair.dsn, bg_run_dir=deployment.run_dir, bg_resolver=pair.resolver)
    db.connection().close()
    pool = db.pool
    del db
    wait_until(lambda: pool.closed)
    assert pool not in pools()


def test_a_child_has_its_own_slots(make: Make) -> None:
    db = make(maxconnections=1)
    held = db.connection()
    was = session(held)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with db.connection() as con:
                os.write(writer, str(session(con)).encode())
            held.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert int(os.read(reader, 100)) != was
    held.ping()
    assert session(held) == was
    held.close()
    os.close(reader)
    os.close(writer)


def test_a_child_closes_an_inherited_connection_without_its_parents_locks(make: Make) -> None:
    db = make(maxconnections=1, maxcached=1)
    held = db.connection()
    with held.bgpool_generation.inner._lock:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                signal.alarm(5)
                held.close()
                status = 0
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    held.ping()


def test_callers_are_held_and_released_to_green(make: Make, pair: Pair, deployment: Deployment) -> None:
    db = make(maxconnections=2, blocking=True)
    with db.connection() as con:
        assert con.peer == pair.blue.address
    idle_since = session(db.connection())
    assert idle_since
    deployment.phase(Phase.PREPARATION)
    deployment.phase(Phase.IN_PROGRESS)
    held = Caller(db.connection)
    deployment.wait_held()
    deployment.release()
    with contextlib.closing(held.wait()) as after:
        assert after.peer == pair.green.address
