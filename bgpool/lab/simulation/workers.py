"""Workers of the model: threads that write rows as units of work, with bgpool's own gate, generations and units."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg_pool

from bgpool.core.limits import DISTRUST_INTERVAL_S, RECONNECT_INTERVAL_MAX_S, RECONNECT_INTERVAL_S, WATCH_INTERVAL_S
from bgpool.core.phase import Phase
from bgpool.core.routing import Action, Purpose
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import Dsn
from bgpool.errors import CommitOutcomeUnknown
from bgpool.lab.simulation.clock import MS, SECOND, Clock, Pause, Promise
from bgpool.lab.simulation.sessions import (
    Died,
    ModelMysqlUnit,
    ModelPostgresUnit,
    ModelWaits,
    MysqlSession,
    PostgresSession,
    Session,
)
from bgpool.lab.simulation.world import CONNECT_TIMEOUT_NS, Key, Server, World
from bgpool.pools.alias import Endpoint
from bgpool.pools.gate import Gate
from bgpool.pools.generation import Generation
from bgpool.pools.mysql.recipe import MysqlRecipe
from bgpool.pools.postgres.recipe import PostgresRecipe
from bgpool.pools.receipts import AlreadyApplied, Receipts
from bgpool.pools.recipe import Recipe
from bgpool.pools.units import UnitContext
from bgpool.segment.reader import Reader, Reading
from bgpool.settings import Settings

if TYPE_CHECKING:
    from bgpool.pools.units import Unit

__all__ = ["Job", "Run", "Worker"]

HOLD_NS: Final = 30 * SECOND
GRACE_NS: Final = SECOND


@dataclass(slots=True)
class Job:
    """A piece of work that must be done once.

    Attributes:
        key: The row that it writes.
        receipt_id: The id that its caller gives; None for one of the unit's own.
    """

    key: Key
    receipt_id: str | None = None


@dataclass(slots=True)
class Run:
    """One unit of work.

    Attributes:
        told: The result for its caller: ``applied``, ``already``, ``unknown``, ``not applied``; empty if there was
            none.
        text: The text of the error.
        decidable: True if its last COMMIT was sent within the bounds in which its outcome can be found.
    """

    job: Job
    told: str = ""
    text: str = ""
    decidable: bool = False


class _Inner:
    """The part of a driver's pool that a generation of the model needs."""

    opened_by_callers: Final = False

    def keep(self, connection: Any) -> None:
        """Never called: the model's pool has the sessions."""


def _make_inner(_: Generation) -> Any:
    return _Inner()


