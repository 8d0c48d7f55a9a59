"""The generations of a pool, each after the other: which one is handed out, and how those before it end."""

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

#: Two words that differ: the quick way is shut.
_SHUT: Final = (memoryview(b"\0" * 8).cast("Q"), memoryview(b"\1" * 8).cast("Q"), None)


class Generations:
    """The connections of a pool, replaced as a whole at each epoch.

    Attributes:
        current: The generation that is handed out; None before the first checkout, and while none is good.
        quick: The mapped word, what it said when *current* was found good, and the driver's way to one of its
            connections: to be read as one. The second is a word of memory, too, which the kernel wipes in a forked
            child.
    """

    current: Generation | None
    quick: tuple[memoryview, memoryview | fork.PidWord, Any]

    def __init__(
        self,
        recipe: Recipe,
        make_inner: Callable[[Generation], DriversPool],
        count_workers: Callable[[], int],
    ) -> None:
        """None yet.

        Args:
            recipe: How connections are made.
            make_inner: What keeps the connections of a generation, see Recipe.make_inner.
            count_workers: How many processes of the host do what this one does, see Participant.count_workers.
        """
        self._recipe: Final = recipe
        self._make_inner: Final = make_inner
        self._count_workers: Final = count_workers
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self.current = None
        self.quick = _SHUT
        # Put away, with connections that may still be out: those that are left alone, and those to be cut, and when.
        self._leaving: list[Generation] = []
        self._cuts: list[tuple[float, Generation]] = []
        # How many connections the next generation opens at a time; None while none was made unfit by a switchover.
        self._at_once: int | None = None
        # Put away, and perhaps still handing something out to who has waited before.
        self._ended: list[Generation] = []
        self._drained = self._cut = 0
        # When a write was refused last, when a generation was replaced for that, and how long it is not done again.
        self._refused_at = self._distrusted_at = -math.inf
        self._distrust_s = 0.0
        # By generations that are over, and what was told last: a count that falls would pass for one begun anew.
        self._served_before = self._served = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.current!r}>"

    def after_fork_in_child(self) -> None:
        """Leave the parent's connections alone and begin anew."""
        for generation in [*filter(None, [self.current]), *self._ended, *self._all_leaving()]:
            generation.live[0] = 0
            fork.keep_forever(generation)
        self._reset()

    # -- the one that is handed out ------------------------------------------------------------------------------

    def adopt(self, reading: Reading) -> Generation:
        """The generation that is good by *reading*, open; made if there is none.

        Raises:
            PoolClosed: The gate is closed, or the generation was put away just now.
        """
        generation = self.current
        word, admitted, _ = self.quick
        if generation is not None and word is reading.word and word == admitted:
            # Found good by this very snapshot, by somebody who was let go at the same moment.
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
            # Half open it would be for good: the driver's pool does not begin again.
            with self._lock:
                self.current = None if self.current is generation else self.current
            generation.retire(timeout_s=0)
            raise
        finally:
            if old is not None:
                self._retire(old)
        with self._lock:
            if self.current is generation and reading.is_current:
                # A new word every time: whoever still reads the tuple before must not find a new number in it.
                self.quick = (reading.word, fork.parents_word(reading.sequence), generation.inner.getconn)
        return generation

    def apply(self, reading: Reading) -> None:
        """Put away what *reading* makes unfit."""
        with self._lock:
            if self.quick[0] is not reading.word:
                # The file that the quick way looks at is not the one in place: nobody may be there to say so in it.
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
        """What *generation* judges a cut by, once the deployment is gone."""
        switching = self._recipe.gate.switching_by(snapshot)
        if switching is not None:
            generation.switching = switching

    def _epoch(self, snapshot: Snapshot | None) -> int | None:
        if snapshot is None or self._recipe.endpoint.host(snapshot) is None:
            return None
        return snapshot.epoch

    # -- how they end --------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Replace every connection: idle ones at once, those in use when they are returned."""
        with self._lock:
            old = self._take_current()
        if old is not None:
            self._retire(old)

    def distrust(self, generation: Generation) -> bool:
        """Replace every connection, if *generation* is the one that is handed out: its server refuses writes.

        An endpoint's name may lead to another server by now: an ordinary failover. Where it leads to the same one, a
        new connection is no better. So each replacement is followed by a pause, in which connections are kept. In a
        switchover the next checkouts wait instead, see Gate.note_refusal.

        Returns:
            Whether *generation* is not handed out any more.
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
        """Under the lock: hand nothing of the generation in use out any more, and leave alone what is out."""
        old, self.current = self.current, None
        self.quick = _SHUT
        if old is not None:
            self._ended.append(old)
            self._leaving.append(old)
        return old

    def close(self, timeout_s: float) -> None:
        """The same for good, once the gate is closed; at most *timeout_s* seconds of waiting for threads."""
        with self._lock:
            generation, self.current = self.current, None
            self.quick = _SHUT
        if generation is not None:
            generation.close(timeout_s)
            served = generation.served()
            with self._lock:
                self._served_before += served

    def cut_overdue(self) -> float:
        """Cut what is still in use after its grace; seconds until that is due again, infinite if it is not."""
        now = time.monotonic()
        with self._lock:
            due = [generation for at, generation in self._cuts if at <= now]
            self._cuts = [(at, generation) for at, generation in self._cuts if at > now]
            next_at = min((at for at, _ in self._cuts), default=math.inf)
        self._cut += sum(generation.cut() for generation in due)
        return next_at - now

    def _put_away(self, generation: Generation, snapshot: Snapshot) -> None:
        """Under the lock: hand nothing of *generation*, the one in use, out any more, and drain what is out."""
        # Before its connections are counted: one that is opened later is closed by who has opened it.
        generation.retired = True
        self._take_current()
        held = generation.connections()
        self._at_once = connects_at_once(held, self._count_workers())
        self._drained += held
        self._drain_leaving(snapshot)

    def _drain_leaving(self, snapshot: Snapshot) -> None:
        """Under the lock: hold new transactions on what *snapshot* makes unfit, and cut it after the grace.

        Before IN_PROGRESS blue is where it was: what a lost run directory or a missed rollback has made unfit is closed
        when it comes back, and nobody's transaction is cut for it. A rollback calls off the cuts that are not due yet.
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
        """The end of one that was put away; what it has served is final then."""
        generation.retire()
        served = generation.served()
        with self._lock:
            self._ended.remove(generation)
            self._served_before += served

    def leaving(self) -> list[Generation]:
        """Those that were put away, with connections that may still be out."""
        with self._lock:
            return self._all_leaving()

    def _all_leaving(self) -> list[Generation]:
        return [*self._leaving, *(generation for _, generation in self._cuts)]

    # -- figures -------------------------------------------------------------------------------------------------

    def driver_stats(self) -> Mapping[str, int]:
        """The figures of the driver's pool in use, named as psycopg_pool names them; none where there is none."""
        return _driver_stats(self.current)

    def usage(self) -> Usage:
        """What there is of connections, the leaving ones included; who waits at the gate it cannot know."""
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
        """Checkouts that were given a connection, by the driver's own count: the quick way counts nothing."""
        with self._lock:
            mine, before = [*self._ended, *filter(None, [self.current])], self._served_before
        # Not under the lock: a connector asks its owner, who may be waiting for the lock with one of its own.
        served = before + sum(one.served() for one in mine)
        with self._lock:
            self._served = max(self._served, served)
            return self._served


def _driver_stats(generation: Generation | None) -> Mapping[str, int]:
    return generation.inner.get_stats() if generation is not None else {}
