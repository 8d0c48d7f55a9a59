"""Django's engine for MySQL on PyMySQL: what it sends, and which options of mysqlclient it takes."""

from __future__ import annotations

import datetime
import select
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pymysql
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, OperationalError, connections, transaction
from pymysql.constants import CLIENT

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.integrations.django import is_interrupted
from bgpool.lab import Pair
from bgpool.mysql import CUT_CODES
from bgpool.testing import Deployment
from tests.engines import Kit

pytestmark = pytest.mark.lab
ENGINES = (Engine.MYSQL,)

PYMYSQLS = "SET NAMES utf8mb4"
READ_COMMITTED = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
INSERT = "INSERT INTO ledger (worker, thread, n) VALUES (77, 7, 7)"


def ask(alias: str, sql: str, params: Any = None) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0] if cursor.description else None


@pytest.fixture
def sent(pair: Pair) -> Iterator[Callable[[int], list[str]]]:
    """Return the statements of a session in blue's general log since the last call."""
    before = dict(pair.blue.execute("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('general_log', 'log_output')"))
    pair.blue.execute("SET GLOBAL log_output = 'TABLE'")
    pair.blue.execute("SET GLOBAL general_log = 1")

    def since(session: int) -> list[str]:
        """All but how a session begins and ends."""
        rows = pair.blue.execute(
            f"SELECT argument FROM mysql.general_log WHERE thread_id = {session} AND command_type = 'Query'"
        )
        pair.blue.execute("SET GLOBAL general_log = 0")
        pair.blue.execute("TRUNCATE mysql.general_log")
        pair.blue.execute("SET GLOBAL general_log = 1")
        return [row[0].decode() if isinstance(row[0], bytes) else str(row[0]) for row in rows]

    yield since
    pair.blue.execute(f"SET GLOBAL general_log = {before['general_log']}")
    pair.blue.execute(f"SET GLOBAL log_output = '{before['log_output']}'")
    pair.blue.execute("TRUNCATE mysql.general_log")


class TestSent:
    def test_setup_of_a_connection_sends_one_statement_more_than_the_driver(
        self, kit: Kit, make_database: Callable[..., str], sent: Callable[[int], list[str]]
    ) -> None:
        """It is in autocommit, as servers are: nothing turns that off and on again."""
        alias = make_database()
        wrapper: Any = connections[alias]
        ask(alias, "SELECT 1")
        wrapper.close()
        wrapper.ensure_connection()
        assert sent(kit.session(wrapper.connection)) == [PYMYSQLS, READ_COMMITTED]

    def test_what_django_joins_is_sent_apart(
        self, kit: Kit, pair: Pair, make_database: Callable[..., str], sent: Callable[[int], list[str]]
    ) -> None:
        pair.blue.execute("SET GLOBAL sql_auto_is_null = 1")
        try:
            wrapper: Any = connections[make_database()]
            wrapper.ensure_connection()
            told = sent(kit.session(wrapper.connection))
        finally:
            pair.blue.execute("SET GLOBAL sql_auto_is_null = 0")
        assert [text for text in told if text.startswith("SET")] == [
            PYMYSQLS,
            "SET SQL_AUTO_IS_NULL = 0",
            READ_COMMITTED,
        ]

    @pytest.mark.parametrize("pool", [None, True])
    def test_an_atomic_block_has_three_statements_around_it(
        self, kit: Kit, make_database: Callable[..., str], sent: Callable[[int], list[str]], pool: object
    ) -> None:
        """The same number as with mysqlclient."""
        alias = make_database({"pool": pool} if pool else None)
        wrapper: Any = connections[alias]
        session = kit.session(wrapper.connection) if ask(alias, "SELECT 1") and wrapper.connection else 0
        sent(session)
        with transaction.atomic(using=alias):
            ask(alias, INSERT)
        assert sent(session) == ["SET AUTOCOMMIT = 0", INSERT, "COMMIT", "SET AUTOCOMMIT = 1"]

    def test_a_block_that_only_reads_commits_what_it_has_begun(
        self, kit: Kit, make_database: Callable[..., str], sent: Callable[[int], list[str]]
    ) -> None:
        alias = make_database()
        wrapper: Any = connections[alias]
        ask(alias, "SELECT 1")
        session = kit.session(wrapper.connection)
        sent(session)
        with transaction.atomic(using=alias):
            ask(alias, "SELECT 2")
        # A SELECT without a table begins no transaction: there is nothing to commit.
        assert sent(session) == ["SET AUTOCOMMIT = 0", "SELECT 2", "SET AUTOCOMMIT = 1"]

    def test_a_pools_connection_is_set_up_once(
        self, kit: Kit, make_database: Callable[..., str], sent: Callable[[int], list[str]]
    ) -> None:
        alias = make_database({"pool": {"min_size": 1, "max_size": 1}})
        wrapper: Any = connections[alias]
        told = []
        for n in (1, 2):
            ask(alias, f"SELECT {n}")
            session = kit.session(wrapper.connection)
            wrapper.close()
            told += [text for text in sent(session) if text.startswith("SET")]
        assert told == [PYMYSQLS, "SET SQL_AUTO_IS_NULL = 0", READ_COMMITTED]


