"""Drivers' connections of the model, and bgpool's own units of work on them.

The decisions of a unit are bgpool's. A session answers like a driver's connection, and raises the driver's errors. A
unit of the model overrides only the way of a statement to the server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
import pymysql
from psycopg.pq import ConnStatus, TransactionStatus

from bgpool.core.limits import RECEIPT_ID_CHARS
from bgpool.lab.simulation.clock import MS, SECOND, Pause, Promise
from bgpool.lab.simulation.world import (
    CONNECT_TIMEOUT_NS,
    CUT,
    FUTURE,
    REFUSED,
    TAKEN,
    TIMED_OUT,
    Key,
    Link,
    Server,
    World,
)
from bgpool.pools.doubt import DURING_COMMIT, NO_DOUBT
from bgpool.pools.mysql.receipts import WAIT_AS_BEFORE
from bgpool.pools.mysql.unit import MysqlUnit
from bgpool.pools.postgres.outcome import LINEAGE, Trace, outcome_by
from bgpool.pools.postgres.unit import PostgresUnit, until_told
from bgpool.pools.units import Outcome

if TYPE_CHECKING:
    from bgpool.lab.simulation.workers import Worker
    from bgpool.pools.generation import Generation
    from bgpool.segment.reader import Reading

__all__ = ["Died", "ModelMysqlUnit", "ModelPostgresUnit", "ModelWaits", "MysqlSession", "PostgresSession", "Session"]

R = TypeVar("R")

STATEMENT_NS: Final = 600 * SECOND

_INSERT: Final = re.compile(r"INSERT INTO \S+ \(id, unit\) (?:SELECT|VALUES) ?\(?'([^']+)', '([^']*)'")
_WRITER: Final = re.compile(r"SELECT unit\S* FROM \S+ WHERE id = '([^']+)'")
_LOCK_TIMEOUT: Final = re.compile(r"set_config\('lock_timeout', '(\d+)'")
_LOCK_WAIT: Final = re.compile(r"SESSION innodb_lock_wait_timeout = (\d+)")


class Died(BaseException):
    """The process is dead: none of its tasks continues."""


class Session(Link):
    """A driver's connection, as pools and units of work see it. The attributes are those of Aware."""

    world: World

    def __init__(self, worker: Worker, generation: Generation, server: Server) -> None:
        super().__init__(server)
        self.worker: Final = worker
        self.bgpool_generation: Final = generation
        self.bgpool_unfit = self.bgpool_in_unit = self.bgpool_ended = False
        self.bgpool_refused: bool | None = None
        self.bgpool_in_doubt: str | None = None
        self.bgpool_writes: bool | None = None
        self._unsettled = False
        self._closed = False
        self.in_block = self.has_failed = self.reported_read_only = False

    @property
    def bgpool_is_open(self) -> bool:
        """See Aware."""
        return not self.lost.kept

    async def said(self, answer: Promise, doubt: str = NO_DOUBT) -> Any:
        """Wait for the server's answer and return it.

        Raises:
            Exception: The driver's error, or its meaning in a switchover: the connection was lost, a write was refused.
            Died: The process ended in the meantime.
        """
        first = Promise()
        answer.then(first.keep)
        self.lost.then(first.keep)
        found = await first
        if not self.worker.alive:
            raise Died
        if self.lost.kept or found == CUT:
            raise self._cut(doubt)
        if found == REFUSED:
            raise self._refused()
        return found

    def check_open(self, doubt: str = NO_DOUBT) -> None:
        """Raise the driver's error for a closed connection if it is closed."""
        if not self.worker.alive:
            raise Died
        if self.lost.kept:
            raise self._cut(doubt)

    async def begin(self) -> None:
        """Begin a transaction."""
        self.check_open()
        self.reported_read_only = bool(await self.said(self.server.begin(self)))
        self.in_block = True

    async def write(self, key: Key) -> None:
        """Write a row, like the function of a unit."""
        self.check_open()
        self.bgpool_writes = True if self.bgpool_writes is not None else None
        await self.said(self.server.insert(self, key))

    async def commit(self) -> None:
        """Commit."""
        self.check_open(DURING_COMMIT)
        await self.said(self.server.commit(self), DURING_COMMIT)
        self.in_block = False

    async def rollback(self) -> None:
        """Roll back without errors."""
        self.in_block = self.has_failed = False
        if self.bgpool_is_open and self.worker.alive:
            self.server.roll_back(self)

    def _cut(self, doubt: str) -> Exception:
        self.lost.keep(CUT)
        if self.bgpool_in_doubt is None:
            self.bgpool_in_doubt = doubt
        error, generation = self.lost_error(), self.bgpool_generation
        generation.note_cut()
        return generation.explain_cut(error, self.bgpool_in_doubt) if generation.is_switching() else error

    def _refused(self) -> Exception:
        error, generation = self.refusal(), self.bgpool_generation
        self.bgpool_refused = self._unsettled = self.bgpool_unfit = self.has_failed = True
        generation.note_cut()
        return generation.explain_read_only(error) if generation.is_switching() else error

    async def bgpool_asettle_refusal(self) -> None:
        """See Aware. In the model, a refusal is always the server's."""
        if self._unsettled and self.bgpool_is_open:
            await self.rollback()
            self._unsettled = False
            self.bgpool_unfit = self.bgpool_generation.note_refusal()

    def lost_error(self) -> Exception:
        """Return the driver's error for a lost connection."""
        raise NotImplementedError

    def refusal(self) -> Exception:
        """Return the driver's error for a refused write."""
        raise NotImplementedError

    async def claim(self, receipt_id: str, unit: str, wait_ns: int, *, if_written: bool = False) -> str:
        """Insert a receipt and return the server's answer; see Server.claim."""
        self.check_open()
        found: str = await self.said(self.server.claim(self, receipt_id, unit, wait_ns, if_written=if_written))
        return found

    async def asked(self, question: Callable[[], Any]) -> Any:
        """Return the server's answer to *question*."""
        self.check_open()
        return await self.said(self.server.do(lambda: CUT if self.ended else question()))

    async def writer(self, query: str) -> tuple[Any, ...]:
        """Return the row of the query for the unit that has left a receipt."""
        found = _WRITER.search(query)
        assert found is not None, query
        receipts = self.server.receipts or {}
        unit = await self.asked(lambda: receipts.get(found[1]))
        return () if unit is None else (unit,)


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


