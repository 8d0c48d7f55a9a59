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

#: How long a client waits for a connection.
CONNECT_TIMEOUT_NS: Final = 10 * SECOND
ACCOUNT: Final = "c0sim.eu-west-1.rds.amazonaws.com"
Key = tuple[int, int]

#: What a server answers beside what was asked for.
CUT: Final = "cut"
REFUSED: Final = "read only"
TIMED_OUT: Final = "waited in vain"
TAKEN: Final = "there already"
_IN_PROGRESS: Final = "in progress"
FUTURE: Final = "in the future"


class Transaction:
    """What one transaction has done on the server that it was begun on.

    Attributes:
        xid: Its id; 0 before it writes.
        first_write: Where in the server's log its first write is.
        logged_at: Where its commit is in the log, from which replicas are fed: it is decided, whether anybody sees that
            or not; 0 while it is not there.
        over: Kept once everybody on this server sees what became of it: ``committed`` or ``aborted``.
        outlives: Its COMMIT, which takes a while, goes on whether its session ends or not.
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
        transaction: What is open on it; stays where a COMMIT outlives the session.
        ended: The server has ended the session, or found out that the client is gone.
        reads_only: The role's setting, with which the session began.
        lost: Kept when the client can use it no more.
    """

    def __init__(self, server: Server) -> None:
        self.server: Final = server
        self.transaction: Transaction | None = None
        self.ended = False
        self.reads_only: Final = server.role_read_only
        self.lost = Promise()