class _ModelReader(Reader):
    """The snapshot that a process has read from the segment."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        self.sequence = 0
        self.reading = Reading(memoryview(b""), 0, snapshot, None)

    def refresh(self) -> Reading:
        """See Reader."""
        return self.reading

    def see(self, sequence: int, snapshot: Snapshot) -> None:
        """Set the content of the segment to *snapshot*."""
        self.sequence, self.reading = sequence, Reading(memoryview(b""), sequence, snapshot, None)


class _ModelReceipts(Receipts):
    """Receipts without a log."""

    def tell(self, why: str) -> None:
        """Do nothing: there is no log."""


class Worker:
    """One process; for its units of work it is the pool.

    Attributes:
        runs: The units of work whose callers received a result.
        jobs: The jobs under way.
        last_ack_ns: The time of the last answered commit.
        changed: A promise that is kept when a snapshot is published.
    """

    def __init__(
        self,
        world: World,
        number: int,
        rng: random.Random,
        place: tuple[Dsn, Settings],
        snapshot: Snapshot | None,
        complain: Callable[[str], None],
        nudge: Callable[[], None],
        choose: Callable[[Worker], Job],
        take_run: Callable[[Run], None],
    ) -> None:
        self.world: Final = world
        self._clock: Final[Clock] = world.clock
        self.number: Final = number
        self._rng: Final = rng
        self._complain: Final = complain
        self._choose: Final = choose
        self._take_run: Final = take_run
        dsn, settings = place
        is_mysql = world.refuses_commits
        recipe_class: type[Recipe] = MysqlRecipe if is_mysql else PostgresRecipe
        endpoint = Endpoint(dsn, settings)
        self._reader: Final = _ModelReader(snapshot)
        self._waits: Final = ModelWaits(self)
        self._gate: Final = Gate(self._reader, settings, endpoint, nudge, recipe_class.like, self._waits)
        self._recipe: Final = recipe_class(dsn, settings, self._gate, endpoint, None, {})
        self._session: Final = MysqlSession if is_mysql else PostgresSession
        self._unit: Final = ModelMysqlUnit if is_mysql else ModelPostgresUnit
        table = settings.bg_receipts_table
        self.receipts: Final = _ModelReceipts(table, settings, dsn.endpoint) if table is not None else None
        self.alive = True
        self.changed = Promise()
        self._generation: Generation | None = None
        self._idle: list[Session] = []
        self._out: dict[Session, None] = {}
        self._written = 0
        self._busy: dict[int, int] = {}
        self.jobs: dict[int, Job] = {}
        self.runs: list[Run] = []
        self.last_ack_ns = 0

    def start(self, threads: int) -> None:
        """Start *threads* threads that write."""
        for thread in range(threads):
            self._clock.start(self._write(thread))

    def kill(self) -> None:
        """End the process at once; servers notice a little later."""
        self.alive = False
        self._busy.clear()
        for session in [*self._out, *self._idle]:
            session.server.drop_client(session, self._rng.randrange(0, 50 * MS))

    def cut_network(self, chance: float) -> None:
        """Lose each connection with this *chance*; sent data may still arrive, and servers notice late."""
        for session in [*self._out, *self._idle]:
            if self._rng.random() < chance:
                session.server.drop_client(session, self._rng.randrange(0, SECOND))

    def see(self, sequence: int, snapshot: Snapshot) -> None:
        """Set the content of the segment to *snapshot*, unless a newer one was seen already."""
        if sequence < self._reader.sequence:
            return
        self._reader.see(sequence, snapshot)
        changed, self.changed = self.changed, Promise()
        changed.keep()

    @property
    def reading(self) -> Reading:
        """The last reading of the segment."""
        return self._reader.reading

    def longest_wait_ns(self) -> int:
        """Return the time for which the longest-waiting caller has been waiting."""
        return max((self._clock.now - since for since in self._busy.values()), default=0)

    # -- a thread ------------------------------------------------------------------------------------------------

    async def _write(self, thread: int) -> None:
        while self.alive:
            await Pause(self._rng.randrange(80 * MS, 320 * MS))
            if not self.alive:
                return
            job = self._choose(self)
            self._busy[thread], self.jobs[thread] = self._clock.now, job
            try:
                await self._run(job)
            except Died:
                return
            self._busy.pop(thread, None)
            del self.jobs[thread]

    def new_key(self) -> Key:
        """Return a new row of this worker."""
        self._written += 1
        return self.number, self._written

    async def _run(self, job: Job) -> None:
        """Run one unit of work."""
        run = Run(job)

        async def function(session: Session) -> str:
            await session.write(job.key)
            if self._rng.random() < 0.1 and not self.world.calm:
                await self._clock.within(session.lost, self._rng.randrange(100 * MS, 3 * SECOND))
                session.check_open()
            run.decidable = self._is_decidable(session)
            return "applied"

        lender: Any = self
        unit_context = UnitContext(self._recipe, self.receipts)
        unit: Unit[Any, str] = self._unit(
            unit_context, None, lender, 2 * HOLD_NS / SECOND, receipt_id=job.receipt_id, work=(function, ())
        )
        try:
            told = await unit.arun()
        except CommitOutcomeUnknown as error:
            run.told, run.text = "unknown", str(error)
        except Exception as error:
            run.told, run.text = "not applied", f"{type(error).__name__}: {error}"
        else:
            run.told = "already" if isinstance(told, AlreadyApplied) else told
            self.last_ack_ns = self._clock.now
        if not self.alive:
            raise Died
        self.runs.append(run)
        self._take_run(run)

    def _is_decidable(self, session: Session) -> bool:
        """Return whether the outcome of a COMMIT that is sent now can certainly be found; behaviour.md §10.

        It can be found by a receipt or, if old blue is available, by the ids of PostgreSQL.
        """
        world, receipts = self.world, self.receipts
        snapshot = self._gate.now()
        switching = snapshot is not None and Phase.PREPARATION <= snapshot.phase <= Phase.POST
        switching = switching and self._gate.takes_part()
        asks = not world.refuses_commits and (not world.logical or world.old_blue_tells)
        if receipts is not None and session.server.receipts is not None and (receipts.always or switching):
            reached = world.green.receipts is not None and (
                world.refuses_commits or not world.logical or receipts.reach_green
            )
            return reached or (switching and asks)
        return switching and asks

    # -- the pool ------------------------------------------------------------------------------------------------

    async def getconn(self, timeout: float | None = None) -> Any:
        """Return a session that was fit according to the reading at the time of the request."""
        deadline = self._clock.now + int((2 * HOLD_NS / SECOND if timeout is None else timeout) * SECOND)
        while True:
            left_s = max(0.0, (deadline - self._clock.now) / SECOND)
            reading, _ = await self._gate.await_admitted(Purpose.CHECKOUT, timeout_s=left_s)
            generation = self._adopt(self._gate.snapshot(reading))
            session = self._take_idle(generation) or await self._connect(generation, deadline)
            if session is not None and not generation.is_unfit(self._gate.now()):
                self._inspect(session)
                self._out[session] = None
                return session
            if session is not None:
                session.server.end(session)
            if self._clock.now >= deadline:
                raise psycopg_pool.PoolTimeout("couldn't get a connection")

    def putconn(self, session: Session) -> None:
        """Take a session back."""
        self._out.pop(session, None)
        is_fit = session.bgpool_is_open and not session.bgpool_unfit and not session.bgpool_generation.retired
        if is_fit and session.bgpool_generation is self._generation and self.alive:
            session.server.roll_back(session)
            self._idle.append(session)
        elif session.bgpool_is_open:
            session.server.end(session)

    def _adopt(self, snapshot: Snapshot | None) -> Generation:
        generation = self._generation
        if generation is None or generation.retired or generation.is_unfit(snapshot):
            epoch = snapshot.epoch if snapshot is not None and self._recipe.endpoint.host(snapshot) else None
            self._generation = generation = Generation(self._recipe, _make_inner, epoch, self._distrust, follows=False)
            idle, self._idle = self._idle, []
            for session in idle:
                if session.bgpool_is_open:
                    session.server.end(session)
        switching = self._gate.switching_by(snapshot)
        if switching is not None:
            generation.switching = switching
        return generation

    def _distrust(self, generation: Generation) -> bool:
        # In a switchover the next checkouts wait, see Gate.note_refusal.
        self._gate.note_refusal(DISTRUST_INTERVAL_S)
        generation.retired = True
        return True

    def _take_idle(self, generation: Generation) -> Session | None:
        while self._idle:
            session = self._idle.pop()
            if session.bgpool_generation is generation and session.bgpool_is_open:
                return session
        return None

    def makes_sessions(self) -> Callable[[Server], Session]:
        """Return a callable that makes sessions of the current generation."""
        generation = self._generation
        assert generation is not None

        def make(server: Server) -> Session:
            session = self._session(self, generation, server)
            session.world = self.world
            return session

        return make

    async def _connect(self, generation: Generation, deadline: int) -> Session | None:
        """Return a session that was fit when requested; None if the epoch changed since, or after a timeout."""
        pause_ns = int(RECONNECT_INTERVAL_S * SECOND)
        make = self.makes_sessions()
        while self._clock.now < deadline:
            left_s = min(deadline - self._clock.now, HOLD_NS) / SECOND
            _, decision = await self._gate.await_admitted(Purpose.CONNECT, timeout_s=left_s)
            if generation.is_unfit(self._gate.now()) or generation.retired:
                return None
            if decision.action is Action.ROUTE:
                addresses = decision.addresses
            else:
                addresses = self.world.resolve(self.world.blue_name) or ()
            if addresses:
                server = self.world.server_at(addresses[0])
                session: Session | None = None
                if server.address == addresses[0]:
                    session = await self._clock.within(server.connect(make), CONNECT_TIMEOUT_NS)
                if not self.alive:
                    raise Died
                if session is not None:
                    self._clock.start(self._watch(session))
                    return session
            self._gate.note_cut()
            await self._waits.sleep(pause_ns / SECOND)
            pause_ns = min(2 * pause_ns, int(RECONNECT_INTERVAL_MAX_S * SECOND))
        return None

    async def _watch(self, session: Session) -> None:
        """Cut a session in use that a switchover makes unfit, after a grace, like the pool does."""
        generation = session.bgpool_generation
        while self.alive and session.bgpool_is_open and not generation.is_unfit(self._gate.now()):
            await self.changed
        if session not in self._out:
            return
        await Pause(GRACE_NS + self._rng.randrange(0, int(WATCH_INTERVAL_S * SECOND)))
        snapshot = self._gate.now()
        drained = snapshot is not None and snapshot.phase >= Phase.IN_PROGRESS and generation.is_unfit(snapshot)
        # A rollback cancels the cut.
        if session in self._out and drained and self.alive:
            session.server.drop_client(session, session.server.latency_ns)

    def _inspect(self, session: Session) -> None:
        """Check a session that is handed out."""
        snapshot = self._gate.now()
        if snapshot is None:
            return
        # After the timer alone, callers connect by name, wherever it leads.
        released = snapshot.phase >= Phase.POST and not snapshot.is_overdue
        if released and session.server is self.world.blue:
            self._complain(f"a connection to old blue was handed out in {snapshot.phase.name}")
        if session.server is self.world.green and not self.world.may_be_released:
            self._complain(f"a connection to green was handed out in {snapshot.phase.name}, before it was promoted")
