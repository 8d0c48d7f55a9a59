"""A TLS proxy for the lab's servers, whose build has none: certificates are for names, and are changed like on RDS."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import trustme

from bgpool.lab.server import Server

__all__ = ["Authority", "TlsProxy"]

log = logging.getLogger("bgpool.lab")

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
"""The codes with which a PostgreSQL client requests encryption before it sends anything else."""

HANDSHAKE_TIMEOUT_S: Final = 5.0
FORWARD_BYTES: Final = 65536


class Authority:
    """A certificate authority of one pair.

    Attributes:
        ca_file: Its own certificate, for ``sslrootcert``.
    """

    def __init__(self, directory: Path) -> None:
        self._authority: Final = trustme.CA()
        self.ca_file: Final = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca_file))
        self.ca_file.chmod(0o644)

    def context(self, names: Iterable[str]) -> ssl.SSLContext:
        """Return a context that proves *names*, and no others."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        return context


class TlsProxy:
    """A proxy that listens on the port of a server's clients, and forwards their data, decrypted, to the server.

    Attributes:
        context: The certificate that new clients are shown; may be replaced at any time.
    """

    def __init__(self, server: Server, port: int, context: ssl.SSLContext) -> None:
        """Listen in front of *server*, at its address and *port*.

        Raises:
            OSError: The port cannot be used.
        """
        self.context = context
        self._server: Final = server
        self._listener: Final = socket.create_server((server.address, port))
        self._open: Final[set[socket.socket]] = set()
        self._closed = False
        threading.Thread(target=self._accept, name=f"bgpool-lab-front-{server.key}", daemon=True).start()

    def close(self) -> None:
        """Stop listening, and end every connection."""
        self._closed = True
        for sock in (self._listener, *tuple(self._open)):
            _hang_up(sock)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        backend: socket.socket | None = None
        self._open.add(client)
        try:
            client.settimeout(HANDSHAKE_TIMEOUT_S)
            client, first = self._greet(client)
            self._open.add(client)
            backend = socket.create_connection((self._server.address, self._server.port))
            client.settimeout(None)
            backend.sendall(first)
            _forward(client, backend)
        # ssl.SSLError is an OSError: a client that rejects the certificate. close() may close a socket during a wait.
        except (OSError, ValueError) as error:
            log.debug("%s: %s", self._server.name, error)
        finally:
            self._open.discard(client)
            for sock in (client, backend):
                if sock is not None:
                    _hang_up(sock)

    def _greet(self, client: socket.socket) -> tuple[socket.socket, bytes]:
        """Return the connection, encrypted if the client requested it, and the first data on it."""
        while len(first := client.recv(8, socket.MSG_WAITALL)) == 8:
            code = struct.unpack("!II", first)[1]
            if code == GSS_REQUEST:
                client.sendall(b"N")
                continue
            if code != SSL_REQUEST:
                break
            client.sendall(b"S")
            self._open.discard(client)
            return self.context.wrap_socket(client, server_side=True), b""
        return client, first


def _hang_up(sock: socket.socket) -> None:
    """End the connection even if a forked worker has a copy of the descriptor, for which close() would not suffice."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _forward(client: socket.socket, backend: socket.socket) -> None:
    """Forward data of both sides until one closes the connection."""
    other = {client: backend, backend: client}
    while True:
        # Data that TLS has decrypted already do not show on the socket.
        pending = isinstance(client, ssl.SSLSocket) and client.pending()
        for sock in [client] if pending else select.select([client, backend], [], [])[0]:
            data = sock.recv(FORWARD_BYTES)
            if not data:
                return
            other[sock].sendall(data)
