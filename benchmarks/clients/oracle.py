"""The lower bound: a client that knows both addresses and needs neither names nor metadata."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from benchmarks.clients import Config
from bgpool.lab.ledger import INSERT_SQL, Key
from bgpool.lab.waiting import pause
from bgpool.lab.wire import PostgresWire, WireError

__all__ = ["Oracle"]

_ATTEMPT_S: Final = 0.25
"""The time limit of an attempt, far above that of a connect or a write. Only a silent server uses it up."""

_BETWEEN_S: Final = 0.002


class Oracle(threading.local):
    """A connection for each thread.

    One thread of all processes at a time searches for the side that takes writes, and the others wait for its result.
    If all threads searched, the servers would be busy with refusing them, and would be down for longer.
    """

    def __init__(self, config: Config) -> None:
        """Store the addresses. Each thread connects at its first write."""
        given = conninfo_to_dict(config.dsn)
        self._login = {key: str(given[key]) for key in ("port", "user", "password", "dbname")}
        self._addresses = config.addresses
        self._address = config.addresses[0]
        self._wire: PostgresWire | None = None
        self._finding = Path(config.directory) / "oracle"

    def write(self, key: Key) -> None:
        """See Client. It never raises and never gives up."""
        sql = INSERT_SQL.encode() % tuple(str(number).encode() for number in key)
        while not self._try(sql):
            failed_s = time.monotonic()
            with self._looking() as fd:
                if not self._is_found(fd, failed_s):
                    self._look(sql)
                    os.pwrite(fd, f"{time.monotonic():.6f} {self._address}\n".encode(), 0)
                    return

    def close(self) -> None:
        """See Client. It closes the connection of the calling thread."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _look(self, sql: bytes) -> None:
        """Try both sides in turn until one takes *sql*."""
        for address in cycle(self._addresses):
            self._address = address
            if self._try(sql):
                return
            pause(_BETWEEN_S)

    def _try(self, sql: bytes) -> bool:
        try:
            if self._wire is None:
                self._wire = PostgresWire(
                    timeout_s=_ATTEMPT_S, host=self._address, sslmode="disable", gssencmode="disable", **self._login
                )
            self._wire.execute(sql, timeout_s=_ATTEMPT_S)
        except WireError:
            self.close()
            return False
        return True

    @contextmanager
    def _looking(self) -> Iterator[int]:
        """Hold the lock of the search. Yield the file that contains the last result."""
        fd = os.open(self._finding, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Each thread opens the file separately, so the lock also excludes threads of the same process.
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _is_found(self, fd: int, failed_s: float) -> bool:
        """Return whether a thread has found the side since *failed_s*. If so, use that side."""
        at_s, _, address = os.pread(fd, 100, 0).decode().strip().partition(" ")
        if not address or float(at_s) < failed_s:
            return False
        self._address = address
        return True
