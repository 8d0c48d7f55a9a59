"""What a MySQL pool has and who waits for it: slots, idle connections, a queue and counts. No threads, no servers.

Slots are objects in weak sets. Freeing one twice is the same as freeing it once, and one that nothing refers to any
more is free. So an interrupt leaves no wrong number behind, not even in a finalizer, where Python ignores it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final
from weakref import WeakSet

from bgpool.pools.mysql.connection import MysqlConnection

__all__ = ["Slot", "Slots", "Waiter"]

#: What is counted since the pool was made.
_COUNTS: Final = (
    "requests_num", "requests_queued", "requests_errors", "connections_num", "connections_ms", "connections_errors",
    "connections_lost", "returns_bad",
)  # fmt: skip


class Slot:
    """The place of one connection, from before it is opened until it is closed.

    Attributes:
        claim: Taken by the thread that opens the connection; by the one that meant to start it if it did not begin.
        is_taken: Until it is freed.
    """

    __slots__ = ("__weakref__", "claim", "is_taken")

    def __init__(self) -> None:
        self.claim: Final = threading.Lock()
        self.is_taken = True


class Waiter:
    """A caller in the queue, and what it is given.

    Attributes:
        connection: What it was given; None while it waits, and if the pool was closed.
    """

    __slots__ = ("_unanswered", "connection")

    def __init__(self) -> None:
        self.connection: MysqlConnection | None = None
        # A bare lock: answering is one step, also where an interrupt or the collector comes in between.
        self._unanswered: Final = threading.Lock()
        self._unanswered.acquire()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the answer; whether it came within *timeout_s* seconds. True once."""
        return self._unanswered.acquire(timeout=timeout_s)

    def answer(self, connection: MysqlConnection | None) -> None:
        """Give it *connection*, or None for good. To be called once."""
        self.connection = connection
        self._unanswered.release()


class Slots:
    """The state of a pool. Everything but ``len`` of its collections is used under the lock of the pool.

    Attributes:
        taken: Of connections that are open or being opened; size() counts them.
        opening: Those of them that are being opened.
        idle: Connections that nobody uses, the longest idle first.
        waiters: Callers that wait, the longest waiting first.
        closed: Nothing is lent, kept or opened.
        counts: Since the pool was made.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        """None taken, and closed; between *min_size* and *max_size* of them are wanted."""
        self._min_size: Final = min_size
        self._max_size: Final = max_size
        self.taken: Final[WeakSet[Slot]] = WeakSet()
        self.opening: Final[WeakSet[Slot]] = WeakSet()
        self.idle: Final[deque[MysqlConnection]] = deque()
        self.waiters: Final[deque[Waiter]] = deque()
        self.closed = True
        self.counts: Final = dict.fromkeys(_COUNTS, 0)

    def size(self) -> int:
        """Connections that are open or being opened."""
        return _count(self.taken)

    def claim_needed(self, claimed: list[Slot]) -> None:
        """Take as many slots as connections have to be opened, and add them to *claimed*."""
        if self.closed:
            return
        size = self.size()
        wanted = max(len(self.waiters) - _count(self.opening), self._min_size - size)
        for _ in range(min(wanted, self._max_size - size)):
            claimed.append(self._claim())

    def claim_first(self, openers: int) -> Slot | None:
        """A slot for a caller who opens a connection; None where one is idle, or *openers* are being opened."""
        if self.closed or self.idle or _count(self.opening) >= openers or self.size() >= self._max_size:
            return None
        return self._claim()

    def _claim(self) -> Slot:
        slot = Slot()
        self.taken.add(slot)
        self.opening.add(slot)
        return slot

    def free(self, slot: Slot | None) -> None:
        """Free *slot*, if it is one that is taken."""
        if slot is not None:
            slot.is_taken = False
            self.taken.discard(slot)
            self.opening.discard(slot)

    def put(self, connection: MysqlConnection) -> bool:
        """Give *connection* to the caller that has waited for longest, or keep it; False if it is not wanted."""
        slot = connection.bgpool_slot
        if self.closed or slot is None or not slot.is_taken:
            return False
        while self.waiters:
            waiter = self.waiters[0]
            # It leaves the queue once it is answered; one that an interrupt kept from leaving has its answer.
            unanswered = waiter.connection is None
            if unanswered:
                waiter.answer(connection)
            self.waiters.popleft()
            if unanswered:
                return True
        self.idle.append(connection)
        return True

    def leave_queue(self, waiter: Waiter) -> MysqlConnection | None:
        """Take *waiter* out, if it is in the queue still; what it was given."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
        return waiter.connection

    def take_unneeded(self, now: float, max_idle_s: float) -> list[MysqlConnection]:
        """Take out idle connections that are too old, or were not used for *max_idle_s* and are more than min_size."""
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
        """Close for good; the callers that have to be told, and the connections to be closed."""
        self.closed = True
        waiters = [waiter for waiter in self.waiters if waiter.connection is None]
        idle = list(self.idle)
        self.waiters.clear()
        self.idle.clear()
        for connection in idle:
            self.free(connection.bgpool_slot)
        return waiters, idle

    def stats(self) -> dict[str, int]:
        """Figures, named as psycopg_pool names them."""
        return {
            "pool_min": self._min_size,
            "pool_max": self._max_size,
            "pool_size": self.size(),
            "pool_available": len(self.idle),
            "requests_waiting": len(self.waiters),
            **self.counts,
        }


def _count(slots: WeakSet[Slot]) -> int:
    """How many there are: ``len`` counts the dead, too, where an interrupt came before they were taken out."""
    return sum(1 for _ in slots)
