"""A fork with a warm engine needs no dispose(): the child makes its own connections, and the parent's go on."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import sqlalchemy
from sqlalchemy import pool, text
from sqlalchemy.exc import OperationalError

from bgpool.core.phase import Phase
from bgpool.errors import InheritedConnection
from bgpool.lab import Pair
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.processes.test_fork import in_child, in_child_untold

pytestmark = [
    pytest.mark.lab,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

MakeEngine = Callable[..., sqlalchemy.Engine]

KINDS = [pool.QueuePool, pool.StaticPool, pool.SingletonThreadPool, pool.AssertionPool]
FORKS = [in_child, in_child_untold]


def session(kit: Kit, engine: sqlalchemy.Engine) -> int:
    """Return the server's id of the working connection that a checkout gets."""
    with engine.connect() as connection:
        question = "SELECT pg_backend_pid()" if kit.engine.value == "postgresql" else "SELECT connection_id()"
        return int(connection.execute(text(question)).scalar_one())


@pytest.mark.parametrize("fork", FORKS, ids=lambda fork: fork.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_both_sides_go_on(
    kind: type[pool.Pool], fork: Callable[[Callable[[], object]], int], kit: Kit, make_engine: MakeEngine
) -> None:
    engine = make_engine(poolclass=kind)
    mine = session(kit, engine)

    def child() -> None:
        own = session(kit, engine)
        assert own != mine
        assert session(kit, engine) == own or fork is in_child_untold
        assert isinstance(engine.pool, kind)
        engine.dispose()
        assert session(kit, engine) != mine
        gc.collect()

    assert fork(child) == 0
    assert session(kit, engine) == mine


def test_the_childs_pool_is_whole(kit: Kit, make_engine: MakeEngine) -> None:
    engine = make_engine(pool_size=2, max_overflow=0, pool_timeout=0.1)
    with engine.connect(), engine.connect():
        pass
    busy = engine.connect()

    def child() -> None:
        with engine.connect(), engine.connect():
            pass
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a QueuePool
        assert engine.dialect.bgpool_connector.stats().size == 2  # type: ignore[attr-defined]  # bgpool's

    assert in_child(child) == 0
    assert kit.read(busy.connection.dbapi_connection) >= 0
    busy.close()


@pytest.mark.parametrize("fork", FORKS, ids=lambda fork: fork.__name__)
def test_a_connection_in_use_is_the_parents(
    fork: Callable[[Callable[[], object]], int], kit: Kit, make_engine: MakeEngine, own_log: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    connection = engine.connect()
    kit.write(connection.connection.dbapi_connection)

    def child() -> None:
        with pytest.raises(OperationalError) as caught:
            connection.execute(text("SELECT 1"))
        assert isinstance(caught.value.orig, InheritedConnection)
        assert caught.value.connection_invalidated
        connection.rollback()
        connection.execute(text("SELECT 1"))
        connection.close()
        assert not [record for record in own_log.records if record.levelname == "ERROR"]

    def leaves_it() -> None:
        connection.close()
        session(kit, engine)
        gc.collect()
        assert not [record for record in own_log.records if record.levelname == "ERROR"]

    assert fork(child) == 0
    assert fork(leaves_it) == 0
    assert connection.execute(text("SELECT count(*) FROM ledger")).scalar_one() >= 1
    connection.close()


def test_a_child_goes_through_a_switchover(
    kit: Kit, pair: Pair, make_engine: MakeEngine, deployment: Deployment
) -> None:
    engine = make_engine()
    session(kit, engine)
    read, write = os.pipe()

    def child() -> None:
        session(kit, engine)
        os.write(write, b".")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with engine.connect() as connection:
                if kit.where(connection.connection.dbapi_connection) == pair.green.address:
                    return
        raise AssertionError

    def switch() -> None:
        os.read(read, 1)
        deployment.phase(Phase.IN_PROGRESS)
        deployment.release()

    thread = threading.Thread(target=switch)
    thread.start()
    assert in_child(child) == 0
    thread.join()
    with engine.connect() as connection:
        assert kit.where(connection.connection.dbapi_connection) == pair.green.address


PROGRAM = """
import os, sys, sqlalchemy
engine = sqlalchemy.create_engine(sys.argv[1])
def session():
    with engine.connect() as connection:
        return connection.exec_driver_sql(sys.argv[2]).scalar()
mine = session()
kept = engine.connect()
kept.exec_driver_sql(sys.argv[2])
if os.fork() == 0:
    assert session() != mine
    if sys.argv[3] == "crash":
        os.kill(os.getpid(), 9)
    # The interpreter ends as it does: what it collects must say nothing on the parent's sockets.
    sys.exit()
os.wait()
assert kept.exec_driver_sql(sys.argv[2]).scalar() == mine
kept.close()
assert session() == mine
print("both went on")
"""


@pytest.mark.parametrize("end", ["exit", "crash"])
def test_a_child_that_ends_says_nothing_to_the_parents_server(
    url: sqlalchemy.URL, kit: Kit, deployment: Deployment, end: str
) -> None:
    assert deployment.snapshot.ready
    question = "SELECT pg_backend_pid()" if kit.engine.value == "postgresql" else "SELECT connection_id()"
    text_url = url.render_as_string(hide_password=False)
    program = [sys.executable, "-X", "dev", "-c", PROGRAM, text_url, question, end]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("both went on\n", 0), done.stderr
    assert "Traceback" not in done.stderr


QUIET = """
import gc, multiprocessing, sys, sqlalchemy
engine = sqlalchemy.create_engine(sys.argv[1])
def session():
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
session()
def child():
    session()
    engine.dispose()
    gc.collect()
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
assert process.exitcode == 0
session()
engine.dispose()
"""


def test_a_child_does_not_close_the_parents_sockets(url: sqlalchemy.URL, deployment: Deployment) -> None:
    """Python's development mode would warn of each."""
    assert deployment.snapshot.ready
    program = [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", QUIET]
    program.append(url.render_as_string(hide_password=False))
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "unclosed" not in done.stderr