class Server:
    """One server: a primary or a replica, up, refusing, or frozen (a black hole: it takes everything, says nothing).

    Attributes:
        lineage: The identifier of its cluster; a logical replica's is another one, and may be the same on Aurora.
        gone: It was deleted.
        rows: How often each key is there.
        receipts: Units by receipts' ids; None where there is no table.
        ids: What became of the transactions that had their id from this server; None for those still under way.
        inherited: The server whose ids this one knows as well, up to where it has replayed its log.
        replayed: How far that is.
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
        """As the server itself says."""
        return self.replica or self.read_only

    def do(self, work: Callable[[], object]) -> Promise:
        """Have *work* done by the server; the promise is kept with its result once the answer is there.

        A result that is a promise itself is one that the server waits for.
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
        """Have *call* called once a frozen server goes on."""
        self._waiting.append(call)

    def thaw(self) -> None:
        """Answer again, and do what was asked meanwhile."""
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for handle in waiting:
            handle()

    def cut(self) -> None:
        """End every session."""
        for link in list(self.links):
            self.end(link)

    def end(self, link: Link) -> None:
        """End the session of *link*: what it had not committed is gone."""
        self.links.pop(link, None)
        link.ended = True
        transaction, link.transaction = link.transaction, None
        if transaction is not None and not transaction.outlives:
            self._abort(transaction)
        link.lost.keep(CUT)

    def drop_client(self, link: Link, notice_ns: int) -> None:
        """The network, or the client's end, cuts *link*; the server notices in *notice_ns*."""
        link.lost.keep(CUT)
        self._world.clock.after(notice_ns, self.end, link)

    def crash(self) -> None:
        """End at once; what is in the log is kept."""
        self.cut()
        for transaction in set(filter(None, [*self.ids.values(), *self.claims.values()])):
            if not transaction.over.kept:
                self._settle(transaction) if transaction.logged_at else self._abort(transaction)
        self.started_ns = self._world.clock.now

    # -- what clients ask for; each is done at the moment at which the server gets to it --------------------------

    def connect(self, made: Callable[[Server], Link] = Link) -> Promise:
        """Kept with a Link, or None if refused; never where it is gone."""
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
        """Kept with whether the transaction is read-only; CUT if the session is gone."""

        def work() -> object:
            transaction = self._begun(link)
            return CUT if transaction is None else transaction.began_read_only

        return self.do(work)

    def insert(self, link: Link, key: Key) -> Promise:
        """Kept with ``done`` or REFUSED; CUT if the session is gone."""

        def work() -> str:
            transaction = self._begun(link)
            if transaction is None or self._refuses_writes(transaction):
                return CUT if transaction is None else REFUSED
            self._note_write(transaction)
            transaction.writes.append(key)
            return "done"

        return self.do(work)

    def claim(self, link: Link, receipt_id: str, unit: str, wait_ns: int, *, if_written: bool = False) -> Promise:
        """Insert a receipt, *if_written* only if the transaction has written; waits for who is about to commit it.

        Kept with ``done``, ``nothing written``, TAKEN, TIMED_OUT, REFUSED or CUT.
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
        """Kept with ``done`` or REFUSED; CUT if the session was gone before, or did not see the end of it."""

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
                # It waits for a replica's word, say. Nobody sees it yet, but decided it is.
                transaction.outlives = True
                self._write_log(transaction)
            else:
                # A trigger at the end of the transaction, which ends with its session; or a lock on all commits, and
                # a server that notices the end of a session only when it has something to say.
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
        """As txid_status."""
        if xid in self.ids:
            return _shown(self.ids[xid])
        if xid >= self.next_xid:
            return FUTURE
        blue = self.inherited
        found = blue.ids.get(xid) if blue is not None else None
        if found is None or found.first_write > self.replayed:
            return None
        return "committed" if found.logged_at else "aborted"

    # -- what becomes of transactions ------------------------------------------------------------------------------

    def give_id(self, transaction: Transaction | None) -> int:
        """The next id; None for a transaction of a replica's, which is committed."""
        xid, self.next_xid = self.next_xid, self.next_xid + 1
        self.ids[xid] = transaction
        return xid

    def abort_rest(self) -> None:
        """Whatever is not in the log never will be."""
        for transaction in [*self.ids.values()]:
            if transaction is not None and not transaction.logged_at and not transaction.over.kept:
                self._abort(transaction)

    def settle_rest(self) -> None:
        """Have everybody see what is in the log."""
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
        # A transaction of PostgreSQL's stays as it was begun.
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
        """A COMMIT that took its time is through."""
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
        """Have the rows that *transaction* has written."""
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
        logical: Green is a logical replica: its transaction ids are its own.
        same_lineage: It has blue's identifier nevertheless, as a clone of Aurora's may have.
        refuses_commits: A COMMIT of writes is refused by a server that takes none, as by MySQL.
        receipts_reach: Whether receipts are replicated to green.
        hang: How probable it is that a COMMIT takes a while, how long at most, and how probable that it is in the log
            meanwhile.
        calm: Nothing happens any more, and nothing takes long: whoever waits now waits for ever.
        old_blue_tells: After the switchover, and in time, old blue lets clients in.
        loses_tail: Green, a physical replica, is promoted before it has replayed what blue wrote for transactions that
            did not commit.
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
        # When the metadata said so although it was not; callers are let go on that word in the end.
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
        """Whether a release now is what was promised."""
        early_ns = self.told_early_ns
        return self.promoted or (early_ns is not None and self.clock.now >= early_ns + int(GREEN_WAIT_S * SECOND))

    def server_at(self, address: str) -> Server:
        """The server with this address; blue has had others."""
        return self.green if address == self.green.address else self.blue

    def lineage_of(self, server: Server) -> str:
        """What *server* tells of its cluster."""
        own = server is self.green and self.logical and not self.same_lineage
        return server.lineage if own else self.blue.lineage

    def draw_commit(self) -> tuple[int, bool]:
        """How long the next COMMIT takes beside its way, in ns, and whether it is in the log meanwhile."""
        chance, longest_ns, in_log = self.hang
        if not chance or self.rng.random() >= chance:
            return 0, False
        return self.rng.randrange(MS, longest_ns), self.rng.random() < in_log

    def replicate(self, source: Server, transaction: Transaction) -> None:
        """Have green apply what blue committed, some time later; catch_up() does not wait for that time."""
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
        """Green has everything that was ever committed on blue, and hears no more of it."""
        blue, green = self.blue, self.green
        # A transaction that began while blue took writes would still commit.
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
                # The ids that blue gave out after its last commit are given out again.
                green.replayed = max((transaction.logged_at for transaction in self._log), default=0)
                known = [one.xid for one in blue.ids.values() if one is not None and one.first_write <= green.replayed]
                green.next_xid = max(known, default=blue.next_xid - 1) + 1
            else:
                green.next_xid = blue.next_xid

    def calm_down(self) -> None:
        """Let nothing take long from now on."""
        self.calm, self.hang = True, (0.0, 0, 0.0)

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