class TestCut:
    """The server ends the session while a switchover is prepared."""

    @pytest.fixture
    def cut(self, kit: Kit, pair: Pair, deployment: Deployment, make_database: Callable[..., str]) -> str:
        """A database whose kept connection was ended, which has not been noticed yet."""
        alias = make_database()
        wrapper: Any = connections[alias]
        ask(alias, "SELECT 1")
        deployment.phase(Phase.PREPARATION)
        kit.kill(pair, kit.session(wrapper.connection))
        return alias

    def test_what_opens_an_atomic_block_is_not_in_doubt(self, cut: str) -> None:
        with pytest.raises(OperationalError) as raised, transaction.atomic(using=cut):
            pass
        assert is_interrupted(raised.value)

    @pytest.mark.parametrize(
        "sql", ["SELECT 1", "SET NAMES utf8mb4", "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", READ_COMMITTED]
    )
    def test_what_commits_nothing_is_not_in_doubt(self, cut: str, sql: str) -> None:
        with pytest.raises(OperationalError) as raised:
            ask(cut, sql)
        assert is_interrupted(raised.value)

    def test_what_writes_in_autocommit_is(self, cut: str) -> None:
        with pytest.raises(OperationalError) as raised:
            ask(cut, INSERT)
        assert isinstance(raised.value.__cause__, bgpool.CommitOutcomeUnknown)


class TestLost:
    """The server ends the session, and there is no switchover."""

    @pytest.fixture(params=["kept", "pool", "plain"])
    def alias(self, request: pytest.FixtureRequest, pair: Pair, make_database: Callable[..., str]) -> str:
        options: dict[str, dict[str, Any]] = {"kept": {}, "pool": {"pool": True}, "plain": {"bg_id": None}}
        host = {"HOST": pair.blue.address} if request.param == "plain" else {}
        return make_database(options[request.param], **host)

    def test_a_block_that_has_caught_the_error_fails_and_the_next_one_does_not(
        self, kit: Kit, pair: Pair, alias: str
    ) -> None:
        """Django rolls back, as with mysqlclient: for Django, PyMySQL's error there is no DatabaseError."""
        with pytest.raises(OperationalError, match="gone away") as raised, transaction.atomic(using=alias):
            ask(alias, INSERT)
            connection: Any = connections[alias].connection
            kit.kill(pair, kit.session(connection))
            assert select.select([connection._sock], [], [], 10)[0]
            for codes in (CUT_CODES, {2006}):
                with pytest.raises(OperationalError) as caught:
                    ask(alias, "SELECT 1")
                assert caught.value.args[0] in codes
        assert raised.value.args[0] == 2006
        with transaction.atomic(using=alias):
            assert ask(alias, "SELECT 41 + 1") == 42
        assert connections[alias].get_autocommit()


