"""The answers of a monitoring connection from a real MariaDB that is set up like RDS and Aurora MySQL."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pymysql
import pytest
import trustme

from bgpool import sockets
from bgpool.auth import PasswordMaker
from bgpool.core.phase import Phase
from bgpool.core.plan import Target
from bgpool.dsn import parse
from bgpool.monitor.dialects.mysql import AURORA, MysqlSession, status_rows
from bgpool.monitor.session import SessionError
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader
from tests.waiting import quickest

pytestmark = pytest.mark.lab

ADDRESS: Final = "127.83.12.5"
NOBODY: Final = "127.83.12.6"
SCRIPTS: Final = Path("/usr/share/mysql")
GREEN, BLUE = "db-green-abc123.c0.eu-west-1.rds.amazonaws.com", "db.c0.eu-west-1.rds.amazonaws.com"
TABLE: Final = (
    "CREATE OR REPLACE TABLE mysql.rds_topology"
    " (ID int, Endpoint varchar(255), PORT int, Role varchar(64), STATUS varchar(64), version varchar(8))"
)
ROWS: Final = (
    f"INSERT INTO mysql.rds_topology VALUES (1, '{BLUE}', 3306, 'BLUE_GREEN_DEPLOYMENT_SOURCE', 'AVAILABLE', '1.0'),"
    f" (2, '{GREEN}', 3306, 'BLUE_GREEN_DEPLOYMENT_TARGET', 'AVAILABLE', '1.0')"
)


class Server:
    """A MariaDB for these tests, on one loopback address, whose certificate is for BLUE."""

    def __init__(self, directory: Path) -> None:
        self.port = _free_port()
        self.ca = directory / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        authority.issue_cert(BLUE).private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
        self._owner: dict[str, Any] = {}
        if os.getuid() == 0:
            account = pwd.getpwnam("nobody")
            self._owner = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            for owned in (directory, *directory.iterdir()):
                os.chown(owned, account.pw_uid, account.pw_gid)
        path, log = directory / "socket", directory / "log"
        command = ["/usr/sbin/mariadbd", "--no-defaults", f"--datadir={directory}", f"--log-error={log}"]
        command += ["--innodb-buffer-pool-size=16M", f"--ssl-cert={directory / 'server.pem'}"]
        names = ("mysql_system_tables.sql", "mysql_performance_tables.sql")
        scripts = [(SCRIPTS / name).read_text(encoding="utf-8") for name in names]
        root = "INSERT INTO global_priv VALUES ('localhost', 'root', '{\"access\":18446744073709551615}');\n"
        script = "\n".join(("CREATE DATABASE mysql;", "USE mysql;", *scripts, root))
        subprocess.run([*command, "--bootstrap"], check=True, input=script.encode(), **self._owner)
        command += [f"--ssl-key={directory / 'server.pem'}", f"--socket={path}", f"--bind-address={ADDRESS}"]
        self._root: Any = None
        self._process = subprocess.Popen([*command, f"--port={self.port}"], **self._owner)
        try:
            self._root = self._connect(path, log)
            self.execute(
                "CREATE DATABASE app",
                "CREATE USER monitor IDENTIFIED BY 's3cret'",
                "CREATE USER stranger IDENTIFIED BY 's3cret'",
                "GRANT SELECT ON mysql.* TO monitor",
                "GRANT ALL ON app.* TO monitor",
            )
        except BaseException:
            self.stop()
            raise

    def execute(self, *statements: str) -> Any:
        """Run *statements* as root; return the rows of the last one."""
        with self._root.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the server within the block, so that it does not answer."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            # The server may run for another moment.
            while (
                Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "T"
            ):
                time.sleep(0.001)
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop the server and remove its directory."""
        if self._root is not None:
            self._root.close()
        self._process.kill()
        self._process.wait()

    def _connect(self, path: Path, log: Path) -> pymysql.connections.Connection[Any]:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    return pymysql.connect(unix_socket=str(path), user="root", autocommit=True)
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(log.read_text(encoding="utf-8")[-2000:])
            time.sleep(0.1)


