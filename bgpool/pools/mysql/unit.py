"""Units of work on MySQL: repeated if a switchover cuts them before COMMIT; the outcome of COMMIT is never guessed.

No server can report the outcome of a COMMIT that was cut: a transaction gets its GTID when it commits, so it is not
known before, and choosing one requires rights that applications do not have. A receipt decides the outcome.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, TypeVar

import pymysql

from bgpool.core.limits import RECEIPTS_DELETED_AT_ONCE
from bgpool.errors import CommitOutcomeUnknown, SwitchoverInterrupted
from bgpool.mysql import CUT_CODES, code_of, is_servers_refusal, may_be_servers_refusal
from bgpool.pools.mysql import receipts
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.recipe import like
from bgpool.pools.receipts import KeyTaken
from bgpool.pools.units import CLOSED_BY_FUNCTION, Outcome, Unit

__all__ = ["MysqlUnit"]

R = TypeVar("R")

#: A lock wait has timed out; the transaction conflicted with another one; a record has changed; or the user's own time
#: limit for a statement, or another user, has ended it. Such an error may have rolled back the whole transaction.
_WAITS: Final = frozenset({1205, 1213, 1020, 1317, 1969, 3024})
#: The statement does not fit the table. It does not exist: 1049, 1146. Rights: 1044, 1142, 1143, 1227. A view, a
#: trigger: 1288, 1305, 1356, 1369, 1370, 1442, 1449, 1471, 1644. Columns and their values: 1048, 1054, 1136, 1265,
#: 1292, 1364, 1366, 1406. Constraints, including another unique key than that of the id: 1062, 1216, 1452, 1586, 3819,
#: 4025. Read-only, or not in the user's LOCK TABLES: 1036, 1099, 1100.
_OF_TABLE: Final = frozenset(
    {
        1036,
        1044,
        1048,
        1049,
        1054,
        1062,
        1099,
        1100,
        1136,
        1142,
        1143,
        1146,
        1216,
        1227,
        1265,
        1288,
        1292,
        1305,
        1356,
        1364,
    }
    | {1366, 1369, 1370, 1406, 1442, 1449, 1452, 1471, 1586, 1644, 3819, 4025}
)
#: The largest innodb_lock_wait_timeout, in seconds.
_LONGEST_S: Final = 1_073_741_824


class MysqlUnit(Unit[MysqlConnection, R]):
    """One unit of work on a MySQL pool."""

    driver_error: ClassVar[type[Exception]] = pymysql.MySQLError
    needs_begin: ClassVar[bool] = True
    # True if the transaction may have written data, by the text of its statements.
    _may_write: bool = True
    # True if BEGIN was sent; otherwise the first statement that reads or writes a row begins the transaction.
    _has_begun: bool = True

    def _reset(self) -> None:
        super()._reset()
        self._may_write = True

    def is_autocommit(self, connection: MysqlConnection) -> bool:
        """See Unit."""
        return connection.get_autocommit()

    def note_begun(self, connection: MysqlConnection) -> None:
        """See Unit; the function's statements are examined, because only a transaction that writes gets a receipt."""
        super().note_begun(connection)
        receipts = self._unit_context.receipts
        if receipts is not None:
            watched = receipts.always or self._is_given or self._takes_part
            connection.bgpool_writes = False if watched and not self._has_receipt else None

    def begin_block(self, connection: MysqlConnection) -> Any:
        """See Unit; without autocommit BEGIN would be a useless round trip, as in a plain block."""
        self._has_begun = connection.get_autocommit()
        if self._has_begun:
            connection.begin()

    def commit_block(self, connection: MysqlConnection) -> Any:
        """See Unit."""
        connection.commit()

    async def aabandon(self, connection: MysqlConnection, error: BaseException) -> None:
        """See Unit; the rollback follows ``afail``, which may need to query the server within the transaction."""
        try:
            await self.afail(connection, error)
        finally:
            connection.bgpool_rollback_quietly()

    # -- statements of an attempt --------------------------------------------------------------------------------

    async def arow(self, connection: MysqlConnection, query: str) -> tuple[Any, ...] | None:
        """Return the first row of *query*, independent of the connection's own kind of cursor; None without one.

        Raises:
            Exception: The driver's.
        """
        # Without a cursor, which takes as long as the rest of the client's part.
        connection.query(query)
        rows: Any = connection._result.rows
        return rows[0] if rows else None

    async def alook(self, connection: MysqlConnection) -> str:
        """See Unit."""
        assert self._receipts is not None
        row = await self.arow(connection, receipts.look(self._receipts.table))
        # Without use_unicode texts are bytes.
        texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in row or ()]
        why = receipts.misfit(texts or None)
        if not why:
            self._receipts.found_in(texts[-1])
        return why

    async def ainsert(self, connection: MysqlConnection) -> bool:
        """See Unit; the session's own innodb_lock_wait_timeout is restored after that."""
        wait_s = min(max(1, int(self.left_s())), _LONGEST_S)
        try:
            await self.arow(connection, receipts.WAIT_FOR_ROW.format(wait_s=wait_s))
            await self.arow(connection, receipts.INSERT.format(table=self._table, id=self._id, unit=self._writer()))
        except pymysql.MySQLError as error:
            if code_of(error) not in receipts.TAKEN:
                raise
            return False
        finally:
            if connection.bgpool_is_open:
                try:
                    await self.arow(connection, receipts.WAIT_AS_BEFORE)
                except pymysql.MySQLError:
                    # Otherwise its next user would have a shorter lock timeout than it has set.
                    connection.bgpool_unfit = True
        return True

    async def awriter(self, connection: MysqlConnection) -> str:
        """See Unit."""
        row = await self.arow(connection, receipts.WRITER.format(table=self._table, id=self._id))
        unit = row[0] if row else ""
        return unit.decode("ascii") if isinstance(unit, bytes) else str(unit)

    def reads_only(self, connection: MysqlConnection) -> bool:  # noqa:ARG002  # no status shows it
        """See Unit: the statements of a transaction show whether it writes."""
        return False

    def decides(self, connection: MysqlConnection) -> bool:  # noqa:ARG002  # PostgreSQL needs it
        """See Unit: the binary log contains every table."""
        return True

    async def awrite_receipt(self, connection: MysqlConnection) -> None:
        """See Unit."""
        self._may_write = connection.bgpool_writes is not False
        if not self.leaves_receipt() or not connection.bgpool_writes or not await self.acan_use(connection):
            return
        self.name_receipt()
        try:
            await self.arow(connection, receipts.INSERT.format(table=self._table, id=self._id, unit=self._writer()))
        except pymysql.MySQLError as error:
            # The duplicate may be in another unique key of the table.
            if code_of(error) in receipts.TAKEN and (writer := await self.awriter(connection)):
                raise KeyTaken(writer) from error
            if self.is_lost(connection) or not self.is_tables(error):
                raise
            self.refuse_table(connection, error)
        else:
            self.note_receipt(connection)

    async def adelete_old(self, connection: MysqlConnection) -> int:
        """See Unit; the lock that excludes other processes is the session's."""
        kept = self._receipts
        assert kept is not None
        row = await self.arow(connection, receipts.can_delete(kept.table))
        assert row is not None
        is_read_only, for_table_s, for_row_s, index = row
        if is_read_only or not await self.acan_use(connection):
            return 0
        if why := receipts.no_deletion(row):
            kept.keep_old(why)
            return 0
        lock, old_wait = receipts.lock_of(kept.table), (for_table_s, for_row_s)
        if await self.arow(connection, receipts.LOCK.format(lock=lock)) != (1,):
            return 0
        try:
            await self.arow(connection, receipts.WAIT.format(1, 1))
            return self._delete_old(connection, str(index))
        finally:
            try:
                connection.rollback()
                await self.arow(connection, receipts.WAIT.format(*old_wait))
                await self.arow(connection, receipts.UNLOCK.format(lock=lock))
            except BaseException:
                # Otherwise its next user would have shorter lock timeouts than it has set, and no other session could
                # delete rows.
                connection.bgpool_unfit = True
                raise

    def _delete_old(self, connection: MysqlConnection, index: str) -> int:
        assert self._receipts is not None
        with connection.cursor(pymysql.cursors.Cursor) as cursor:
            # In every mode of the session.
            cursor.execute("START TRANSACTION READ WRITE")
            retention_s, most = self._receipts.retention_s, RECEIPTS_DELETED_AT_ONCE
            cursor.execute(receipts.OLD.format(table=self._table, index=index, retention_s=retention_s, most=most))
            ids = ",".join(connection.escape(key) for (key,) in cursor.fetchall())
            rows = cursor.execute(receipts.DELETE.format(table=self._table, ids=ids)) if ids else 0
        connection.commit()
        return int(rows)

    def is_lost(self, connection: MysqlConnection) -> bool:
        """See Unit."""
        return not connection.bgpool_is_open

    def is_wait(self, error: Exception) -> bool:
        """See Unit."""
        return code_of(error) in _WAITS

    def is_tables(self, error: Exception) -> bool:
        """See Unit."""
        return code_of(error) in _OF_TABLE

    @property
    def _table(self) -> str:
        assert self._receipts is not None
        return receipts.quoted(self._receipts.table)

    # -- the meaning of its errors -------------------------------------------------------------------------------

    def was_cut(self, error: Exception) -> bool:
        """See Unit."""
        if isinstance(error, SwitchoverInterrupted):
            return False
        return isinstance(error, CommitOutcomeUnknown) or code_of(error) in CUT_CODES or _is_closed(error)

    def was_refused(self, error: Exception) -> bool:
        """See Unit."""
        return is_servers_refusal(error) or may_be_servers_refusal(error)

    async def afind_out(self) -> Outcome:
        """See Unit; the server cannot tell. A unit that has written nothing can be repeated."""
        return Outcome.UNKNOWN if self._may_write else Outcome.NOT_COMMITTED

    def check(self, connection: MysqlConnection) -> None:
        """See Unit."""
        if connection.bgpool_can_commit:
            return
        # Only the last result's status is valid.
        connection.bgpool_settle()
        self.check_lost(connection)
        if not connection.bgpool_is_open:
            raise pymysql.ProgrammingError(CLOSED_BY_FUNCTION)
        connection.bgpool_check_transaction()
        if not connection.bgpool_in_transaction and (self._has_begun or connection.bgpool_ended or self._ended):
            raise pymysql.ProgrammingError(
                "the function ended the transaction that it was called in (DDL does, too); a unit of work is committed "
                "by its runner"
            )

    def check_lost(self, connection: MysqlConnection) -> None:
        """See Unit."""
        if connection.bgpool_in_doubt:
            text = "cut what may have committed by itself, and the function went on; find out whether it took effect"
            raise like(pymysql.InterfaceError(), CommitOutcomeUnknown, self._gate.describe(text))
        if connection.bgpool_in_doubt is not None or not (connection.bgpool_is_open or connection._closed):
            raise self._interrupted("cut the transaction, and the function went on; it did not commit, run it again")
        if connection.bgpool_refused:
            raise self._interrupted("no longer takes writes; run the transaction again")

    def _interrupted(self, text: str) -> Exception:
        return like(pymysql.InterfaceError(), SwitchoverInterrupted, self._gate.describe(text))

    def like(self, error: Exception, kind: Any, text: str) -> Exception:
        """See Unit."""
        return like(error, kind, text)


def _is_closed(error: Exception) -> bool:
    """Return whether *error* is PyMySQL's error for a connection that was closed during its use."""
    return type(error) is pymysql.InterfaceError and code_of(error) == 0
