"""A generation: a psycopg pool and the connections opened for it, good for one epoch and then replaced as a whole.

psycopg_pool cannot tell a connection that was still being opened to blue when it was drained, and backs off for
seconds after a failed attempt. A new pool has neither problem: what the old one still brings home is closed, and
the new one's first attempt is its first.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed

from bgpool import sockets
from bgpool.auth import make_password
from bgpool.core.limits import ENDPOINTS, RECONNECT_INTERVAL_MAX_S, RECONNECT_INTERVAL_S, RETIRE_TIMEOUT_S
from bgpool.core.machine import EPOCH_OF_DECISION
from bgpool.core.phase import Phase
from bgpool.core.routing import Action, Decision, Names, Purpose, names_to_try
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import Dsn
from bgpool.errors import CommitOutcomeUnknown, InheritedConnection, SwitchoverInterrupted
from bgpool.pools.alias import Endpoint
from bgpool.pools.connection import SwitchoverAware, aware
from bgpool.pools.fork import parents_word
from bgpool.pools.gate import Gate
from bgpool.resolver import Resolver
from bgpool.settings import Settings

__all__ = ["Generation", "Recipe"]


#: The application's own name for it.
_OWN: Final = Names("", "")


class Recipe:
    """How the generations of one pool are made.

    Attributes:
        options: psycopg_pool's own options, passed on as they are.
        resolver: Who finds addresses where connections go by name; None leaves it to libpq.
        proved: The names under which an address was last connected to, its own and its token's; where names matter.
    """

    def __init__(
        self,
        dsn: Dsn,
        settings: Settings,
        gate: Gate,
        endpoint: Endpoint,
        resolver: Resolver | None,
        options: Mapping[str, Any],
    ) -> None:
        self.dsn: Final = dsn
        self.settings: Final = settings
        self.gate: Final = gate
        self.endpoint: Final = endpoint
        self.proved: Final[dict[str, Names]] = {}
        self.resolver: Final = resolver
        self.options: Final = {name: value for name, value in options.items() if name != "connection_class"}
        self.connection_class: Final = aware(options.get("connection_class", psycopg.Connection))

    def connect(self, decision: Decision, conninfo: str, kwargs: Mapping[str, Any]) -> SwitchoverAware:
        """A connection to where *decision* leads, under the first name that is right there.

        Raises:
            psycopg.OperationalError: No address and no name of it would do; the last one's failure.
        """
        routed = decision.action is Action.ROUTE
        failure: psycopg.OperationalError | None = None
        for address in decision.addresses if routed else self._addresses():
            for names in self._names(decision, address) if routed else (_OWN,):
                try:
                    place = self._place(names, address)
                    connection = self.connection_class.connect(conninfo, **{**self.dsn.params, **kwargs, **place})
                except psycopg.errors.ConnectionTimeout as error:
                    # Nobody is there, whatever the name.
                    failure = error
                    break
                except psycopg.OperationalError as error:
                    failure = error
                    continue
                if names is not _OWN:
                    self._remember(address, names)
                return connection
        raise failure or psycopg.OperationalError(f"{self.dsn.host} does not exist")

    def _addresses(self) -> tuple[str, ...]:
        """Where the endpoint is by name; one empty address leaves it to libpq."""
        return self.resolver.resolve(self.dsn.host)[:1] if self.resolver is not None else ("",)

    def _names(self, decision: Decision, address: str) -> list[Names]:
        """The names to try at *address*, those that were right there last first."""
        if not self.dsn.names_matter:
            return [_OWN]
        last = self.proved.get(address)
        names = names_to_try(decision.names, tokens=self.dsn.password is not None)
        return sorted(names, key=lambda pair: pair != last)

    def _place(self, names: Names, address: str) -> dict[str, Any]:
        """What tells libpq where to go; without a name the host keeps the one that the application gave."""
        place: dict[str, Any] = {"hostaddr": address} if address else {}
        if names.host:
            place["host"] = names.host
        if self.dsn.password is not None:
            name = names.token or self.endpoint.name
            place["password"] = make_password(self.dsn.password, name, self.dsn.port, self.dsn.user)
        return place

    def _remember(self, address: str, names: Names) -> None:
        if self.proved.get(address) != names:
            if len(self.proved) >= ENDPOINTS:
                self.proved.clear()
            self.proved[address] = names

    def make_inner(self, connector: object) -> ConnectionPool[Any]:
        """A psycopg pool, not open yet, whose connections *connector* makes.

        Raises:
            ValueError, TypeError: As psycopg_pool raises them for its options.
        """
        options = {**self.options, "open": False}
        # Of a connection class the pool uses nothing but connect().
        return ConnectionPool("", connection_class=cast(Any, connector), **options)


class Generation:
    """One epoch's connections.

    Attributes:
        epoch: The epoch that the connections were about to be opened under; None while no snapshot was seen.
        live: A word, 0 once a statement must stop and think before it is sent; the kernel makes it so in a child.
        inner: The psycopg pool.
        lineage: The identifier of the database cluster behind the connections; None until it was asked for.
    """

    def __init__(self, recipe: Recipe, epoch: int | None, *, follows: bool) -> None:
        """A new generation; *follows* another one, which a switchover has made unfit."""
        self._recipe: Final = recipe
        self._follows: Final = follows
        self._born: Final = time.monotonic()
        self._members: Final[weakref.WeakSet[SwitchoverAware]] = weakref.WeakSet()
        self._lock: Final = threading.Lock()
        self.epoch = epoch
        self.live: Final = parents_word(1)
        self._pid: Final = os.getpid()
        self.retired = False
        self.lineage: str | None = None
        self.inner: Final = recipe.make_inner(self)

    def __repr__(self) -> str:
        state = "inherited" if self.inherited else "retired" if self.retired else "live" if self.live[0] else "draining"
        return f"<Generation epoch={self.epoch} {state} connections={self.connections()}>"

    @property
    def inherited(self) -> bool:
        """Whether the parent of a fork made it: nothing of it may be touched. Never while *live*."""
        return self._pid != os.getpid()

    def open(self) -> None:
        """Start connecting; idempotent.

        Raises:
            psycopg_pool.PoolClosed: Retired already.
        """
        # Under the lock, so that a pool is never opened after it was closed for good.
        with self._lock:
            if self.retired:
                raise PoolClosed("the generation is retired")
            self.inner.open()

    def connections(self) -> int:
        """Connections that are open, in use ones included."""
        with self._lock:
            return sum(not member.closed for member in self._members)

    # -- opening -------------------------------------------------------------------------------------------------

    def connect(self, conninfo: str = "", **kwargs: Any) -> SwitchoverAware:
        """Open a connection; called by the psycopg pool's workers in place of a connection class.

        Waits where the gate holds, and tries again at once while a switchover is being gone through: a failure
        would be answered with a back-off of a second and more.
        """
        pause_s = RECONNECT_INTERVAL_S
        while True:
            try:
                return self._connect_once(conninfo, kwargs)
            except (psycopg.OperationalError, OSError):
                self.note_cut()
                if not self._worth_trying_again():
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, RECONNECT_INTERVAL_MAX_S)

    def _connect_once(self, conninfo: str, kwargs: Mapping[str, Any]) -> SwitchoverAware:
        recipe = self._recipe
        hold_s = recipe.settings.bg_connect_timeout_ms / 1000
        _, decision = recipe.gate.wait_admitted(Purpose.CONNECT, timeout_s=hold_s)
        connection = recipe.connect(decision, conninfo, kwargs)
        connection.bgpool_generation = self
        with self._lock:
            self._members.add(connection)
        return connection

    def _worth_trying_again(self) -> bool:
        age_s = time.monotonic() - self._born
        recent = self._follows and age_s < self._recipe.settings.bg_connect_timeout_ms / 1000
        return recent and not self.retired

    # -- ending --------------------------------------------------------------------------------------------------

    def retire(self, *, drain: bool) -> None:
        """Close what is idle, send waiting callers on, and have what is in use closed when it comes back.

        Args:
            drain: Because of a switchover: a new transaction on a connection in use is held.
        """
        with self._lock:
            self.retired = True
        if drain:
            self.live[0] = 0
        self.inner.close(timeout=RETIRE_TIMEOUT_S)

    def cut(self) -> int:
        """Cut the connections that are still in use, at the socket; how many."""
        with self._lock:
            members = [member for member in self._members if not member.closed]
        count = 0
        for member in members:
            with contextlib.suppress(psycopg.Error, OSError):
                fd = member.pgconn.socket
                count += sockets.cut(fd, sockets.identity(fd))
        return count

    # -- what a connection asks ----------------------------------------------------------------------------------

    def wait_usable(self) -> None:
        """Hold a new transaction on a connection in use until it is known what becomes of it.

        Raises:
            InheritedConnection: The connection is the parent's.
            SwitchoverHoldTimeout: Held for as long as it may be.
            SwitchoverInterrupted: The switchover has passed and the connection is not fit any more.
        """
        gate = self._recipe.gate
        if self.inherited:
            raise InheritedConnection(
                gate.describe("connection was checked out before a fork and belongs to the parent; ")
            )
        hold_s = self._recipe.settings.bg_connect_timeout_ms / 1000
        reading, _ = gate.wait_admitted(Purpose.CHECKOUT, timeout_s=hold_s)
        if self._was_rolled_back(reading.snapshot):
            return
        raise SwitchoverInterrupted(
            gate.describe("connection is from before the switchover; nothing was sent, check out a new one")
        )

    def _was_rolled_back(self, snapshot: Snapshot | None) -> bool:
        """Whether the switchover that drained this generation, and no other since, went back to blue."""
        if snapshot is None or self.epoch is None:
            return False
        return (
            snapshot.rolled_back
            and snapshot.epoch == self.epoch + EPOCH_OF_DECISION
            and snapshot.phase is Phase.CREATED
        )

    def note_cut(self) -> None:
        """The server has ended, or refused, one of these connections, or a write on it."""
        if not self.inherited and not self.retired:
            self._recipe.gate.note_cut()

    def is_switching(self) -> bool:
        """Whether an error on one of these connections is the switchover's doing."""
        return not self.live[0] or self._recipe.gate.switching()

    def explain_cut(self, error: psycopg.Error, *, may_have_committed: bool) -> psycopg.Error:
        """What a connection broken by a switchover means for the caller."""
        describe = self._recipe.gate.describe
        if may_have_committed:
            text = describe("was cut during COMMIT; find out whether it took effect")
            return _like(error, CommitOutcomeUnknown, text)
        return _like(error, SwitchoverInterrupted, describe("cut the transaction; it did not commit, run it again"))

    def explain_read_only(self, error: psycopg.Error) -> psycopg.Error:
        """What a write refused by a read-only server means in a switchover."""
        text = self._recipe.gate.describe("takes no writes any more; the transaction did not commit, run it again")
        return _like(error, SwitchoverInterrupted, text)


def _like(error: psycopg.Error, kind: Callable[[str], psycopg.Error], text: str) -> psycopg.Error:
    """A *kind* of error that still answers for the SQLSTATE of *error*."""
    new = kind(text)
    new.sqlstate = error.sqlstate
    return new