def _free_port() -> int:
    with socket.create_server((ADDRESS, 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not pytest's directory, which other accounts may not enter.
    directory = Path(tempfile.mkdtemp(prefix="bgpool-mariadb-"))
    try:
        server = Server(directory)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


Open = Callable[..., MysqlSession]


@pytest.fixture
def session(server: Server) -> Iterator[Open]:
    """Open sessions as the monitor would, and close them at the end."""
    opened: list[MysqlSession] = []
    server.execute(TABLE, ROWS)

    def open_session(target: Target | None = None, user: str = "monitor", **monitoring: Any) -> MysqlSession:
        password = monitoring.pop("password_callable", None)
        place, _, _ = parse(f"mysql://{user}:s3cret@{BLUE}/app", {"monitoring": monitoring})
        known = Target(BLUE, server.port, (ADDRESS,))
        opened.append(MysqlSession(place.monitoring, target or known, password and PasswordMaker(password)))
        return opened[-1]

    yield open_session
    for one in opened:
        one.close()
    server.execute(
        "SET GLOBAL read_only = 0",
        "DROP FUNCTION IF EXISTS app.aurora_version",
        "DROP TABLE IF EXISTS mysql.rds_topology",
    )


def test_every_state_of_the_metadata(server: Server, session: Open) -> None:
    blue = session()
    answer = blue.ask()
    assert (answer.read_only, answer.replica, answer.servers, answer.missing) == (False, False, (), "")
    assert answer.rows is not None
    assert answer.max_connections == server.execute("SELECT @@global.max_connections")[0][0]
    assert [(row.endpoint, row.port, row.status, row.version) for row in answer.rows] == [
        (BLUE, 3306, "AVAILABLE", "1.0"),
        (GREEN, 3306, "AVAILABLE", "1.0"),
    ]
    server.execute("UPDATE mysql.rds_topology SET status = 'SWITCHOVER_INITIATED'")
    rows = blue.ask().rows
    assert rows is not None, "no stale snapshot"
    assert {row.status for row in rows} == {"SWITCHOVER_INITIATED"}
    server.execute("DELETE FROM mysql.rds_topology", "SET GLOBAL read_only = 1")
    answer = blue.ask()
    assert (answer.read_only, answer.rows, answer.missing, answer.failure) == (True, (), "", "")
    server.execute("DROP TABLE mysql.rds_topology")
    answer = blue.ask()
    assert (answer.read_only, answer.rows) == (True, None)
    assert "RDS for MySQL: mysql.rds_topology does not exist" in answer.missing
    server.execute("SET GLOBAL read_only = 0", TABLE, ROWS)
    answer = blue.ask()
    assert (answer.read_only, len(answer.rows or ())) == (False, 2)


def test_the_table_of_a_multi_az_cluster_is_not_supported(server: Server, session: Open) -> None:
    blue = session()
    shape = "CREATE OR REPLACE TABLE mysql.rds_topology (id int, endpoint varchar(255), port int)"
    server.execute(shape)
    for _ in range(2):
        answer = blue.ask()
        assert answer.rows is None
        assert "no role and no status, as in an RDS Multi-AZ DB cluster; these are not supported" in answer.missing
        server.execute("INSERT INTO mysql.rds_topology VALUES (1, 'x', 3306)")


def test_a_missing_grant_is_missing_and_not_a_failure(server: Server, session: Open) -> None:
    # Only the privileges from the documentation: the application's grants and database are not part of these.
    stranger = session(user="stranger")
    answer = stranger.ask()
    assert answer.rows is None
    assert "GRANT SELECT ON mysql.rds_topology TO 'stranger'@'%';" in answer.missing
    server.execute("GRANT SELECT ON mysql.rds_topology TO 'stranger'@'%'")
    try:
        assert len(stranger.ask().rows or ()) == 2
    finally:
        server.execute("REVOKE SELECT ON mysql.rds_topology FROM 'stranger'@'%'")


def test_any_other_error_of_the_server_is_a_failure(server: Server, session: Open) -> None:
    blue = session()
    server.execute(
        "DROP TABLE mysql.rds_topology",
        "CREATE OR REPLACE VIEW mysql.rds_topology AS SELECT"
        " 1 AS endpoint, 2 AS role, (SELECT 1 UNION SELECT 2) AS status",
    )
    try:
        for _ in range(2):
            answer = blue.ask()
            assert (answer.rows, answer.missing, answer.read_only) == (None, "", False)
            assert answer.failure.startswith("OperationalError 1242: Subquery returns more than 1 row")
    finally:
        server.execute("DROP VIEW mysql.rds_topology")


def test_aurora_is_recognized_by_its_version_and_queried_for_its_servers(server: Server, session: Open) -> None:
    server.execute(
        "CREATE FUNCTION app.aurora_version() RETURNS varchar(16) RETURN '3.08.0'", "DELETE FROM mysql.rds_topology"
    )
    blue = session(database="app")  # this database has the function that replaces Aurora's own
    assert blue.ask().rows == (), "without a deployment the servers are not queried"
    server.execute("DROP TABLE mysql.rds_topology")
    assert "Aurora MySQL: mysql.rds_topology does not exist; Aurora MySQL offers it from 3.07" in blue.ask().missing
    server.execute(TABLE, ROWS)
    assert "REPLICA_HOST_STATUS" in blue.ask().failure.upper(), "MariaDB has no such table"


def test_the_topology_has_the_writer_first_and_no_server_that_is_gone(server: Server, session: Open) -> None:
    session()
    server.execute(
        "CREATE OR REPLACE TABLE app.replica_host_status"
        " (SERVER_ID varchar(100), SESSION_ID varchar(100), LAST_UPDATE_TIMESTAMP datetime(6))",
        "SET time_zone = '-08:00'",
        "INSERT INTO app.replica_host_status VALUES"
        " ('reader-2', 'a', UTC_TIMESTAMP(6) - INTERVAL 20 SECOND),"
        " ('gone', 'b', UTC_TIMESTAMP(6) - INTERVAL 6 MINUTE),"
        " ('reader-1', 'c', NOW(6)),"
        " ('writer', 'MASTER_SESSION_ID', NOW(6) - INTERVAL 1 DAY),"
        " ('odd', 'd', NULL)",
    )
    sql = AURORA.topology.replace("information_schema.replica_host_status", "app.replica_host_status")
    assert sql != AURORA.topology
    assert [name for (name,) in server.execute(sql)] == ["writer", "reader-1", "reader-2"]


def test_rows_of_any_type_are_read() -> None:
    columns = ["port", "status", "endpoint", "role"]
    rows = status_rows(columns, [("3306", b"AVAILABLE", "db", None), (None, "x", "y", "z"), [None] * 4])
    assert [(row.endpoint, row.port, row.role, row.status, row.version) for row in rows] == [
        ("db", 3306, "", "AVAILABLE", "1.0"),
        ("y", 0, "z", "x", "1.0"),
    ]


def test_a_cut_and_a_refusal_are_session_errors_in_one_line(server: Server, session: Open) -> None:
    blue = session()
    assert blue.ask().rows
    (number,) = blue._query("SELECT CONNECTION_ID()")[1][0]
    server.execute(f"KILL {number}")
    with pytest.raises(SessionError) as caught:
        blue.ask()
    assert "\n" not in str(caught.value)
    with pytest.raises(SessionError):
        blue.ask()
    with pytest.raises(SessionError, match="OperationalError 1045: Access denied") as caught:
        session(password="wr0ng")
    assert "wr0ng" not in str(caught.value)
    assert caught.value.refused
    other = session()
    sockets.cut(other.socket, sockets.identity(other.socket))
    with pytest.raises(SessionError):
        other.ask()


def test_an_unreachable_address_is_followed_by_the_next(server: Server, session: Open) -> None:
    refusing = Target(BLUE, server.port, (NOBODY, ADDRESS))
    assert session(refusing).ask().rows
    with pytest.raises(SessionError, match="2003: Can't connect"):
        session(Target(BLUE, server.port, (NOBODY,)))
    # Like a stopped host: the kernel accepts the connection, and no process answers.
    with socket.create_server((NOBODY, server.port)):
        silent = Target(BLUE, server.port, (NOBODY, ADDRESS), names=(GREEN, BLUE), timeout_s=1)

        def ask() -> float:
            begun = time.monotonic()
            assert session(silent, ssl_ca=str(server.ca), ssl_verify_identity=True).ask().rows
            return time.monotonic() - begun

        assert quickest(ask, 2.0) < 2.0, "a second name was tried at an address without a server"


def test_a_missing_answer_times_out(server: Server, session: Open) -> None:
    blue = session(Target(BLUE, server.port, (ADDRESS,), timeout_s=1))
    with server.stopped():
        begun = time.monotonic()
        with pytest.raises(SessionError, match=r"2013: Lost connection .*timed out"):
            blue.ask()
        assert time.monotonic() - begun < 20
        blue.close()


def test_names_are_tried_if_they_are_verified(server: Server, session: Open) -> None:
    proved = {"ssl_ca": str(server.ca), "ssl_verify_identity": True}
    green = Target(GREEN, server.port, (ADDRESS,), names=(GREEN, BLUE))
    assert session(green, **proved).ask().rows
    with pytest.raises(SessionError, match=r"2003.*CERTIFICATE_VERIFY_FAILED"):
        session(Target(GREEN, server.port, (ADDRESS,)), **proved)
    assert session(Target(GREEN, server.port, (ADDRESS,))).ask().rows, "no name is verified"


def test_failed_names_do_not_block_the_host_at_the_server(server: Server, session: Open) -> None:
    own = {"ssl_ca": str(server.ca), "ssl_verify_identity": True, "bind_address": "127.83.12.7"}
    server.execute("SET GLOBAL max_connect_errors = 5")
    try:
        # The monitor connects like this repeatedly until a certificate is renewed.
        renewal = Target(BLUE, server.port, (ADDRESS,), names=(GREEN,))
        for _ in range(12):
            with pytest.raises(SessionError, match="CERTIFICATE_VERIFY_FAILED"):
                session(renewal, **own)
        assert session(**own).ask().rows
    finally:
        server.execute("SET GLOBAL max_connect_errors = 100", "FLUSH HOSTS")


def test_a_password_is_made_for_each_name(server: Server, session: Open) -> None:
    asked: list[tuple[str, int, str]] = []

    def make(host: str, port: int, user: str) -> str:
        asked.append((host, port, user))
        return "s3cret" if host == BLUE else "wr0ng"

    green = Target(GREEN, server.port, (ADDRESS,), names=(GREEN, BLUE))
    assert session(green, password_callable=make).ask().rows
    assert asked == [(GREEN, server.port, "monitor"), (BLUE, server.port, "monitor")]

    def fail(*_: object) -> str:
        raise TimeoutError("s3cret")

    with pytest.raises(SessionError, match=r"PasswordFailed: .* failed for monitor@.*: TimeoutError") as caught:
        session(green, password_callable=fail)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(SessionError, match=r"^UnicodeEncodeError$"):
        session(green, password_callable=lambda *_: "€")


def test_a_peer_that_is_no_mysql_server_is_a_session_error(server: Server, session: Open) -> None:
    with socket.create_server((NOBODY, server.port)) as listener:

        def greet() -> None:
            peer, _ = listener.accept()
            peer.sendall(b"\x05\x00\x00\x00hello")
            peer.close()

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(SessionError):
            session(Target(BLUE, server.port, (NOBODY,)))
        thread.join()


@pytest.mark.usefixtures("session")
def test_a_monitor_finds_the_deployment(server: Server, tmp_path: Path) -> None:
    server.execute(f"UPDATE mysql.rds_topology SET port = {server.port}")
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{ADDRESS} {BLUE} {GREEN}\n", encoding="utf-8")
    dsn = f"mysql://monitor:s3cret@{BLUE}:{server.port}/app?bg_resolver=hosts:{hosts}&bg_run_dir={tmp_path / 'run'}"
    # If the monitor created the directory, this would be the first line of the log.
    (tmp_path / "run").mkdir(mode=0o700)
    command = [sys.executable, "-c", "from bgpool.cli import main; main()", "monitor", "-"]
    monitor = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert monitor.stdin is not None
        assert monitor.stdout is not None
        monitor.stdin.write(dsn + "\n")
        monitor.stdin.flush()
        assert "monitor of bg_id '1' started" in monitor.stdout.readline()
        reader = Reader(RunFiles.of(tmp_path / "run", "1"))
        deadline = time.monotonic() + 40
        while (snapshot := reader.refresh().snapshot) is None or not snapshot.ready:
            assert time.monotonic() < deadline, snapshot
            time.sleep(0.05)
        assert snapshot.phase is Phase.CREATED
        assert snapshot.twins == ((BLUE, GREEN),)
        assert {host.addresses for host in snapshot.hosts} == {(ADDRESS,)}
    finally:
        monitor.kill()
        output = monitor.communicate()[0]
    assert "s3cret" not in output
