"""Client connections with a time limit for every step, also to a server that does not answer at all.

libpq's own connect timeout is no shorter than 2 s and its queries have none; the probe needs both in milliseconds.
"""

from __future__ import annotations

import contextlib
import select
import time
from typing import Any, Protocol

import psycopg
import pymysql
from psycopg import pq
from psycopg.conninfo import make_conninfo

from bgpool.lab.errors import LabError
from bgpool.mysql import BoundedConnection


class WireError(LabError):
    """The server refused, failed or did not answer in time; *sqlstate* is None without an answer."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Wire(Protocol):
    """One connection to one address, used by one thread."""

    def execute(self, sql: bytes, *, timeout_s: float) -> None:
        """Run *sql* and discard its rows.

        Raises:
            WireError: It failed, or was not answered within *timeout_s* seconds. After a timeout its outcome is unknown
                and the connection unusable.
        """

    def close(self) -> None:
        """Close the connection; idempotent."""


class PostgresWire:
    """A `Wire` to PostgreSQL."""

    def __init__(self, *, timeout_s: float, **parameters: str | int) -> None:
        """Connect with libpq's *parameters*.

        Raises:
            WireError: Refused, or not connected within *timeout_s* seconds.
        """
        deadline_s = time.monotonic() + timeout_s
        self._connection = pq.PGconn.connect_start(make_conninfo("", **parameters).encode())
        try:
            self._connect(deadline_s)
            self._connection.nonblocking = 1
        except BaseException:
            self.close()
            raise

    def execute(self, sql: bytes, *, timeout_s: float) -> None:
        """See `Wire`."""
        deadline_s = time.monotonic() + timeout_s
        try:
            self._connection.send_query(sql)
            while self._connection.flush():
                self._wait(deadline_s, writing=True)
            failure: WireError | None = None
            while (result := self._result(deadline_s)) is not None:
                if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
                    state = result.error_field(pq.DiagnosticField.SQLSTATE)
                    failure = WireError(
                        result.error_message.decode("utf-8", "replace").strip(),
                        state.decode() if state else None,
                    )
        except psycopg.OperationalError as error:  # errors that the calls raise themselves
            raise WireError(str(error)) from error
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._connection.finish()

    def _connect(self, deadline_s: float) -> None:
        while True:
            status = self._connection.connect_poll()
            if status == pq.PollingStatus.OK:
                return
            if status == pq.PollingStatus.FAILED:
                raise WireError(self._connection.error_message.decode("utf-8", "replace").strip())
            self._wait(deadline_s, writing=status == pq.PollingStatus.WRITING)

    def _result(self, deadline_s: float) -> pq.abc.PGresult | None:
        while self._connection.is_busy():
            self._wait(deadline_s, writing=False)
            self._connection.consume_input()
        return self._connection.get_result()

    def _wait(self, deadline_s: float, *, writing: bool) -> None:
        left_s = max(deadline_s - time.monotonic(), 0.0)
        poller = select.poll()  # not select.select, which fails above 1024 descriptors
        poller.register(self._connection.socket, select.POLLOUT if writing else select.POLLIN)
        if not poller.poll(left_s * 1000):
            raise WireError("the server did not answer in time")


class MysqlWire:
    """A `Wire` to MySQL."""

    def __init__(self, *, timeout_s: float, **parameters: Any) -> None:
        """Connect with PyMySQL's *parameters*, in autocommit.

        Raises:
            WireError: Refused, or no answer within *timeout_s* seconds to one step of the handshake.
        """
        try:
            self._connection = BoundedConnection(autocommit=True, connect_timeout=timeout_s, **parameters)
        except pymysql.MySQLError as error:
            raise WireError(str(error)) from error

    def execute(self, sql: bytes, *, timeout_s: float) -> None:
        """See `Wire`."""
        try:
            with self._connection.bounded(timeout_s):
                self._connection.query(sql)
        except pymysql.MySQLError as error:
            raise WireError(str(error)) from error

    def close(self) -> None:
        """Close the connection; idempotent. The message to the server has no answer."""
        with contextlib.suppress(pymysql.MySQLError):  # closed already
            self._connection.close()
