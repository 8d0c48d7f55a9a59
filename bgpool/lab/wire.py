"""A client connection on which every step is bounded, also against a server that does not answer at all.

libpq's own connect timeout is no shorter than 2 s and its queries have none; the oracle needs both in
milliseconds.
"""

from __future__ import annotations

import select
import time

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from bgpool.lab.errors import LabError


class WireError(LabError):
    """The server refused, failed or did not answer in time; *sqlstate* is None without an answer."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Wire:
    """One connection to one address, used by one thread."""

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
        """Run *sql* and forget its rows.

        Raises:
            WireError: It failed, or was not answered within *timeout_s* seconds. After the latter its
                outcome is unknown and the connection of no more use.
        """
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
        except psycopg.OperationalError as error:  # what the calls raise themselves
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
