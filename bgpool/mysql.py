"""PyMySQL connections with bounded waits, which connect to an address and verify a name that the caller chooses."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from pymysql.connections import Connection
from pymysql.constants import CR
from pymysql.err import Error, OperationalError

from bgpool.core.limits import (
    KEEPALIVE_COUNT,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    TCP_USER_TIMEOUT_MS,
)
from bgpool.mysql_logins import cache_warning, missing_package, rehearse, sends_encrypted
from bgpool.tls import GuardedContext, shared

__all__ = ["CUT_CODES", "BoundedConnection", "code_of", "is_servers_refusal", "may_be_servers_refusal"]

#: A write was refused because an option of the server prevents it, or because the server is read-only.
_ER_OPTION_PREVENTS_STATEMENT: Final = 1290
_ER_READ_ONLY_MODE: Final = 1836
#: Something is read-only: the transaction (1792) or the table (1036), possibly because of the caller; or all of InnoDB,
#: which may be forced (1881). The error of a table that cannot be dropped (3604) has no further detail. Observed with
#: --innodb-read-only, --innodb-force-recovery and --transaction-read-only on MySQL 9.7, MariaDB 10.11 and 11.8.
_SOMETHING_IS_READ_ONLY: Final = frozenset({1036, 1792, 1874, 1881, 3604})
#: Creating, locking or renaming a table can fail for many reasons. For a read-only table the text has the storage
#: engine's number (HA_ERR_TABLE_READONLY), in every language.
_WITH_ERRNO: Final = frozenset({1005, 1015, 1025})
_ERRNO_READ_ONLY: Final = re.compile(r"\b165\b")
#: The options in the text of 1290 with which a server accepts no writes; others (--secure-file-priv) concern only one
#: statement.
_READ_ONLY_OPTION: Final = re.compile(r"--(?:super-|innodb-)?read[-_]only\b")

#: The connection is lost, or the server has just ended it: server shutdown, aborted connection (1152), killed (MariaDB
#: 1927, MySQL 3169), idle for too long (4031), offline mode (3032), gone away, lost. Source: mysqld_error.h and
#: errmsg.h of both servers.
CUT_CODES: Final = frozenset({1053, 1152, 1927, 3032, 3169, 4031, 2006, 2013, 2055})

#: The plugins that send a password in clear text, allowed only on encrypted connections: IAM tokens and PAM use them.
_CLEAR_TEXT: Final = frozenset({b"mysql_clear_password", b"dialog"})

_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
    ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
    ("TCP_KEEPCNT", KEEPALIVE_COUNT),
)


def _unverified() -> ssl.SSLContext:
    """Return a context for encryption without verification, which loads no certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _files_of(sslp: Mapping[str, Any]) -> list[str]:
    """Return the files that a context with PyMySQL's *sslp* is loaded from; the system's CA files if it names none."""
    files = [str(sslp[name]) for name in ("ca", "capath", "cert", "key") if sslp.get(name)]
    if sslp and not (sslp.get("ca") or sslp.get("capath")):
        paths = ssl.get_default_verify_paths()
        files += filter(None, (paths.cafile, paths.capath))
    return files


if TYPE_CHECKING:

    class _Driver(Connection[Any]):
        """The private attributes that PyMySQL's stubs omit and bgpool uses; `check_driver` checks for them."""

        _sock: socket.socket | None
        _rfile: Any
        _result: Any
        _closed: bool
        _secure: bool
        _read_timeout: float | None
        _write_timeout: float | None
        _auth_plugin_name: str
        _local_infile: bool

        def _execute_command(self, command: int, sql: str | bytes) -> None: ...
        def _read_packet(self, packet_type: type[Any] = ...) -> Any: ...
        def _read_ok_packet(self) -> Any: ...
        def _write_bytes(self, data: bytes | memoryview) -> None: ...
        def show_warnings(self) -> Any: ...
        def _force_close(self) -> None: ...
        def _process_auth(self, plugin_name: bytes, *args: Any) -> Any: ...
        def _create_ssl_ctx(self, sslp: Any) -> Any: ...

else:
    _Driver = Connection


