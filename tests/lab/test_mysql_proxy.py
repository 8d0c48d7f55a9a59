"""The proxy adds what a server lacks; otherwise clients see the plain server, and sessions end as without it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymysql.connections import Connection
from pymysql.constants import CLIENT
from pymysql.err import OperationalError, ProgrammingError

from bgpool.lab.addresses import free_addresses
from bgpool.lab.mysql_proxy import CLOSE_TIMEOUT_S, MysqlProxy
from bgpool.lab.mysql_proxy_flow import Rewriter
from bgpool.lab.tls_proxy import Authority
from bgpool.lab.waiting import wait_until
from tests.waiting import PATIENCE_S, quickest

pytestmark = pytest.mark.lab

SBIN_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"

TABLE = b"information_schema.replica_host_status"
STAND_IN = b"lab.replica_host_status"

Row = tuple[Any, ...]


class Client(Connection):
    """PyMySQL's connection, with attributes that its stubs leave out."""

    _sock: socket.socket | None
    _auth_plugin_name: str
    server_capabilities: int

    def run(self, sql: str) -> tuple[Row, ...]:
        with self.cursor() as cursor:
            cursor.execute(sql)
            return tuple(cursor.fetchall())

    @property
    def encrypted(self) -> bool:
        return isinstance(self._sock, ssl.SSLSocket)

    def hang_up(self) -> None:
        """Close the connection without a COM_QUIT."""
        self._force_close()  # type: ignore[attr-defined]

    def ended(self) -> bool:
        """Wait for the other side to close the connection; return whether it did."""
        return self._sock is None or ended(self._sock)


def ended(sock: socket.socket) -> bool:
    sock.settimeout(5)
    try:
        while sock.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


class OtherPlugin(Client):
    """A client that begins with another authentication plugin, so that the server requests a switch."""

    def _get_server_information(self) -> None:
        super()._get_server_information()  # type: ignore[misc]
        self._auth_plugin_name = "caching_sha2_password"


Connect = Callable[..., Client]


@dataclass(frozen=True)
class Server:
    """One mariadbd, used by all proxies of this module."""

    process: subprocess.Popen[bytes]
    address: str
    port: int
    backend_port: int
    socket_path: str

    def execute(self, sql: str) -> tuple[Row, ...]:
        client = Client(user="root", autocommit=True, defer_connect=True)
        with socket.socket(socket.AF_UNIX) as sock:  # PyMySQL does not close its socket if no process listens yet
            sock.connect(self.socket_path)
            client.connect(sock)
            with client:
                return client.run(sql)

    def stopped(self) -> bool:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        try:
            return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)
        except OSError:  # a process that has just ended
            return False

    def sessions(self, user: str = "app") -> list[int]:
        return [row[0] for row in self.execute(f"SELECT id FROM information_schema.processlist WHERE user = '{user}'")]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    program = shutil.which("mariadbd", path=SBIN_PATH)
    if program is None:
        pytest.skip("no mariadbd")
    (address,), port = free_addresses(1)
    directory = Path(tempfile.mkdtemp(prefix="bgpool-relay-"))
    how: dict[str, Any] = {"cwd": directory}
    if os.geteuid() == 0:  # mariadbd does not run as root
        shutil.chown(directory, "nobody", "nogroup")
        how.update(user="nobody", group="nogroup", extra_groups=[])
    process: subprocess.Popen[bytes] | None = None
    try:
        base = [program, "--no-defaults", f"--datadir={directory}", "--innodb-buffer-pool-size=16M"]
        where = [f"--bind-address={address}", f"--port={port + 1}", f"--socket={directory / 'socket'}"]
        with (directory / "log").open("wb") as log:
            # Like mariadb-install-db, which needs programs of another package than the server's.
            how["stdout"] = how["stderr"] = log
            subprocess.run([*base, "--bootstrap"], input=system_tables(program), check=True, **how)
            options = ["--skip-name-resolve", "--max-allowed-packet=64M"]
            process = subprocess.Popen([*base, *where, *options], **how)
        server = Server(process, address, port, port + 1, str(directory / "socket"))
        wait_until(lambda: answers(server), timeout_s=30, what="mariadbd")
        for statement in (
            "CREATE USER app IDENTIFIED BY 'real'",
            "CREATE USER monitor IDENTIFIED BY 'watch'",
            "CREATE DATABASE lab",
            "CREATE TABLE lab.replica_host_status (server_id VARCHAR(100))",
            "INSERT INTO lab.replica_host_status VALUES ('writer')",
            "GRANT ALL ON lab.* TO app",
        ):
            server.execute(statement)
        yield server
    finally:
        if process is not None:
            process.kill()
            process.wait()
        shutil.rmtree(directory)


