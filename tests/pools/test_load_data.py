"""LOAD DATA LOCAL: a file that stops half-way is never committed, and a lost connection raises the driver's error."""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.connections import MySQLResult

import bgpool
from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.pool import MysqlPool
from bgpool.testing import Deployment
from tests.engines import Kit, sleepers
from tests.pools.callers import Caller, wait_until

pytestmark = pytest.mark.lab

ENGINES = (Engine.MYSQL,)

MakePool = Callable[..., MysqlPool]

#: More data than a socket's buffers hold.
MANY_ROWS = b"".join(b"%060d\n" % n for n in range(200_000))


@pytest.fixture(scope="module", autouse=True)
def _table(mysql_pair: Pair) -> None:
    # MySQL 8.0 and newer refuse local files by default; MariaDB allows them.
    mysql_pair.blue.execute("SET GLOBAL local_infile = 1")
    mysql_pair.blue.execute("CREATE TABLE IF NOT EXISTS app.loaded (v VARCHAR(60))")


@pytest.fixture
def load(make_pool: MakePool) -> Callable[..., Any]:
    """Return a maker of pools whose connections may load local files."""
    return lambda **kwargs: make_pool(max_size=1, kwargs={"local_infile": True, **kwargs})


def statement(path: Path) -> str:
    return f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE loaded (v)"


def count(pair: Pair) -> int:
    return int(pair.blue.execute("SELECT count(*) FROM app.loaded")[0][0])


class Breaking(io.BytesIO):
    """A file of which two pieces can be read; then *error* is raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(MANY_ROWS)
        self._error = error
        self._left = 2

    def read(self, size: int | None = -1, /) -> bytes:
        if not self._left:
            raise self._error
        self._left -= 1
        return super().read(size)


class TimeIsUp(BaseException):
    """Like the timeouts of gevent and Celery."""


@pytest.fixture
def half_way(tmp_path: Path) -> Iterator[Callable[[Callable[[], object]], Path]]:
    """Return a maker of files that call a function after the first half was read."""
    writers: list[threading.Thread] = []

    def make(meanwhile: Callable[[], object]) -> Path:
        path = tmp_path / f"rows-{len(writers)}"
        os.mkfifo(path)

        def write() -> None:
            try:
                with path.open("wb") as file:
                    file.write(MANY_ROWS[: len(MANY_ROWS) // 2])
                    meanwhile()
                    file.write(MANY_ROWS)
            except BrokenPipeError:
                pass  # the reader is gone

        writers.append(threading.Thread(target=write, daemon=True))
        writers[-1].start()
        return path

    yield make
    for writer in writers:
        writer.join(10)


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("how", ["killed", "cut by the pool"])
@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.PREPARATION])
def test_a_cut_half_way_raises_and_loads_nothing(
    load: Any, half_way: Any, kit: Kit, pair: Pair, deployment: Deployment, how: str, autocommit: bool, phase: Phase
) -> None:
    deployment.phase(phase)
    pool = load(autocommit=autocommit)
    conn: MysqlConnection = pool.getconn()

    def end() -> None:
        if how == "killed":
            kit.kill(pair, kit.session(conn))
        else:
            conn.bgpool_generation.cut()

    with pytest.raises(pymysql.err.OperationalError) as caught:
        kit.execute(conn, statement(half_way(end)))
    if phase is Phase.PREPARATION:
        assert isinstance(caught.value, bgpool.SwitchoverError)
        assert isinstance(caught.value, bgpool.CommitOutcomeUnknown) == autocommit
    else:
        assert caught.value.args[0] in (2006, 2013)
    assert conn.closed
    pool.putconn(conn)
    with pool.connection() as conn:
        assert kit.execute(conn, "SELECT count(*) FROM loaded") == [(0,)]


def test_a_large_statement_that_the_server_stops_reading_fails(
    load: Any, kit: Kit, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends the connection and leaves a full window: the rest can never be sent."""
    pool = load(autocommit=True, write_timeout=60)
    conn = pool.getconn()
    waiting = MysqlConnection._wait_writable
    pieces: list[int] = []

    def kill_half_way(self: MysqlConnection) -> None:
        pieces.append(1)
        if len(pieces) == 300:
            kit.kill(pair, kit.session(conn))
        waiting(self)

    monkeypatch.setattr(MysqlConnection, "_wait_writable", kill_half_way)
    began = time.monotonic()
    with pytest.raises(pymysql.err.OperationalError):
        kit.execute(conn, f"INSERT INTO loaded VALUES {','.join([f'({chr(39)}{57 * chr(120)}{chr(39)})'] * 240_000)}")
    assert time.monotonic() - began < 45
    assert conn.closed
    pool.putconn(conn)
    assert count(pair) == 0


