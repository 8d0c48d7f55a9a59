"""The part of the proxy that negotiates a client's login with the client and its server."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable
from typing import Final

from bgpool.lab.mysql_proxy_wire import (
    ERROR,
    FAST_AUTH_OK,
    FULL_AUTH,
    OK,
    Greeting,
    Login,
    Packet,
    access_denied,
    auth_switch,
    proof_of,
    read_packet,
    with_transport,
)

__all__ = ["HANDSHAKE_TIMEOUT_S", "Check", "ask_for_token", "hear", "log_in", "pass_on"]

HANDSHAKE_TIMEOUT_S: Final = 10.0

Check = Callable[[str, str], bool]


def hear(backend: socket.socket, client: socket.socket) -> Packet:
    """Return the server's next packet; the client waits for it without sending, or closes the connection."""
    # Data that TLS has decrypted already do not show on the socket.
    if not (isinstance(backend, ssl.SSLSocket) and backend.pending()):
        poller = select.poll()
        for sock in (backend, client):
            poller.register(sock, select.POLLIN)
        ready = [descriptor for descriptor, _ in poller.poll(HANDSHAKE_TIMEOUT_S * 1000)]
        if backend.fileno() not in ready:
            raise ConnectionError("the client closed the connection" if ready else "the server does not answer")
    return read_packet(backend)


def pass_on(client: socket.socket, backend: socket.socket, login: Packet) -> bool:
    """Forward the login between client and server; return whether it succeeds."""
    first = _first_packet(backend, login.payload)
    # A client that requested TLS, which the server does not have, has sent one packet more than the server receives.
    ahead = login.number - first.number
    backend.sendall(first.encode())
    while True:
        said = hear(backend, client)
        client.sendall(said.encode(ahead))
        if said.kind in (OK, ERROR):
            return said.kind == OK
        if said.payload != FAST_AUTH_OK:
            backend.sendall(read_packet(client).encode(-ahead))


def ask_for_token(client: socket.socket, login: Packet, user: str, host: str, check: Check) -> Packet | None:
    """Return the packet with the client's valid token; None for another one, after an error was sent to the client."""
    said, good = login, False
    if isinstance(client, ssl.SSLSocket):
        client.sendall(login.answer(auth_switch(b"mysql_clear_password")))
        said = read_packet(client)
        good = check(user, said.payload.rstrip(b"\0").decode("utf-8", "replace"))
    if good:
        return said
    client.sendall(said.answer(access_denied(user, host)))
    return None


def log_in(
    client: socket.socket, backend: socket.socket, greeting: Greeting, login: Packet, last: Packet, password: str
) -> bool:
    """Log in on behalf of a client that has authenticated to the proxy; return whether the server accepts.

    Args:
        client: The client; it receives the server's final answer, as an answer to *last*.
        backend: The server.
        greeting: The server's greeting.
        login: The client's login.
        last: The client's last packet.
        password: The password with which the server authenticates the client.
    """
    proved = Login.parse(login.payload).proving(greeting.plugin, proof_of(greeting.plugin, password, greeting.salt))
    backend.sendall(_first_packet(backend, proved).encode())
    while True:
        said = hear(backend, client)
        if said.kind in (OK, ERROR):
            client.sendall(last.answer(said.payload))
            return said.kind == OK
        if said.payload == FULL_AUTH and isinstance(backend, ssl.SSLSocket):
            backend.sendall(said.answer(password.encode() + b"\0"))
        elif said.payload != FAST_AUTH_OK:
            raise ValueError(f"the server requires another proof than a password: {said.payload!r}")


def _first_packet(backend: socket.socket, payload: bytes) -> Packet:
    """Return a client's login as the server receives it: after the request for TLS, if there was one."""
    encrypted = isinstance(backend, ssl.SSLSocket)
    return Packet(2 if encrypted else 1, with_transport(payload, tls=encrypted))
