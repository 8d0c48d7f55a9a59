"""One connection to Redis or Valkey. This module imports redis-py, so it is imported only when the bus is used.

It uses only redis-py's connection, with its handshake and protocol, and not the client. The client would retry by
itself, and an XADD that is retried is written twice, or refused because of the first attempt. Options of the URL for
protocol, time limits and retries have no effect, because they are not passed on.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import Any, Final

import redis.connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from bgpool.core.limits import FLEET_ANSWER_BYTES, FLEET_ANSWER_S, FLEET_TIMEOUT_S
from bgpool.fleet.bus import BusError
from bgpool.fleet.url import BusUrl

__all__ = ["Connection", "Meter", "Parser"]

# The parser depends on whether hiredis is installed, and the types of both depend on the release.
_Parser: Any = redis.connection.DefaultParser
_Connection: Any = redis.connection.Connection


class Parser(_Parser):  # type: ignore[misc]  # the base is untyped, see above
    """A parser that returns a server's error unchanged, with its code: the error classes depend on the release."""

    EXCEPTION_CLASSES: Final[dict[str, Any]] = {}


class Connection(_Connection):  # type: ignore[misc]  # the base is untyped, see above
    """A connection to *address* that verifies the name of *url*. It is opened by the first command.

    Every command raises BusError if no connection can be opened, and otherwise redis-py's errors.
    """

    def __init__(self, url: BusUrl, password: str, address: tuple[str, int] | None) -> None:
        """Describe a connection.

        Args:
            url: The user and the name to verify.
            password: Used instead of the password of *url*.
            address: The address to connect to instead of that of *url*; None to resolve its name.
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
        self._meter = Meter()
        # CLIENT SETINFO requires an additional permission, and Valkey logs each refusal. The attributes depend on the
        # release.
        self.lib_name = self.lib_version = self.driver_info = None

    def exchange(self, *command: Any) -> Any:
        """Send *command* and return the answer."""
        self._meter.begin()
        self.send_command(*command)
        return self.read_response()

    def _connect(self) -> _Metered:
        """Open the socket, as redis-py's subclasses must. Its own subclass verifies the name that it connects to."""
        try:
            sock = socket.create_connection(self._address, timeout=FLEET_TIMEOUT_S)
        except OSError as error:
            raise BusError(f"cannot be connected to: {_reason(error)}") from None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._meter.begin()
            return _Metered(self._encrypted(sock) if self._url.tls else sock, self._meter)
        except BaseException:
            sock.close()
            raise

    def _encrypted(self, sock: socket.socket) -> ssl.SSLSocket:
        url = self._url
        try:
            # Read for each connection, because the files may be replaced while a monitor runs for weeks.
            context = ssl.create_default_context(cafile=url.ca_file or None, capath=url.ca_path or None)
            if url.certificate:
                # Without a password, OpenSSL would prompt for it on the terminal.
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
            raise BusError(f"cannot be reached over TLS: {_reason(error)}") from None


class Meter:
    """The remaining budget of bytes and time of one answer."""

    def __init__(self) -> None:
        self._left = 0
        self._until = 0.0

    def begin(self) -> None:
        """Start a new answer."""
        self._left = FLEET_ANSWER_BYTES
        self._until = time.monotonic() + FLEET_ANSWER_S

    def count(self, size: int) -> None:
        """Count *size* received bytes.

        Raises:
            BusError: The answer is too large, or takes too long.
        """
        self._left -= size
        if self._left < 0:
            raise BusError(f"gives an answer of more than {FLEET_ANSWER_BYTES // 2**20} MB")
        if time.monotonic() > self._until:
            raise BusError(f"has not given the whole of an answer within {FLEET_ANSWER_S:g} s")


class _Metered:
    """A socket that limits a whole answer: a socket's own timeout limits only each part."""

    def __init__(self, sock: socket.socket, meter: Meter) -> None:
        self._sock: Final = sock
        self._meter: Final = meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, *args: Any) -> bytes:
        data = self._sock.recv(*args)
        self._meter.count(len(data))
        return data

    def recv_into(self, *args: Any) -> int:  # for hiredis' parser
        size = self._sock.recv_into(*args)
        self._meter.count(size)
        return size


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"no answer within {FLEET_TIMEOUT_S:g} s"
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)
