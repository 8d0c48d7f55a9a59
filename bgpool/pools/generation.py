"""A generation: a driver's pool and the connections opened for it, valid for one epoch and then replaced as a whole.

psycopg_pool cannot recognize a connection that was still being opened to blue when the pool was drained, and it backs
off for seconds after a failed attempt. A new pool has neither problem: connections that the old one still opens are
closed, and the new pool begins without a back-off.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import os
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, cast

from bgpool import sockets
from bgpool.core.functions import is_coroutine_function
from bgpool.core.limits import CONNECTS_PER_CORE, RECONNECT_INTERVAL_MAX_S, RECONNECT_INTERVAL_S
from bgpool.core.phase import Phase
from bgpool.core.routing import Purpose
from bgpool.core.snapshot import EPOCH_OF_DECISION, Snapshot
from bgpool.errors import CommitOutcomeUnknown, InheritedConnection, PoolClosed, SwitchoverInterrupted
from bgpool.failures import first_line
from bgpool.pools.fork import parents_word
from bgpool.pools.recipe import Aware, DriversPool, OpenedByCallers, Recipe
from bgpool.pools.waits import settled
from bgpool.segment.release_queue import cores

__all__ = ["Generation", "connects_at_once"]


class Generation:
    """The connections of one epoch.

    Attributes:
        epoch: The epoch in which the connections were requested; None while no snapshot was seen.
        live: A word; 0 while a statement must be checked before it is sent. The kernel sets it to 0 in a forked child.
        drained: True if a switchover has made the connections unfit, for good unless it is rolled back.
        inner: The driver's pool.
        awaits: True if its callers await.
        keep: The driver's pool's function that takes back a connection which may be used again; a coroutine function if
            callers await.
        switching: True if a switchover was under way by the last snapshot that had the endpoint in a deployment. The
            deployment may be gone when a process continues that was frozen for some time.
        lineage: The identifier of the database cluster behind the connections; None until the first trace, empty if the
            server gives none.
        receipts: True if the receipts table can be used on the connections; None before the first check.
    """

    def __init__(
        self,
        recipe: Recipe,
        make_inner: Callable[[Generation], DriversPool],
        epoch: int | None,
        distrust: Callable[[Generation], bool],
        *,
        follows: bool,
        at_once: int | None = None,
    ) -> None:
        """Create a new generation.

        Args:
            recipe: The way to open connections.
            make_inner: Creates the object that keeps the connections: a driver's pool, not open yet.
            epoch: The epoch to begin under.
            distrust: Called with the generation after the server has refused a write on one of its connections; returns
                whether none of them is handed out again.
            follows: True if a switchover has begun, so that failures to connect are attributed to it for a while.
            at_once: The maximum of connections that are opened at a time while all other pools open theirs, too, >= 1;
                None for no limit except the driver's pool's own.
        """
        self._recipe: Final = recipe
        self._distrust: Final = distrust
        self._follows: Final = follows
        self._at_once: Final = at_once or 1
        self._turns: Final = recipe.waits.turns(at_once) if at_once is not None else None
        self._is_new = True
        # The limit of a caller's own attempt to connect, which is stored in the caller's thread.
        self._limit: Final = threading.local()
        self._born: Final = time.monotonic()
        # The identity of each connection's socket. The descriptor's number may belong to another file when the
        # connection is cut.
        self._members: Final[weakref.WeakKeyDictionary[Aware, tuple[int, int]]] = weakref.WeakKeyDictionary()
        self._lock: Final = threading.Lock()
        self.epoch = epoch
        self.live: Final = parents_word(1)
        self._pid: Final = os.getpid()
        self.retired = self.switching = self.drained = False
        self.lineage: str | None = None
        self.receipts: bool | None = None
        self.inner: Final[DriversPool] = make_inner(self)
        self._lazy: Final = cast(OpenedByCallers, self.inner) if self.inner.opened_by_callers else None
        self.keep: Final[Callable[[Any], Any]] = self.inner.keep
        self.awaits: Final = is_coroutine_function(self.keep)

    def __repr__(self) -> str:
        states = {"inherited": self.inherited, "retired": self.retired, "draining": self.drained}
        state = next((name for name, is_so in states.items() if is_so), "live" if self.live[0] else "held")
        return f"<Generation epoch={self.epoch} {state} connections={self.connections()}>"

    @property
    def inherited(self) -> bool:
        """True if the parent of a fork created it, so that no part of it may be touched. Never true while *live*."""
        return self._pid != os.getpid()

    def open(self) -> None:
        """Start connecting; idempotent.

        Raises:
            PoolClosed: The generation is retired already.
        """
        # With the lock held, so that a pool is never opened after it was closed for good.
        with self._lock:
            if self.retired:
                raise PoolClosed("the generation is retired")
            if self._follows and self._lazy is not None:
                self._lazy.open_lazily()
            else:
                self.inner.open()

    def is_first(self) -> bool:
        """Return whether this is the first call."""
        with self._lock:
            first, self._is_new = self._is_new, False
            return first

    def begin(self) -> None:
        """Connect even if no caller asks for a connection; idempotent."""
        if self._lazy is not None:
            self._lazy.begin()

    def lend(self, timeout_s: float) -> Any:
        """Return a connection within *timeout_s* seconds, on the slow path; the same as DriversPool.getconn."""
        if self._lazy is not None and self._recipe.ends_within(timeout_s):
            return self._lazy.fetch(timeout_s, self._at_once)
        self.begin()
        return self.inner.getconn(timeout_s)

    def connections(self, counts: Callable[[Aware], bool] = lambda _: True) -> int:
        """Return the number of open connections, including those in use; only those for which *counts* is true."""
        with self._lock:
            members = [member for member in self._members if member.bgpool_is_open and not member.bgpool_cut]
        return sum(map(counts, members))

    def served(self) -> int:
        """Return the number of checkouts that got one of these connections."""
        counts = self.inner.get_stats()
        unserved = counts.get("requests_errors", 0) + counts["requests_waiting"]
        return max(0, counts.get("requests_num", 0) - unserved)

    # -- opening -------------------------------------------------------------------------------------------------

    def connect(self, _conninfo: str = "", **kwargs: Any) -> Any:
        """Like aconnect; called by the threads of the driver's pool in place of a connection class."""
        return self._recipe.waits.finish(self.aconnect(**kwargs))

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Limit connecting in this thread, within the block, to one try of *seconds*, all waits included."""
        self._limit.until = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._limit.until

    async def aconnect(self, _conninfo: str = "", **kwargs: Any) -> Any:
        """Open a connection; called by the tasks of the driver's pool in place of a connection class.

        It waits while the gate holds, and retries immediately during a switchover, because the driver's pool would back
        off for a second and more after a failure.
        """
        until: float = getattr(self._limit, "until", math.inf)
        pause_s = RECONNECT_INTERVAL_S
        while True:
            try:
                return await self._aconnect_once(kwargs, until)
            except self._recipe.failures as error:
                self.note_cut()
                self.inner.failure = first_line(error)
                if until < math.inf or not self._worth_trying_again():
                    raise
                await self._recipe.waits.sleep(pause_s)
                pause_s = min(2 * pause_s, RECONNECT_INTERVAL_MAX_S)

    async def _aconnect_once(self, kwargs: Mapping[str, Any], until: float) -> Aware:
        recipe = self._recipe

        def left_s(most: float) -> float:
            return max(0.0, min(most, until - time.monotonic()))

        hold_s = recipe.settings.bg_connect_timeout_ms / 1000
        # The decision is made after the wait for a turn.
        async with self._turn(left_s(hold_s)):
            _, decision = await recipe.gate.await_admitted(Purpose.CONNECT, timeout_s=left_s(hold_s))
            if until < math.inf:
                if not recipe.ends_within(left_s(math.inf)):
                    raise TimeoutError("the caller's time is too short for an attempt to connect")
                kwargs = recipe.limited(kwargs, decision, left_s(math.inf))
            connection = await recipe.aconnect(decision, kwargs)
        connection.bgpool_generation = self
        connection.bgpool_lent = connection.bgpool_unfit = False
        with self._lock:
            self._members[connection] = sockets.identity(connection.fileno())
        return connection

    @contextlib.asynccontextmanager
    async def _turn(self, limit_s: float) -> AsyncIterator[None]:
        """Take a turn to connect, as long as turns are given. After that all proceed, despite a silent server."""
        left_s = min(self._recent_s(), limit_s)
        taken = self._turns is not None and left_s > 0 and await self._turns.acquire(left_s)
        try:
            yield
        finally:
            if taken and self._turns is not None:
                self._turns.release()

    def _worth_trying_again(self) -> bool:
        return self._follows and self._recent_s() > 0 and not self.retired

    def _recent_s(self) -> float:
        """Return the time for which failures to connect are still attributed to the switchover, in seconds."""
        return self._born + self._recipe.settings.bg_connect_timeout_ms / 1000 - time.monotonic()

    # -- return and close ----------------------------------------------------------------------------------------

    def take_back(self, connection: Aware) -> None:
        """Like atake_back."""
        self._recipe.waits.finish(self.atake_back(connection))

    async def atake_back(self, connection: Aware) -> None:
        """Take back a connection; close it instead of keeping it if its server turned out to be read-only.

        Harmless after close(), which returned it.

        Raises:
            ValueError: It was returned before and is open, so it may be the next user's.
        """
        if self.inherited or not (connection.bgpool_lent or connection.bgpool_is_open):
            return
        if not connection.bgpool_lent:
            raise ValueError(f"{connection!r} was returned before")
        if connection.bgpool_unfit:
            await connection.bgpool_asettle_refusal()
        if connection.bgpool_unfit:
            self.replace(connection)
        else:
            connection.bgpool_lent = False
            await settled(self.keep(connection))

    def take_closed(self, connection: Aware) -> None:
        """Like atake_closed."""
        self._recipe.waits.finish(self.atake_closed(connection))

    async def atake_closed(self, connection: Aware) -> None:
        """Handle a user's close() of a connection: return it if close() means that, else free its slot."""
        if connection.bgpool_unfit:
            await connection.bgpool_asettle_refusal()
        # This is one atomic step in the interpreter. If two threads close the connection, the second finds it closed.
        if not vars(connection).pop("bgpool_lent", False):
            return
        unusable = self.drained or connection.bgpool_unfit or connection.bgpool_in_unit
        usable = self.inner.close_returns and not unusable
        heir = connection.bgpool_pass_on() if usable else None
        if heir is None:
            self.replace(connection)
            return
        with self._lock:
            # If a finalizer closes the connection, the entry is gone already: the collector clears weak references
            # first.
            socket = self._members.pop(connection, None)
            self._members[heir] = socket or sockets.identity(heir.fileno())
        heir.bgpool_lent = False
        await settled(self.keep(heir))

    def take_lost(self, connection: Aware) -> None:
        """Free the slot of a connection that is being garbage-collected; warn if a user had it.

        No user had it if an interrupt came between the driver's pool and its user.
        """
        # Before the thread gets the connection: a driver may raise if it must describe a connection that is being
        # closed.
        shown = repr(connection) if connection.bgpool_lent else ""
        # The collector may interrupt any thread at any point, including one that holds a lock which this needs.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(self.replace, (connection,))
        if shown:
            text = f"{shown} was collected without being returned or closed; use a with block, or close it"
            warnings.warn(text, ResourceWarning, stacklevel=3)

    def replace(self, connection: Aware) -> None:
        """Close a connection that no user has any more, and free its slot."""
        connection.bgpool_lent = False
        try:
            connection.bgpool_discard()
        finally:
            self.inner.replace(connection)

    # -- ending --------------------------------------------------------------------------------------------------

    def retire(self, timeout_s: float = 0) -> None:
        """Close idle connections, pass waiting callers on, and close connections in use at their return.

        Args:
            timeout_s: The longest wait for each thread of the driver's pool, in seconds. The threads end by themselves,
                and one that is connecting to a dead host takes long. So no wait is allowed during a release, nor in the
                thread that watches all deployments.
        """
        with self._lock:
            self.retired = True
        self.inner.close(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Retire, with *timeout_s* seconds for all threads of the driver's pool together."""
        self.retire(timeout_s / self.inner.num_workers)

    def hold(self, *, held: bool) -> None:
        """Make new transactions on these connections wait, or let them proceed, as an operator has ordered."""
        if not self.drained:
            self.live[0] = not held

    def drain(self) -> None:
        """Make new transactions on these connections wait for the end of the switchover."""
        self.drained = True
        self.live[0] = 0

    def cut(self, chosen: Callable[[Aware], bool] = lambda _: True) -> int:
        """Cut the sockets of the connections that are still open and that *chosen* accepts; return their number."""
        with self._lock:
            open_ones = [(member, socket) for member, socket in self._members.items() if member.bgpool_is_open]
        count = 0
        for member, socket in open_ones:
            if not member.bgpool_cut and chosen(member):
                with contextlib.suppress(*self._recipe.failures):
                    # Marked after the cut, so that data sent once the mark is set goes nowhere.
                    member.bgpool_cut = sockets.cut(member.fileno(), socket)
                    count += member.bgpool_cut
        return count

    # -- queries of a connection ---------------------------------------------------------------------------------

    def wait_usable(self) -> None:
        """Like await_usable."""
        self._recipe.waits.finish(self.await_usable())

    async def await_usable(self) -> None:
        """Hold a new transaction on a connection in use until it is known whether the connection stays fit.

        Raises:
            InheritedConnection: The connection is the parent's.
            SwitchoverHoldTimeout: Held for the longest time that is allowed.
            SwitchoverInterrupted: The switchover has passed and the connection is no longer fit.
        """
        gate = self._recipe.gate
        if self.inherited:
            text = gate.describe("connection was opened before a fork and belongs to the parent; check out a new one")
            raise self._counted(None, InheritedConnection, text)
        hold_s = self._recipe.settings.bg_connect_timeout_ms / 1000
        try:
            reading, _ = await gate.await_admitted(Purpose.CHECKOUT, timeout_s=hold_s)
        except Exception as error:
            gate.tally.count_error(error)
            raise

        if self.was_rolled_back(reading.snapshot) or not (self.drained or self.is_unfit(gate.snapshot(reading))):
            return
        text = gate.describe("connection is from before the switchover; nothing was sent, check out a new one")
        raise self._counted(None, SwitchoverInterrupted, text)

    def check_commit(self, snapshot: Snapshot | None) -> None:
        """Check that an open transaction on one of these connections may be committed under *snapshot*.

        During a switchover it may. After a switchover during which this process was frozen, the COMMIT would be lost,
        or its outcome could not be found.

        Raises:
            SwitchoverInterrupted: A switchover has passed since the connection was opened.
        """
        if snapshot is None or not (snapshot.phase >= Phase.POST or self._recipe.endpoint.host(snapshot) is None):
            return
        if self.is_unfit(snapshot):
            text = "connection is from before the switchover; the transaction was not committed, run it again"
            raise self._counted(None, SwitchoverInterrupted, self._recipe.gate.describe(text))

    def is_unfit(self, snapshot: Snapshot | None) -> bool:
        """Return whether these connections must not be handed out under *snapshot*."""
        if snapshot is None:
            return False
        if self._recipe.endpoint.host(snapshot) is None and (self.epoch is None or self.switching):
            # The deployment was removed in a switchover whose end this process has not seen, for example because it was
            # frozen.
            return self.epoch is not None
        if self.epoch is None and snapshot.phase < Phase.IN_PROGRESS:
            # The connections were opened before the first snapshot existed. Nothing has changed since.
            self.epoch = snapshot.epoch
        return self.epoch != snapshot.epoch

    def was_rolled_back(self, snapshot: Snapshot | None) -> bool:
        """Return whether the switchover that drained this generation went back to blue, and no other followed."""
        if snapshot is None or self.epoch is None:
            return False
        return (
            snapshot.rolled_back
            and snapshot.epoch == self.epoch + EPOCH_OF_DECISION
            and snapshot.phase is Phase.CREATED
        )

    def is_over(self) -> bool:
        """Return whether these connections must be replaced as soon as they are in no transaction.

        That is so if a switchover is under way, or has passed and was not rolled back; or if all connections were
        replaced for another reason, such as drain(). It is not so after close(), which replaces nothing.
        """
        if self.drained:
            return not self.was_rolled_back(self._recipe.gate.now())
        return self.retired and not self._recipe.gate.closed

    def note_cut(self) -> None:
        """Record that the server has ended or refused one of these connections, or refused a write on it."""
        if not self.inherited and not self.retired:
            self._recipe.gate.note_cut()

    def note_refusal(self) -> bool:
        """Record that the server itself has refused a write on one of these connections.

        Returns:
            True if none of them is handed out again.
        """
        self.note_cut()
        return self._distrust(self)

    def role_is_servers(self) -> bool:
        """Like Gate.role_is_servers."""
        return self._recipe.gate.role_is_servers()

    def is_switching(self) -> bool:
        """Return whether an error on one of these connections is caused by the switchover."""
        if self.drained or self.inherited:
            return True
        snapshot = self._recipe.gate.now()
        switching = self._recipe.gate.switching_by(snapshot)
        if switching is not None or snapshot is None or self.epoch is None:
            return bool(switching)
        # There was a deployment. The epoch, too, shows a switchover during which this process was frozen.
        return self.switching or snapshot.epoch > self.epoch

    def explain_cut(self, error: Exception, doubt: str) -> Exception:
        """Return the caller's error for a connection cut by a switchover; *doubt* is why it may have committed."""
        describe = self._recipe.gate.describe
        # For a prepared transaction that was held, it may be bgpool's own error.
        self._recipe.gate.tally.absorb(error)
        if doubt:
            return self._counted(error, CommitOutcomeUnknown, describe(doubt))
        text = describe("cut the transaction; it did not commit, run it again")
        return self._counted(error, SwitchoverInterrupted, text)

    def explain_read_only(self, error: Exception) -> Exception:
        """Return the caller's error for a write that a read-only server refused in a switchover."""
        text = self._recipe.gate.describe("no longer takes writes; the transaction did not commit, run it again")
        return self._counted(error, SwitchoverInterrupted, text)

    def _counted(self, error: Exception | None, kind: type[Exception], text: str) -> Exception:
        """Return the error of *kind* that the application gets for *error*."""
        new = self._recipe.like(error, kind, text)
        self._recipe.gate.tally.count_error(new)
        return new


def connects_at_once(held: int, workers: int) -> int:
    """Return how many connections a pool with *held* before, one of *workers* on the host, opens at a time.

    It is at most *held*, so that green gets no more logins at once than blue had connections. It is at most the pool's
    share of the cores' capacity; otherwise all pools would be connecting and none connected.
    """
    return max(1, min(held, math.ceil(CONNECTS_PER_CORE * cores() / workers)))
