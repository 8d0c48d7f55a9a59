"""The text of a MySQL statement and its effect on the transaction that it runs in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import pytest

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.mysql import code_of
from bgpool.pools.mysql.expressions import FUNCTIONS, RESERVED, Text
from bgpool.pools.mysql.statements import (
    Effect,
    doubt_of,
    ends_transaction,
    first_words,
    is_ordinary,
    judge,
    may_end,
)
from bgpool.pools.pool import Pool
from bgpool.testing import Deployment
from tests.engines import Kit

ENGINES = (Engine.MYSQL,)

ONE = Text("utf8", many=False, backslash=True)
MANY = ONE._replace(many=True)


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("insert into t values (1)", b"INSERT"),
        ("  /* a hint */ -- and\n (select 1)", b"SELECT"),
        ("# note\nUPDATE t SET n = 1", b"UPDATE"),
        ("--\nCREATE TABLE t AS\nSELECT 1", b"CREATE"),
        ("/*! COMMIT */", b""),
        ("/*M! COMMIT */", b""),
        ("COMMIT WORK", b"COMMIT"),
        ("", b""),
    ],
)
def test_the_first_word_is_found(statement: str, word: bytes) -> None:
    assert first_words(statement.encode())[0] == word


def test_savepoints_do_not_end_a_transaction() -> None:
    assert first_words(b"ROLLBACK TO SAVEPOINT s") == (b"ROLLBACK", True)
    assert first_words(b"rollback work to s") == (b"ROLLBACK", True)
    assert first_words(b"ROLLBACK") == (b"ROLLBACK", False)


READS = (
    "SELECT 1",
    "(SELECT n FROM t) UNION (SELECT 2);",
    "SELECT count(*), MAX(n) FROM t WHERE n IN (1, 2) AND (a = 'it\\'s f(1)' OR b = \"f(1)\") LIMIT 5 FOR UPDATE",
    "SELECT `f(` FROM t -- f(1)\n",
    "SELECT 5--3, n--'1', 1--(2)",
    "SELECT /*+ MAX_EXECUTION_TIME(1000) */ n /* f(1) */ FROM (SELECT n FROM t) AS d # f(1)",
    "WITH a AS (SELECT 1) SELECT * FROM a",
    "TABLE t",
    "VALUES ROW(1, 2)",
    "SHOW VARIABLES LIKE 'read_only'",
    "EXPLAIN SELECT 1",
    "DESC t",
    "DO sleep(0)",
    "USE scratch",
    "PREPARE s FROM 'COMMIT'",
    "SET AUTOCOMMIT = 0",
    "set session autocommit=off",
    "SET @@session.autocommit := FALSE",
    "SET NAMES utf8mb4 COLLATE utf8mb4_bin",
    "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')",
    "SET SESSION sql_mode = @@GLOBAL.sql_mode",
    "SET @x = 1, @y = (SELECT MAX(n) FROM t)",
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION TRANSACTION READ ONLY",
    "SET ROLE NONE",
    "SAVEPOINT s",
    "RELEASE SAVEPOINT s",
    "ROLLBACK TO s",
    "ROLLBACK",
    "DROP TEMPORARY TABLE t",
    "XA END 'x'",
    "SIGNAL SQLSTATE '01000'",
)
WRITES = (
    "INSERT INTO t VALUES ('; COMMIT')",
    "REPLACE INTO t SELECT 1",
    "UPDATE t SET n = 1",
    "DELETE FROM t RETURNING n",
    "WITH a AS (SELECT 1) DELETE FROM t",
    "LOAD DATA LOCAL INFILE 'x' INTO TABLE t",
    "CREATE TEMPORARY TABLE t (n INT)",
    # A stored function may write; so may a function named like a built-in one before a blank, or one of a schema.
    "SELECT f()",
    "SELECT `f`(1)",
    "SELECT f\n(1)",
    "SELECT f /* */ (1)",
    "SELECT MAX (1)",
    "SELECT app . max(1)",
    # A control character after -- begins a comment, too; the following quotes are no string.
    "SELECT 1 --\x01 '\n, f(1) -- '",
    # A sequence advances, even if the transaction is rolled back.
    "SELECT NEXT VALUE FOR s",
    "SELECT fé(1)",
    "SELECT n FROM t WHERE (((f(n))))",
    "SELECT '\\' , f(1) , '\\'",
    "SELECT /*! f() */ 1",
    "SELECT 1 INTO OUTFILE 'x'",
    "SHOW TABLES WHERE f()",
    "EXPLAIN ANALYZE SELECT 1",
    "SET @x = f()",
    "DO f()",
)
ENDS = (
    "BEGIN",
    "begin work;",
    "START TRANSACTION READ ONLY",
    "SET AUTOCOMMIT = 1",
    "SET SESSION autocommit = ON",
    "SET @@autocommit = DEFAULT",
    "LOCK TABLES t WRITE",
    "UNLOCK TABLES",
    "XA START 'x'",
)
ANYTHING = (
    "CALL p()",
    "EXECUTE s",
    "EXECUTE IMMEDIATE 'COMMIT'",
    "BEGIN NOT ATOMIC COMMIT; END",
    "BEGIN COMMIT; END",
    "SET STATEMENT max_statement_time = 1 FOR CREATE TABLE t (n INT)",
    "SET GLOBAL read_only = 1",
    "SET @@global.read_only = 1",
    "SET SESSION sql_mode = '', GLOBAL read_only = 1",
    "SET PERSIST read_only = 1",
    "SET NAMES utf8mb4, PASSWORD = 'x'",
    "SET `autocommit` = 1",
    "SET sql_mode = '', autocommit = 1",
    "SET autocommit = @x",
    "/*! COMMIT */",
    "ANALYZE UPDATE t SET n = 1",
    "CREATE TEMPORARY SEQUENCE s",
    "UNHEARD OF",
)
OBJECTS = (
    "DATABASE", "EVENT", "FUNCTION", "INDEX", "LIBRARY", "LOGFILE GROUP", "PACKAGE", "PACKAGE BODY", "PROCEDURE",
    "RESOURCE GROUP", "ROLE", "SCHEMA", "SEQUENCE", "SERVER", "SPATIAL REFERENCE SYSTEM", "TABLE", "TABLESPACE",
    "TRIGGER", "UNDO TABLESPACE", "USER", "VIEW",
)  # fmt: skip
#: The lists of the manuals of MySQL 8.0 to 9.7 (Statements That Cause an Implicit Commit) and of MariaDB 10.6 to 11.8
#: (SQL statements That Cause an Implicit Commit), by their beginnings.
IMPLICIT_COMMITS = (
    *(f"{verb} {what} x" for what in OBJECTS for verb in ("ALTER", "CREATE", "CREATE OR REPLACE", "DROP")),
    "ALTER INSTANCE RELOAD TLS", "ALTER IGNORE TABLE t", "ANALYZE TABLE t", "BACKUP STAGE START", "BACKUP LOCK t",
    "CACHE INDEX t", "CHANGE MASTER TO", "CHANGE REPLICATION SOURCE TO", "CHECK TABLE t", "CREATE UNIQUE INDEX i",
    "CREATE JSON RELATIONAL DUALITY VIEW v", "FLUSH TABLES", "FLUSH PRIVILEGES", "GRANT SELECT ON t TO u",
    "IMPORT TABLE FROM 'x'", "INSTALL PLUGIN p", "INSTALL SONAME 'p'", "INSTALL COMPONENT 'c'",
    "LOAD INDEX INTO CACHE t",
    "LOCK TABLES t READ", "OPTIMIZE TABLE t", "RENAME TABLE t TO s", "RENAME USER u TO v", "REPAIR TABLE t",
    "RESET MASTER", "RESET REPLICA", "RESET QUERY CACHE", "REVOKE SELECT ON t FROM u", "SET DEFAULT ROLE r TO u",
    "SET PASSWORD = 'x'", "SET PASSWORD FOR u = 'x'", "SHUTDOWN", "START REPLICA", "START SLAVE", "START TRANSACTION",
    "STOP REPLICA", "STOP SLAVE", "TRUNCATE t", "TRUNCATE TABLE t", "UNINSTALL PLUGIN p", "UNINSTALL SONAME 'p'",
    "UNLOCK TABLES", "BEGIN", "SET autocommit = 1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("effect", "statements"),
    [(Effect.NOTHING, READS), (Effect.WRITES, WRITES), (Effect.ENDS, ENDS), (Effect.ANYTHING, ANYTHING)],
    ids=lambda value: value.name if isinstance(value, Effect) else "",
)
def test_the_effect_of_a_statement_is_recognized(effect: Effect, statements: tuple[str, ...]) -> None:
    wrong = {text: judge(text.encode(), ONE) for text in statements if judge(text.encode(), ONE) is not effect}
    assert not wrong


def test_implicit_commits_are_never_reported_as_harmless() -> None:
    assert len(IMPLICIT_COMMITS) > 100
    assert not [text for text in IMPLICIT_COMMITS if not may_end(text.encode(), ONE)]


@pytest.mark.parametrize(
    ("statement", "effect"),
    [
        ("COMMIT AND CHAIN", Effect.COMMIT),
        ("XA COMMIT 'x' ONE PHASE", Effect.COMMIT),
        ("XA PREPARE 'x'", Effect.TWO_PHASE),
        ("XA COMMIT 'x'", Effect.TWO_PHASE),
        ("XA ROLLBACK 'x'", Effect.TWO_PHASE),
    ],
)
def test_committing_statements_are_recognized(statement: str, effect: Effect) -> None:
    assert judge(statement.encode(), ONE) is effect


@pytest.mark.parametrize(
    ("text", "effect"),
    [
        ("SELECT 1; SELECT 2;", Effect.NOTHING),
        ("SET NAMES utf8mb4; SELECT 1", Effect.NOTHING),
        ("INSERT INTO t VALUES (1); INSERT INTO t VALUES ('a\\'; COMMIT')", Effect.WRITES),
        ("ROLLBACK TO s; INSERT INTO t VALUES (1)", Effect.WRITES),
        ("ROLLBACK; INSERT INTO t VALUES (1)", Effect.ANYTHING),
        ("SET AUTOCOMMIT = 0; INSERT INTO t VALUES (1)", Effect.ANYTHING),
        ("INSERT INTO t VALUES (1); COMMIT", Effect.ANYTHING),
        ("BEGIN; SELECT 1", Effect.ANYTHING),
        ("SELECT 1 /*! ; COMMIT */", Effect.ANYTHING),
        ("SELECT \"a\\\"; COMMIT", Effect.ANYTHING),
    ],
)  # fmt: skip
def test_several_statements_in_one_text_are_recognized(text: str, effect: Effect) -> None:
    assert judge(text.encode(), MANY) is effect


def test_a_backslash_is_read_as_the_server_reads_it() -> None:
    text = rb"INSERT INTO t VALUES ('\'); COMMIT; SELECT ('a')"
    assert judge(text, MANY._replace(backslash=False)) is Effect.ANYTHING
    assert judge(text, MANY) is Effect.ANYTHING, "the quoted text does not end"
    # In latin1, blanks include the no-break space.
    latin1 = Text("cp1252", many=False, backslash=True)
    assert judge(b"SELECT 1 --\xa0'\n, f(1) -- '", latin1) is Effect.WRITES
    # The second byte of a character may look like a backslash.
    assert judge("SELECT '表' , f(1) , '表'".encode("cp932"), Text("cp932", many=True, backslash=True)) is Effect.WRITES


@pytest.mark.parametrize("word", ["SELECT", "insert", "Update", "DELETE"])
def test_most_statements_are_recognized_by_their_first_bytes(word: str) -> None:
    statement = f"{word} INTO t VALUES ('COMMIT')".encode()
    assert is_ordinary(statement)
    assert is_ordinary(bytearray(statement)), "the form used by executemany()"
    assert not may_end(statement, ONE)
    assert not ends_transaction(first_words(statement)[0])


@pytest.mark.parametrize("text", ["COMMIT", "SELECT", "INSERTS ", " SELECT 1", "/*! COMMIT */", "REPLACE INTO t", ""])
def test_other_statements_are_parsed(text: str) -> None:
    assert not is_ordinary(text.encode())


def test_only_the_beginning_of_a_long_text_is_known() -> None:
    rest = b" " * 70_000
    assert judge(b"SELECT 1" + rest[:60_000], MANY) is Effect.NOTHING
    assert judge((b"INSERT INTO t VALUES (1)" + rest)[: 64 * 1024], ONE) is Effect.WRITES
    assert judge((b"INSERT INTO t VALUES (1)" + rest)[: 64 * 1024], MANY) is Effect.ANYTHING


@pytest.mark.parametrize(
    ("text", "effect"),
    [
        ("SELECT 0x" + "a" * 60_000, Effect.NOTHING),
        ("SELECT 1" + " " * 60_000 + "+ f(1)", Effect.WRITES),
        ("SELECT 1" + "/* " * 20_000, Effect.NOTHING),
        ("/* a */" * 8_000 + "1", Effect.ANYTHING),
        ("SELECT " + "(" * 60_000, Effect.NOTHING),
        ("SELECT 1 IN (" + "1, " * 20_000 + "2)", Effect.NOTHING),
        ("SELECT " + "'" * 59_999, Effect.WRITES),
    ],
    ids=lambda value: str(value)[:9],
)
def test_no_text_takes_long_to_parse(text: str, effect: Effect) -> None:
    began = time.process_time()
    assert judge(text.encode(), ONE) is effect
    first_words(text.encode())
    assert time.process_time() - began < 2.0


#: The effects that are in doubt: in a transaction; outside a transaction, in autocommit; outside a transaction, without
#: autocommit; and in autocommit if it is unknown whether a transaction is open.
STATES = {
    (True, True, True): {Effect.ENDS, Effect.COMMIT, Effect.TWO_PHASE, Effect.ANYTHING},
    (False, False, True): {Effect.WRITES, Effect.TWO_PHASE, Effect.ANYTHING},
    (False, False, False): {Effect.TWO_PHASE, Effect.ANYTHING},
    (False, True, True): set(Effect) - {Effect.NOTHING},
}


@pytest.mark.parametrize("state", STATES)
def test_effects_are_in_doubt_depending_on_the_state(state: tuple[bool, bool, bool]) -> None:
    surely, maybe, autocommit = state
    doubted = {
        effect for effect in Effect if doubt_of(effect, surely_open=surely, may_be_open=maybe, autocommit=autocommit)
    }
    assert doubted == STATES[state]


@pytest.mark.lab
@pytest.mark.parametrize(
    ("begin", "statement", "unknown"),
    [
        ("", "SET AUTOCOMMIT = 0", False),
        ("", "SET NAMES utf8mb4", False),
        ("", "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", False),
        ("", "SELECT count(*) FROM ledger WHERE n IN (1, 2)", False),
        ("", "BEGIN", False),
        ("BEGIN", "BEGIN", True),
        ("SET AUTOCOMMIT = 0", "SET AUTOCOMMIT = 1", False),
        ("SELECT 1", "SELECT no_such_function()", True),
        ("", "INSERT INTO ledger (worker, thread, n) VALUES (1, 1, 1)", True),
        ("BEGIN", "LOAD DATA LOCAL INFILE '/nowhere' INTO TABLE ledger", False),
        ("XA START 'cut'", "XA COMMIT 'cut' ONE PHASE", True),
        ("XA START 'cut'", "XA PREPARE 'cut'", True),
    ],
)
def test_the_error_of_a_cut_depends_on_the_statement(
    kit: Kit, deployment: Deployment, make_pool: Callable[..., Pool[Any]], pair: Pair, begin: str, statement: str,
    unknown: bool,
) -> None:  # fmt: skip
    deployment.phase(Phase.PREPARATION)
    with pytest.raises(bgpool.SwitchoverError) as caught, make_pool(kwargs={"autocommit": True}).connection() as conn:
        if begin:
            kit.execute(conn, begin)
        kit.kill(pair, kit.session(conn))
        kit.execute(conn, statement)
    assert type(caught.value) is (bgpool.CommitOutcomeUnknown if unknown else bgpool.SwitchoverInterrupted)


@pytest.fixture(scope="module")
def scratch(mysql_pair: Pair) -> Iterator[Pair]:
    """A database with a table, a function that writes, and an empty table that shows committed rows."""
    mysql_pair.blue.execute("CREATE DATABASE scratch")
    for sql in (
        "CREATE TABLE t (n INT, a TEXT)",
        "CREATE TABLE written (n INT)",
        "CREATE TABLE witness (n INT)",
        "CREATE FUNCTION f() RETURNS INT DETERMINISTIC BEGIN INSERT INTO written VALUES (1); RETURN 1; END",
        "CREATE PROCEDURE p() COMMIT",
    ):
        mysql_pair.blue.execute(sql, database="scratch")
    yield mysql_pair
    mysql_pair.blue.execute("DROP DATABASE scratch")


def committed_by(pair: Pair, statement: str) -> bool:
    """Return whether *statement*, even if it fails, commits the transaction that it runs in."""
    with pair.blue.superuser("scratch") as session, session.cursor() as cursor:
        for sql in ("BEGIN", "INSERT INTO witness VALUES (1)"):
            cursor.execute(sql)
        with contextlib.suppress(pymysql.err.Error):
            cursor.execute(statement)
        return pair.blue.execute("SELECT count(*) FROM witness", database="scratch") != [(0,)]


@pytest.mark.lab
def test_statements_judged_harmless_commit_nothing(scratch: Pair) -> None:
    harmless = [text for text in (*READS, *WRITES) if "OUTFILE" not in text]
    assert not [text for text in harmless if committed_by(scratch, text)]


@pytest.mark.lab
@pytest.mark.parametrize("statement", ["CALL p()", "ALTER TABLE t COMMENT 'x'", "DROP TABLE no_such_table"])
def test_committing_statements_are_not_judged_harmless(scratch: Pair, statement: str) -> None:
    """This includes a statement that fails: it has already committed."""
    assert committed_by(scratch, statement)
    assert may_end(statement.encode(), ONE)
    scratch.blue.execute("TRUNCATE witness", database="scratch")


@pytest.mark.lab
def test_built_in_functions_are_not_replaced_by_stored_ones(scratch: Pair) -> None:
    """If the server looked for a stored function, it would raise an error because there is none."""

    def looks_for_stored(call: str) -> bool:
        try:
            cursor.execute(f"SELECT {call}")
        except pymysql.err.Error as error:
            return code_of(error) in (1305, 1630)
        return False

    with scratch.blue.superuser("scratch") as session, session.cursor() as cursor:
        assert looks_for_stored("no_such(1)")
        assert looks_for_stored("MAX (1)")
        calls = [f"{name}({args})" for name in FUNCTIONS for args in ("", "0", "0, 0")]
        calls += [f"{name} (1)" for name in RESERVED]
        assert not [call for call in calls if looks_for_stored(call)]