def system_tables(program: str) -> bytes:
    """Return SQL that creates the server's own tables, and a root account without password."""
    begin = b"CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n"
    share = Path(program).parent.parent / "share" / "mysql"
    files = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")
    return begin + b"".join((share / file).read_bytes() for file in files)


def answers(server: Server) -> bool:
    assert server.process.poll() is None, "mariadbd ended"
    try:
        server.execute("SELECT 1")
    except OSError:
        return False
    return True


@pytest.fixture
def relays(server: Server) -> Iterator[Callable[..., MysqlProxy]]:
    """Create the proxy of a test."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> MysqlProxy:
            options = {"backend_port": server.backend_port, "rewrite": {TABLE: STAND_IN}, **options}
            relay = MysqlProxy("test", address=server.address, port=server.port, **options)
            stack.callback(relay.close)
            return relay

        yield start
    assert not relay_threads()


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def connect(kind: type[Client] = Client, **params: Any) -> Client:
            """Connect to the proxy, whose certificate must be for the host."""
            params = {"user": "app", "password": "real", "read_timeout": 20, **params}
            client = kind(defer_connect=True, **params)
            client.connect(stack.enter_context(socket.create_connection((server.address, server.port), 5)))
            stack.callback(client.hang_up)
            return client

        yield connect


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def relay_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("bgpool-lab-proxy")]


def verified(authority: Authority, name: str) -> dict[str, Any]:
    return {"host": name, "ssl_ca": str(authority.ca_file), "ssl_verify_identity": True}


def test_clients_see_the_server(relays: Callable[..., MysqlProxy], connect: Connect) -> None:
    relays()
    connection = connect(database="lab")
    assert connection.run("SELECT current_user(), database()") == (("app@%", "lab"),)
    assert not connection.encrypted
    assert not connection.server_capabilities & (CLIENT.COMPRESS | CLIENT.SSL)
    with pytest.raises(ProgrammingError, match="1146"):
        connection.run("SELECT * FROM lab.nothing")
    assert connection.run(f"SELECT {1 << 40}") == ((1 << 40,),)


def test_the_servers_refusal_reaches_the_client(
    relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority
) -> None:
    relays(context=authority.context(["db.test"]))
    for params in (verified(authority, "db.test"), {"ssl_disabled": True}):
        with pytest.raises(OperationalError, match=r"1045.*Access denied for user 'app'"):
            connect(password="wrong", **params)
        with pytest.raises(OperationalError, match="1044"):
            connect(database="nothing", **params)


def test_names_are_replaced_before_the_server(relays: Callable[..., MysqlProxy], connect: Connect) -> None:
    relays()
    connection = connect()
    for name in ("information_schema.replica_host_status", "INFORMATION_SCHEMA.Replica_Host_Status"):
        for padding in ("", "/*" + "x" * 300_000 + "*/"):
            assert connection.run(f"SELECT server_id {padding} FROM {name}") == (("writer",),)


@pytest.mark.parametrize("tls", [False, True])
def test_long_queries_and_results_arrive_whole(
    relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority, tls: bool
) -> None:
    relays(context=authority.context(["db.test"]))
    connection = connect(**(verified(authority, "db.test") if tls else {"ssl_disabled": True}))
    text = "0123456789abcdef" * (1 << 18)
    # More than 16 MB takes two packets.
    for times in (1, 5):
        ((length, digest),) = connection.run(f"SELECT LENGTH('{text * times}'), MD5('{text[:99]}')")
        assert (length, len(digest)) == (len(text) * times, 32)
    assert connection.run("SELECT REPEAT('0123456789abcdef', 1 << 18)") == ((text,),)
    assert connection.run("SELECT server_id FROM information_schema.replica_host_status") == (("writer",),)


def packet(payload: bytes, number: int = 0) -> bytes:
    return struct.pack("<I", len(payload))[:3] + bytes([number]) + payload


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_queries_are_rewritten_wherever_they_are_split(step: int) -> None:
    said, heard = bytearray(), bytearray()
    for query, number, seen in (
        (b"\x03SELECT 1 FROM Old, old2", 0, b"\x03SELECT 1 FROM newer, new"),
        (b"\x16SELECT 1 FROM old", 0, b"\x16SELECT 1 FROM old"),  # another command
        (b"\x03old", 2, b"\x03old"),  # the content of a file
        (b"", 3, b""),  # the end of the file
        (b"\x0e", 0, b"\x0e"),
        (b"\x03OLD2", 0, b"\x03new"),
    ):
        said += packet(query, number)
        heard += packet(seen, number)
    rewriter = Rewriter({b"OLD": b"newer", b"old2": b"new"})
    pieces = [rewriter(bytes(said[start : start + step])) for start in range(0, len(said), step)]
    assert b"".join(pieces) == heard
    assert Rewriter({})(bytes(said)) == said


def test_the_certificate_is_for_its_names_until_it_is_replaced(
    relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority
) -> None:
    relay = relays(context=authority.context(["blue.test"]))
    old = connect(**verified(authority, "blue.test"))
    assert old.encrypted
    with pytest.raises(OperationalError, match=r"green\.test"):
        connect(**verified(authority, "green.test"))
    relay.context = authority.context(["green.test"])
    assert connect(**verified(authority, "green.test")).run("SELECT 1") == ((1,),)
    with pytest.raises(OperationalError, match=r"blue\.test"):
        connect(**verified(authority, "blue.test"))
    assert old.run("SELECT 1") == ((1,),)
    relay.context = None
    with pytest.raises(OperationalError, match="SSL is required"):
        connect(**verified(authority, "green.test"))
    assert not connect().encrypted


def test_clients_choose_whether_to_use_tls(
    relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority
) -> None:
    relays(context=authority.context(["db.test"]))
    assert connect().encrypted  # PyMySQL uses TLS if offered
    assert not connect(ssl_disabled=True).encrypted


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_can_be_switched_to_another_authentication_plugin(
    relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority, tls: bool
) -> None:
    relays(context=authority.context(["db.test"]))
    params = verified(authority, "db.test") if tls else {"ssl_disabled": True}
    assert connect(OtherPlugin, **params).run("SELECT current_user()") == (("app@%",),)
    with pytest.raises(OperationalError, match="1045"):
        connect(OtherPlugin, password="wrong", **params)


def test_tokens_are_accepted(relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority) -> None:
    token = "token" * 300
    relay = relays(
        context=authority.context(["db.test"]),
        check=lambda user, given: (user, given) == ("app", token),
        users={"app": "real"},
    )
    tls = verified(authority, "db.test")
    connection = connect(password=token, database="lab", program_name="attribute", **tls)
    assert connection.run("SELECT current_user(), database()") == (("app@%", "lab"),)
    assert connection.run("SELECT server_id FROM information_schema.replica_host_status") == (("writer",),)
    assert connect(password=token, **tls).run("SELECT database()") == ((None,),)
    assert connect(OtherPlugin, password=token, **tls).run("SELECT 1") == ((1,),)
    with pytest.raises(OperationalError, match="1044"):
        connect(password=token, database="nothing", **tls)
    for refused in ("real", "", token[1:]):
        with pytest.raises(OperationalError, match=r"1045.*Access denied for user 'app'@'127\.0\.0\.1'"):
            connect(password=refused, **tls)
    relay.check = None
    assert connect(**tls).run("SELECT 1") == ((1,),)


def test_tokens_are_accepted_only_over_tls_and_from_their_users(
    relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority
) -> None:
    relays(context=authority.context(["db.test"]), check=lambda _user, _token: True, users={"app": "real"})
    with pytest.raises(OperationalError, match=r"1045.*Access denied for user 'app'"):
        connect(ssl_disabled=True)
    for params in (verified(authority, "db.test"), {"ssl_disabled": True}):
        connection = connect(user="monitor", password="watch", **params)
        assert connection.run("SELECT current_user()") == (("monitor@%",),)
        with pytest.raises(OperationalError, match="1045"):
            connect(user="monitor", password="wrong", **params)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_session_ends_at_once(
    server: Server, relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority, tls: bool, busy: bool
) -> None:
    relays(context=authority.context(["db.test"]))
    connection = connect(ssl_disabled=not tls)
    ((number,),) = connection.run("SELECT connection_id()")
    killer = threading.Timer(0.3, server.execute, [f"KILL {number}"])
    killer.start()
    began_s = time.monotonic()
    if busy:
        with pytest.raises(OperationalError, match=r"1927|2013|1317"):
            connection.run("SELECT SLEEP(60)")
    assert connection.ended()
    assert time.monotonic() - began_s < 30
    killer.join()


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_is_gone_leaves_no_session(
    server: Server, relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority, tls: bool
) -> None:
    relays(context=authority.context(["db.test"]))
    connections = [connect(ssl_disabled=not tls) for _ in range(3)]
    assert len(server.sessions()) == 3
    assert connections[0]._sock is not None
    # The first connection is reset, the second is closed, the third sends COM_QUIT.
    connections[0]._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connections[0].hang_up()
    connections[1].hang_up()
    connections[2].close()
    wait_until(lambda: not server.sessions(), timeout_s=PATIENCE_S, what="no session")
    wait_until(lambda: len(relay_threads()) == 1, timeout_s=PATIENCE_S, what="no thread")


def test_close_ends_everything(
    server: Server, relays: Callable[..., MysqlProxy], connect: Connect, authority: Authority
) -> None:
    before = descriptors()
    relay = relays(context=authority.context(["db.test"]))
    connections = [connect(), connect(ssl_disabled=True)]
    silent = socket.create_connection((server.address, server.port))
    wait_until(lambda: len(relay_threads()) == 4, timeout_s=PATIENCE_S, what="three sessions")
    began_s = time.monotonic()
    relay.close()
    relay.close()
    assert time.monotonic() - began_s < CLOSE_TIMEOUT_S
    assert not relay_threads()
    assert all(connection.ended() for connection in connections)
    with silent:
        assert ended(silent)
    for connection in connections:
        connection.hang_up()
    wait_until(lambda: not server.sessions(), timeout_s=PATIENCE_S, what="no session")
    assert descriptors() == before
    with pytest.raises(ConnectionRefusedError):
        connect()


def test_without_a_server_clients_are_disconnected(relays: Callable[..., MysqlProxy], connect: Connect) -> None:
    _, free = free_addresses(1)
    relays(backend_port=free)

    def ask() -> float:
        began_s = time.monotonic()
        with pytest.raises(OperationalError, match="2013"):
            connect()
        return time.monotonic() - began_s

    assert quickest(ask, 1.0) < 1.0


def test_a_frozen_server_keeps_no_session_open(
    server: Server, relays: Callable[..., MysqlProxy], connect: Connect
) -> None:
    relay = relays()
    connection = connect(read_timeout=0.5)
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        wait_until(server.stopped, timeout_s=PATIENCE_S, what="every thread of the server stops")
        with pytest.raises(OperationalError, match="2013"):
            connection.run("SELECT 1")
        with pytest.raises(OperationalError, match="2013"):
            connect(read_timeout=0.5)
        wait_until(lambda: len(relay_threads()) == 1, timeout_s=PATIENCE_S, what="no session")
        with pytest.raises(OperationalError, match="2013"):
            connect(read_timeout=0.5)
        began_s = time.monotonic()
        relay.close()
        assert time.monotonic() - began_s < CLOSE_TIMEOUT_S
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
