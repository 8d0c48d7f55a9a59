"""A TCP proxy in front of a server that cuts a connection at its COMMIT, before or after the server has received it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal

When = Literal["never", "before", "after"]


class CommitCutter:
    """Forwards everything, but cuts a connection at its COMMIT.

    Attributes:
        when: ``before`` the COMMIT reaches the server, or ``after`` the server has answered it; once, then ``never``.
        on_cut: Called in the proxy's thread, after the cut, and before the client can notice it.
    """

    def __init__(
        self,
        address: str,
        port: int,
        server: tuple[str, int],
        is_moment: Callable[[bytes], bool] = lambda data: _is_commit(data),
    ) -> None:
        """Listen at *address*, in front of *server*; *is_moment* decides by the data of a client when to cut."""
        self._is_moment = is_moment
        self.when: When = "never"
        self.on_cut: Callable[[], None] = lambda: None
        self.address = address
        self._server = server
        self._listener = socket.create_server((address, port))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> CommitCutter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as backend:
            other = {client: backend, backend: client}
            while True:
                for sock in select.select([client, backend], [], [])[0]:
                    data = sock.recv(65536)
                    if not data:
                        return
                    if sock is client and self._is_moment(data) and self.when != "never":
                        self._cut(client, backend, data)
                        return
                    other[sock].sendall(data)

    def _cut(self, client: socket.socket, backend: socket.socket, data: bytes) -> None:
        when, self.when = self.when, "never"
        if when == "after":
            backend.sendall(data)
            backend.recv(65536)
        backend.close()
        # Called before the client can notice the cut, so that the client's next action finds the result of this call.
        self.on_cut()
        client.close()


def _is_commit(data: bytes) -> bool:
    """Return whether *data* is a COMMIT: a query that ends with a zero (asyncpg's with a semicolon), or its packet."""
    return b"COMMIT\0" in data or b"COMMIT;\0" in data or data.endswith(b"\3COMMIT")
