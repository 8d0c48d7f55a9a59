"""The fleet's bus: a Redis server, and faults for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

from bgpool.lab.fleet.plan import STOPPED_S
from bgpool.lab.redis import RedisServer

__all__ = ["LabBus"]


class LabBus:
    """A Redis without persistence, with a replica if it can fail over; a context manager."""

    def __init__(self, bg_id: str, key: bytes, *, with_replica: bool = False) -> None:
        """Start it for the fleet of *bg_id*, whose hosts have the *key*."""
        self._bg_id: Final = bg_id
        self._key: Final = key
        self._stack: Final = contextlib.ExitStack()
        self._timers: Final[list[threading.Timer]] = []
        self.server: Final = self._stack.enter_context(RedisServer())
        self._replica: RedisServer | None = None
        if with_replica:
            try:
                self._replica = self._stack.enter_context(RedisServer())
                self._replica.follow(self.server)
            except BaseException:
                self._stack.close()
                raise

    def __enter__(self) -> LabBus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for timer in self._timers:
            timer.cancel()
        self._stack.close()

    @property
    def options(self) -> Mapping[str, Any]:
        """The options for get_pool."""
        return {"bg_fleet": self.server.url(), "bg_fleet_key": self._key.hex()}

    def strike(self, fault: str) -> None:
        """Cause the fault."""
        actions = {
            "kill": self.server.kill,
            "stop": self._stop,
            "flush": lambda: self.server.execute("FLUSHALL"),
            "del": lambda: self.server.execute("DEL", f"bgpool:{{{self._bg_id}}}"),
            "failover": self._fail_over,
        }
        actions[fault]()

    def _stop(self) -> None:
        self.server.freeze()
        timer = threading.Timer(STOPPED_S, self.server.thaw)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _fail_over(self) -> None:
        """Stop the primary and redirect its name: the replica takes over its address and port."""
        assert self._replica is not None
        self.server.kill()
        self._replica.promote()
        self._replica.execute("CONFIG", "SET", "bind", self.server.address)
        self._replica.execute("CONFIG", "SET", "port", self.server.port)
