"""A generation: a driver's pool and the connections opened for it, good for one epoch and then replaced as a whole.

psycopg_pool cannot tell a connection that was still being opened to blue when it was drained, and backs off for
seconds after a failed attempt. A new pool has neither problem: what the old one still brings home is closed, and
the new one's first attempt is its first.
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
    """One epoch's connections.

    Attributes:
        epoch: The epoch that the connections were about to be opened under; None while no snapshot was seen.
        live: A word, 0 while a statement must stop and think before it is sent; the kernel makes it so in a child.
        drained: A switchover has made the connections unfit, for good unless it is rolled back.
        inner: The driver's pool.
        awaits: Whether its callers await.
        keep: Its way to take a connection back that is fit to be used again; a coroutine function where callers await.
        switching: Whether a switchover was under way by the last snapshot that had the endpoint in a deployment. It
            may be gone when a process that was frozen meanwhile wakes up.
        lineage: The identifier of the database cluster behind the connections; None until the first trace, empty
            where the server gives none.
        receipts: Whether the receipts table can be used on the connections; None while nobody has looked.
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
        """A new generation.

        Args:
            recipe: How connections are made.
            make_inner: Makes what keeps the connections: a driver's pool, not open yet.
            epoch: The epoch to begin under.
            distrust: Called with the generation once the server has refused a write on one of its connections; returns
                whether none of them is handed out again.
            follows: A switchover has begun; failures to connect are its doing for a while.
            at_once: How many connections may be opened at a time while all the others do the same, >= 1; None for as
                many as the driver's pool likes.
        """
        self._recipe: Final = recipe
        self._distrust: Final = distrust
        self._follows: Final = follows
        self._at_once: Final = at_once or 1
        self._turns: Final = recipe.waits.turns(at_once) if at_once is not None else None
        self._is_new = True
        # How long a caller's own attempt to connect may take, in the caller's thread.
        self._limit: Final = threading.local()
        self._born: Final = time.monotonic()
        # And which socket each has: its number may be another's by the time that it is cut.
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
        """Whether the parent of a fork made it: nothing of it may be touched. Never while *live*."""
        return self._pid != os.getpid()

    def open(self) -> None:
        """Start connecting; idempotent.

        Raises:
            PoolClosed: Retired already.
        """
        # Under the lock, so that a pool is never opened after it was closed for good.
        with self._lock:
            if self.retired:
                raise PoolClosed("the generation is retired")
            if self._follows and self._lazy is not None:
                self._lazy.open_lazily()
            else:
                self.inner.open()

    def is_first(self) -> bool:
        """Whether nobody has asked before."""
        with self._lock:
            first, self._is_new = self._is_new, False
            return first

    def begin(self) -> None:
        """Connect, whether a caller comes or not; idempotent."""
        if self._lazy is not None:
            self._lazy.begin()

    def lend(self, timeout_s: float) -> Any:
        """A connection, within *timeout_s* seconds, for a caller who comes by the long way; as DriversPool.getconn."""
        if self._lazy is not None and self._recipe.ends_within(timeout_s):
            return self._lazy.fetch(timeout_s, self._at_once)
        self.begin()
        return self.inner.getconn(timeout_s)

    def connections(self, counts: Callable[[Aware], bool] = lambda _: True) -> int:
        """Connections that are open, in use ones included; those alone of which *counts* is true."""
        with self._lock:
            members = [member for member in self._members if member.bgpool_is_open and not member.bgpool_cut]
        return sum(map(counts, members))

    def served(self) -> int:
        """Checkouts that were given one of these connections."""
        counts = self.inner.get_stats()
        unserved = counts.get("requests_errors", 0) + counts["requests_waiting"]
        return max(0, counts.get("requests_num", 0) - unserved)

    # -- opening -------------------------------------------------------------------------------------------------

    def connect(self, _conninfo: str = "", **kwargs: Any) -> Any:
        """As aconnect; called by the threads of the driver's pool in place of a connection class."""
        return self._recipe.waits.finish(self.aconnect(**kwargs))

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """What this thread connects in the block it tries once, for *seconds* at most, all waits included."""
        self._limit.until = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._limit.until

    async def aconnect(self, _conninfo: str = "", **kwargs: Any) -> Any:
        """Open a connection; called by the tasks of the driver's pool in place of a connection class.

        Waits where the gate holds, and tries again at once while a switchover is being gone through: a failure
        would be answered with a back-off of a second and more.
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
        # Decided after the wait for a turn.
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
        """A turn to connect, while turns are given: then all go on, however many wait behind a silent server."""
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
        """For how long failures to connect are put down to the switchover yet, in seconds."""
        return self._born + self._recipe.settings.bg_connect_timeout_ms / 1000 - time.monotonic()

    # -- the ways back -------------------------------------------------------------------------------------------

    def take_back(self, connection: Aware) -> None:
        """As atake_back."""
        self._recipe.waits.finish(self.atake_back(connection))

    async def atake_back(self, connection: Aware) -> None:
        """A connection of ours is returned; closed instead of kept where the server turned out to be read-only.

        Harmless after close(), which returned it.

        Raises:
            ValueError: It was returned before, and is open: it may be the next user's.
        """
        if self.inherited or not (connection.bgpool_lent or connection.bgpool_is_open):
            return
        if not connection.bgpool_lent:
            raise ValueError(f"{connection!r} was given back before")
        if connection.bgpool_unfit:
            await connection.bgpool_asettle_refusal()
        if connection.bgpool_unfit:
            self.replace(connection)
        else:
            connection.bgpool_lent = False
            await settled(self.keep(connection))

    def take_closed(self, connection: Aware) -> None:
        """As atake_closed."""
        self._recipe.waits.finish(self.atake_closed(connection))

    async def atake_closed(self, connection: Aware) -> None:
        """The user of a connection of ours closes it: return it if that is what close() means, else free its slot."""
        if connection.bgpool_unfit:
            await connection.bgpool_asettle_refusal()
        # One step for the interpreter: of two threads that close it, the second finds it closed.
        if not vars(connection).pop("bgpool_lent", False):
            return
        unusable = self.drained or connection.bgpool_unfit or connection.bgpool_in_unit
        usable = self.inner.close_returns and not unusable
        heir = connection.bgpool_pass_on() if usable else None
        if heir is None:
            self.replace(connection)
            return
        with self._lock:
            # Gone already where a finalizer closes it: the collector clears weak references first.
            socket = self._members.pop(connection, None)
            self._members[heir] = socket or sockets.identity(heir.fileno())
        heir.bgpool_lent = False
        await settled(self.keep(heir))

    def take_lost(self, connection: Aware) -> None:
        """A connection of ours is being collected although it has a slot: free that, and warn if a user had it.

        Nobody had it where an interrupt came between the driver's pool and its user.
        """
        # Before the thread has it: a driver may raise where it is to describe what is being closed meanwhile.
        shown = repr(connection) if connection.bgpool_lent else ""
        # The collector interrupts any thread anywhere, also one that holds a lock which this needs.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(self.replace, (connection,))
        if shown:
            text = f"{shown} was collected without being returned or closed; use a with block, or close it"
            warnings.warn(text, ResourceWarning, stacklevel=3)

    def replace(self, connection: Aware) -> None:
        """Close a connection of ours that is in nobody's hands any more, and free its slot."""
        connection.bgpool_lent = False
        try:
            connection.bgpool_discard()
        finally:
            self.inner.replace(connection)

    # -- ending --------------------------------------------------------------------------------------------------

    def retire(self, timeout_s: float = 0) -> None:
        """Close what is idle, send waiting callers on, and have what is in use closed when it comes back.

        Args:
            timeout_s: Longest wait for each thread of the driver's pool, in seconds. They end by themselves, and one
                that is connecting to a dead host takes its time; none is waited for while a release goes on, nor in the
                thread that watches all deployments.
        """
        with self._lock:
            self.retired = True
        self.inner.close(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Retire, with *timeout_s* seconds for all threads of the driver's pool together."""
        self.retire(timeout_s / self.inner.num_workers)

    def hold(self, *, held: bool) -> None:
        """Have new transactions on these connections wait, or go on, as an operator orders."""
        if not self.drained:
            self.live[0] = not held

    def drain(self) -> None:
        """Have new transactions on these connections wait for the switchover to pass."""
        self.drained = True
        self.live[0] = 0

    def cut(self, chosen: Callable[[Aware], bool] = lambda _: True) -> int:
        """Cut the connections that are still open, at the socket; of those that are *chosen*. How many."""
        with self._lock:
            open_ones = [(member, socket) for member, socket in self._members.items() if member.bgpool_is_open]
        count = 0
        for member, socket in open_ones:
            if not member.bgpool_cut and chosen(member):
                with contextlib.suppress(*self._recipe.failures):
                    # Marked afterwards: what is sent once it is marked goes nowhere.
                    member.bgpool_cut = sockets.cut(member.fileno(), socket)
                    count += member.bgpool_cut
        return count

    # -- what a connection asks ----------------------------------------------------------------------------------

    def wait_usable(self) -> None:
        """As await_usable."""
        self._recipe.waits.finish(self.await_usable())

    async def await_usable(self) -> None:
        """Hold a new transaction on a connection in use until it is known what becomes of it.

        Raises:
            InheritedConnection: The connection is the parent's.
            SwitchoverHoldTimeout: Held for as long as it may be.
            SwitchoverInterrupted: The switchover has passed and the connection is not fit any more.
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
        """Make sure that a transaction on one of these connections, which is open, may be committed by *snapshot*.

        While a switchover is under way it may. Of one that was slept through a COMMIT would be lost, or nobody could
        tell what became of it.

        Raises:
            SwitchoverInterrupted: A switchover has passed since the connection was opened.
        """
        if snapshot is None or not (snapshot.phase >= Phase.POST or self._recipe.endpoint.host(snapshot) is None):
            return
        if self.is_unfit(snapshot):
            text = "connection is from before the switchover; the transaction was not committed, run it again"
            raise self._counted(None, SwitchoverInterrupted, self._recipe.gate.describe(text))

    def is_unfit(self, snapshot: Snapshot | None) -> bool:
        """Whether these connections must not be handed out under *snapshot*."""
        if snapshot is None:
            return False
        if self._recipe.endpoint.host(snapshot) is None and (self.epoch is None or self.switching):
            # The deployment went away in a switchover whose end this process has not seen: it was frozen, say.
            return self.epoch is not None
        if self.epoch is None and snapshot.phase < Phase.IN_PROGRESS:
            # Opened before the first snapshot was there; nothing has moved since.
            self.epoch = snapshot.epoch
        return self.epoch != snapshot.epoch

    def was_rolled_back(self, snapshot: Snapshot | None) -> bool:
        """Whether the switchover that drained this generation, and no other since, went back to blue."""
        if snapshot is None or self.epoch is None:
            return False
        return (
            snapshot.rolled_back
            and snapshot.epoch == self.epoch + EPOCH_OF_DECISION
            and snapshot.phase is Phase.CREATED
        )

    def is_over(self) -> bool:
        """Whether these connections are to be replaced as soon as they are in no transaction.

        A switchover is under way, or has passed and was not rolled back; or all were replaced for another reason, such
        as drain(). Not after close(), which replaces nothing.
        """
        if self.drained:
            return not self.was_rolled_back(self._recipe.gate.now())
        return self.retired and not self._recipe.gate.closed

    def note_cut(self) -> None:
        """The server has ended, or refused, one of these connections, or a write on it."""
        if not self.inherited and not self.retired:
            self._recipe.gate.note_cut()

    def note_refusal(self) -> bool:
        """Note that the server itself has refused a write on one of these connections.

        Returns:
            Whether none of them is handed out again.
        """
        self.note_cut()
        return self._distrust(self)

    def role_is_servers(self) -> bool:
        """As Gate says."""
        return self._recipe.gate.role_is_servers()

    def is_switching(self) -> bool:
        """Whether an error on one of these connections is the switchover's doing."""
        if self.drained or self.inherited:
            return True
        snapshot = self._recipe.gate.now()
        switching = self._recipe.gate.switching_by(snapshot)
        if switching is not None or snapshot is None or self.epoch is None:
            return bool(switching)
        # There was a deployment. The epoch, too, tells of a switchover that this process has slept through.
        return self.switching or snapshot.epoch > self.epoch

    def explain_cut(self, error: Exception, doubt: str) -> Exception:
        """What a connection broken by a switchover means for the caller; *doubt* is why it may have committed."""
        describe = self._recipe.gate.describe
        # Of a prepared transaction that was held, it may be an error of ours.
        self._recipe.gate.tally.absorb(error)
        if doubt:
            return self._counted(error, CommitOutcomeUnknown, describe(doubt))
        text = describe("cut the transaction; it did not commit, run it again")
        return self._counted(error, SwitchoverInterrupted, text)

    def explain_read_only(self, error: Exception) -> Exception:
        """What a write refused by a read-only server means in a switchover."""
        text = self._recipe.gate.describe("takes no writes any more; the transaction did not commit, run it again")
        return self._counted(error, SwitchoverInterrupted, text)

    def _counted(self, error: Exception | None, kind: type[Exception], text: str) -> Exception:
        """The *kind* of error that the application gets for *error*."""
        new = self._recipe.like(error, kind, text)
        self._recipe.gate.tally.count_error(new)
        return new


def connects_at_once(held: int, workers: int) -> int:
    """How many connections a pool that held *held*, one of *workers* on the host, opens at a time after a switchover.

    No more than it held: green is not asked for more at once than blue has carried. And no more than its share of what
    the cores can do, or all would be connecting and none connected.
    """
    return max(1, min(held, math.ceil(CONNECTS_PER_CORE * cores() / workers)))