class PostgresSession(Session):
    """A session with the attributes of psycopg's connections that units use."""

    autocommit = False
    read_only = None

    @property
    def pgconn(self) -> PostgresSession:
        """The object with the state of libpq's connection."""
        return self

    @property
    def info(self) -> PostgresSession:
        """The object with the address."""
        return self

    @property
    def hostaddr(self) -> str:
        """The server's address."""
        return self.server.address

    @property
    def status(self) -> ConnStatus:
        """The same as libpq's."""
        return ConnStatus.OK if self.bgpool_is_open else ConnStatus.BAD

    @property
    def transaction_status(self) -> TransactionStatus:
        """The same as libpq's."""
        if not self.bgpool_is_open:
            return TransactionStatus.UNKNOWN
        if self.has_failed:
            return TransactionStatus.INERROR
        return TransactionStatus.INTRANS if self.in_block else TransactionStatus.IDLE

    def parameter_status(self, name: bytes) -> bytes:
        """Return the same as libpq's."""
        return b"on" if self.reported_read_only and name == b"default_transaction_read_only" else b"off"

    def lost_error(self) -> Exception:
        """See Session."""
        return psycopg.OperationalError("server closed the connection unexpectedly")

    def refusal(self) -> Exception:
        """See Session."""
        return psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction")

    async def saved(self, query: str) -> tuple[Any, ...]:
        """Return the first row of *query*, run in a savepoint.

        Raises:
            psycopg.Error: It failed; the transaction is in its earlier state, unless the connection is lost.
        """
        try:
            return await self._row(query)
        finally:
            if self.bgpool_is_open:
                self.has_failed = False

    async def _row(self, query: str) -> tuple[Any, ...]:
        server, transaction = self.server, self.transaction
        if "relkind" in query:
            there = await self.asked(lambda: server.receipts is not None)
            sizes = f"character varying({RECEIPT_ID_CHARS})", "character varying(32)"
            return ("r", "p", True, *sizes, True, False, "public") if there else (None,) * 8
        trace = (str(transaction.xid) if transaction is not None and transaction.xid else None, f"0/{server.log:X}")
        row = (*trace, self.world.clock.now / SECOND, None)
        receipt = _INSERT.search(query)
        if receipt is None and "txid_current_if_assigned" in query:
            await self.asked(lambda: "")
            return (*row[:3], self.world.lineage_of(server)) if LINEAGE in query else row
        if receipt is None:
            return await self.writer(query)
        limit = _LOCK_TIMEOUT.search(query)
        if limit is not None:
            said = await self.claim(receipt[1], receipt[2], int(limit[1]) * MS)
            rows: tuple[Any, ...] = (int(said == "done"), "0")
        else:
            said = await self.claim(receipt[1], receipt[2], STATEMENT_NS, if_written=True)
            rows = (1,) if said == "done" else ()
        if said == TIMED_OUT:
            raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
        if said == "no table":
            raise psycopg.errors.UndefinedTable("there is no such table")
        return rows

    async def answer(self, query: str, *params: Any) -> tuple[Any, ...]:
        """Return the answer to a question of outcome_by."""
        server = self.server
        if query == LINEAGE:
            return (await self.asked(lambda: self.world.lineage_of(server)),)
        if "pg_is_in_recovery" in query:
            taken_at, lsn = params
            lsn = int(lsn.split("/")[1], 16)
            replayed = None if server.inherited is None else server.replayed >= lsn
            born = await self.asked(lambda: server.started_ns / SECOND)
            return server.replica, born < taken_at, replayed
        status = await self.asked(lambda: server.status(int(params[0])))
        if status == FUTURE:
            raise psycopg.errors.InvalidParameterValue("transaction ID is in the future")
        return (status,)


