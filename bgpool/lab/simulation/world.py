"""The model of a database: servers, what they replicate, what their metadata and DNS say, and how they fail."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from bgpool.core.events import StatusRow
from bgpool.core.limits import GREEN_WAIT_S
from bgpool.core.phase import Role
from bgpool.lab.simulation.clock import MS, SECOND, Clock, Promise

__all__ = ["ACCOUNT", "Connection", "Server", "World"]

ACCOUNT: Final = "c0sim.eu-west-1.rds.amazonaws.com"
Key = tuple[int, int]


class Connection:
    """A client's connection, as both of its ends see it.

    Attributes:
        epoch: What the pool stamped it with.
        reads_only: The role's setting, with which the session began.
        writes: Keys that its transaction has inserted.
        lost: Kept when either end has cut it.
    """

    __slots__ = ("began_read_only", "epoch", "in_transaction", "lost", "reads_only", "server", "writes")

    def __init__(self, server: Server, epoch: int | None) -> None:
        self.server = server
        self.epoch = epoch
        self.reads_only = server.role_read_only
        self.writes: list[Key] = []
        self.in_transaction = False
        self.began_read_only = False
        self.lost = Promise()


class Server:
    """One server: a primary or a replica, up, refusing, or frozen (a black hole: it takes everything, says nothing)."""

    def __init__(self, world: World, name: str, address: str) -> None:
        self._world: Final = world
        self.name: Final = name
        self.address: Final = address
        self.replica = False
        self.read_only = False
        self.role_read_only = False
        self.subscribes = False
        self.refuses = False
        self.frozen = False
        self.latency_ns = MS
        self.rows: Counter[Key] = Counter()
        self.connections: dict[Connection, None] = {}
        self.metadata = "absent"
        self.status_rows: tuple[StatusRow, ...] = ()
        self.refuses_monitor = False
        self._waiting: list[Callable[[], None]] = []

    @property
    def takes_no_writes(self) -> bool:
        """As the server itself says."""
        return self.replica or self.read_only

    def do(self, work: Callable[[], object]) -> Promise:
        """Have *work* done by the server; the promise is kept with its result once the answer is there."""
        answer = Promise()

        def handle() -> None:
            if self.frozen:
                self._waiting.append(handle)
            else:
                self._world.clock.after(self.latency_ns, answer.keep, work())

        self._world.clock.after(self.latency_ns, handle)
        return answer

    def thaw(self) -> None:
        """Answer again, and do what was asked meanwhile."""
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for handle in waiting:
            handle()

    def cut(self) -> None:
        """End every connection."""
        for connection in list(self.connections):
            self.end(connection)

    def end(self, connection: Connection) -> None:
        """End *connection*: what it had not committed is gone."""
        self.connections.pop(connection, None)
        connection.writes.clear()
        connection.in_transaction = False
        connection.lost.keep("cut")

    # -- what clients ask for; each is done at the moment at which the server gets to it --------------------------

    def connect(self, epoch: int | None) -> Promise:
        """Kept with a Connection, or None if refused."""

        def work() -> Connection | None:
            if self.refuses:
                return None
            connection = Connection(self, epoch)
            self.connections[connection] = None
            return connection

        return self.do(work)

    def insert(self, connection: Connection, key: Key) -> Promise:
        """Kept with ``done`` or ``read only``; ``cut`` if the connection is gone."""

        def work() -> str:
            if connection.lost.kept:
                return "cut"
            if not connection.in_transaction:
                connection.in_transaction = True
                connection.began_read_only = self.takes_no_writes or connection.reads_only
            if connection.began_read_only:
                return "read only"
            connection.writes.append(key)
            return "done"

        return self.do(work)

    def commit(self, connection: Connection) -> Promise:
        """Kept with ``done``; ``cut`` if the connection was gone before."""

        def work() -> str:
            if connection.lost.kept:
                return "cut"
            for key in connection.writes:
                self.rows[key] += 1
                self._world.replicate(self, key)
            connection.writes.clear()
            connection.in_transaction = False
            return "done"

        return self.do(work)


class World:
    """A blue and a green server, and DNS."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock: Final = clock
        self.rng: Final = rng
        self.blue: Final = Server(self, "blue", "10.0.0.1")
        self.green: Final = Server(self, "green", "10.0.0.2")
        self.green.replica = True
        self.green_name: Final = f"db-green-abc123.{ACCOUNT}"
        self.blue_name: Final = f"db.{ACCOUNT}"
        self.old_name: Final = f"db-old1.{ACCOUNT}"
        self.dns: dict[str, str] = {self.blue_name: self.blue.address, self.green_name: self.green.address}
        self.dns_works = True
        self.dns_latency_ns = MS
        self.lag_ns = 5 * MS
        self.promoted = False
        # When the metadata said so although it was not; callers are let go on that word in the end.
        self.told_early_ns: int | None = None
        self.renamed = False
        self.replicates = True

    @property
    def may_be_released(self) -> bool:
        """Whether a release now is what was promised."""
        early_ns = self.told_early_ns
        return self.promoted or (early_ns is not None and self.clock.now >= early_ns + int(GREEN_WAIT_S * SECOND))

    def server_at(self, address: str) -> Server:
        """The server with this address."""
        return self.blue if address == self.blue.address else self.green

    def replicate(self, source: Server, key: Key) -> None:
        """Have green apply what blue committed, some time later; catch_up() does not wait for that time."""
        if source is self.blue and self.replicates:
            self.clock.after(self.lag_ns, self._apply, key)

    def _apply(self, key: Key) -> None:
        if self.replicates and not self.green.rows[key]:
            self.green.rows[key] = self.blue.rows[key]

    def catch_up(self) -> None:
        """Green has everything that was ever committed on blue, and hears no more of it."""
        for key, count in self.blue.rows.items():
            self.green.rows[key] = max(count, self.green.rows[key])
        self.replicates = False

    def publish(self, status: str, *servers: Server, mode: str = "rows", version: str = "1.0") -> None:
        """What the metadata of *servers* (all, if none is named) say from now on."""
        names = (self.old_name, self.blue_name) if self.renamed else (self.blue_name, self.green_name)
        rows = [
            StatusRow(name, 5432, role.value, status, version)
            for name, role in zip(names, Role, strict=True)
            if not (status == "SWITCHOVER_COMPLETED" and role is Role.SOURCE)
        ]
        for server in servers or (self.blue, self.green):
            server.metadata = mode
            server.status_rows = tuple(rows) if mode == "rows" else ()

    def resolve(self, name: str) -> tuple[str, ...] | None:
        """What DNS says now; None where it fails."""
        if not self.dns_works:
            return None
        address = self.dns.get(name)
        return (address,) if address else ()
