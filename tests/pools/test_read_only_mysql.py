"""Writes that MySQL refuses as read-only: error numbers and texts tell whether the server or a setting refuses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.dsn import parse
from bgpool.lab import Pair
from bgpool.mysql import is_servers_refusal, may_be_servers_refusal
from bgpool.pools.participant import Participant
from bgpool.pools.pool import Pool
from bgpool.registry import POOLS
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.callers import Caller, wait_until
from tests.pools.conftest import Work
from tests.pools.test_read_only import refused, session_of

ENGINES = (Engine.MYSQL,)

MakePool = Callable[..., Pool[Any]]


@pytest.mark.lab
def test_a_transaction_that_is_read_only_costs_no_connection(
    kit: Kit, deployment: Deployment, make_pool: MakePool
) -> None:
    deployment.phase(Phase.PREPARATION)
    pool = make_pool(max_size=1)
    with pytest.raises(pymysql.err.OperationalError) as caught, pool.connection() as conn:
        session = kit.session(conn)
        kit.execute(conn, "START TRANSACTION READ ONLY")
        kit.write(conn)
    assert not isinstance(caught.value, bgpool.Error)
    assert session_of(kit, pool) == session


@pytest.mark.parametrize(
    ("code", "text", "whose"),
    [
        (1290, "The MySQL server is running with the --read-only option so it cannot execute this statement", "server"),
        (1290, "The MySQL server is running with the --super-read-only option so it cannot execute this", "server"),
        (1290, "The MySQL server is running with the --secure-file-priv option so it cannot execute this", "nobody"),
        (1290, "The MariaDB server is running with the --skip-grant-tables option so it cannot", "nobody"),
        (1836, "Running in read-only mode", "server"),
        (1792, "Cannot execute statement in a READ ONLY transaction", "ask"),
        (1036, "Table 't' is read only", "ask"),
        (1874, "InnoDB is in read only mode.", "ask"),
        (1881, "Operation not allowed when innodb_force_recovery > 0.", "ask"),
        (3604, "Storage engine can't drop table 'ro.t'", "ask"),
        (1015, "Can't lock file (errno: 165 - Table is read only)", "ask"),
        (1005, 'Can\'t create table `ro`.`x` (errno: 165 "Table is read only")', "ask"),
        (1025, "Error on rename of './ro/t' to './ro/t9' (errno: 165 - Table is read only)", "ask"),
        (1005, 'Can\'t create table `ro`.`x` (errno: 150 "Foreign key constraint is incorrectly formed")', "nobody"),
        (1015, "Can't lock file (errno: 11 - Resource temporarily unavailable)", "nobody"),
        (1062, "Duplicate entry '--read-only' for key 'PRIMARY'", "nobody"),
    ],
)
def test_refusals_of_the_server_and_of_a_setting_are_distinguished(code: int, text: str, whose: str) -> None:
    error = pymysql.err.OperationalError(code, text)
    assert is_servers_refusal(error) is (whose == "server")
    assert may_be_servers_refusal(error) is (whose == "ask")


SIGNAL = "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = %s, MESSAGE_TEXT = %s"


@pytest.mark.lab
@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.PREPARATION])
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1290, "The MySQL server is running with the --secure-file-priv option so it cannot execute this statement"),
        (1792, "Cannot execute statement in a READ ONLY transaction."),
        (1036, "Table 'archive' is read only"),
        (1005, 'Can\'t create table `app`.`x` (errno: 165 "Table is read only")'),
    ],
)
def test_a_refusal_by_a_writable_server_is_due_to_the_caller(
    kit: Kit, deployment: Deployment, make_pool: MakePool, nudges: Any, phase: Phase, code: int, text: str
) -> None:
    """In a unit and in a block: called once, with the driver's error, and the connection is kept."""
    deployment.phase(phase)
    pool = make_pool(max_size=1)
    nudged = nudges(pool)
    session = session_of(kit, pool)
    calls: list[int] = []

    def write(conn: Any) -> None:
        calls.append(kit.session(conn))
        kit.write(conn)
        kit.execute(conn, SIGNAL, (code, text))

    def block() -> None:
        with pool.connection() as conn:
            write(conn)

    def unit() -> None:
        pool.run(write)

    for attempt in (unit, block):
        with pytest.raises(pymysql.err.MySQLError) as caught:
            attempt()
        assert caught.value.args[:2] == (code, text)
        assert not isinstance(caught.value, bgpool.Error)
    assert calls == [session] * 2
    assert session_of(kit, pool) == session
    assert nudged == []