class ModelPostgresUnit(PostgresUnit[Any, R]):
    """bgpool's own unit of work on PostgreSQL, on sessions of the model."""

    async def asaved(self, connection: Any, query: str) -> tuple[Any, ...]:
        """See PostgresUnit."""
        session: PostgresSession = connection
        return await session.saved(query)

    async def _ask(self, trace: Trace) -> tuple[Outcome, str]:
        lender: Any = self._lender
        session: PostgresSession = await lender.getconn(self.left_s())
        try:
            outcome = await outcome_by(trace, session.hostaddr, session.answer, promoted=self._promotes)
            return outcome, session.hostaddr
        finally:
            lender.putconn(session)

    async def aask_old_blue(self, trace: Trace) -> Outcome:
        """See PostgresUnit."""
        worker: Any = self._lender

        async def ask(seconds: float) -> Outcome:
            server, clock = worker.world.server_at(trace.address), worker.world.clock
            limit_ns = min(CONNECT_TIMEOUT_NS, int(seconds * SECOND))
            session = await clock.within(server.connect(worker.makes_sessions()), limit_ns)
            if not worker.alive:
                raise Died
            if session is None or server.address != trace.address:
                raise psycopg.OperationalError("connection refused")
            try:
                return await outcome_by(trace, trace.address, session.answer, promoted=False)
            finally:
                server.end(session)

        return await until_told(ask, self._waits, self.left_s)

    async def ahousekeep(self, connection: Any) -> None:
        """Do nothing: the model has no old receipts."""

    def begin_block(self, connection: Any) -> Any:
        """See Unit."""
        session: PostgresSession = connection
        return session.begin()

    def commit_block(self, connection: Any) -> Any:
        """See Unit."""
        session: PostgresSession = connection
        return session.commit()

    async def aabandon(self, connection: Any, error: BaseException) -> None:
        """See PostgresUnit."""
        session: PostgresSession = connection
        if not self._is_finished and isinstance(error, Exception):
            await session.rollback()
        await self.afail(session, error)


# -- MySQL ---------------------------------------------------------------------------------------------------------


