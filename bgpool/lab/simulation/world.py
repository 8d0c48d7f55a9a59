"""The model of a database: servers, replication, metadata and DNS, and their faults."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from bgpool.core.events import StatusRow
from bgpool.core.limits import GREEN_WAIT_S
from bgpool.core.phase import Role
from bgpool.lab.simulation.clock import MS, SECOND, Clock, Promise

__all__ = [
    "ACCOUNT",
    "CONNECT_TIMEOUT_NS",
    "CUT",
    "FUTURE",
    "REFUSED",
    "TAKEN",
    "TIMED_OUT",
    "Key",
    "Link",
    "Server",
    "Transaction",
    "World",
]

#: The time limit of a client's connection attempt.
CONNECT_TIMEOUT_NS: Final = 10 * SECOND
ACCOUNT: Final = "c0sim.eu-west-1.rds.amazonaws.com"
Key = tuple[int, int]

#: Answers of a server in place of the requested one.
CUT: Final = "cut"
REFUSED: Final = "read only"
TIMED_OUT: Final = "timed out"
TAKEN: Final = "there already"
_IN_PROGRESS: Final = "in progress"
FUTURE: Final = "in the future"


class Transaction:
    """The work of one transaction on the server on which it began.

    Attributes:
        xid: Its id; 0 before it writes.
        first_write: The position of its first write in the server's log.
        logged_at: The position of its commit in the log, from which replicas are fed; 0 while it is not there. From
            then on it is decided, visible or not.
        over: A promise that is kept once the outcome is visible to all on this server: ``committed`` or ``aborted``.
        outlives: True if its COMMIT, which takes a while, continues even if its session ends.
    """

    __slots__ = ("began_read_only", "first_write", "logged_at", "outlives", "over", "receipts", "writes", "xid")

    def __init__(self, *, began_read_only: bool) -> None:
        self.began_read_only = began_read_only
        self.xid = self.first_write = self.logged_at = 0
        self.writes: list[Key] = []
        self.receipts: dict[str, str] = {}
        self.outlives = False
        self.over = Promise()


class Link:
    """A connection, as both of its ends see it.

    Attributes:
        transaction: The open transaction; it stays where a COMMIT outlives the session.
        ended: True if the server has ended the session, or noticed that the client is gone.
        reads_only: The role's setting at the beginning of the session.
        lost: A promise that is kept when the client can no longer use it.
    """

    def __init__(self, server: Server) -> None:
        self.server: Final = server
        self.transaction: Transaction | None = None
        self.ended = False
        self.reads_only: Final = server.role_read_only
        self.lost = Promise()


class Server:
    """One server: a primary or a replica, up, refusing, or frozen (a black hole: it receives and never answers).

    Attributes:
        lineage: The identifier of its cluster; a logical replica has another one, or on Aurora perhaps the same.
        gone: True if it was deleted.
        rows: The number of rows of each key.
        receipts: Units by receipts' ids; None without a table.
        ids: The transactions that got their id from this server; None for a committed one of replication.
        inherited: The server whose ids this one knows as well, up to the replayed position of its log.
        replayed: The replayed position of that log.
    """

    def __init__(self, world: World, name: str, address: str) -> None:
        self._world: Final = world
        self.name: Final = name
        self.address = address
        self.lineage: Final = f"lineage of {name}"
        self.replica = self.read_only = self.role_read_only = self.subscribes = False
        self.refuses = self.frozen = self.gone = False
        self.latency_ns = MS
        self.rows: Counter[Key] = Counter()
        self.receipts: dict[str, str] | None = None
        self.claims: dict[str, Transaction] = {}
        self.ids: dict[int, Transaction | None] = {}
        self.next_xid = 700
        self.inherited: Server | None = None
        self.log = self.replayed = 0
        self.started_ns = -SECOND
        self.links: dict[Link, None] = {}
        self.metadata = "absent"
        self.status_rows: tuple[StatusRow, ...] = ()
        self.refuses_monitor = False
        self._waiting: list[Callable[[], None]] = []

    @property
    def takes_no_writes(self) -> bool:
        """True if the server reports that it accepts no writes."""
        return self.replica or self.read_only

    def do(self, work: Callable[[], object]) -> Promise:
        """Run *work* on the server; the promise is kept with its result once the answer arrives.

        If the result is a promise itself, the server waits for it.
        """
        answer, clock = Promise(), self._world.clock

        def handle() -> None:
            if self.frozen:
                self._waiting.append(handle)
                return
            found = work()
            if isinstance(found, Promise):
                found.then(lambda value: clock.after(self.latency_ns, answer.keep, value))
            else:
                clock.after(self.latency_ns, answer.keep, found)

        clock.after(self.latency_ns, handle)
        return answer

    def park(self, call: Callable[[], None]) -> None:
        """Call *call* once a frozen server continues."""
        self._waiting.append(call)

    def thaw(self) -> None:
        """Answer again, and handle the requests that arrived in the meantime."""
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for handle in waiting:
            handle()

    def cut(self) -> None:
        """End every session."""
        for link in list(self.links):
            self.end(link)

    def end(self, link: Link) -> None:
        """End the session of *link* and abort its open transaction."""
        self.links.pop(link, None)
        link.ended = True
        transaction, link.transaction = link.transaction, None
        if transaction is not None and not transaction.outlives:
            self._abort(transaction)
        link.lost.keep(CUT)

    def drop_client(self, link: Link, notice_ns: int) -> None:
        """Lose *link* on the network or at the client's end; the server notices in *notice_ns*."""
        link.lost.keep(CUT)
        self._world.clock.after(notice_ns, self.end, link)

    def crash(self) -> None:
        """End at once; the content of the log is kept."""
        self.cut()
        for transaction in set(filter(None, [*self.ids.values(), *self.claims.values()])):
            if not transaction.over.kept:
                self._settle(transaction) if transaction.logged_at else self._abort(transaction)
        self.started_ns = self._world.clock.now

    # -- requests of clients; each is handled at the time at which it reaches the server -------------------------

    def connect(self, made: Callable[[Server], Link] = Link) -> Promise:
        """Return a promise of a Link, or of None if refused; never kept if the server is gone."""
        if self.gone:
            return Promise()

        def work() -> Link | None:
            if self.refuses:
                return None
            link = made(self)
            self.links[link] = None
            return link

        return self.do(work)

    def begin(self, link: Link) -> Promise:
        """Return a promise: True if the transaction is read-only; CUT if the session is gone."""

        def work() -> object:
            transaction = self._begun(link)
            return CUT if transaction is None else transaction.began_read_only

        return self.do(work)

    def insert(self, link: Link, key: Key) -> Promise:
        """Return a promise of ``done`` or REFUSED; CUT if the session is gone."""

        def work() -> str:
            transaction = self._begun(link)
            if transaction is None or self._refuses_writes(transaction):
                return CUT if transaction is None else REFUSED
            self._note_write(transaction)
            transaction.writes.append(key)
            return "done"

        return self.do(work)

    def claim(self, link: Link, receipt_id: str, unit: str, wait_ns: int, *, if_written: bool = False) -> Promise:
        """Insert a receipt, *if_written* only if the transaction has written; waits for another transaction with it.

        The promise is kept with ``done``, ``nothing written``, ``no table``, TAKEN, TIMED_OUT, REFUSED or CUT.
        """
        answer = Promise()

        def attempt(_: object = None) -> None:
            transaction = self._begun(link)
            if transaction is None:
                return answer.keep(CUT)
            if if_written and not transaction.writes:
                return answer.keep("nothing written")
            if self._refuses_writes(transaction):
                return answer.keep(REFUSED)
            if self.receipts is None:
                return answer.keep("no table")
            holder = self.claims.get(receipt_id)
            if holder is not None and holder is not transaction:
                return holder.over.then(attempt)
            if receipt_id in self.receipts or holder is transaction:
                return answer.keep(TAKEN)
            self._note_write(transaction)
            transaction.receipts[receipt_id] = unit
            self.claims[receipt_id] = transaction
            return answer.keep("done")

        def work() -> Promise:
            attempt()
            return self._world.clock.within(answer, wait_ns, TIMED_OUT) if not answer.kept else answer

        return self.do(work)

    def commit(self, link: Link) -> Promise:
        """Return a promise of ``done`` or REFUSED; CUT if the session was gone, or ended before the COMMIT did."""

        def work() -> object:
            if link.ended:
                return CUT
            transaction = link.transaction
            if transaction is None or not transaction.xid:
                link.transaction = None
                return "done"
            if self._world.refuses_commits and self.takes_no_writes:
                link.transaction = None
                self._abort(transaction)
                return REFUSED
            takes_ns, in_log = self._world.draw_commit()
            if not takes_ns:
                link.transaction = None
                self._settle(transaction)
                return "done"
            if in_log:
                # It waits for a replica, for example. The outcome is not visible yet, but decided.
                transaction.outlives = True
                self._write_log(transaction)
            else:
                # A trigger at the end of the transaction, which ends with its session. Or a lock on all commits, with a
                # server that notices the end of a session only when it sends data.
                transaction.outlives = self._world.refuses_commits
            self._world.clock.after(takes_ns, self._go_through, transaction)
            answer = Promise()

            def tell(became: str) -> None:
                link.transaction = None
                answer.keep("done" if became == "committed" else CUT if link.ended else REFUSED)

            transaction.over.then(tell)
            return answer

        return self.do(work)

    def roll_back(self, link: Link) -> None:
        """End the transaction of *link*."""
        transaction, link.transaction = link.transaction, None
        if transaction is not None:
            self._abort(transaction)

    def status(self, xid: int) -> str | None:
        """Return the same as txid_status."""
        if xid in self.ids:
            return _shown(self.ids[xid])
        if xid >= self.next_xid:
            return FUTURE
        blue = self.inherited
        found = blue.ids.get(xid) if blue is not None else None
        if found is None or found.first_write > self.replayed:
            return None
        return "committed" if found.logged_at else "aborted"

    # -- the outcomes of transactions ------------------------------------------------------------------------------

    def give_id(self, transaction: Transaction | None) -> int:
        """Return the next id; *transaction* is None for a replicated one, which is committed."""
        xid, self.next_xid = self.next_xid, self.next_xid + 1
        self.ids[xid] = transaction
        return xid

    def abort_rest(self) -> None:
        """Abort all transactions that are not in the log."""
        for transaction in [*self.ids.values()]:
            if transaction is not None and not transaction.logged_at and not transaction.over.kept:
                self._abort(transaction)

    def settle_rest(self) -> None:
        """Make all transactions in the log visible."""
        for transaction in [*self.ids.values()]:
            if transaction is not None and transaction.logged_at and not transaction.over.kept:
                self._settle(transaction)

    def _begun(self, link: Link) -> Transaction | None:
        if link.ended:
            return None
        if link.transaction is None:
            link.transaction = Transaction(began_read_only=self.takes_no_writes or link.reads_only)
        return link.transaction

    def _refuses_writes(self, transaction: Transaction) -> bool:
        # A transaction of PostgreSQL keeps the mode of its beginning.
        return self.takes_no_writes if self._world.refuses_commits else transaction.began_read_only

    def _note_write(self, transaction: Transaction) -> None:
        self.log += 1
        if not transaction.xid:
            transaction.xid, transaction.first_write = self.give_id(transaction), self.log

    def _write_log(self, transaction: Transaction) -> None:
        if not transaction.logged_at:
            self.log += 1
            transaction.logged_at = self.log
            self._world.replicate(self, transaction)

    def _go_through(self, transaction: Transaction) -> None:
        """End a COMMIT that took a while."""
        if transaction.over.kept:
            return
        if not transaction.logged_at and self._world.refuses_commits and self.takes_no_writes:
            self._abort(transaction)
        else:
            self._settle(transaction)

    def _settle(self, transaction: Transaction) -> None:
        self._write_log(transaction)
        self.take_over(transaction)
        self._release(transaction)
        transaction.over.keep("committed")

    def take_over(self, transaction: Transaction, *, with_receipts: bool = True) -> None:
        """Store the rows that *transaction* has written."""
        for key in transaction.writes:
            self.rows[key] += 1
        if with_receipts and self.receipts is not None:
            self.receipts.update(transaction.receipts)

    def _abort(self, transaction: Transaction) -> None:
        self._release(transaction)
        transaction.over.keep("aborted")

    def _release(self, transaction: Transaction) -> None:
        for receipt_id in transaction.receipts:
            self.claims.pop(receipt_id, None)


