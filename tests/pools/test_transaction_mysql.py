"""A transaction that the server has rolled back completely: none of it is committed, nor any later statement."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest
from pymysql.constants import COMMAND, SERVER_STATUS
from pymysql.err import MySQLError, OperationalError, ProgrammingError

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.lab.ledger import INSERT_SQL
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.expressions import Text
from bgpool.pools.mysql.transaction import Failure, Transaction
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import Kit
from tests.pools.conftest import Work
from tests.pools.test_read_only import read_only

ENGINES = (Engine.MYSQL,)

MakePool = Callable[..., Pool[MysqlConnection]]
Fail = Callable[[MysqlConnection], int]

OPEN = SERVER_STATUS.SERVER_STATUS_IN_TRANS
AUTOCOMMIT = SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT


# -- the state after an error --------------------------------------------------------------------------------------


def failure_of(sql: bytes, status: int, *, command: int = COMMAND.COM_QUERY, code: int = 1062) -> Failure | None:
    transaction = Transaction()
    transaction.sent = (command, sql, status)
    error = OperationalError(code, "with the --read-only option" if code == 1290 else "text")
    transaction.note_error(error, status, Text("utf-8", many=False, backslash=True))
    return transaction.failure


@pytest.mark.parametrize(
    ("sql", "status", "command"),
    [
        (b"INSERT INTO t VALUES (1)", AUTOCOMMIT, COMMAND.COM_QUERY),
        (b"", OPEN, COMMAND.COM_INIT_DB),
        (b"", OPEN, COMMAND.COM_PING),
    ],
)
def test_an_error_outside_a_transaction_leaves_nothing_open(sql: bytes, status: int, command: int) -> None:
    assert failure_of(sql, status, command=command) is None


@pytest.mark.parametrize(
    ("sql", "status", "code", "is_loss"),
    [
        (b"INSERT INTO t VALUES (1)", OPEN | AUTOCOMMIT, 1062, True),
        (b"INSERT INTO t VALUES (1)", OPEN, 1062, True),
        (b"INSERT INTO t VALUES (1)", 0, 1062, False),
        (b"CALL p()", OPEN, 1213, True),
        (b"CALL p()", AUTOCOMMIT, 1213, False),
        (b"COMMIT", OPEN, 1180, True),
        (b"CREATE TABLE t (n int)", OPEN, 1050, False),
        (b"CREATE TEMPORARY TABLE t (n int)", OPEN, 1050, True),
        (b"LOCK TABLES t READ", OPEN, 1290, True),
        (b"LOCK TABLES t READ", OPEN, 1146, False),
    ],
)
def test_errors_that_lost_the_transaction_are_recognized(sql: bytes, status: int, code: int, is_loss: bool) -> None:
    failure = failure_of(sql, status, code=code)
    assert failure is not None
    assert failure.is_loss is is_loss


@pytest.mark.parametrize(
    ("sql", "passes"),
    [
        (b"ROLLBACK", True),
        (b"ROLLBACK TO SAVEPOINT s", True),
        (b"RELEASE SAVEPOINT s", True),
        (b"BEGIN", True),
        (b" /* why */ start transaction read only", True),
        (b"BEGIN NOT ATOMIC INSERT INTO t VALUES (1); END", False),
        (b"START REPLICA", False),
        (b"XA START 'x'", True),
        (b"XA END 'x'", True),
        (b"XA ROLLBACK 'x'", True),
        (b"XA RECOVER", False),
        (b"XA COMMIT 'x'", False),
        (b"COMMIT", False),
        (b"SAVEPOINT s", False),
        (b"SELECT 1", False),
    ],
)
def test_some_statements_are_sent_without_a_check(sql: bytes, passes: bool) -> None:
    failure = failure_of(b"UPDATE t SET n = 1", OPEN)
    assert failure is not None
    assert failure.may_pass(sql) is passes
    failure.refuse_commit(OperationalError(1290, "--read-only"))
    assert failure.may_pass(sql) is (sql == b"ROLLBACK")


@pytest.mark.parametrize(
    ("sql", "many", "advice"),
    [
        (b"UPDATE t SET n = 1", False, "run all of it again"),
        (b"COMMIT", False, "run all of it again"),
        (b"CALL p()", False, "find out before any of it is run again"),
        (b"EXECUTE p", False, "find out before any of it is run again"),
        (b"INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (1)", True, "find out before any of it is run again"),
    ],
)
def test_work_that_may_have_committed_before_an_error_is_not_repeated(sql: bytes, many: bool, advice: str) -> None:
    transaction = Transaction()
    transaction.sent = (COMMAND.COM_QUERY, sql, OPEN)
    transaction.note_error(OperationalError(1644, "text"), OPEN, Text("utf-8", many=many, backslash=True))
    transaction.settle(AUTOCOMMIT)
    failure = transaction.failure
    assert failure is not None
    assert advice in str(failure.again())


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("server_status", AUTOCOMMIT),
        ("bgpool_refused", True),
        ("_sock", None),
        ("_result.has_next", True),
        ("_result.unbuffered_active", True),
        ("_transaction.failure", failure_of(b"UPDATE t SET n = 1", OPEN)),
    ],
)
def test_a_transaction_counts_as_open_only_without_contrary_evidence(attribute: str, value: object) -> None:
    connection: Any = MysqlConnection(defer_connect=True)
    connection.server_status, connection._sock = OPEN, object()
    connection._result = SimpleNamespace(has_next=False, unbuffered_active=False)
    assert connection.bgpool_can_commit
    *owner, name = attribute.split(".")
    setattr(getattr(connection, owner[0]) if owner else connection, name, value)
    assert not connection.bgpool_can_commit
    # Otherwise the connection would be closed when it is collected.
    connection._sock = None


def test_a_stored_error_keeps_no_frames_alive() -> None:
    transaction = Transaction()
    transaction.sent = (COMMAND.COM_QUERY, b"COMMIT", OPEN)
    with pytest.raises(OperationalError) as caught:
        raise OperationalError(1290, "--read-only")
    transaction.note_error(caught.value, OPEN, Text("utf-8", many=False, backslash=True))
    failure = transaction.failure
    assert failure is not None
    assert (failure.error.args, failure.error.__traceback__) == (caught.value.args, None)
    failure.refuse_commit(caught.value)
    assert (failure.error.args, failure.error.__traceback__) == (caught.value.args, None)


# -- with a server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locks(mysql_pair: Pair) -> Iterator[None]:
    """A table whose rows are locked and changed."""
    mysql_pair.blue.execute("CREATE TABLE app.locks (name VARCHAR(20) PRIMARY KEY, n INT)")
    mysql_pair.blue.execute("INSERT INTO app.locks VALUES ('first', 0), ('second', 0)")
    yield
    mysql_pair.blue.execute("DROP TABLE app.locks")


def update(kit: Kit, conn: Any, name: str) -> None:
    kit.execute(conn, "UPDATE locks SET n = n + 1 WHERE name = %s", (name,))


@pytest.fixture(params=["deadlock", "record changed"])
def fail(request: pytest.FixtureRequest, kit: Kit, pair: Pair) -> Iterator[Fail]:
    """Fail a connection's statement so that the server rolls back the whole transaction; return the error's number."""
    request.getfixturevalue("locks")
    with contextlib.closing(kit.connect(pair)) as other:
        if request.param == "deadlock":
            yield lambda conn: _deadlock(kit, conn, other)
        elif not kit.execute(other, "SHOW VARIABLES LIKE 'innodb_snapshot_isolation'"):
            pytest.skip("the server has no innodb_snapshot_isolation: MySQL, or an old MariaDB")
        else:
            other.autocommit(True)
            yield lambda conn: _change_record(kit, conn, other)


def _deadlock(kit: Kit, conn: Any, other: Any) -> int:
    """The server ends the transaction that has written less."""
    for n in range(20):
        kit.execute(other, INSERT_SQL, (98, 0, n))
    update(kit, other, "second")
    update(kit, conn, "first")
    waiter = threading.Thread(target=update, args=(kit, other, "first"))
    waiter.start()
    try:
        return code_of_failure(lambda: update(kit, conn, "second"))
    finally:
        conn.ping()
        waiter.join(30)
        other.rollback()


def _change_record(kit: Kit, conn: Any, other: Any) -> int:
    kit.execute(conn, "SET SESSION innodb_snapshot_isolation = 1")
    kit.execute(conn, "SELECT * FROM locks")
    update(kit, other, "first")
    return code_of_failure(lambda: update(kit, conn, "first"))


def code_of_failure(act: Callable[[], object]) -> int:
    with pytest.raises(MySQLError) as caught:
        act()
    return int(caught.value.args[0])


@pytest.mark.lab
@pytest.mark.parametrize("begin", [False, True], ids=["without autocommit", "BEGIN"])
def test_a_block_does_not_continue_in_another_transaction(
    make_pool: MakePool, kit: Kit, pair: Pair, work: Work, fail: Fail, begin: bool
) -> None:
    with make_pool(kwargs={"autocommit": begin}).connection() as conn:
        if begin:
            conn.begin()
        work(conn)
        code = fail(conn)
        for act in (lambda: work(conn), conn.commit, lambda: kit.execute(conn, "COMMIT"), lambda: kit.read(conn)):
            with pytest.raises(OperationalError, match="roll back") as caught:
                act()
            assert caught.value.args[0] == code
            assert isinstance(caught.value.__cause__, OperationalError)
        assert work.rows(pair) == 0
        conn.rollback()
        work(conn)
        conn.commit()
    assert work.rows(pair) == 1


@pytest.mark.lab
def test_a_block_without_further_statements_fails_at_its_end(make_pool: MakePool, work: Work, fail: Fail) -> None:
    code = 0

    def block() -> None:
        nonlocal code
        with make_pool().connection() as conn:
            work(conn)
            code = fail(conn)

    assert code_of_failure(block) == code


@pytest.mark.lab
@pytest.mark.usefixtures("deployment")
def test_a_unit_does_not_continue_in_another_transaction(
    make_pool: MakePool, pair: Pair, work: Work, fail: Fail
) -> None:
    codes: list[int] = []

    def unit(conn: MysqlConnection) -> None:
        work(conn)
        codes.append(fail(conn))
        with contextlib.suppress(OperationalError):
            work(conn)

    assert [code_of_failure(lambda: make_pool().run(unit))] == codes
    assert work.rows(pair) == 0


@pytest.mark.lab
def test_begin_starts_a_new_transaction(make_pool: MakePool, pair: Pair, work: Work, fail: Fail) -> None:
    """Like a loop that retries on the same connection."""
    with make_pool().connection() as conn:
        conn.begin()
        work(conn)
        fail(conn)
        conn.begin()
        work(conn)
    assert work.rows(pair) == 1


@pytest.mark.lab
def test_a_savepoint_of_a_rolled_back_transaction_is_gone(
    make_pool: MakePool, kit: Kit, work: Work, fail: Fail
) -> None:
    with contextlib.suppress(OperationalError), make_pool().connection() as conn:
        work(conn)
        kit.execute(conn, "SAVEPOINT s")
        code = fail(conn)
        assert code_of_failure(lambda: kit.execute(conn, "ROLLBACK TO SAVEPOINT s")) == 1305
        assert code_of_failure(lambda: work(conn)) == code


@pytest.mark.lab
def test_a_procedure_that_is_rolled_back_ends_the_transaction(
    make_pool: MakePool, kit: Kit, pair: Pair, work: Work
) -> None:
    pair.blue.execute("CREATE PROCEDURE app.take_back() BEGIN ROLLBACK; SIGNAL SQLSTATE '45000'; END")
    try:
        with contextlib.suppress(MySQLError), make_pool().connection() as conn:
            work(conn)
            assert code_of_failure(lambda: kit.execute(conn, "CALL take_back()")) == 1644
            assert code_of_failure(lambda: work(conn)) == 1644
        with make_pool(kwargs={"autocommit": True}).connection() as conn:
            assert code_of_failure(lambda: kit.execute(conn, "CALL take_back()")) == 1644
            work(conn)
    finally:
        pair.blue.execute("DROP PROCEDURE app.take_back")
    assert work.rows(pair) == 1


@pytest.mark.lab
@pytest.mark.usefixtures("locks")
def test_an_error_of_one_statement_leaves_the_transaction(make_pool: MakePool, kit: Kit, pair: Pair) -> None:
    first, second = Work(kit), Work(kit)
    with make_pool().connection() as conn:
        first(conn)
        assert code_of_failure(lambda: kit.execute(conn, "INSERT INTO locks VALUES ('first', 1)")) == 1062
        second(conn)
    assert (first.rows(pair), second.rows(pair)) == (1, 1)


@pytest.mark.lab
def test_failed_ddl_has_committed_the_previous_work(make_pool: MakePool, kit: Kit, pair: Pair) -> None:
    """For example ``CREATE TABLE`` of an existing table, with its error ignored."""
    first, second = Work(kit), Work(kit)
    with make_pool().connection() as conn:
        first(conn)
        assert code_of_failure(lambda: kit.execute(conn, "CREATE TABLE ledger (n int)")) == 1050
        second(conn)
    assert (first.rows(pair), second.rows(pair)) == (1, 1)


@pytest.mark.lab
@pytest.mark.usefixtures("locks")
def test_the_server_is_pinged_only_after_an_error(
    make_pool: MakePool, kit: Kit, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    driver: Any = pymysql.connections.Connection
    original = driver._execute_command

    def spy(self: Any, command: int, sql: Any) -> None:
        sent.append("ping" if command == COMMAND.COM_PING else "statement")
        original(self, command, sql)

    def fail_once(conn: MysqlConnection) -> None:
        code_of_failure(lambda: kit.execute(conn, "INSERT INTO locks VALUES ('first', 1)"))

    pool = make_pool(max_size=1)
    with pool.connection() as conn:
        monkeypatch.setattr(driver, "_execute_command", spy)
        work(conn)
        kit.execute(conn, "SAVEPOINT s")
        fail_once(conn)
        kit.execute(conn, "ROLLBACK TO s")
        kit.execute(conn, "SELECT 1")
        assert "ping" not in sent
        fail_once(conn)
        for _ in range(2):
            kit.execute(conn, "SELECT 1")
        assert sent.count("ping") == 1
        fail_once(conn)
        conn.rollback()
        conn.autocommit(True)
        fail_once(conn)
        kit.execute(conn, "SELECT 1")
        assert sent.count("ping") == 1


# -- refused by a read-only server ---------------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.parametrize("phase", [None, Phase.CREATED], ids=["no deployment", "CREATED"])
@pytest.mark.parametrize("sql", ["COMMIT", "BEGIN", "SET autocommit = 1", "LOCK TABLES ledger READ"])
def test_a_refused_commit_is_never_reported_as_done(
    make_pool: MakePool, kit: Kit, pair: Pair, work: Work, request: pytest.FixtureRequest, sql: str, phase: Phase | None
) -> None:
    """This includes an implicit COMMIT of a statement. The server has rolled back, and would accept the next COMMIT."""
    if phase is not None:
        deployment: Deployment = request.getfixturevalue("deployment")
        deployment.phase(phase)
    with make_pool(max_size=1).connection() as conn:
        work(conn)
        with read_only(pair):
            assert code_of_failure(lambda: kit.execute(conn, sql)) == 1290
        for act in (conn.commit, lambda: kit.execute(conn, "COMMIT"), lambda: work(conn)):
            assert code_of_failure(act) == 1290
        conn.rollback()
    assert work.rows(pair) == 0


@pytest.mark.lab
def test_a_commit_with_a_syntax_error_can_be_repeated(make_pool: MakePool, kit: Kit, pair: Pair, work: Work) -> None:
    with make_pool().connection() as conn:
        work(conn)
        with pytest.raises(ProgrammingError):
            kit.execute(conn, "COMMIT NOW")
        kit.execute(conn, "COMMIT")
    assert work.rows(pair) == 1
