"""A pool behind the gate, whatever the engine: the pool of a driver, replaced as a whole at each epoch."""

from __future__ import annotations

import inspect
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar, cast

import psycopg_pool

from bgpool.core.limits import ALIAS_TIMEOUT_S
from bgpool.core.phase import Phase
from bgpool.core.routing import Action, Purpose
from bgpool.core.sightings import Parameters, Sight, worth
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import Dsn
from bgpool.green import check_threads
from bgpool.pools import fork
from bgpool.pools.alias import Endpoint
from bgpool.pools.busy import busy_limit_ms
from bgpool.pools.gate import Gate
from bgpool.pools.green_login import GreenLogin
from bgpool.pools.options import Check
from bgpool.pools.participant import Participant
from bgpool.pools.recipe import Recipe
from bgpool.pools.refusals import REFUSALS, as_ours, forget_frames
from bgpool.pools.succession import Succession
from bgpool.pools.units import Unit
from bgpool.resolver import make_resolver
from bgpool.segment.reader import Reading
from bgpool.segment.table import Usage
from bgpool.settings import Settings

__all__ = ["Checkout", "Pool", "PoolStats"]

C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment.

    Attributes:
        phase: The deployment's phase as this process knows it; None while no snapshot was seen.
        epoch: The epoch of the pool's connections.
        held: Callers that wait for the switchover to pass.
        size: Connections of the pool, idle, in use and being opened.
        idle: Those ready to be checked out.
        waiting: Callers that wait for a connection.
        driver: The figures of the driver's pool since the last generation began, named as psycopg_pool names its own.
    """

    phase: Phase | None
    epoch: int | None
    held: int
    size: int
    idle: int
    waiting: int
    driver: Mapping[str, int]


class Monitoring(Protocol):
    """What a monitor is started with, as far as a pool knows it."""

    @property
    def parameters(self) -> Parameters:
        """By what it is told from others."""
        ...


class Pool(ABC, Generic[C]):
    """A pool of a driver's connections that goes through Blue/Green switchovers. Made by get_pool.

    Nothing happens before the first checkout: a pool may be made before a fork and used on both sides of it.

    Attributes:
        OPTIONS: The options of the driver's pool that get_pool passes on, each with its check.
        timeout: Longest wait for a connection unless the caller says otherwise, in seconds.
        participant: The process's part in the deployment.
        monitoring: What a monitor of the deployment could be started with; None for nothing.
    """

    OPTIONS: ClassVar[Mapping[str, Check]]
    _recipe_class: ClassVar[type[Recipe]]
    _unit_class: ClassVar[type[Unit[Any, Any]]]

    def __init__(self, dsn: Dsn, settings: Settings, participant: Participant, options: Mapping[str, Any]) -> None:
        """A pool for *dsn*; *options* are those of the driver's pool.

        Raises:
            ValueError, TypeError: As the driver's pool raises them for its options.
        """
        self._settings: Final = settings
        self.participant: Final = participant
        self.monitoring: Monitoring | None = None
        self._endpoint: Final = Endpoint(dsn, settings)
        self._gate: Final = Gate(
            participant.reader, settings, self._endpoint, participant.nudge, self._recipe_class.like
        )
        resolver = None if settings.bg_resolver == "system" else make_resolver(settings.bg_resolver)
        by_name = dsn.host and not dsn.host.startswith("/") and "hostaddr" not in dsn.params
        self._recipe: Final = self._recipe_class(
            dsn, settings, self._gate, self._endpoint, resolver if by_name else None, options
        )
        self._succession: Final = Succession(self._recipe, participant.count_workers)
        self._green_login: Final = GreenLogin(self._recipe, participant)
        sample = self._recipe.make_inner(object())
        self.timeout: Final[float] = sample.timeout
        self._max_size: Final[int] = sample.max_size
        self._name: Final = f"{dsn.host}:{dsn.port}"
        self._reset()
        fork.call_in_child(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._joining = False
        # Set once it is known where the pool belongs: until then nobody can tell what a switchover means for it.
        self._joined = threading.Event()
        self._failed = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name} bg_id={self._settings.bg_id!r} {self._succession.current!r}>"

    def __enter__(self) -> Pool[C]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- checkout and return -------------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None) -> Checkout[C]:
        """A connection for a ``with`` block, which commits at its end, or rolls back, and returns the connection.

        Args:
            timeout: Longest wait for it in seconds, hold included; None for the pool's own. Who gave none, and waits
                for a connection when a switchover begins, may be held for as long again.

        Raises:
            SwitchoverHoldTimeout: Held for as long as it may be.
            GreenHostRejected: The endpoint is green and the switchover is over.
            PoolTimeout: No connection became free in time.
            TooManyRequests: More than max_waiting callers wait already.
        """
        return Checkout(self, timeout)

    def getconn(self, timeout: float | None = None) -> C:
        """A connection, to be given back with putconn. Arguments and errors as for connection()."""
        word, admitted, take = self._succession.quick
        # As memory: a load of eight bytes each, as word[0] would be, and half of the time.
        if word == admitted:
            # A clock costs as much as all the rest here. It is read where somebody has said how long to wait.
            deadline = None if timeout is None else time.monotonic() + timeout
            try:
                connection = take(timeout)
                connection.bgpool_lent = True
                return connection  # type: ignore[no-any-return]  # a cast() would be a call
            except psycopg_pool.PoolClosed as error:
                # Retired while we waited; what is true now is found out below.
                forget_frames(error)
                timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            except REFUSALS as error:
                ours = self._as_ours(error)
                self._count_failure(ours)
                raise ours from error
        try:
            return self._getconn_gated(self.timeout if timeout is None else timeout)
        except Exception as error:
            self._count_failure(error)
            raise

    def putconn(self, conn: C) -> None:
        """Give a connection back; closed instead of kept if a switchover has made it unfit.

        Does nothing after ``conn.close()``, which gives it back itself.

        Raises:
            ValueError: *conn* was not checked out from a pool of this process, or was given back before.
        """
        returned: Any = conn
        try:
            generation = returned.bgpool_generation
        except AttributeError:
            raise ValueError(f"{conn!r} was not checked out from {self!r}") from None
        if returned.bgpool_lent and generation.live[0] and not returned.bgpool_unfit:
            # Before it is kept: from then on it may be the next user's.
            returned.bgpool_lent = False
            generation.keep(conn)
        else:
            generation.take_back(conn)

    def _getconn_gated(self, timeout_s: float) -> C:
        deadline = time.monotonic() + timeout_s
        fork.notice()
        self._join()
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            reading, _ = self._gate.wait_admitted(Purpose.CHECKOUT, timeout_s=left_s)
            try:
                generation = self._succession.adopt(reading)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise psycopg_pool.PoolTimeout(f"couldn't get a connection after {timeout_s:.2f} sec")
                connection = generation.inner.getconn(left_s)
                connection.bgpool_lent = True
                return cast(C, connection)
            except psycopg_pool.PoolClosed as error:
                if self._gate.closed:
                    raise self._as_ours(error) from error
                forget_frames(error)
            except REFUSALS as error:
                raise self._as_ours(error) from error

    def _as_ours(self, error: Exception) -> Exception:
        """*error* of the driver's pool as bgpool's own, with what is known of why."""
        snapshot = self._gate.snapshot(self.participant.reader.refresh())
        phase = snapshot.phase.name if snapshot is not None else "unknown"
        return as_ours(error, self._recipe.like, self._succession.current, phase)

    def _count_failure(self, error: Exception) -> None:
        self._gate.tally.count_error(error)
        with self._lock:
            self._failed += 1

    @abstractmethod
    def end_block(self, conn: C, error: BaseException | None) -> None:
        """What the end of a ``with`` block does to *conn*: commit, or roll back after *error*."""

    # -- units of work -------------------------------------------------------------------------------------------

    def run(self, fn: Callable[..., R], *args: object, timeout: float | None = None, idempotent: bool = False) -> R:
        """Call ``fn(conn, *args)`` in a transaction and commit it; again, when a switchover cut it before that.

        *fn* may be called several times, of which one is applied: what it does beside its transaction it does several
        times. It must not end the transaction. Keywords for it: functools.partial, or a lambda.

        Args:
            fn: What is to be done in one transaction.
            args: Its arguments after the connection.
            timeout: Longest time until the last call begins, in seconds; None for the pool's timeout after the
                longest hold.
            idempotent: *fn* may be applied twice. Then it is called again also where nobody can tell whether it was.

        Returns:
            What *fn* returned.

        Raises:
            CommitOutcomeUnknown: COMMIT was cut, and the server cannot tell what became of it.
            SwitchoverInterrupted: Cut again and again, until the time was used up.
            TypeError: *fn* is an ``async`` function.
            Exception: Whatever *fn* or a checkout raised; the transaction was rolled back.

        Source: docs/units-of-work.md.
        """
        timeout_s = self._settings.bg_connect_timeout_ms / 1000 + self.timeout if timeout is None else timeout

        def call(connection: C) -> R:
            result = fn(connection, *args)
            if inspect.iscoroutine(result):
                # It would run after the transaction, on a connection that is another caller's by then.
                name = result.__qualname__
                result.close()
                raise TypeError(f"{name} is asynchronous: a unit of work is a plain function, called in a thread")
            return result

        unit: Unit[C, R] = self._unit_class(self, self._gate, call, timeout_s=timeout_s, idempotent=idempotent)
        return unit.run()

    # -- following the segment -----------------------------------------------------------------------------------

    def apply(self, reading: Reading) -> None:
        """Act on a new snapshot: drain what it makes unfit."""
        self._succession.apply(reading)

    def tick(self) -> float:
        """Cut what is still in use after its grace; seconds until that is due again, infinite if it is not."""
        snapshot = self.participant.reader.refresh().snapshot
        self._endpoint.read_later(snapshot)
        self._green_login.look(snapshot)
        return self._succession.cut_overdue()

    def usage(self) -> Usage:
        """What the pool does now, for the table of workers."""
        snapshot = self.participant.reader.refresh().snapshot
        part = self._endpoint.takes_part(snapshot)
        proxied = part is False and self._endpoint.is_behind_proxy(snapshot)
        connections = self._succession.usage()
        own = Usage(
            failed=self._failed,
            taking_part=int(part is True),
            outside=int(part is False and not proxied),
            behind_proxy=int(proxied),
            max_size=self._max_size if part is not False else 0,
            offer=self._offer(snapshot, works=connections.idle + connections.in_use > 0),
            locked_out=int(bool(self._green_login.failure)),
            stuck_passwords=int(self._recipe.passwords is not None and self._recipe.passwords.is_stuck),
            **self._limits(),
        )
        return Usage.merged((connections, self._gate.tally.usage(), own))

    def is_holding(self, reading: Reading) -> bool:
        """Whether a checkout would be held by *reading*."""
        return self._gate.decide(reading, Purpose.CHECKOUT).action is Action.HOLD

    def take_longest_hold_s(self) -> float:
        """The longest hold that has ended since the last call, in seconds; 0 if none has."""
        return self._gate.tally.take_longest_s()

    def _limits(self) -> dict[str, int]:
        """The time limits that a switchover meets here, as a Usage names them."""
        hold_ms = int(min(self._settings.bg_connect_timeout_ms, self.timeout * 1000))
        timer_ms = self._settings.bg_switchover_timeout_ms
        return {"hold_limit_ms": hold_ms, "timer_ms": timer_ms, "busy_limit_ms": busy_limit_ms()}

    def _offer(self, snapshot: Snapshot | None, *, works: bool) -> int:
        """What a monitor may be expected to see with this pool's parameters; nothing where they may not even work.

        They work where there are connections. Those with which the deployment was seen have worked: in a switchover no
        pool has any connections, and the next monitor should be one that sees.
        """
        if self.monitoring is None or snapshot is None:
            return Sight.NONE
        sight = worth(snapshot.sightings, self.monitoring.parameters, time.monotonic_ns())
        return sight if works or sight is Sight.SEEN else Sight.NONE

    def drain(self) -> None:
        """Replace every connection: idle ones at once, those in use when they are returned."""
        fork.notice()
        self._succession.drain()

    # -- life ----------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        # A process may be patched after the pool was made, and even after it was opened.
        check_threads()
        with self._lock:
            joining, self._joining = self._joining, True
        if joining:
            self._joined.wait(ALIAS_TIMEOUT_S)
            return
        try:
            self.participant.join(self)
            self._endpoint.read()
            # Beside what this caller waits for, a release perhaps.
            self._recipe.prepare()
        except BaseException:
            # A signal or a timeout of the caller's came in between: the next one takes it up again.
            self._joining = False
            raise
        finally:
            self._joined.set()

    def open(self) -> None:
        """Begin to connect, and to watch the deployment, now instead of at the first checkout. Waits for nothing.

        To be called in the process that will use the pool, after the fork; see bgpool.integrations.
        """
        fork.notice()
        self._join()
        reading = self.participant.reader.refresh()
        if self._gate.decide(reading, Purpose.CHECKOUT).action in (Action.PASS, Action.ROUTE):
            self._succession.adopt(reading)

    def close(self, timeout: float = 5.0) -> None:
        """Close idle connections and refuse further checkouts; those in use are closed when returned.

        Callers who are held get PoolClosed.

        Args:
            timeout: Longest wait for these callers and for the pool's threads together, in seconds.
        """
        fork.notice()
        deadline = time.monotonic() + timeout
        self._gate.close(timeout)
        self._succession.close(max(0.0, deadline - time.monotonic()))
        self.participant.leave(self)

    @property
    def bg_id(self) -> str:
        """Which deployment it follows."""
        return self._settings.bg_id

    @property
    def name(self) -> str:
        """Host and port, as its DSN has them."""
        return self._name

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._gate.closed

    def stats(self) -> PoolStats:
        """The pool at this moment."""
        fork.notice()
        generation = self._succession.current
        driver = self._succession.driver_stats()
        snapshot = self._gate.snapshot(self.participant.reader.refresh())
        return PoolStats(
            phase=snapshot.phase if snapshot is not None else None,
            epoch=generation.epoch if generation is not None else None,
            held=self._gate.tally.held,
            size=driver.get("pool_size", 0),
            idle=driver.get("pool_available", 0),
            waiting=driver.get("requests_waiting", 0),
            driver=driver,
        )

    def after_fork_in_child(self) -> None:
        """Leave the parent's connections alone and begin anew."""
        self._succession.after_fork_in_child()
        self._gate.reset()
        self._endpoint.after_fork_in_child()
        self._green_login.reset()
        self._reset()


class Checkout(Generic[C]):
    """A connection for one ``with`` block."""

    __slots__ = ("_connection", "_pool", "_timeout")

    def __init__(self, pool: Pool[C], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    def __enter__(self) -> C:
        self._connection = connection = self._pool.getconn(self._timeout)
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        try:
            self._pool.end_block(connection, error)
        finally:
            self._pool.putconn(connection)