def _shown(transaction: Transaction | None) -> str:
    if transaction is None:
        return "committed"
    return str(transaction.over.value) if transaction.over.kept else _IN_PROGRESS


class World:
    """A blue and a green server, and DNS.

    Attributes:
        logical: True if green is a logical replica: its transaction ids are its own.
        same_lineage: True if it has blue's identifier nevertheless, which a clone of Aurora may have.
        refuses_commits: True if a read-only server refuses a COMMIT of writes, like MySQL.
        receipts_reach: True if receipts are replicated to green.
        hang: The probability that a COMMIT takes a while, the longest time, and the probability that it is in the log
            by then.
        calm: True if no event happens any longer, and nothing takes long: a caller that waits now would wait forever.
        old_blue_tells: True if, after the switchover and in time, old blue accepts clients.
        loses_tail: True if green, a physical replica, is promoted before it has replayed blue's writes of transactions
            that did not commit.
    """

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
        self.promoted = self.renamed = False
        # The time at which the metadata reported green's promotion too early; callers are finally released because of
        # it.
        self.told_early_ns: int | None = None
        self.replicates = True
        self.logical = self.same_lineage = self.refuses_commits = self.loses_tail = False
        self.receipts_reach = self.old_blue_tells = True
        self.hang: tuple[float, int, float] = (0.0, 0, 0.0)
        self.calm = False
        self._applied: Final[set[Transaction]] = set()
        self._log: Final[list[Transaction]] = []

    @property
    def may_be_released(self) -> bool:
        """True if a release now keeps the promise."""
        early_ns = self.told_early_ns
        return self.promoted or (early_ns is not None and self.clock.now >= early_ns + int(GREEN_WAIT_S * SECOND))

    def server_at(self, address: str) -> Server:
        """Return the server with this address; blue has had others."""
        return self.green if address == self.green.address else self.blue

    def lineage_of(self, server: Server) -> str:
        """Return the identifier of the cluster that *server* reports."""
        own = server is self.green and self.logical and not self.same_lineage
        return server.lineage if own else self.blue.lineage

    def draw_commit(self) -> tuple[int, bool]:
        """Return the additional time of the next COMMIT, in ns, and True if it is in the log during that time."""
        chance, longest_ns, in_log = self.hang
        if not chance or self.rng.random() >= chance:
            return 0, False
        return self.rng.randrange(MS, longest_ns), self.rng.random() < in_log

    def replicate(self, source: Server, transaction: Transaction) -> None:
        """Make green apply a commit of blue some time later; catch_up() does not wait for that time."""
        if source is self.blue:
            self._log.append(transaction)
            if self.replicates:
                self.clock.after(self.lag_ns, self._apply, transaction)

    def _apply(self, transaction: Transaction) -> None:
        if not self.replicates or transaction in self._applied:
            return
        self._applied.add(transaction)
        if self.logical:
            self.green.give_id(None)
        self.green.take_over(transaction, with_receipts=self.receipts_reach)

    def catch_up(self) -> None:
        """Apply everything that was ever committed on blue to green, and end replication."""
        blue, green = self.blue, self.green
        # A transaction that began while blue accepted writes would still commit.
        for link in list(blue.links):
            if link.transaction is not None:
                blue.end(link)
        blue.abort_rest()
        for transaction in self._log:
            self._apply(transaction)
        self.replicates = False
        if not self.logical:
            green.inherited, green.replayed = blue, blue.log
            if self.loses_tail:
                # The ids that blue assigned after its last commit are assigned again.
                green.replayed = max((transaction.logged_at for transaction in self._log), default=0)
                known = [one.xid for one in blue.ids.values() if one is not None and one.first_write <= green.replayed]
                green.next_xid = max(known, default=blue.next_xid - 1) + 1
            else:
                green.next_xid = blue.next_xid

    def calm_down(self) -> None:
        """End all delays from now on."""
        self.calm, self.hang = True, (0.0, 0, 0.0)

    def publish(self, status: str, *servers: Server, mode: str = "rows", version: str = "1.0") -> None:
        """Set the metadata of *servers* (all, if none is named)."""
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
        """Return the answer of DNS; None if it fails."""
        if not self.dns_works:
            return None
        address = self.dns.get(name)
        return (address,) if address else ()
