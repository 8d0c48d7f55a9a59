"""A leader that only publishes heartbeats."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final

from bgpool.core.fleet import Message
from bgpool.core.limits import FLEET_HEARTBEAT_SWITCHING_S
from bgpool.fleet.config import FleetConfig
from bgpool.fleet.messages import seal
from bgpool.fleet.streams import StreamBus


class Talker:
    """Publishes a message as often as in a switchover while the block lasts."""

    def __init__(self, url: str, bg_id: str, key: bytes, *, ahead_s: float = 0.0) -> None:
        """Of *bg_id* on the bus at *url*, signed with *key*, and issued by a clock that is *ahead_s* ahead."""
        self._bus: Final = StreamBus(FleetConfig(url, (key,)), bg_id)
        self._bg_id: Final = bg_id
        self._key: Final = key
        self._ahead_s: Final = ahead_s
        self._over: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._talk)
        self.term = 0

    def __enter__(self) -> Talker:
        top = self._bus.top()
        self.term = max(int(time.time()), top.term + 1 if top is not None else 0)
        self._publish(0)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._bus.close()

    def _talk(self) -> None:
        seq = 1
        while not self._over.wait(FLEET_HEARTBEAT_SWITCHING_S):
            self._publish(seq)
            seq += 1

    def _publish(self, seq: int) -> None:
        issued_ns = time.time_ns() + int(self._ahead_s * 1e9)
        message = Message(
            self.term, seq, "aa" * 8, issued_ns, "12345678", 3, 0, (0, 0), (None, None) if seq == 0 else ()
        )
        self._bus.publish(self.term, seq, seal(message, self._bg_id, (self._key,)))
