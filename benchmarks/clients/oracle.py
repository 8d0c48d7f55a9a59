"""The floor: a client that knows both addresses and needs neither names nor metadata."""

from __future__ import annotations

import threading
from itertools import cycle
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from benchmarks.clients import Config
from bgpool.lab.ledger import INSERT_SQL, Key
from bgpool.lab.waiting import pause
from bgpool.lab.wire import PostgresWire, WireError

__all__ = ["Oracle"]

_ATTEMPT_S: Final = 0.25
"""Far more than a connect or a write takes; only a server that says nothing at all uses it up."""

_BETWEEN_S: Final = 0.001
"""Pause between two attempts, for each thread of the application: servers that refuse have to work for it."""


class Oracle(threading.local):
    """A connection for each thread."""

    def __init__(self, config: Config) -> None:
        """Remember where to go; threads connect when they first write."""
        given = conninfo_to_dict(config.dsn)
        self._login = {key: str(given[key]) for key in ("port", "user", "password", "dbname")}
        self._between_s = _BETWEEN_S * config.crowd
        self._addresses = cycle(config.addresses)
        self._address = next(self._addresses)
        self._wire: PostgresWire | None = None

    def write(self, key: Key) -> None:
        """As the protocol says; never raises, and never gives up."""
        sql = INSERT_SQL.encode() % tuple(str(number).encode() for number in key)
        while True:
            try:
                self._connected().execute(sql, timeout_s=_ATTEMPT_S)
            except WireError:
                self.close()
                self._address = next(self._addresses)
                pause(self._between_s)
            else:
                return

    def close(self) -> None:
        """As the protocol says, for the calling thread."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _connected(self) -> PostgresWire:
        if self._wire is None:
            self._wire = PostgresWire(
                timeout_s=_ATTEMPT_S, host=self._address, sslmode="disable", gssencmode="disable", **self._login
            )
        return self._wire
