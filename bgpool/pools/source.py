"""The shared code of pools and connectors: an endpoint behind the gate, connections replaced at each epoch."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

import psycopg_pool

from bgpool.core.limits import ALIAS_TIMEOUT_S
from bgpool.core.observations import Parameters, Visibility, worth
from bgpool.core.phase import Phase
from bgpool.core.routing import Action, Purpose
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import Dsn
from bgpool.errors import ConfigurationError, GreenHostRejected, PoolClosed, SwitchoverHoldTimeout
from bgpool.green_threads import check_threads
from bgpool.pools import fork
from bgpool.pools.alias import Endpoint
from bgpool.pools.gate import Gate, Turn
from bgpool.pools.generation import Generation
from bgpool.pools.generations import Generations
from bgpool.pools.green_login import GreenLogin
from bgpool.pools.options import Check, check_wait, deadline_of
from bgpool.pools.participant import Participant
from bgpool.pools.receipts import REMEDY, Receipts, check_receipt_id
from bgpool.pools.recipe import DriversPool, Recipe
from bgpool.pools.refusals import REFUSALS, as_ours, forget_frames
from bgpool.pools.units import Lender, Unit, UnitContext
from bgpool.pools.waits import BLOCKING, Waits
from bgpool.pools.worker_timeout import busy_limit_ms
from bgpool.resolver import make_resolver
from bgpool.segment.reader import Reading
from bgpool.segment.table import Usage
from bgpool.settings import ALWAYS, Settings

__all__ = ["BlockingSource", "ConnectionSource", "PoolStats"]

C = TypeVar("C")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The state of a pool at one moment.

    Attributes:
        phase: The deployment's phase as this process knows it; None before the first snapshot.
        epoch: The epoch of the pool's connections.
        held: The number of callers that wait for the end of the switchover.
        size: The number of the pool's connections: idle, in use and being opened.
        idle: The number of connections that are ready to be checked out.
        waiting: The number of callers that wait for a connection.
        driver: The figures of the driver's pool since the last generation began, under psycopg_pool's names.
    """

    phase: Phase | None
    epoch: int | None
    held: int
    size: int
    idle: int
    waiting: int
    driver: Mapping[str, int]


class Monitoring(Protocol):
    """The configuration with which a monitor is started, as far as a pool knows it."""

    @property
    def parameters(self) -> Parameters:
        """The data that distinguish it from other configurations."""
        ...


