"""Workers of the model: threads that write rows through a pool that follows bgpool's own decisions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from bgpool.core.events import Instant, Tick
from bgpool.core.limits import RECONNECT_INTERVAL_MAX_S, RECONNECT_INTERVAL_S, WATCH_INTERVAL_S
from bgpool.core.machine import Rules, step
from bgpool.core.phase import Phase
from bgpool.core.routing import Action, Decision, Purpose, decide
from bgpool.core.snapshot import Snapshot
from bgpool.lab.simulation.clock import MS, SECOND, Clock, Promise, Task
from bgpool.lab.simulation.world import Connection, Key, World

__all__ = ["Worker"]

HOLD_NS: Final = 30 * SECOND
GRACE_NS: Final = SECOND
CONNECT_TIMEOUT_NS: Final = 10 * SECOND


class Worker:
    """One process.

    Attributes:
        acknowledged: Keys whose commit was answered.
        unknown: Keys whose commit was cut.
        errors: What callers were told otherwise.
        last_ack_ns: When the last commit was answered.
    """

    def __init__(
        self,
        world: World,
        number: int,
        rng: random.Random,
        rules: Rules,
        snapshot: Snapshot | None,
        complain: Callable[[str], None],
        nudge: Callable[[], None],
    ) -> None:
        self._world: Final = world
        self._clock: Final[Clock] = world.clock
        self._number: Final = number
        self._rng: Final = rng
        self._rules: Final = rules
        self._complain: Final = complain
        self._nudge: Final = nudge
        self._snapshot = snapshot
        self._sequence = 0
        self._changed = Promise()
        self._alive = True
        self._busy: dict[int, int] = {}
        self._written = 0
        self.acknowledged: list[Key] = []
        self.unknown: list[Key] = []
        self.errors: list[str] = []
        self.last_ack_ns = 0

    def start(self, threads: int) -> None:
        """Let *threads* threads write."""
        for thread in range(threads):
            self._clock.start(self._write(thread))

    @property
    def alive(self) -> bool:
        """Whether it was not killed."""
        return self._alive

    def kill(self) -> None:
        """End the process at once."""
        self._alive = False
        self._busy.clear()

    def see(self, sequence: int, snapshot: Snapshot) -> None:
        """The segment holds *snapshot* now, unless a newer one was seen already."""
        if sequence < self._sequence:
            return
        self._sequence, self._snapshot = sequence, snapshot
        changed, self._changed = self._changed, Promise()
        changed.keep()

    def longest_wait_ns(self) -> int:
        """How long the caller who waits longest has been waiting."""
        return max((self._clock.now - since for since in self._busy.values()), default=0)

    # -- a thread ------------------------------------------------------------------------------------------------

    def _write(self, thread: int) -> Task:
        idle: Connection | None = None
        while self._alive:
            yield self._rng.randrange(60 * MS, 240 * MS)
            self._written += 1
            key = (self._number, self._written)
            self._busy[thread] = self._clock.now
            idle = yield from self._unit(key, idle)
            self._busy.pop(thread, None)

    def _unit(self, key: Key, idle: Connection | None) -> Task:
        """One row, as Pool.run writes it; the connection that is idle afterwards, if any."""
        deadline = self._clock.now + 2 * HOLD_NS
        while self._clock.now < deadline and self._alive:
            connection = yield from self._check_out(idle, deadline)
            idle = None
            if connection is None:
                if self._alive:
                    self.errors.append("held too long, or refused")
                return None
            outcome = yield from self._transaction(connection, key)
            if not self._alive:
                return None
            if outcome == "done":
                self.acknowledged.append(key)
                self.last_ack_ns = self._clock.now
                return connection
            self._drop(connection)
            self._note_cut()
            if outcome == "unknown":
                self.unknown.append(key)
                return None
            yield 20 * MS
        if self._alive:
            self.errors.append("no time left")
        return None

    def _transaction(self, connection: Connection, key: Key) -> Task:
        server = connection.server
        self._clock.start(self._watch(connection))
        said = yield self._either(server.insert(connection, key), connection.lost)
        if said != "done":
            return "cut"
        if self._rng.random() < 0.1:
            yield self._clock.within(connection.lost, self._rng.randrange(100 * MS, 3 * SECOND))
        if connection.lost.kept:
            return "cut"
        said = yield self._either(server.commit(connection), connection.lost)
        connection.in_transaction = False
        return "done" if said == "done" else "unknown"

    def _watch(self, connection: Connection) -> Task:
        """What the pool does to a connection in use that a switchover makes unfit: a grace, and then the socket."""
        yield self._clock.within(self._unfit(connection), 60 * SECOND)
        if self._fit(connection.epoch, self._now()):
            return
        yield GRACE_NS + self._rng.randrange(0, int(WATCH_INTERVAL_S * SECOND))
        still: bool = connection.in_transaction
        if still and not self._fit(connection.epoch, self._now()):
            connection.lost.keep("cut by the pool")

    def _unfit(self, connection: Connection) -> Promise:
        unfit = Promise()

        def look(_: Any) -> None:
            if not self._fit(connection.epoch, self._now()):
                unfit.keep()
            elif connection.in_transaction:
                self._changed.then(look)
            else:
                unfit.keep()

        self._changed.then(look)
        return unfit

    def _either(self, one: Promise, other: Promise) -> Promise:
        first = Promise()
        one.then(first.keep)
        other.then(first.keep)
        return first

    # -- the pool ------------------------------------------------------------------------------------------------

    def _check_out(self, idle: Connection | None, deadline: int) -> Task:
        while self._alive:
            decision = yield from self._admitted(Purpose.CHECKOUT, min(deadline, self._clock.now + HOLD_NS))
            if decision is None:
                return None
            snapshot = self._now()
            if idle is not None and not idle.lost.kept and self._fit(idle.epoch, snapshot):
                self._inspect(idle, snapshot)
                return idle
            self._drop(idle)
            idle = yield from self._connect(deadline)
            if idle is None and self._clock.now >= deadline:
                return None
        return None

    def _connect(self, deadline: int) -> Task:
        """A connection that was fit when it was asked for; None if the epoch moved meanwhile, or time is up."""
        epoch = self._epoch(self._now())
        pause_ns = int(RECONNECT_INTERVAL_S * SECOND)
        while self._alive and self._clock.now < deadline:
            decision = yield from self._admitted(Purpose.CONNECT, min(deadline, self._clock.now + HOLD_NS))
            if decision is None or self._epoch(self._now()) != epoch:
                return None
            if decision.action is Action.ROUTE:
                addresses = decision.addresses
            else:
                addresses = self._world.resolve(self._world.blue_name) or ()
            if addresses:
                server = self._world.server_at(addresses[0])
                connection = yield self._clock.within(server.connect(epoch), CONNECT_TIMEOUT_NS)
                if connection is not None:
                    return connection
            self._note_cut()
            yield pause_ns
            pause_ns = min(2 * pause_ns, int(RECONNECT_INTERVAL_MAX_S * SECOND))
        return None

    def _admitted(self, purpose: Purpose, deadline: int) -> Task:
        """The decision that lets *purpose* proceed; None if it does not come in time, or never will."""
        while self._alive:
            snapshot = self._now()
            decision = Decision(Action.PASS) if snapshot is None else decide(snapshot, self._world.blue_name, purpose)
            if decision.action is Action.REJECT:
                return None
            if decision.action is not Action.HOLD:
                return decision
            if self._clock.now >= deadline:
                return None
            until = deadline
            for end in snapshot.timers if snapshot is not None else ():
                until = min(until, max(end, self._clock.now + MS))
            yield self._clock.within(self._changed, until - self._clock.now)
        return None

    def _note_cut(self) -> None:
        """Gate.note_cut."""
        snapshot = self._now()
        if snapshot is None or self._epoch(snapshot) is None:
            return
        if snapshot.phase in (Phase.CREATED, Phase.PREPARATION):
            self._nudge()

    def _now(self) -> Snapshot | None:
        """What is true by the segment and by the process's own clock."""
        if self._snapshot is None:
            return None
        return step(self._snapshot, Tick(Instant(self._clock.now, self._clock.now)), self._rules)

    def _epoch(self, snapshot: Snapshot | None) -> int | None:
        if snapshot is None or snapshot.host(self._world.blue_name) is None:
            return None
        return snapshot.epoch

    def _fit(self, epoch: int | None, snapshot: Snapshot | None) -> bool:
        """Generation.is_unfit, the other way round."""
        now = self._epoch(snapshot)
        if epoch is None:
            return now is None or (snapshot is not None and snapshot.phase < Phase.IN_PROGRESS)
        return snapshot is not None and epoch == snapshot.epoch

    def _drop(self, connection: Connection | None) -> None:
        if connection is not None and not connection.lost.kept:
            connection.server.end(connection)

    def _inspect(self, connection: Connection, snapshot: Snapshot | None) -> None:
        """Look at a connection that is handed out."""
        if snapshot is None:
            return
        # After the timer alone, callers go by name, wherever that leads.
        released = snapshot.phase >= Phase.POST and not snapshot.is_overdue
        if released and connection.server is self._world.blue:
            self._complain(f"a connection to old blue was handed out in {snapshot.phase.name}")
        if connection.server is self._world.green and not self._world.may_be_released:
            self._complain(f"a connection to green was handed out in {snapshot.phase.name}, before it was promoted")