class MysqlSession(Session):
    """A session with the attributes of PyMySQL's connections that units use."""

    lock_wait_s = 50

    def get_autocommit(self) -> bool:
        """Return the same as PyMySQL's."""
        return False

    #: Each commit is checked in full.
    bgpool_can_commit = False

    def bgpool_settle(self) -> None:
        """See MysqlConnection."""

    def bgpool_check_transaction(self) -> None:
        """See MysqlConnection."""

    @property
    def bgpool_in_transaction(self) -> bool:
        """See MysqlConnection."""
        return self.in_block

    def lost_error(self) -> Exception:
        """See Session."""
        return pymysql.OperationalError(2013, "Lost connection to MySQL server during query")

    def refusal(self) -> Exception:
        """See Session."""
        return pymysql.OperationalError(1290, "The MySQL server is running with the --read-only option")

    async def row(self, query: str) -> tuple[Any, ...] | None:
        """Return the first row of *query*."""
        server = self.server
        if "information_schema" in query:
            there = await self.asked(lambda: server.receipts is not None)
            return ("InnoDB", RECEIPT_ID_CHARS, "ascii_bin", "varchar", 32, 1, "app") if there else None
        if query == WAIT_AS_BEFORE:
            await self.asked(lambda: "")
            self.lock_wait_s = MysqlSession.lock_wait_s
            return None
        if (seconds := _LOCK_WAIT.search(query)) is not None:
            await self.asked(lambda: "")
            self.lock_wait_s = int(seconds[1])
            return None
        receipt = _INSERT.search(query)
        if receipt is None:
            return await self.writer(query) or None
        said = await self.claim(receipt[1], receipt[2], self.lock_wait_s * SECOND)
        if said == TAKEN:
            raise pymysql.IntegrityError(1062, "Duplicate entry for key 'PRIMARY'")
        if said == TIMED_OUT:
            raise pymysql.OperationalError(1205, "Lock wait timeout exceeded")
        if said == "no table":
            raise pymysql.ProgrammingError(1146, "Table doesn't exist")
        return None


class ModelMysqlUnit(MysqlUnit[R]):
    """bgpool's own unit of work on MySQL, on sessions of the model."""

    async def arow(self, connection: Any, query: str) -> tuple[Any, ...] | None:
        """See MysqlUnit."""
        session: MysqlSession = connection
        return await session.row(query)

    async def ahousekeep(self, connection: Any) -> None:
        """Do nothing: the model has no old receipts."""

    def begin_block(self, connection: Any) -> Any:
        """See Unit."""
        session: MysqlSession = connection
        return session.begin()

    def commit_block(self, connection: Any) -> Any:
        """See Unit."""
        session: MysqlSession = connection
        return session.commit()

    async def aabandon(self, connection: Any, error: BaseException) -> None:
        """See MysqlUnit."""
        try:
            await self.afail(connection, error)
        finally:
            if isinstance(error, Exception):
                await connection.rollback()


class ModelWaits:
    """The waits of one process of the model, by its clock."""

    awaits = True

    def __init__(self, worker: Worker) -> None:
        self._worker: Final = worker
        self._clock: Final = worker.world.clock

    def now_ns(self) -> int:
        """See Waits."""
        return self._clock.now

    def finish(self, steps: Coroutine[Any, Any, Any], /) -> Any:
        """See Waits; in the model every caller awaits."""
        steps.close()
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        """See Waits."""
        await Pause(int(seconds * SECOND))
        if not self._worker.alive:
            raise Died

    async def changed(self, reading: Reading, seconds: float, over: Callable[[], bool]) -> None:
        """See Waits."""
        if self._worker.reading is reading and not over():
            await self._clock.within(self._worker.changed, int(seconds * SECOND))
        if not self._worker.alive:
            raise Died

    async def call(self, function: Callable[[], Any]) -> Any:
        """See Waits."""
        return function()

    def wake(self) -> None:
        """See Waits."""

    def turns(self, count: int) -> Any:
        """See Waits; the model does not use the count."""
        raise NotImplementedError

    def cancels(self) -> int:
        """See Waits."""
        return 0
