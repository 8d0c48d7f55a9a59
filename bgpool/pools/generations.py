"""The successive generations of a pool: the current one, and the end of the earlier ones."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from bgpool.core.limits import DISTRUST_INTERVAL_MAX_S, DISTRUST_INTERVAL_S
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.errors import PoolClosed
from bgpool.pools import fork
from bgpool.pools.generation import Generation, connects_at_once
from bgpool.pools.recipe import DriversPool, Recipe
from bgpool.segment.reader import Reading
from bgpool.segment.table import Usage

__all__ = ["Generations"]

#: Two words that differ: the fast path is closed.
_SHUT: Final = (memoryview(b"\0" * 8).cast("Q"), memoryview(b"\1" * 8).cast("Q"), None)


class Generations:
    """The connections of a pool, replaced as a whole at each epoch.

    Attributes:
        current: The generation that is handed out; None before the first checkout, and while no generation is fit.
        quick: The mapped word, its value when *current* was found fit, and the driver's pool's function that returns a
            connection. The three must be read as one tuple. The second is a word of memory as well, which the kernel
            wipes in a forked child.
    """

    current: Generation | None
    quick: tuple[memoryview, memoryview | fork.PidWord, Any]

    def __init__(
        self,
        recipe: Recipe,
        make_inner: Callable[[Generation], DriversPool],
        count_workers: Callable[[], int],
    ) -> None:
        """Create the state without a generation.

        Args:
            recipe: The way to open connections.
            make_inner: Creates the object that keeps the connections of a generation, see Recipe.make_inner.
            count_workers: Returns the number of processes on the host that use the bg_id, see
                Participant.count_workers.
        """
        self._recipe: Final = recipe
        self._make_inner: Final = make_inner
        self._count_workers: Final = count_workers
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self.current = None
        self.quick = _SHUT
        # Retired generations that may have connections in use: those that are not touched, and those that are cut, with
        # the time.
        self._leaving: list[Generation] = []
        self._cuts: list[tuple[float, Generation]] = []
        # The maximum of connections that the next generation opens at a time; None before a switchover has made one
        # unfit.
        self._at_once: int | None = None
        # Retired generations that may still hand out a connection to a caller that has waited since before.
        self._ended: list[Generation] = []
        self._drained = self._cut = 0
        # The times of the last refused write and of the last replacement for that reason, and the pause after that one.
        self._refused_at = self._distrusted_at = -math.inf
        self._distrust_s = 0.0
        # The checkouts served by earlier generations, and the last reported total. A reader would take a falling count
        # for that of a new process.
        self._served_before = self._served = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.current!r}>"

    def after_fork_in_child(self) -> None:
        """Abandon the parent's connections untouched and start with none."""
        for generation in [*filter(None, [self.current]), *self._ended, *self._all_leaving()]:
            generation.live[0] = 0
            fork.keep_forever(generation)
        self._reset()

    # -- the current generation ----------------------------------------------------------------------------------

    def adopt(self, reading: Reading) -> Generation:
        """Return the open generation that is fit under *reading*; create it if there is none.

        Raises:
            PoolClosed: The gate is closed, or the generation has just been retired.
        """
        generation = self.current
        word, admitted, _ = self.quick
        if generation is not None and word is reading.word and word == admitted:
            # Another caller that was released at the same time found it fit under the same snapshot.
            return generation
        snapshot = self._recipe.gate.snapshot(reading)
        old: Generation | None = None
        with self._lock:
            if self._recipe.gate.closed:
                raise self._recipe.like(
                    None, PoolClosed, f"{self._recipe.endpoint.name!r}: the pool or connector is closed"
                )
            generation = self.current
            if generation is not None and snapshot is not None and generation.is_unfit(snapshot):
                old, generation = generation, None
                self._put_away(old, snapshot)
            if generation is None:
                at_once = self._at_once
                follows = at_once is not None or (snapshot is not None and snapshot.phase >= Phase.IN_PROGRESS)
                generation = Generation(
                    self._recipe,
                    self._make_inner,
                    self._epoch(snapshot),
                    self.distrust,
                    follows=follows,
                    at_once=at_once,
                )
                self.current = generation
            self._note_switching(generation, snapshot)
        try:
            generation.open()
        except BaseException:
            # It would stay half open forever, because the driver's pool does not repeat its start.
            with self._lock:
                self.current = None if self.current is generation else self.current
            generation.retire(timeout_s=0)
            raise
        finally:
            if old is not None:
                self._retire(old)
        with self._lock:
            if self.current is generation and reading.is_current:
                # Always a new word: a thread that still reads the earlier tuple must not find a new number in its word.
                self.quick = (reading.word, fork.parents_word(reading.sequence), generation.inner.getconn)
        return generation

    def apply(self, reading: Reading) -> None:
        """Retire the generation that *reading* makes unfit."""
        with self._lock:
            if self.quick[0] is not reading.word:
                # The fast path reads a file that is no longer in place, and into which no monitor may write any more.
                self.quick = _SHUT
        snapshot = self._recipe.gate.snapshot(reading)
        if snapshot is None:
            return
        with self._lock:
            generation = self.current
            if generation is not None and generation.is_unfit(snapshot):
                self._put_away(generation, snapshot)
            else:
                if generation is not None:
                    self._note_switching(generation, snapshot)
                generation = None
                self._drain_leaving(snapshot)
            for one in [*filter(None, [self.current]), *self._leaving]:
                one.hold(held=bool(snapshot.hold_until_ns))
        if generation is not None:
            self._retire(generation)

    def _note_switching(self, generation: Generation, snapshot: Snapshot | None) -> None:
        """Record whether a switchover is under way, for judging a cut after the deployment is gone."""
        switching = self._recipe.gate.switching_by(snapshot)
        if switching is not None:
            generation.switching = switching

    def _epoch(self, snapshot: Snapshot | None) -> int | None:
        if snapshot is None or self._recipe.endpoint.host(snapshot) is None:
            return None
        return snapshot.epoch

    # -- the end of a generation ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """Replace every connection: an idle one immediately, one in use when it is returned."""
        with self._lock:
            old = self._take_current()
        if old is not None:
            self._retire(old)

    def distrust(self, generation: Generation) -> bool:
        """Replace every connection if *generation* is the current one, because its server refuses writes.

        After an ordinary failover the endpoint's name may lead to another server. If it leads to the same one, a new
        connection is no better. So each replacement is followed by a pause in which connections are kept. In a
        switchover the next checkouts wait instead, see Gate.note_refusal.

        Returns:
            True if *generation* is no longer handed out.
        """
        with self._lock:
            if generation is not self.current:
                return True
            now = time.monotonic()
            quiet_s, self._refused_at = now - self._refused_at, now
            if quiet_s >= DISTRUST_INTERVAL_MAX_S:
                self._distrust_s = 0.0
            pause_s = min(max(DISTRUST_INTERVAL_S, 2 * self._distrust_s), DISTRUST_INTERVAL_MAX_S)
            if not self._recipe.gate.note_refusal(pause_s) and now - self._distrusted_at < self._distrust_s:
                return False
            self._distrust_s = pause_s
            self._distrusted_at = now
            self._take_current()
        self._retire(generation)
        return True

    def _take_current(self) -> Generation | None:
        """Stop handing out the current generation, and leave its connections in use alone. The lock must be held."""
        old, self.current = self.current, None
        self.quick = _SHUT
        if old is not None:
            self._ended.append(old)
            self._leaving.append(old)
        return old

    def close(self, timeout_s: float) -> None:
        """Do the same for good, after the gate is closed; wait at most *timeout_s* seconds for threads."""
        with self._lock:
            generation, self.current = self.current, None
            self.quick = _SHUT
        if generation is not None:
            generation.close(timeout_s)
            served = generation.served()
            with self._lock:
                self._served_before += served

    def cut_overdue(self) -> float:
        """Cut connections in use whose grace has ended; return the seconds until the next cut, infinite if none."""
        now = time.monotonic()
        with self._lock:
            due = [generation for at, generation in self._cuts if at <= now]
            self._cuts = [(at, generation) for at, generation in self._cuts if at > now]
            next_at = min((at for at, _ in self._cuts), default=math.inf)
        self._cut += sum(generation.cut() for generation in due)
        return next_at - now

    def _put_away(self, generation: Generation, snapshot: Snapshot) -> None:
        """Retire the current *generation* and drain its connections in use. The lock must be held."""
        # Before its connections are counted: a connection that is opened later is closed by the thread that opened it.
        generation.retired = True
        self._take_current()
        held = generation.connections()
        self._at_once = connects_at_once(held, self._count_workers())
        self._drained += held
        self._drain_leaving(snapshot)

    def _drain_leaving(self, snapshot: Snapshot) -> None:
        """Hold new transactions on connections that *snapshot* makes unfit, and cut these after the grace.

        The lock must be held. Before IN_PROGRESS blue has not moved. Connections that a lost run directory or a missed
        rollback has made unfit are closed at their return, and no transaction is cut for that reason. A rollback
        cancels the cuts that are not due yet.
        """
        settings = self._recipe.settings
        leaving, cuts, self._leaving, self._cuts = self._leaving, self._cuts, [], []
        for at, generation in cuts:
            if generation.was_rolled_back(snapshot):
                self._leaving.append(generation)
            else:
                self._cuts.append((at, generation))
        for generation in leaving:
            if not generation.connections():
                continue
            drained = snapshot.phase >= Phase.IN_PROGRESS and generation.is_unfit(snapshot)
            if drained:
                generation.drain()
            if drained and settings.bg_drop_blue_connections:
                self._cuts.append((time.monotonic() + settings.bg_drain_timeout_ms / 1000, generation))
            else:
                self._leaving.append(generation)

    def _retire(self, generation: Generation) -> None:
        """End a generation that was put away; its count of served checkouts is final then."""
        generation.retire()
        served = generation.served()
        with self._lock:
            self._ended.remove(generation)
            self._served_before += served

    def leaving(self) -> list[Generation]:
        """Return the retired generations that may have connections in use."""
        with self._lock:
            return self._all_leaving()

    def _all_leaving(self) -> list[Generation]:
        return [*self._leaving, *(generation for _, generation in self._cuts)]

    # -- figures -------------------------------------------------------------------------------------------------

    def driver_stats(self) -> Mapping[str, int]:
        """Return the figures of the current driver's pool, under psycopg_pool's names; empty if there is none."""
        return _driver_stats(self.current)

    def usage(self) -> Usage:
        """Return the counts of connections, retired generations included. Callers at the gate are not known here."""
        current = self.current
        driver = _driver_stats(current)
        connections = sum(one.connections() for one in [*filter(None, [current]), *self._all_leaving()])
        idle = driver.get("pool_available", 0)
        return Usage(
            in_use=max(0, connections - idle),
            idle=idle,
            waiting=driver.get("requests_waiting", 0),
            drained=self._drained,
            cut=self._cut,
            served=self._count_served(),
        )

    def _count_served(self) -> int:
        """Return the number of served checkouts by the driver's own count, because the fast path counts nothing."""
        with self._lock:
            mine, before = [*self._ended, *filter(None, [self.current])], self._served_before
        # Without the lock: a connector queries its owner, which may hold a lock of its own while it waits for this one.
        served = before + sum(one.served() for one in mine)
        with self._lock:
            self._served = max(self._served, served)
            return self._served


def _driver_stats(generation: Generation | None) -> Mapping[str, int]:
    return generation.inner.get_stats() if generation is not None else {}