class Limit(BaseException):
    """An interrupt, or a time limit of Celery's."""


class TestInterrupted:
    """While an answer is waited for, at the end of a block. PyMySQL closes the connection then."""

    class _Reader:
        def read(self, _count: int) -> bytes:
            raise Limit

        def close(self) -> None:
            pass

    @pytest.fixture(params=[None, True], ids=["kept", "pool"])
    def alias(self, request: pytest.FixtureRequest, deployment: Deployment, make_database: Callable[..., str]) -> str:
        deployment.phase(Phase.PREPARATION)
        return make_database({"pool": request.param} if request.param else None)

    def check(self, alias: str) -> None:
        """The next query is asked on a connection of its own, in autocommit."""
        for n in (1, 2):
            assert ask(alias, f"SELECT {n}") == n
        assert connections[alias].get_autocommit()

    def test_in_rollback(self, alias: str) -> None:
        wrapper: Any = connections[alias]
        with pytest.raises(Limit), transaction.atomic(using=alias):
            ask(alias, INSERT)
            wrapper.connection._rfile = self._Reader()
            raise KeyError
        self.check(alias)

    def test_behind_commit(self, alias: str) -> None:
        """Or the next query would be said to have been cut, and not to have committed."""
        wrapper: Any = connections[alias]
        with pytest.raises(Limit), transaction.atomic(using=alias):
            ask(alias, "UPDATE ledger SET n = n WHERE worker = -1")
            # Runs after COMMIT, and before what turns autocommit on.
            committed = wrapper._commit

            def commit() -> None:
                committed()
                wrapper.connection._rfile = self._Reader()

            wrapper._commit = commit
        del wrapper._commit
        self.check(alias)