@pytest.mark.lab
def test_a_default_of_the_server_is_not_due_to_the_caller(kit: Kit, make_pool: MakePool, pair: Pair) -> None:
    pair.blue.execute("SET GLOBAL TRANSACTION READ ONLY")
    try:
        pool = make_pool(max_size=1)
        assert refused(kit, pool) != session_of(kit, pool)
    finally:
        pair.blue.execute("SET GLOBAL TRANSACTION READ WRITE")


@pytest.mark.lab
def test_an_undecided_refusal_is_not_attributed_to_the_caller(
    kit: Kit, deployment: Deployment, make_pool: MakePool, pair: Pair, work: Work
) -> None:
    """The connection was drained before the server could be queried; another connection is not refused."""
    pool = make_pool(bg_drain_timeout_ms=10_000)

    def switch(conn: Any) -> None:
        if work.calls == 1:
            deployment.phase(Phase.IN_PROGRESS)
            wait_until(lambda: not conn.bgpool_generation.live[0])
            kit.execute(conn, SIGNAL, (1792, "Cannot execute statement in a READ ONLY transaction."))

    work.meanwhile = switch
    caller = Caller(lambda: pool.run(work))
    wait_until(lambda: work.calls == 1 and pool.stats().size == 0)
    deployment.phase(Phase.CREATED)
    assert caller.wait() == "call 2"
    assert work.rows(pair) == 1


@pytest.fixture(scope="module")
def frozen() -> Iterator[Pair]:
    """A pair whose blue server was restarted with --innodb-read-only."""
    with Pair(engine="mysql") as pair:
        pair.blue.execute("CREATE TABLE app.t (n INT PRIMARY KEY) ENGINE=InnoDB")
        pair.blue.stop()
        server: Any = pair.blue
        command = server._command
        server._command = lambda: (*command(), "--innodb-read-only")
        pair.blue.start()
        yield pair


@pytest.mark.lab
@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO t VALUES (1)", "DELETE FROM t", "CREATE TABLE x (n INT) ENGINE=InnoDB", "DROP TABLE t",
     "RENAME TABLE t TO s", "TRUNCATE TABLE t", "CREATE TEMPORARY TABLE tt (n INT) ENGINE=InnoDB"],
)  # fmt: skip
def test_innodb_read_only_is_the_servers_refusal(kit: Kit, frozen: Pair, tmp_path: Path, statement: str) -> None:
    place, settings, left = parse(frozen.dsn, {"bg_resolver": frozen.resolver, "min_size": 1, "max_size": 1})
    participant = Participant(settings.bg_id, tmp_path / "run", lambda _files: None)
    pool = POOLS[place.engine](place, settings, participant, left)
    try:
        session = session_of(kit, pool)
        with pytest.raises(pymysql.err.MySQLError), pool.connection() as conn:
            kit.execute(conn, statement)
        assert session_of(kit, pool) != session
    finally:
        pool.close()


@pytest.mark.lab
def test_a_commit_that_was_refused_does_not_succeed_when_it_is_repeated(
    make_pool: MakePool, pair: Pair, work: Work
) -> None:
    """The server has rolled back, and would accept the second COMMIT."""
    pool = make_pool(max_size=1)
    with pool.connection() as conn:
        work(conn)
        pair.blue.set_read_only(True)
        try:
            for _ in range(2):
                with pytest.raises(pymysql.err.OperationalError) as caught:
                    conn.commit()
                assert caught.value.args[0] == 1290
        finally:
            pair.blue.set_read_only(False)
        conn.rollback()
        work(conn)
    assert work.rows(pair) == 1
