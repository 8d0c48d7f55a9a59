"""The state of a MySQL pool: slots, idle connections, a queue and counts. It uses no threads and no servers.

Slots are objects in weak sets. Freeing a slot twice is the same as freeing it once, and a slot without a reference is
free. So an interrupt leaves no wrong number behind, not even in a finalizer, where Python ignores it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final
from weakref import WeakSet

from bgpool.pools.mysql.connection import MysqlConnection

__all__ = ["Slot", "Slots", "Waiter"]

#: The figures that are counted since the pool was created.
_COUNTS: Final = (
    "requests_num", "requests_queued", "requests_errors", "connections_num", "connections_ms", "connections_errors",
    "connections_lost", "returns_bad",
)  # fmt: skip


class Slot:
    """The place of one connection, from before it is opened until it is closed.

    Attributes:
        claim: Taken by the thread that opens the connection; or by the thread that tried to start that one and failed.
        is_taken: True until it is freed.
    """

    __slots__ = ("__weakref__", "claim", "is_taken")

    def __init__(self) -> None:
        self.claim: Final = threading.Lock()
        self.is_taken = True


class Waiter:
    """A caller in the queue, and the answer to it.

    Attributes:
        connection: The connection that it was given; None while it waits, and if the pool was closed.
    """

    __slots__ = ("_unanswered", "connection")

    def __init__(self) -> None:
        self.connection: MysqlConnection | None = None
        # A bare lock: an answer is one step, even if an interrupt or the collector comes in between.
        self._unanswered: Final = threading.Lock()
        self._unanswered.acquire()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the answer; return whether it came within *timeout_s* seconds. Returns true once."""
        return self._unanswered.acquire(timeout=timeout_s)

    def answer(self, connection: MysqlConnection | None) -> None:
        """Give it *connection*, or None for good. Must be called once."""
        self.connection = connection
        self._unanswered.release()


class Slots:
    """The state of a pool. The lock of the pool must be held for all access except ``len`` of its collections.

    Attributes:
        taken: The slots of connections that are open or being opened; size() counts them.
        opening: The subset of those that are being opened.
        idle: The connections that are not in use, the longest idle first.
        waiters: The callers that wait, the longest waiting first.
        closed: True if no connection is lent, kept or opened.
        counts: The figures since the pool was created.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        """Create a closed state without slots; between *min_size* and *max_size* connections are wanted."""
        self._min_size: Final = min_size
        self._max_size: Final = max_size
        self.taken: Final[WeakSet[Slot]] = WeakSet()
        self.opening: Final[WeakSet[Slot]] = WeakSet()
        self.idle: Final[deque[MysqlConnection]] = deque()
        self.waiters: Final[deque[Waiter]] = deque()
        self.closed = True
        self.counts: Final = dict.fromkeys(_COUNTS, 0)

    def size(self) -> int:
        """Return the number of connections that are open or being opened."""
        return _count(self.taken)

    def claim_needed(self, claimed: list[Slot]) -> None:
        """Take as many slots as connections must be opened, and add them to *claimed*."""
        if self.closed:
            return
        size = self.size()
        wanted = max(len(self.waiters) - _count(self.opening), self._min_size - size)
        for _ in range(min(wanted, self._max_size - size)):
            claimed.append(self._claim())

    def claim_first(self, openers: int) -> Slot | None:
        """Return a slot for a caller that opens a connection; None if one is idle, or *openers* are being opened."""
        if self.closed or self.idle or _count(self.opening) >= openers or self.size() >= self._max_size:
            return None
        return self._claim()

    def _claim(self) -> Slot:
        slot = Slot()
        self.taken.add(slot)
        self.opening.add(slot)
        return slot

    def free(self, slot: Slot | None) -> None:
        """Free *slot*, if it is taken."""
        if slot is not None:
            slot.is_taken = False
            self.taken.discard(slot)
            self.opening.discard(slot)

    def put(self, connection: MysqlConnection) -> bool:
        """Give *connection* to the caller that has waited longest, or keep it; return False if it is not wanted."""
        slot = connection.bgpool_slot
        if self.closed or slot is None or not slot.is_taken:
            return False
        while self.waiters:
            waiter = self.waiters[0]
            # A waiter leaves the queue when it is answered. If an interrupt prevented that, it has its answer
            # nevertheless.
            unanswered = waiter.connection is None
            if unanswered:
                waiter.answer(connection)
            self.waiters.popleft()
            if unanswered:
                return True
        self.idle.append(connection)
        return True

    def leave_queue(self, waiter: Waiter) -> MysqlConnection | None:
        """Remove *waiter* if it is still in the queue; return the connection that it was given."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
        return waiter.connection

    def take_unneeded(self, now: float, max_idle_s: float) -> list[MysqlConnection]:
        """Remove idle connections that are too old, or were not used for *max_idle_s* and exceed min_size."""
        leaving: list[MysqlConnection] = []
        spare = self.size() - self._min_size
        for connection in list(self.idle):
            unused = now - connection.bgpool_idle_since > max_idle_s and len(leaving) < spare
            if unused or now >= connection.bgpool_expires_at:
                leaving.append(connection)
                self.idle.remove(connection)
                self.free(connection.bgpool_slot)
        return leaving

    def close(self) -> tuple[list[Waiter], list[MysqlConnection]]:
        """Close for good; return the callers that must be notified, and the connections that must be closed."""
        self.closed = True
        waiters = [waiter for waiter in self.waiters if waiter.connection is None]
        idle = list(self.idle)
        self.waiters.clear()
        self.idle.clear()
        for connection in idle:
            self.free(connection.bgpool_slot)
        return waiters, idle

    def stats(self) -> dict[str, int]:
        """Return the figures, under psycopg_pool's names."""
        return {
            "pool_min": self._min_size,
            "pool_max": self._max_size,
            "pool_size": self.size(),
            "pool_available": len(self.idle),
            "requests_waiting": len(self.waiters),
            **self.counts,
        }


def _count(slots: WeakSet[Slot]) -> int:
    """Return the number of living entries. ``len`` also counts dead ones that an interrupt kept from being removed."""
    return sum(1 for _ in slots)