class ConnectionSource(ABC, Generic[C]):
    """Connections to one endpoint that survive Blue/Green switchovers: a pool's, or those that another owner keeps.

    It does nothing before the first checkout, so it may be created before a fork and used in parent and child.

    Attributes:
        KIND: Its name in error texts.
        OPTIONS: The options that are passed on to the driver's pool, each with its check.
        timeout: The default of the longest wait for a connection, in seconds.
        hold_s: The longest hold, in seconds.
        participant: The process's membership in the deployment.
        monitoring: The configuration with which a monitor of the deployment could be started; None for none.
    """

    KIND: ClassVar[str]
    OPTIONS: ClassVar[Mapping[str, Check]]
    timeout: float
    _recipe_class: ClassVar[type[Recipe]]
    _unit_class: ClassVar[type[Unit[Any, Any]]]

    def __init__(self, dsn: Dsn, settings: Settings, participant: Participant, options: Mapping[str, Any]) -> None:
        """Create a source for the endpoint of *dsn*; *options* are those of the driver's pool."""
        table = settings.bg_receipts_table
        if table is None and settings.bg_receipts == ALWAYS:
            raise ConfigurationError(
                f"bg_receipts={ALWAYS!r} needs a table of receipts: set bg_receipts_table; {REMEDY}"
            )
        self._settings: Final = settings
        self.hold_s: Final = settings.bg_connect_timeout_ms / 1000
        self.participant: Final = participant
        self.monitoring: Monitoring | None = None
        self._endpoint: Final = Endpoint(dsn, settings)
        self._gate: Final = Gate(
            participant.reader,
            settings,
            self._endpoint,
            participant.nudge,
            self._recipe_class.like,
            self._waits_of(participant),
            participant.note_hold,
        )
        resolver = None if settings.bg_resolver == "system" else make_resolver(settings.bg_resolver)
        by_name = dsn.host and not dsn.host.startswith("/") and "hostaddr" not in dsn.params
        self._recipe: Final = self._recipe_class(
            dsn, settings, self._gate, self._endpoint, resolver if by_name else None, options
        )
        self._receipts: Final = Receipts(table, settings, dsn.host) if table is not None else None
        self._unit_context: Final = UnitContext(self._recipe, self._receipts)
        self._green_login: Final = GreenLogin(self._recipe.for_trials(), participant, self._receipts)
        self._name: Final = f"{dsn.host}:{dsn.port}"
        self._reset()
        fork.call_in_child(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._joining = False
        # Set once the endpoint's place in the deployment is known. Before that the effect of a switchover on it is
        # unknown.
        self._joined = threading.Event()
        self._failed = 0

    def __repr__(self) -> str:
        current = [one.current for one in self._generations_by_loop()] or [None]
        return f"<{type(self).__name__} {self._name} bg_id={self._settings.bg_id!r} {', '.join(map(repr, current))}>"

    # -- implemented by each kind of source ----------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def _waits_of(participant: Participant) -> Waits:
        """Return the waits of its callers."""

    @abstractmethod
    def _here(self) -> Generations:
        """Return the connections for the calling thread or task."""

    @abstractmethod
    def _generations_by_loop(self) -> Sequence[Generations]:
        """Return all connections."""

    @abstractmethod
    def start(self) -> None:
        """Get ready in a process that has just been forked, as far as that is possible in any thread."""

    @abstractmethod
    def stop(self, timeout: float = 5.0) -> None:
        """Refuse further checkouts, from any thread; *timeout* is the same as in close()."""

    @abstractmethod
    def _make_inner(self, generation: Generation) -> DriversPool:
        """Create the object that keeps the connections of *generation*."""

    @property
    @abstractmethod
    def max_size(self) -> int:
        """The maximum number of connections; 0 if unknown."""

    # -- queries of the owner ------------------------------------------------------------------------------------

    def is_fit(self, conn: C) -> bool:
        """Return whether *conn* may be handed out: open, and not made unfit by a switchover, failover or drain().

        Raises:
            ValueError: *conn* was not opened by a pool or connector.
        """
        # This runs at every checkout, so it makes no call that can be avoided.
        connection: Any = conn
        try:
            generation: Generation = connection.bgpool_generation
        except AttributeError:
            raise ValueError(f"{conn!r} was not opened by {self!r}") from None
        if generation.retired or connection.bgpool_unfit or connection.bgpool_cut:
            return False
        # An operator's hold stops a generation, too. Then a caller may get here before the generation is live again.
        if not generation.live[0] and (generation.drained or generation.inherited):
            return False
        is_open: bool = connection.bgpool_is_open
        return is_open

    # -- checkouts -----------------------------------------------------------------------------------------------

    async def _atake(self, timeout_s: float, take: Callable[[Generation, float], Awaitable[T]]) -> T:
        """Return the result of *take* for the current generation, once the gate admits a checkout.

        Args:
            timeout_s: The longest wait in seconds, hold included, >= 0.
            take: Called with the open generation and the remaining seconds, < 0 if they are used up. If it raises
                psycopg_pool's PoolClosed, the generation was retired in the meantime, and the next one is tried.

        Raises:
            SwitchoverHoldTimeout, GreenHostRejected, PoolClosed, PoolTimeout, TooManyRequests: The same as in
                Pool.connection.
            Exception: Any error that *take* raises.
        """
        try:
            return await self._atake_gated(timeout_s, take)
        except Exception as error:
            self._count_failure(error)
            raise

    async def _atake_gated(self, timeout_s: float, take: Callable[[Generation, float], Awaitable[T]]) -> T:
        deadline = time.monotonic() + timeout_s
        fork.notice()
        await self._ajoin()
        turn = Turn(self.participant.reader)
        try:
            while True:
                left_s = max(0.0, deadline - time.monotonic())
                reading, _ = await self._gate.await_admitted(Purpose.CHECKOUT, timeout_s=left_s, turn=turn)
                try:
                    generation = self._here().adopt(reading)
                    if not generation.is_first():
                        # Another caller of this pool is already connecting.
                        turn.pass_on()
                    return await take(generation, deadline - time.monotonic())
                except psycopg_pool.PoolClosed as error:
                    if self._gate.closed:
                        raise self._as_ours(error) from error
                    forget_frames(error)
                except REFUSALS as error:
                    raise self._as_ours(error) from error
        finally:
            turn.pass_on()

    async def await_admitted(self, timeout: float | None = None) -> None:
        """Wait while a switchover holds checkouts. The owner calls this before a checkout takes a slot in its pool.

        Args:
            timeout: The longest hold in seconds; None for bg_connect_timeout_ms, which is also the upper bound.

        Raises:
            SwitchoverHoldTimeout: Held for the longest time that is allowed.
            GreenHostRejected: The endpoint is green and the switchover is over.
            PoolClosed: The connector is closed.
            ConfigurationError: *timeout* is no number of seconds.
        """
        if timeout is not None:
            check_wait("timeout", timeout)
        word, admitted, _ = self._here().quick
        if word != admitted:
            await self._atake(self.timeout if timeout is None else timeout, _nothing)

    def _as_ours(self, error: Exception) -> Exception:
        """Return bgpool's own error for *error* of the driver's pool, with the known reasons."""
        snapshot = self._gate.snapshot(self.participant.reader.refresh())
        phase = snapshot.phase.name if snapshot is not None else "unknown"
        return as_ours(error, self._recipe.like, self._here().current, phase)

    def _count_failure(self, error: Exception) -> None:
        self._gate.tally.count_error(error)
        with self._lock:
            self._failed += 1

    # -- units of work -------------------------------------------------------------------------------------------

    def amake_unit(
        self,
        attempt: Callable[[Unit[C, R]], Awaitable[R]],
        lender: Lender[C],
        *,
        timeout_s: float,
        idempotent: bool,
        receipt_id: str | None = None,
    ) -> Unit[C, R]:
        """Return a unit of work on this endpoint whose attempts its owner makes; the arguments are the same as in Unit.

        Raises:
            ConfigurationError: *receipt_id* was given and is no valid id, or there is no table for it; or receipts are
                kept for less time than *timeout_s*.
        """
        self._check_receipts(receipt_id, timeout_s)
        return self._unit_class(
            self._unit_context, attempt, lender, timeout_s, idempotent=idempotent, receipt_id=receipt_id
        )

    def _check_receipts(self, receipt_id: object, timeout_s: float) -> None:
        """Raise ConfigurationError for arguments that a unit must not have; the same as in amake_unit."""
        self.check_receipt_id(receipt_id)
        if self._receipts is not None and timeout_s > (kept_s := self._settings.bg_receipts_retention_s):
            raise ConfigurationError(
                f"run: timeout={timeout_s:g}: with bg_receipts_table at most bg_receipts_retention_s={kept_s} is "
                "allowed; later attempts would find no receipt"
            )

    def check_receipt_id(self, receipt_id: object) -> None:
        """Check the id that the caller of a unit of work has chosen; None for none.

        Raises:
            ConfigurationError: *receipt_id* was given and is no valid id, or there is no table for it.
        """
        if receipt_id is None:
            return
        check_receipt_id("run", receipt_id)
        if self._receipts is None:
            raise ConfigurationError(
                f"run: receipt_id={receipt_id!r} needs a table of receipts: set bg_receipts_table; {REMEDY}"
            )

    # -- following the segment -----------------------------------------------------------------------------------

    def apply(self, reading: Reading) -> None:
        """Apply a new snapshot: drain the connections that it makes unfit."""
        for generations in self._generations_by_loop():
            generations.apply(reading)

    def tick(self) -> float:
        """Cut connections in use after their grace; return the seconds until the next cut, infinite if none."""
        snapshot = self.participant.reader.refresh().snapshot
        self._endpoint.read_later(snapshot)
        self._recipe.load_later(snapshot)
        self._green_login.look(snapshot)
        return min((one.cut_overdue() for one in self._generations_by_loop()), default=math.inf)

    def usage(self) -> Usage:
        """Return its current counts for the table of workers."""
        snapshot = self.participant.reader.refresh().snapshot
        part = self._endpoint.takes_part(snapshot)
        proxied = part is False and self._endpoint.is_behind_proxy(snapshot)
        connections = self._count_connections()
        own = connections._replace(
            failed=self._failed,
            taking_part=int(part is True),
            outside=int(part is False and not proxied),
            behind_proxy=int(proxied),
            max_size=self.max_size if part is not False else 0,
            offer=self._offer(snapshot, works=connections.idle + connections.in_use > 0),
            locked_out=int(bool(self._green_login.failure)),
            no_receipts=int(self._receipts is not None and bool(self._receipts.failure)),
            stuck_passwords=int(self._recipe.passwords is not None and self._recipe.passwords.is_stuck),
            **self._limits(),
        )
        return self._gate.tally.added_to(own)

    def _count_connections(self) -> Usage:
        """Return the counts of the generations alone."""
        return Usage.merged(one.usage() for one in self._generations_by_loop())

    def is_holding(self, reading: Reading) -> bool:
        """Return whether a checkout would be held under *reading*."""
        return self._gate.decide(reading, Purpose.CHECKOUT).action is Action.HOLD

    def take_longest_hold_s(self) -> float:
        """Return the longest hold that has ended since the last call, in seconds; 0 if none has."""
        return self._gate.tally.take_longest_s()

    def _limits(self) -> dict[str, int]:
        """Return the time limits that apply to it in a switchover, under the names of Usage."""
        hold_ms = int(min(self._settings.bg_connect_timeout_ms, self.timeout * 1000))
        timer_ms = self._settings.bg_switchover_timeout_ms
        return {"hold_limit_ms": hold_ms, "timer_ms": timer_ms, "busy_limit_ms": busy_limit_ms()}

    def _offer(self, snapshot: Snapshot | None, *, works: bool) -> int:
        """Return the visibility that a monitor with these parameters can expect; NONE if they may not even work.

        Parameters work if there are connections, unless those were opened with a password that the caller gave.
        Parameters that showed the deployment before have worked. They count during a switchover, too, when no pool has
        any connections, because the next monitor should be one that sees the deployment.
        """
        if self.monitoring is None or snapshot is None:
            return Visibility.NONE
        visibility = worth(snapshot.observations, self.monitoring.parameters, time.monotonic_ns())
        works = works and not self._recipe.given_password
        return visibility if works or visibility is Visibility.SEEN else Visibility.NONE

    def drain(self) -> None:
        """Replace every connection: an idle one immediately, one in use when it is returned."""
        fork.notice()
        for generations in self._generations_by_loop():
            generations.drain()

    # -- life ----------------------------------------------------------------------------------------------------

    async def _ajoin(self) -> None:
        # The process may be patched after the pool was created, and even after it was opened.
        check_threads()
        if not self._joining or not self._joined.is_set():
            await self._gate.waits.call(self._join)

    def _join(self) -> None:
        with self._lock:
            joining, self._joining = self._joining, True
        if joining:
            self._joined.wait(ALIAS_TIMEOUT_S)
            return
        try:
            self.participant.join(self)
            if self._gate.closed:
                # Another thread or task has closed the pool in the meantime.
                self.participant.leave(self)
            self._endpoint.read()
            # In parallel with the caller's wait, perhaps for a release.
            self._recipe.prepare()
        except BaseException:
            # A signal or the caller's own timeout interrupted this; the next caller repeats it.
            self._joining = False
            raise
        finally:
            self._joined.set()

    @property
    def bg_id(self) -> str:
        """The id of its deployment."""
        return self._settings.bg_id

    @property
    def name(self) -> str:
        """The host and port of its DSN."""
        return self._name

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._gate.closed

    def stats(self) -> PoolStats:
        """Return its current connections and waiting callers as counts."""
        fork.notice()
        driver: Counter[str] = Counter()
        epochs = []
        for generations in self._generations_by_loop():
            driver.update(generations.driver_stats())
            epochs.append(generations.current.epoch if generations.current is not None else None)
        snapshot = self._gate.snapshot(self.participant.reader.refresh())
        return PoolStats(
            phase=snapshot.phase if snapshot is not None else None,
            epoch=epochs[0] if epochs else None,
            held=self._gate.tally.held,
            size=driver.get("pool_size", 0),
            idle=driver.get("pool_available", 0),
            waiting=driver.get("requests_waiting", 0),
            driver=dict(driver),
        )

    def after_fork_in_child(self) -> None:
        """Abandon the parent's connections untouched and start with none."""
        for generations in self._generations_by_loop():
            generations.after_fork_in_child()
        self._gate.reset()
        self._endpoint.after_fork_in_child()
        self._green_login.reset()
        self._reset()


class BlockingSource(ConnectionSource[C]):
    """A source whose callers do not await: for threads, or for greenlets in which another object awaits."""

    def __init__(self, dsn: Dsn, settings: Settings, participant: Participant, options: Mapping[str, Any]) -> None:
        """Like ConnectionSource."""
        super().__init__(dsn, settings, participant, options)
        self._generations: Final = Generations(self._recipe, self._make_inner, participant.count_workers)

    @staticmethod
    def _waits_of(participant: Participant) -> Waits:  # noqa:ARG004  # other sources need it
        """See ConnectionSource."""
        return BLOCKING

    def _here(self) -> Generations:
        """See ConnectionSource; all callers share the same connections."""
        return self._generations

    def _generations_by_loop(self) -> Sequence[Generations]:
        """See ConnectionSource."""
        return (self._generations,)

    def admits(self) -> bool:
        """Return whether a checkout proceeds immediately and nothing was published since the last; one comparison.

        If a deployment is possible and there is no segment yet, this is always false: call would_admit().
        """
        word, admitted, _ = self._generations.quick
        return bool(word == admitted)

    def would_admit(self) -> bool:
        """Return whether a checkout would proceed immediately under the newest snapshot, and apply that; never wait."""
        if self.admits():
            return True
        try:
            self._gate.waits.finish(self._atake_gated(0.0, _nothing))
        except (SwitchoverHoldTimeout, GreenHostRejected, PoolClosed):
            return False
        return True

    def wait_admitted(self, timeout: float | None = None) -> None:
        """Like await_admitted."""
        if timeout is not None:
            check_wait("timeout", timeout)
        word, admitted, _ = self._generations.quick
        if word != admitted:
            self._gate.waits.finish(self.await_admitted(timeout))

    def open(self) -> None:
        """Begin to connect and to watch the deployment now instead of at the first checkout. It does not wait.

        Call it in the process that will use the pool, after the fork; see bgpool.integrations.
        """
        fork.notice()
        check_threads()
        self._join()
        reading = self.participant.reader.refresh()
        if self._gate.decide(reading, Purpose.CHECKOUT).action in (Action.PASS, Action.ROUTE):
            self._generations.adopt(reading).begin()

    def close(self, timeout: float = 5.0) -> None:
        """Close idle connections and refuse further checkouts; connections in use are closed when they are returned.

        Held callers get PoolClosed.

        Args:
            timeout: The longest wait for these callers and for the pool's threads together, in seconds.
        """
        fork.notice()
        deadline = deadline_of(timeout)
        self._gate.waits.finish(self._gate.aclose(timeout))
        self._generations.close(max(0.0, deadline - time.monotonic()))
        self.participant.leave(self)

    def start(self) -> None:
        """See ConnectionSource."""
        self.open()

    def stop(self, timeout: float = 5.0) -> None:
        """See ConnectionSource."""
        self.close(timeout)

    def make_unit(
        self,
        attempt: Callable[[Unit[C, R]], R],
        lender: Lender[C],
        *,
        timeout_s: float,
        idempotent: bool,
        receipt_id: str | None = None,
    ) -> Unit[C, R]:
        """Return a unit of work whose attempts do not await; the arguments are the same as in Unit."""

        async def make(unit: Unit[C, R]) -> R:
            return attempt(unit)

        return self.amake_unit(make, lender, timeout_s=timeout_s, idempotent=idempotent, receipt_id=receipt_id)


async def _nothing(_generation: Generation, _left_s: float) -> None:
    """The *take* of a caller that only waits."""
