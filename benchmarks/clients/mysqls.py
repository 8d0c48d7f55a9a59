"""MySQL clients of the *mysql_release* benchmark: bgpool's pool, and PyMySQL where the addresses are known."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pymysql
from pymysql.connections import Connection

from benchmarks.clients import POOL_TIMEOUT_S, Config
from benchmarks.clients.oracle import Oracle
from benchmarks.clients.ours import bg_options
from bgpool import get_pool
from bgpool.lab.ledger import INSERT_SQL, Key

if TYPE_CHECKING:
    _Connection = Connection[Any]
else:
    _Connection = Connection

__all__ = ["Known", "KnownConnection", "Ours", "bare", "prepare_rsa"]

#: A login takes a few ms. With 64 logins at a time on two cores the last one waits for 200 ms.
_ATTEMPT_S = 2.0


class Ours:
    """``with pool.connection()``."""

    def __init__(self, config: Config) -> None:
        """Make the pool and open it."""
        options = {**bg_options(config), "bg_run_dir": Path(config.directory)}
        size = config.size
        self._pool = get_pool(config.dsn, **options, min_size=size, max_size=size, timeout=POOL_TIMEOUT_S)
        self._pool.open()

    def write(self, key: Key) -> None:
        """See Client."""
        with self._pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute(INSERT_SQL, key)

    def close(self) -> None:
        """See Client."""
        self._pool.close(timeout=1.0)


class KnownConnection(_Connection):
    """A PyMySQL connection to an address under a name."""

    def __init__(self, address: str, **params: Any) -> None:
        """Connect to *address*. *params* are PyMySQL's, with the name as host."""
        self._known = address
        super().__init__(**params)

    def connect(self, sock: Any = None) -> None:
        """Connect like PyMySQL."""
        sock = socket.create_connection((self._known, self.port), self.connect_timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connect(sock)


def bare(dsn: str) -> dict[str, Any]:
    """Return PyMySQL's parameters for *dsn*, with a TLS context that is made here."""
    url = urlsplit(dsn)
    query = dict(parse_qsl(url.query))
    params: dict[str, Any] = {
        "host": url.hostname, "port": url.port, "user": url.username, "password": unquote(url.password or ""),
        "database": url.path.strip("/"), "charset": "utf8mb4", "connect_timeout": _ATTEMPT_S,
        "read_timeout": _ATTEMPT_S, "write_timeout": _ATTEMPT_S,
    }  # fmt: skip
    authority = query.get("ssl_ca")
    tls = {"ssl": ssl.create_default_context(cafile=authority)} if authority else {"ssl_disabled": True}
    return {**params, **tls}


def prepare_rsa() -> None:
    """Prepare RSA, which takes some ms at its first use."""
    from bgpool import mysql_logins  # imported here, because the build before does not have it

    mysql_logins.rehearse()


class Known(Oracle):
    """A connection for each thread. It finds the server that takes writes like the oracle."""

    def __init__(self, config: Config) -> None:
        """Prepare everything. Each thread connects at its first write."""
        prepare_rsa()
        self._params = bare(config.dsn)
        self._addresses = config.addresses
        self._address = config.addresses[0]
        self._connection: KnownConnection | None = None
        self._finding = Path(config.directory) / "oracle"

    def close(self) -> None:
        """See Client. It closes the connection of the calling thread."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.open:
            connection.close()

    def _try(self, sql: bytes) -> bool:
        try:
            if self._connection is None:
                self._connection = KnownConnection(self._address, **self._params)
            with self._connection.cursor() as cursor:
                cursor.execute(sql.decode())
            self._connection.commit()
        except pymysql.MySQLError:
            self.close()
            return False
        return True
