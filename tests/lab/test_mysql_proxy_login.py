"""The proxy authenticates a client to its server as the driver would, and sends a clear-text password only over TLS."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
from pymysql import _auth

from bgpool.lab.mysql_proxy_login import log_in
from bgpool.lab.mysql_proxy_wire import (
    FULL_AUTH,
    LOGIN_HEAD,
    PLUGIN_AUTH,
    SECURE_CONNECTION,
    SSL,
    Greeting,
    Packet,
    proof_of,
    tls_request,
    with_transport,
)

SALT = bytes(range(65, 85))
FLAGS = PLUGIN_AUTH | SECURE_CONNECTION
LOGIN = LOGIN_HEAD.pack(FLAGS, bytes(28)) + b"app\0\0caching_sha2_password\0"


def greeting(plugin: bytes, *, flags: int = 0) -> Greeting:
    """Return a server's greeting, like those of MySQL 9.7 and MariaDB 11.8."""
    head = b"\x0a9.7.4\0" + struct.pack("<I", 8) + SALT[:8] + b"\0" + struct.pack("<H", flags)
    return Greeting.parse(head + b"\xff\x02\0\xff\xdf\x15" + bytes(10) + SALT[8:] + b"\0" + plugin + b"\0")


@pytest.mark.parametrize("plugin", [b"caching_sha2_password", b"mysql_native_password"])
def test_authentication_replies_equal_the_drivers(plugin: bytes) -> None:
    said = greeting(plugin)
    assert (said.plugin, said.salt, said.has_tls) == (plugin, SALT, False)
    drivers = {
        b"caching_sha2_password": _auth.scramble_caching_sha2,
        b"mysql_native_password": _auth.scramble_native_password,
    }
    assert proof_of(said.plugin, "s3cret", said.salt) == drivers[plugin](b"s3cret", SALT)
    assert proof_of(said.plugin, "", said.salt) == b""


def test_an_unknown_plugin_is_refused() -> None:
    with pytest.raises(ValueError, match="ed25519"):
        proof_of(b"client_ed25519", "s3cret", SALT)


def test_a_server_with_tls_is_asked_for_it_before_the_login() -> None:
    assert greeting(b"caching_sha2_password", flags=SSL).has_tls
    request = tls_request(LOGIN)
    assert len(request) == LOGIN_HEAD.size
    assert LOGIN_HEAD.unpack(request)[0] == FLAGS | SSL
    assert with_transport(with_transport(LOGIN, tls=True), tls=False) == LOGIN


def test_a_password_is_not_sent_without_tls() -> None:
    here, client = socket.socketpair()
    backend, server = socket.socketpair()
    heard = []

    def ask() -> None:
        heard.append(server.recv(4096))
        server.sendall(Packet(2, FULL_AUTH).encode())
        heard.append(server.recv(4096))

    with here, client, server:
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        login = Packet(1, LOGIN)
        with backend, pytest.raises(ValueError, match="requires another proof"):
            log_in(here, backend, greeting(b"caching_sha2_password"), login, login, "s3cret")
        thread.join(30)
    assert len(heard) == 2
    assert b"s3cret" not in b"".join(heard)