class TestMixin:
    """A backend of another library, with MysqlWrapper mixed in before it."""

    def test_its_cursors_are_kept(self, make_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        from django.db.backends.mysql import base

        from bgpool.integrations.django.mysql.base import MysqlWrapper

        class Counting(base.CursorWrapper):
            executed: ClassVar[list[str]] = []

            def execute(self, query: Any, args: Any = None) -> Any:
                self.executed.append(query)
                return super().execute(query, args)

        class Theirs(base.DatabaseWrapper):
            def create_cursor(self, name: str | None = None) -> Any:
                del name
                return Counting(self.connection.cursor())

        class Mixed(MysqlWrapper, Theirs):
            pass

        backend = types.ModuleType("counting.base")
        backend.DatabaseWrapper = Mixed  # type: ignore[attr-defined]  # a module is given its names
        monkeypatch.setitem(sys.modules, "counting", types.ModuleType("counting"))
        monkeypatch.setitem(sys.modules, "counting.base", backend)
        assert ask(make_database(ENGINE="counting"), "SELECT 41 + 1") == 42
        assert "SELECT 41 + 1" in Counting.executed


class TestOptions:
    def test_mysqlclients_names(self, pair: Pair, make_database: Callable[..., str]) -> None:
        alias = make_database({"db": "app", "passwd": pair.app_password}, NAME="", PASSWORD="")
        assert ask(alias, "SELECT DATABASE()") == "app"

    def test_session_options(self, make_database: Callable[..., str]) -> None:
        options = {
            "init_command": "SET SESSION max_join_size = 12345",
            "sql_mode": "STRICT_ALL_TABLES",
            "charset": "utf8mb4",
            "connect_timeout": 5,
            "isolation_level": "serializable",
        }
        alias = make_database(options)
        assert ask(alias, "SELECT @@max_join_size") == 12345
        assert ask(alias, "SELECT @@sql_mode") == "STRICT_ALL_TABLES"
        assert ask(alias, "SELECT @@tx_isolation") == "SERIALIZABLE"

    def test_no_isolation_level_is_the_servers(self, make_database: Callable[..., str]) -> None:
        alias = make_database({"isolation_level": None})
        assert ask(alias, "SELECT @@tx_isolation") == "REPEATABLE-READ"

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"read_default_file": "/etc/my.cnf"}, "write user, password, host and port into HOST, PORT, USER"),
            ({"ssl_mode": "VERIFY_IDENTITY"}, "ssl_mode=VERIFY_IDENTITY is mysqlclient's"),
            ({"isolation_level": "none"}, "Invalid transaction isolation level 'none'"),
            ({"client_flag": "FOUND_ROWS"}, "client_flag"),
            ({"no_such": 1}, "unknown parameter 'no_such'"),
        ],
    )
    def test_what_is_refused(self, make_database: Callable[..., str], options: dict[str, Any], text: str) -> None:
        wrapper: Any = connections[make_database(options)]
        with pytest.raises(ImproperlyConfigured, match=text):
            wrapper.ensure_connection()

    @pytest.mark.parametrize("options", [{}, {"client_flag": "65536"}, {"client_flag": CLIENT.MULTI_STATEMENTS}])
    def test_updates_count_the_rows_that_were_found(
        self, make_database: Callable[..., str], options: dict[str, Any]
    ) -> None:
        """Or save() would insert a row that is there already, and has not changed."""
        alias = make_database(options)
        ask(alias, "CREATE TEMPORARY TABLE t (n INT)")
        ask(alias, "INSERT INTO t VALUES (1)")
        with connections[alias].cursor() as cursor:
            cursor.execute("UPDATE t SET n = 1")
            assert cursor.rowcount == 1

    def test_times_are_times(self, make_database: Callable[..., str]) -> None:
        assert str(ask(make_database(), "SELECT CAST('01:02:03' AS TIME)")) == "01:02:03"
        assert type(ask(make_database(), "SELECT CAST('01:02:03' AS TIME)")).__name__ == "time"

    @pytest.mark.parametrize(
        "value",
        ["CAST('0000-00-00' AS DATE)", "STR_TO_DATE('2026-11', '%Y-%m')", "CAST('0000-00-00 00:00:00' AS DATETIME)"],
    )
    def test_a_date_that_there_is_not_is_none(self, make_database: Callable[..., str], value: str) -> None:
        """Old tables contain them; Django's fields do not accept text in their place. mysqlclient does the same."""
        assert ask(make_database(), f"SELECT {value}") is None

    def test_dates_are_dates(self, make_database: Callable[..., str]) -> None:
        alias = make_database()
        assert ask(alias, "SELECT CAST('2026-11-29' AS DATE)") == datetime.date(2026, 11, 29)
        made = ask(alias, "SELECT CAST('2026-11-29 01:02:03.000004' AS DATETIME(6))")
        assert made == datetime.datetime(2026, 11, 29, 1, 2, 3, 4)

    def test_a_check_is_an_integrity_error(self, make_database: Callable[..., str]) -> None:
        alias = make_database()
        ask(alias, "CREATE TEMPORARY TABLE c (n INT CHECK (n > 0))")
        with pytest.raises(IntegrityError):
            ask(alias, "INSERT INTO c VALUES (-1)")

    def test_mysqlclient_is_not_used(self, make_database: Callable[..., str]) -> None:
        wrapper: Any = connections[make_database()]
        ask(wrapper.alias, "SELECT 1")
        assert isinstance(wrapper.connection, pymysql.connections.Connection)
        assert wrapper.Database is pymysql
        assert all("MySQLdb" not in getattr(value, "__module__", "") for value in wrapper.connection.decoders.values())

    def test_a_closed_connection_is_not_connected_again_by_the_driver(self, make_database: Callable[..., str]) -> None:
        alias = make_database({"bg_id": None, "bg_resolver": "system"}, HOST="127.0.0.1")
        wrapper: Any = connections[alias]
        wrapper.connection = pymysql.connections.Connection(defer_connect=True)
        assert not wrapper.is_usable()
        wrapper.connection = None
