"""A proxy that adds the features of RDS and Aurora which a server lacks: TLS, tokens, Aurora's tables."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from bgpool.lab.mysql_proxy_flow import Rewriter, splice
from bgpool.lab.mysql_proxy_login import HANDSHAKE_TIMEOUT_S, Check, ask_for_token, hear, log_in, pass_on
from bgpool.lab.mysql_proxy_wire import ERROR, Greeting, Packet, asks_for_tls, read_packet, tls_request, user_of

__all__ = ["MysqlProxy"]

log = logging.getLogger("bgpool.lab")

CONNECT_TIMEOUT_S: Final = 2.0
CLOSE_TIMEOUT_S: Final = 5.0
ACCEPT_PAUSE_S: Final = 0.05
"""The interval of attempts while no descriptors are free."""

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
NO_NAMES: Final[Mapping[bytes, bytes]] = MappingProxyType({})


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


UNVERIFIED: Final = _unverified()
"""The context for connections to the server, which has no certificate of the lab's authority."""


class MysqlProxy:
    """A proxy that listens on the port of a server's clients, and forwards the data of both sides.

    Attributes:
        context: The certificate that new clients are shown; None for no TLS. May be replaced at any time.
        check: A callable that returns whether a user may log in with a token; None without tokens. May be replaced at
            any time.
    """

    def __init__(
        self,
        name: str,
        *,
        address: str,
        port: int,
        backend_port: int,
        rewrite: Mapping[bytes, bytes] = NO_NAMES,
        context: ssl.SSLContext | None = None,
        check: Check | None = None,
        users: Mapping[str, str] = NOTHING,
    ) -> None:
        """Forward connections to the server at *address* and *backend_port*.

        Args:
            name: The name in the log.
            address: The address of the server and the proxy.
            port: The port to which clients connect.
            backend_port: The server's port.
            rewrite: Names, in any case, that are replaced in the queries to the server.
            context: See above.
            check: See above; called with a user's name and token, and does not raise.
            users: The passwords of the users that log in with tokens. All others authenticate to the server itself.

        Raises:
            OSError: The port cannot be used.
        """
        self.name: Final = name
        self.context = context
        self.check = check
        self.backend: Final = (address, backend_port)
        self.rewrite: Final = rewrite
        self.users: Final = users
        self._listener: Final = socket.create_server((address, port))
        self._lock: Final = threading.Lock()
        # Protected by the lock: no session begins once closed.
        self._closed = False
        self._sessions: Final[set[_Session]] = set()
        self._acceptor: Final = threading.Thread(target=self._accept, name=f"bgpool-lab-proxy-{name}", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stop listening, and end every connection; idempotent."""
        with self._lock:
            self._closed = True
            sessions = tuple(self._sessions)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(CLOSE_TIMEOUT_S)
        self._listener.close()
        for session in sessions:
            session.cut()
        for session in sessions:
            session.join(CLOSE_TIMEOUT_S)

    def forget(self, session: _Session) -> None:
        """Remove a session that has ended."""
        with self._lock:
            self._sessions.discard(session)

    def _accept(self) -> None:
        while True:
            try:
                client, peer = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                log.warning("%s: %s", self.name, error)
                time.sleep(ACCEPT_PAUSE_S)
                continue
            session = _Session(self, client, peer[0])
            with self._lock:
                if self._closed:
                    client.close()
                    return
                self._sessions.add(session)
                session.start()


class _Session(threading.Thread):
    """One client and its connection to the server."""

    def __init__(self, proxy: MysqlProxy, client: socket.socket, host: str) -> None:
        super().__init__(name=f"bgpool-lab-proxy-{proxy.name}-client", daemon=True)
        self._proxy: Final = proxy
        self._host: Final = host
        self._lock: Final = threading.Lock()
        # Protected by the lock: a socket that is added after the cut would stay open.
        self._cut = False
        self._sockets: Final = [client]

    def cut(self) -> None:
        """Shut down both connections; the thread closes their descriptors."""
        with self._lock:
            self._cut = True
            for sock in self._sockets:
                _shut_down(sock)

    def run(self) -> None:
        """Serve the client until it or the server closes the connection."""
        try:
            self._serve(self._sockets[0])
        except (OSError, ValueError, IndexError, struct.error) as error:  # ssl.SSLError is an OSError
            log.debug("%s: %s", self._proxy.name, error)
        finally:
            with self._lock:
                self._cut = True
                for sock in self._sockets:
                    _shut_down(sock)
                    sock.close()
            self._proxy.forget(self)

    def _serve(self, client: socket.socket) -> None:
        context = self._proxy.context
        _prepare(client)
        backend = self._connect()
        said = hear(backend, client)
        if said.kind == ERROR:  # too many connections
            client.sendall(said.encode())
            return
        greeting = Greeting.parse(said.payload)
        client.sendall(Packet(said.number, greeting.offering(tls=context is not None)).encode())
        login = read_packet(client)
        if context is not None and asks_for_tls(login.payload):
            client = self._encrypt(0, context, server_side=True)
            login = read_packet(client)
            # The server treats a client the same as without a proxy: MySQL accepts passwords only over TLS.
            if greeting.has_tls:
                backend.sendall(Packet(1, tls_request(login.payload)).encode())
                backend = self._encrypt(1, UNVERIFIED, server_side=False)
        if self._authenticate(client, backend, greeting, login):
            splice(client, backend, Rewriter(self._proxy.rewrite))

    def _connect(self) -> socket.socket:
        backend = socket.create_connection(self._proxy.backend, CONNECT_TIMEOUT_S)
        with self._lock:
            if self._cut:
                backend.close()
                raise ConnectionAbortedError("the proxy is closed")
            self._sockets.append(backend)
        _prepare(backend)
        return backend

    def _encrypt(self, place: int, context: ssl.SSLContext, *, server_side: bool) -> ssl.SSLSocket:
        # The descriptor moves to another object, in which cut() must find it.
        with self._lock:
            encrypted = context.wrap_socket(
                self._sockets[place], server_side=server_side, do_handshake_on_connect=False
            )
            self._sockets[place] = encrypted
        encrypted.do_handshake()
        return encrypted

    def _authenticate(self, client: socket.socket, backend: socket.socket, greeting: Greeting, login: Packet) -> bool:
        """Return whether the client may log in; in either case the client has received the answer."""
        check, user = self._proxy.check, user_of(login.payload)
        if check is None or user not in self._proxy.users:
            return pass_on(client, backend, login)
        last = ask_for_token(client, login, user, self._host, check)
        return last is not None and log_in(client, backend, greeting, login, last, self._proxy.users[user])


def _prepare(sock: socket.socket) -> None:
    sock.settimeout(HANDSHAKE_TIMEOUT_S)
    # A server sends a result in pieces; none may wait for an acknowledgement.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _shut_down(sock: socket.socket) -> None:
    """End the connection even if a forked worker has a copy of the descriptor, for which close() would not suffice."""
    with contextlib.suppress(OSError):
        # Not the method of SSLSocket, which causes errors in a thread that reads from it.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