class BoundedConnection(_Driver):
    """A PyMySQL connection whose connect timeout also limits the handshake, for example with a host that sends nothing.

    PyMySQL itself limits only the TCP connect, and waits for the handshake as long as for a query.
    """

    def __init__(
        self,
        *,
        address: str = "",
        tcp_user_timeout: int = TCP_USER_TIMEOUT_MS,
        give_up_at: float = math.inf,
        **params: Any,
    ) -> None:
        """Connect.

        Args:
            address: The IP address to connect to; empty to resolve the host's name. Certificates are verified against
                the name in both cases.
            tcp_user_timeout: The time for which sent data may stay unacknowledged, in ms; 0 for the system's limit.
            give_up_at: The deadline of the whole handshake, on the monotonic clock.
            params: PyMySQL's parameters.

        Raises:
            pymysql.OperationalError: The server cannot be reached, or refuses the login.
        """
        self._address: Final = address
        self._user_timeout_ms: Final = tcp_user_timeout
        self._give_up_at: Final = give_up_at
        if params.get("ssl_verify_identity"):
            # Below 1.2.4 PyMySQL checks the name without verifying the certificate, which Python refuses.
            params["ssl_verify_cert"] = True
        super().__init__(**params)

    def connect(self, sock: Any = None) -> None:
        """Connect, within the connect timeout for each step of the handshake."""
        self._switched_to = ""
        try:
            with self.bounded(self.connect_timeout), self._in_time():
                super().connect(sock if sock is not None else self._open())
        except RuntimeError as error:
            # PyMySQL reports a missing package by RuntimeError, which no handler of its own errors catches.
            remedy = missing_package(self._plugin) if "package is required" in str(error) else ""
            if not remedy:
                raise
            raise OperationalError(CR.CR_AUTH_PLUGIN_ERR, f"{self.host!r} cannot be logged in to: {remedy}") from error
        if self.password and sends_encrypted(self._plugin, secure=self._secure):
            # Not at the first login on green, which must be fast.
            rehearse()

    @property
    def _plugin(self) -> str:
        """The account's authentication plugin, as far as the server has reported it."""
        return self._switched_to or self._auth_plugin_name

    @property
    def cache_warning(self) -> str:
        """A warning if this login would fail on a server without the password in its cache; otherwise empty."""
        return cache_warning(self._plugin, secure=self._secure) if self.password else ""

    @contextlib.contextmanager
    def bounded(self, timeout_s: float | None) -> Iterator[None]:
        """Within the block no read and no write takes longer than *timeout_s* seconds; None for no limit."""
        limits = self._read_timeout, self._write_timeout
        self._read_timeout = self._write_timeout = timeout_s
        try:
            yield
        finally:
            self._read_timeout, self._write_timeout = limits

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """Limit each step of the handshake within the block to the time that is left for all of them."""
        if self._give_up_at == math.inf:
            yield
            return
        read, write = self._read_packet, self._write_bytes

        def read_in_time(*args: Any) -> Any:
            self._read_timeout = self._step_s()
            return read(*args)

        def write_in_time(data: bytes | memoryview) -> None:
            # This also limits the TLS handshake, which follows a write.
            self._write_timeout = self._step_s()
            write(data)

        # Replaced on this object and only for the handshake, so that later statements pay for no additional call.
        vars(self).update(_read_packet=read_in_time, _write_bytes=write_in_time)
        try:
            yield
        finally:
            del self._read_packet, self._write_bytes

    def _step_s(self) -> float | None:
        """Return the limit of the next step of the handshake, in seconds."""
        if self._give_up_at == math.inf:
            return self.connect_timeout
        left_s = max(0.001, self._give_up_at - time.monotonic())
        return left_s if self.connect_timeout is None else min(self.connect_timeout, left_s)

    @property
    def peer(self) -> str:
        """The IP address of the server; empty on a Unix socket and once closed."""
        try:
            name = self._sock.getpeername() if self._sock is not None else ""
        except OSError:  # closed by the server, or cut by bgpool
            name = ""
        return str(name[0]) if isinstance(name, tuple) else ""

    def certificate(self) -> Mapping[str, Any]:
        """Return the server's certificate in the form of SSLSocket.getpeercert; empty if none was verified."""
        sock = self._sock
        return (sock.getpeercert() or {}) if isinstance(sock, ssl.SSLSocket) else {}

    def fileno(self) -> int:
        """Return the descriptor of the socket.

        Raises:
            OSError: The connection is closed.
        """
        sock = self._sock
        if sock is None:
            raise OSError("the connection is closed")
        return int(sock.fileno())

    def _create_ssl_ctx(self, sslp: Any) -> GuardedContext:
        """Return a shared context. PyMySQL makes one per connection, and without ``ssl_ca`` loads the system's CAs."""
        make = super()._create_ssl_ctx
        return shared(
            ("mysql", *sorted(sslp.items())),
            _files_of(sslp),
            lambda: GuardedContext(make(sslp) if sslp else _unverified()),
        )

    def _open(self) -> socket.socket:
        try:
            return self._open_unix() if self.unix_socket else self._open_tcp()
        except OSError as error:
            text = f"Can't connect to MySQL server on {self.host!r} ({error})"
            raise OperationalError(CR.CR_CONN_HOST_ERROR, text) from error

    def _open_unix(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._step_s())
            sock.connect(self.unix_socket or "")
        except OSError:
            # PyMySQL would leave this to the garbage collector.
            sock.close()
            raise
        self.host_info, self._secure = "Localhost via UNIX socket", True
        return sock

    def _open_tcp(self) -> socket.socket:
        source = (self.bind_address, 0) if self.bind_address is not None else None
        sock = socket.create_connection((self._address or self.host, self.port), self._step_s(), source)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (*_KEEPALIVE, ("TCP_USER_TIMEOUT", self._user_timeout_ms)):
            with contextlib.suppress(AttributeError, OSError):  # macOS renames the first and lacks the last
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.host_info = f"socket {self.host}:{self.port}"
        return sock

    def _process_auth(self, plugin_name: bytes, *args: Any) -> Any:
        self._switched_to = plugin_name.decode("ascii", "replace")
        if plugin_name in _CLEAR_TEXT and not self._secure:
            raise OperationalError(
                CR.CR_AUTH_PLUGIN_ERR,
                f"the server asks {self.host!r} for the password in clear text and the connection is not encrypted; "
                "give ssl_ca and ssl_verify_identity",
            )
        return super()._process_auth(plugin_name, *args)


def is_servers_refusal(error: BaseException) -> bool:
    """Return whether *error* is the refusal of a write by a server that accepts no writes."""
    code = code_of(error)
    if code == _ER_OPTION_PREVENTS_STATEMENT:
        return _READ_ONLY_OPTION.search(str(error.args[1:])) is not None
    return code == _ER_READ_ONLY_MODE


def may_be_servers_refusal(error: BaseException) -> bool:
    """Return whether *error* may be such a refusal: something is read-only. A query can show if the server is."""
    code = code_of(error)
    if code in _WITH_ERRNO:
        return _ERRNO_READ_ONLY.search(str(error.args[1:])) is not None
    return code in _SOMETHING_IS_READ_ONLY


def code_of(error: BaseException) -> int:
    """Return the error's code, the server's or the driver's; 0 if it has none."""
    code = error.args[0] if isinstance(error, Error) and error.args else 0
    return code if isinstance(code, int) else 0
