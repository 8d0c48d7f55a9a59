"""MySQL logins that need a package or the server's cache: they warn while they work, else raise OperationalError.

The server is a fake: it offers a plugin and is warm (it has the password in its cache) or cold.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest
from pymysql import _auth

import bgpool
from bgpool.mysql import BoundedConnection
from bgpool.mysql_logins import _ANY_KEY, rehearse

CACHING, SHA256, NATIVE = b"caching_sha2_password", b"sha256_password", b"mysql_native_password"
OK = b"\0\0\0\2\0\0\0"
PASSWORD_SENT = b"\x01\x03"
FULL_AUTHENTICATION = b"\x01\x04"


class Server:
    """Speaks the beginning of MySQL's protocol.

    Attributes:
        default: The plugin of its greeting.
        account: The plugin of every account.
        warm: True if it has the password in its cache.
        without_password: True if accounts have no password.
    """

    def __init__(self) -> None:
        self.default = self.account = CACHING
        self.warm, self.without_password = True, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def dsn(self) -> str:
        return f"mysql://app:s3cret@127.0.0.1:{self.port}/app?ssl_disabled=true&connect_timeout=2"

    def connect(self, password: str = "s3cret") -> BoundedConnection:
        return BoundedConnection(
            host="127.0.0.1", port=self.port, user="app", password=password, ssl_disabled=True, connect_timeout=2
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):  # already closed
            self._listener.shutdown(socket.SHUT_RDWR)  # otherwise accept() would return once more
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            hello = b"\x0a9.7.4\0" + struct.pack("<I", 7) + b"x" * 8 + b"\0"
            hello += struct.pack("<HBHHB", 0xA208, 45, 2, 0x0008, 21) + b"\0" * 10 + b"y" * 12 + b"\0"
            send(client, 0, hello + self.default + b"\0")
            number = receive(client)
            if self.account != self.default:
                send(client, number + 1, b"\xfe" + self.account + b"\0" + b"z" * 20 + b"\0")
                number = receive(client)
            if self.account == CACHING and not self.without_password:
                send(client, number + 1, PASSWORD_SENT if self.warm else FULL_AUTHENTICATION)
                number += 1
            if self.account == SHA256 or (self.account == CACHING and not self.warm):
                if self.account == CACHING:
                    number = receive(client)
                send(client, number + 1, b"\x01-----BEGIN PUBLIC KEY-----")
                receive(client)
                return
            send(client, number + 1, OK)
            while True:
                send(client, receive(client) + 1, OK)


def send(client: socket.socket, number: int, body: bytes) -> None:
    client.sendall(struct.pack("<I", len(body))[:3] + bytes([number]) + body)


def receive(client: socket.socket) -> int:
    head = client.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        raise ConnectionResetError
    client.recv(int.from_bytes(head[:3], "little"), socket.MSG_WAITALL)
    return head[3]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the packages, as after ``pip install bgpool``."""
    for name in ("cryptography", "nacl"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(_auth, "_have_cryptography", False)
    monkeypatch.setattr(_auth, "_nacl_bindings", False)


@pytest.mark.usefixtures("without_packages")
def test_a_pool_warns_once_while_its_logins_still_work(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with bgpool.get_pool(server.dsn, "cached", min_size=2, max_size=2, timeout=30, bg_run_dir=tmp_path / "run") as pool:
        first, second = pool.getconn(), pool.getconn()
        pool.putconn(first)
        pool.putconn(second)
    # Pools of other tests may open connections at the same time.
    records = [record for record in caplog.records if "'cached'" in record.getMessage()]
    (record,) = [record for record in records if vars(record).get("event") == "login_depends_on_cache"]
    assert (record.name, record.levelno) == ("bgpool.pool", logging.WARNING)
    text = record.getMessage()
    assert "user 'app': the login (caching_sha2_password) works only while the server has the password in its " in text
    assert "the package cryptography is not installed; use TLS" in text
    assert "pip install 'bgpool[rsa]'" in text
    assert "s3cret" not in text


@pytest.mark.usefixtures("without_packages")
def test_a_server_without_the_password_in_its_cache_is_an_error_with_its_remedy(server: Server, tmp_path: Path) -> None:
    server.warm = False
    with (
        bgpool.get_pool(server.dsn, "cold", min_size=1, max_size=1, timeout=2.0, bg_run_dir=tmp_path / "run") as pool,
        pytest.raises(bgpool.PoolTimeout, match=r"OperationalError 2061: .*cryptography is not installed; use TLS"),
    ):
        pool.getconn()


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize(
    ("account", "remedy"),
    [(CACHING, "'bgpool[rsa]'"), (SHA256, "'bgpool[rsa]'"), (b"client_ed25519", "'PyMySQL[ed25519]'")],
)
def test_a_missing_package_is_an_error_of_the_driver(account: bytes, remedy: str, server: Server) -> None:
    server.account, server.warm = account, False
    with pytest.raises(pymysql.err.OperationalError) as caught:
        server.connect()
    assert caught.value.args[0] == 2061
    assert account.decode() in caught.value.args[1]
    assert f"pip install {remedy}" in caught.value.args[1]


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize(
    ("default", "account", "password", "warns"),
    [
        (CACHING, CACHING, "s3cret", True),
        (NATIVE, CACHING, "s3cret", True),
        (CACHING, NATIVE, "s3cret", False),
        (CACHING, CACHING, "", False),
    ],
)
def test_the_accounts_plugin_counts_not_the_servers_default(
    default: bytes, account: bytes, password: str, warns: bool, server: Server
) -> None:
    server.default, server.account, server.without_password = default, account, not password
    connection = server.connect(password)
    assert bool(connection.cache_warning) is warns
    connection._secure = True  # TLS, or a Unix socket
    assert connection.cache_warning == ""
    connection._force_close()


def test_with_the_package_nothing_depends_on_the_cache(server: Server) -> None:
    connection = server.connect()
    assert connection.cache_warning == ""
    connection._force_close()


@pytest.fixture
def encryptions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The data that is encrypted with an RSA key, in a process that has never done this before."""
    found: list[bytes] = []
    monkeypatch.setattr(_auth, "sha2_rsa_encrypt", lambda password, *_: found.append(password))
    rehearse.cache_clear()
    yield found
    rehearse.cache_clear()


@pytest.mark.parametrize(
    ("account", "password", "times"), [(CACHING, "s3cret", 1), (CACHING, "", 0), (NATIVE, "s3cret", 0)]
)
def test_a_login_by_the_cache_rehearses_the_encryption(
    account: bytes, password: str, times: int, server: Server, encryptions: list[bytes]
) -> None:
    server.account, server.without_password = account, not password
    for _ in range(2):
        server.connect(password)
    assert encryptions == [b""] * times, "the password itself was encrypted"


def test_a_pool_rehearses_for_every_kind_of_account(server: Server, tmp_path: Path, encryptions: list[bytes]) -> None:
    server.account = NATIVE
    with bgpool.get_pool(server.dsn, "early", min_size=1, timeout=30, bg_run_dir=tmp_path / "run") as pool:
        pool.putconn(pool.getconn())
    assert encryptions == [b""]


def test_the_key_of_the_rehearsal_is_valid() -> None:
    pytest.importorskip("cryptography")
    assert len(_auth.sha2_rsa_encrypt(b"", bytes(20), _ANY_KEY)) == 256
