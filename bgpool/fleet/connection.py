"""One connection to Redis or Valkey. Imports redis-py: for whoever uses the bus, at the time when it does.

Of redis-py it is the connection alone, its handshake and its protocol, and not the client around it: that would try
again by itself, and an XADD that is tried twice is written twice or refused because of itself. What a URL says of
protocol, time limits and retries has no effect, as nothing of it gets here.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any, Final

import redis.connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from bgpool.core.limits import FLEET_TIMEOUT_S
from bgpool.fleet.bus import BusError
from bgpool.fleet.url import BusUrl

__all__ = ["Connection", "Parser"]

# Which parser it is depends on whether hiredis is installed, and how much of either has types on the release.
_Parser: Any = redis.connection.DefaultParser
_Connection: Any = redis.connection.Connection


class Parser(_Parser):  # type: ignore[misc]  # as said
    """Leaves a server's error as it is, with its code in front: which codes have classes depends on the release."""

    EXCEPTION_CLASSES: Final[dict[str, Any]] = {}


class Connection(_Connection):  # type: ignore[misc]  # as said
    """A connection to *address* that is to prove the name of *url*; opened by its first command.

    Raises, of that command as of every other: BusError where no connection can be opened; else what redis-py raises.
    """

    def __init__(self, url: BusUrl, password: str, address: tuple[str, int] | None) -> None:
        """Describe a connection.

        Args:
            url: Whom to be to the server, and what it has to prove.
            password: Instead of that of *url*.
            address: Where it is instead of where *url* says; None to resolve that name.
        """
        self._url: Final = url
        self._address: Final = address or (url.host, url.port)
        super().__init__(
            host=url.host,
            port=url.port,
            db=url.db,
            username=url.user or None,
            password=password or None,
            socket_timeout=FLEET_TIMEOUT_S,
            socket_connect_timeout=FLEET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            protocol=2,
            parser_class=Parser,
        )
        # CLIENT SETINFO takes a right of its own, and Valkey logs each refusal. The names depend on the release.
        self.lib_name = self.lib_version = self.driver_info = None

    def _connect(self) -> socket.socket:
        """Open the socket: what redis-py has its subclasses do. Its own proves the name that it connects to."""
        try:
            sock = socket.create_connection(self._address, timeout=FLEET_TIMEOUT_S)
        except OSError as error:
            raise BusError(f"cannot be connected to: {_reason(error)}") from None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._encrypted(sock) if self._url.tls else sock
        except BaseException:
            sock.close()
            raise

    def _encrypted(self, sock: socket.socket) -> ssl.SSLSocket:
        url = self._url
        try:
            # Read each time: they are changed under a monitor that lives for weeks.
            context = ssl.create_default_context(cafile=url.ca_file or None, capath=url.ca_path or None)
            if url.certificate:
                # Without one, the terminal would be asked for it.
                context.load_cert_chain(url.certificate, url.key or None, password=url.key_password)
        except (OSError, ValueError) as error:
            files = ", ".join(filter(None, (url.ca_file, url.ca_path, url.certificate, url.key)))
            raise BusError(f"cannot be connected to: {files} cannot be used for TLS: {_reason(error)}") from None
        context.check_hostname = url.check_name
        context.verify_mode = ssl.CERT_REQUIRED if url.verify else ssl.CERT_NONE
        try:
            return context.wrap_socket(sock, server_hostname=url.host)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            raise BusError(f"TLS with it failed: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)