def test_a_unit_is_run_again(load: Any, half_way: Any, kit: Kit, pair: Pair, deployment: Deployment) -> None:
    deployment.phase(Phase.PREPARATION)
    calls: list[int] = []

    def work(conn: MysqlConnection) -> str:
        calls.append(kit.session(conn))
        if len(calls) == 1:
            kit.execute(conn, statement(half_way(lambda: kit.kill(pair, calls[0]))))
        return "again"

    assert load().run(work) == "again"


@pytest.mark.parametrize("error", [TimeIsUp(), OSError(errno.EIO, "Input/output error")], ids=["interrupt", "disk"])
def test_a_file_that_stops_half_way_is_not_committed(
    load: Any, kit: Kit, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    pool = load(autocommit=True)
    conn = pool.getconn()
    monkeypatch.setattr(Path, "open", lambda *_: Breaking(error))
    with pytest.raises(type(error) if isinstance(error, TimeIsUp) else pymysql.err.OperationalError) as caught:
        kit.execute(conn, statement(tmp_path / "rows"))
    monkeypatch.undo()
    assert isinstance(caught.value, TimeIsUp) or caught.value.args[0] == pymysql.constants.ER.FILE_NOT_FOUND
    assert conn.closed
    pool.putconn(conn)
    assert count(pair) == 0


def test_a_missing_file_loses_neither_connection_nor_transaction(load: Any, kit: Kit, tmp_path: Path) -> None:
    with load().connection() as conn:
        kit.write(conn)
        for path in (tmp_path / "missing", tmp_path):
            with pytest.raises(pymysql.err.OperationalError, match=f"cannot read the local file '{path}'"):
                kit.execute(conn, statement(path))
            assert conn.bgpool_in_transaction
        assert kit.execute(conn, "SELECT 'mine'") == [("mine",)]
        conn.rollback()


@pytest.mark.parametrize("cursor_class", [pymysql.cursors.Cursor, pymysql.cursors.SSCursor])
def test_a_whole_file_is_loaded(load: Any, kit: Kit, tmp_path: Path, cursor_class: Any) -> None:
    path = tmp_path / "rows"
    path.write_bytes(MANY_ROWS[: 61 * 3000])
    with load().connection() as conn:
        with conn.cursor(cursor_class) as cursor:
            assert cursor.execute(statement(path)) == 3000
        assert kit.execute(conn, "SELECT count(*) FROM loaded") == [(3000,)]
        conn.rollback()


def test_a_file_in_one_of_many_statements_is_not_committed_in_part(
    load: Any, pair: Pair, tmp_path: Path, monkeypatch: Any
) -> None:
    pool = load(autocommit=True, client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS)
    conn = pool.getconn()
    cursor = conn.cursor()
    cursor.execute(f"SELECT NULL; {statement(tmp_path / 'rows')}")
    monkeypatch.setattr(Path, "open", lambda *_: Breaking(TimeIsUp()))
    with pytest.raises(TimeIsUp):
        cursor.nextset()
    monkeypatch.undo()
    pool.putconn(conn)
    assert count(pair) == 0


def test_loading_is_refused_without_the_option(make_pool: MakePool, kit: Kit, tmp_path: Path) -> None:
    with make_pool(max_size=1).connection() as conn:
        with pytest.raises(pymysql.err.MySQLError):
            kit.execute(conn, statement(tmp_path / "rows"))
        assert kit.execute(conn, "SELECT 'mine'") == [("mine",)]


class TestLost:
    """Any use of a closed connection raises the driver's InterfaceError, regardless of the cause."""

    @pytest.mark.parametrize(
        "ask",
        [
            lambda conn: conn.next_result(),
            lambda conn: conn._read_packet(),
            lambda conn: conn.write_packet(b""),
            lambda conn: conn.ping(),
            lambda conn: conn.show_warnings(),
            lambda conn: conn.select_db("app"),
            lambda conn: conn.set_character_set("utf8mb4"),
            lambda conn: conn.autocommit(not conn.get_autocommit()),
            lambda conn: conn.begin(),
            lambda conn: conn.commit(),
            lambda conn: conn.kill(1),
            lambda conn: conn.cursor().callproc("p", (1,)),
            lambda conn: conn.cursor().executemany("INSERT INTO ledger (n) VALUES (%s)", [(1,), (2,)]),
        ],
    )
    def test_a_lost_connection_refuses_further_use(self, make_pool: MakePool, ask: Callable[[Any], object]) -> None:
        pool = make_pool(max_size=1)
        conn = pool.getconn()
        conn._force_close()
        with pytest.raises(pymysql.err.InterfaceError):
            ask(conn)
        pool.putconn(conn)

    def test_lost_rows_do_not_look_like_the_end(self, make_pool: MakePool) -> None:
        pool = make_pool(max_size=1)
        conn = pool.getconn()
        cursor = conn.cursor(pymysql.cursors.SSCursor)
        cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
        assert cursor.fetchone() == (1,)
        conn.close()
        with pytest.raises(pymysql.err.InterfaceError):
            cursor.fetchone()

    def test_a_close_by_another_thread_ends_the_wait(self, make_pool: MakePool, kit: Kit, pair: Pair) -> None:
        pool = make_pool(max_size=1)
        conn = pool.getconn()
        sock: Any = conn._sock
        caller = Caller(lambda: kit.sleep(conn, 60))
        wait_until(lambda: kit.session(conn) in sleepers(pair))
        conn._sock = None
        sock.shutdown(socket.SHUT_RDWR)
        assert isinstance(caller.wait(), pymysql.err.OperationalError)
        sock.close()
        pool.putconn(conn)

    @pytest.mark.filterwarnings("ignore:Previous unbuffered result")
    @pytest.mark.parametrize("how", ["the rest is skipped", "a row is fetched"])
    def test_an_interrupt_at_the_end_of_an_unbuffered_result(
        self, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        """The last packet has been read, but PyMySQL has not noted it: no further packet is awaited."""

        def interrupted(_result: object, packet: Any) -> bool:
            if packet.is_eof_packet():
                raise TimeIsUp
            return False

        pool = make_pool(max_size=1)
        with pytest.raises(TimeIsUp), pool.connection() as conn:
            cursor = conn.cursor(pymysql.cursors.SSCursor)
            cursor.execute("SELECT 1")
            with monkeypatch.context() as patch:
                patch.setattr(MySQLResult, "_check_packet_is_eof", interrupted)
                if how == "a row is fetched":
                    cursor.fetchall()
                else:
                    conn.bgpool_settle()
        with pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute("SELECT 2")
            assert cursor.fetchall() == ((2,),)

    def test_an_interrupt_while_reading_warnings_closes_the_connection(self, make_pool: MakePool) -> None:
        def interrupted(_value: object) -> None:
            raise TimeIsUp

        pool = make_pool(max_size=1)
        conn = pool.getconn()
        conn.query("SELECT 1/0, CAST('x' AS SIGNED), CAST('y' AS SIGNED)")
        conn.decoders = dict.fromkeys(range(256), interrupted)
        with pytest.raises(TimeIsUp):
            conn.show_warnings()
        assert conn.closed
        pool.putconn(conn)
