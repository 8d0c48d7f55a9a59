"""A PyMySQL connection that knows its generation: it holds new transactions, and says what a cut has done.

Every statement goes through ``_execute_command``: there it is stopped before it is sent. What is sent and read, and
where the driver's error is met, is the matter of ``exchange``; here it becomes one that says what to do.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

from pymysql.constants import CLIENT, COMMAND, CR, SERVER_STATUS
from pymysql.err import InterfaceError, MySQLError, OperationalError, ProgrammingError

from bgpool.errors import SwitchoverInterrupted
from bgpool.mysql import CUT_CODES, code_of, is_servers_refusal, may_be_servers_refusal
from bgpool.pools.doubt import NO_DOUBT
from bgpool.pools.fitness import looks_closed
from bgpool.pools.fork import keep_forever
from bgpool.pools.mysql import statements
from bgpool.pools.mysql.cursors import aware
from bgpool.pools.mysql.exchange import Exchange
from bgpool.pools.mysql.expressions import Text
from bgpool.pools.mysql.handover import hand_over
from bgpool.pools.mysql.transaction import Transaction

if TYPE_CHECKING:
    from bgpool.pools.generation import Generation
    from bgpool.pools.mysql.slots import Slot

__all__ = ["MysqlConnection"]

_IN_TRANS: Final = SERVER_STATUS.SERVER_STATUS_IN_TRANS
#: Has a row where InnoDB takes no writes, or transactions are read-only unless a session says otherwise; that name
#: depends on the server's version. A server with --read-only says so by itself.
_READ_ONLY_SETTINGS: Final = (
    "SHOW GLOBAL VARIABLES WHERE Value <> 'OFF' AND Variable_name IN"
    " ('innodb_read_only', 'transaction_read_only', 'tx_read_only')"
)


class MysqlConnection(Exchange):
    """A connection of a MySQL pool.

    Attributes:
        bgpool_generation: What the connection was opened under. A returned connection goes back to it.
        bgpool_unfit: Set once the server turned out to be read-only, or may be: closed on return instead of used again.
        bgpool_cut: Set once it was cut at the socket: it is closed, whatever the driver has noticed of that.
        bgpool_refused: After a refused write, whether the server itself takes none: as it seems, until that is settled.
        bgpool_in_unit: While a unit of work has it: the unit's runner begins and ends the transaction.
        bgpool_ended: Set once the function of a unit may have ended the unit's transaction itself.
        bgpool_writes: In a unit of work that may leave a receipt, whether a statement of it may have written something;
            None elsewhere.
        bgpool_lent: While a caller has it.
        bgpool_charset: Character set and collation that the application asked for when it connected.
        bgpool_slot: Its place in the store, until the store has freed that.
        bgpool_uses: How often it was lent, where somebody counts.
        bgpool_idle_since, bgpool_expires_at: On the monotonic clock, in seconds; the store's.
        bgpool_in_doubt: Once it is lost, for good: why something may have been committed meanwhile, empty if nothing
            can have been. None before.
    """

    bgpool_generation: Generation
    bgpool_unfit: bool = False
    bgpool_cut: bool = False
    bgpool_refused: bool | None = None
    bgpool_in_unit: bool = False
    bgpool_ended: bool = False
    bgpool_in_doubt: str | None = None
    bgpool_writes: bool | None = None
    bgpool_lent: bool = False
    bgpool_charset: tuple[str, str | None]
    bgpool_slot: Slot | None = None
    bgpool_uses: int = 0
    bgpool_idle_since: float = 0.0
    bgpool_expires_at: float = 0.0
    # PyMySQL sets it when the server has greeted; a connect can fail before that.
    server_status: int = 0
    # What the application asked for when it connected.
    _autocommit: bool | None = None

    def __init__(self, **params: Any) -> None:
        """As BoundedConnection."""
        self._transaction: Final = Transaction()
        super().__init__(**params)

    # -- what the pool asks --------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether it may be used for another transaction: PyMySQL's own spelling of not *closed*."""
        return self._sock is not None and not looks_closed(self)

    @property
    def closed(self) -> bool:
        """Whether it was closed, is broken, or must not be used for another transaction."""
        return not self.open

    @property
    def bgpool_is_idle(self) -> bool:
        """As Aware says."""
        result = self._result
        is_unread = self._unanswered or (result is not None and (result.unbuffered_active or result.has_next))
        return not is_unread and not self.bgpool_in_transaction

    @property
    def bgpool_in_transaction(self) -> bool:
        """Whether a transaction is open, as the server said last; after an error one may be."""
        return self._transaction.may_be_open(self.server_status)

    def bgpool_discard(self) -> None:
        """As Aware says."""
        if self.bgpool_is_open:
            self.close()

    def bgpool_pass_on(self) -> MysqlConnection | None:
        """As Aware says; a result that was left unread has no end."""
        if not self.bgpool_is_open or (self._result is not None and self._result.unbuffered_active):
            return None
        return hand_over(self)

    async def bgpool_asettle_refusal(self) -> None:
        """As Aware says: a transaction or a table that is read-only may be so by a setting of the server's."""
        generation, result = self.bgpool_generation, self._result
        if self.bgpool_refused is not False or not self.bgpool_unfit:
            return
        # Until it is answered. A connection that is on its way out is not asked: another one meets the same refusal.
        self.bgpool_refused = None
        if not generation.live[0] or generation.retired or self._unanswered or (result and result.unbuffered_active):
            return
        try:
            self.rollback()
            with self.cursor() as cursor:
                cursor.execute(_READ_ONLY_SETTINGS)
                self.bgpool_refused = bool(cursor.fetchall())
        except MySQLError:
            return
        self.bgpool_unfit = self.bgpool_refused and generation.note_refusal()

    def bgpool_clean(self) -> None:
        """End what the last user has left open: results, a transaction, another autocommit mode.

        Raises:
            pymysql.Error: That could not be done; the connection is not to be used again.
        """
        if self._unanswered:
            # An interrupt came in between. Who is next would take it for the answer to a statement of its own.
            raise ProgrammingError("an answer was not waited for")
        if self._result is not None and self._result.unbuffered_active:
            # There is no end to what may still come.
            raise ProgrammingError("a result was left unread")
        self.rollback()
        if self._autocommit is not None and self.get_autocommit() != self._autocommit:
            self.autocommit(self._autocommit)

    @property
    def bgpool_can_commit(self) -> bool:
        """Whether a transaction is surely open, and nothing has failed in it. Sends nothing, and reads nothing."""
        result = self._result
        if result is not None and (result.unbuffered_active or result.has_next):
            return False
        if self._sock is None or self.bgpool_refused or self._transaction.failure is not None:
            return False
        return bool(self.server_status & _IN_TRANS)

    def bgpool_check_transaction(self) -> None:
        """Make sure that a transaction in which a statement has failed may go on; asks the server once if need be.

        Raises:
            SwitchoverInterrupted: Its writes are refused in a switchover.
            pymysql.Error: What ended it, or what became of the connection.
        """
        failure, generation = self._transaction.failure, self.bgpool_generation
        if failure is not None and not failure.is_final:
            self.ping()
            self._transaction.settle(self.server_status)
        if failure is None or self._transaction.failure is None:
            return
        if is_servers_refusal(failure.error) and generation.is_switching():
            raise generation.explain_read_only(failure.error) from failure.error
        raise failure.again() from failure.error

    def bgpool_commit_block(self) -> None:
        """Commit at the end of a block, unless its user has closed the connection."""
        if not self._closed:
            self.commit()

    def bgpool_rollback_quietly(self) -> None:
        """Roll back after an error, which is the one to be told of; a connection where that fails is closed."""
        if not self.bgpool_is_open:
            return
        try:
            self.rollback()
        except Exception:
            self._force_close()

    # -- what its user asks --------------------------------------------------------------------------------------

    def cursor(self, cursor: Any = None) -> Any:
        """As PyMySQL's; its executemany() tells whether something was committed before it was stopped."""
        chosen: Any = cursor or self.cursorclass
        return aware(chosen)(self)

    def commit(self) -> None:
        """Commit; nothing is sent where no transaction is open, so that nothing can be cut."""
        self.bgpool_settle()
        if self.bgpool_in_transaction or not self.bgpool_is_open:
            super().commit()

    def rollback(self) -> None:
        """Roll back; nothing is sent where no transaction is open."""
        self.bgpool_settle()
        if self.bgpool_in_transaction or not self.bgpool_is_open:
            super().rollback()

    def ping(self, reconnect: bool | None = False) -> None:
        """Ask the server whether it is alive. Never reconnects: where to is the pool's to say.

        Raises:
            InterfaceError: It is not open any more, and *reconnect* was asked for.
            OperationalError: It must not be used for another transaction: a pool that checks it replaces it.
        """
        if reconnect and not self.open:
            raise InterfaceError(0, "a pooled connection is not reconnected; check out a new one")
        if self.bgpool_is_open and not self.open and not self._is_inherited():
            raise OperationalError(CR.CR_SERVER_GONE_ERROR, "the connection is not to be used; check out a new one")
        self._execute_command(COMMAND.COM_PING, "")
        self._read_ok_packet()

    def connect(self, sock: Any = None) -> None:
        """Connect, once.

        Raises:
            InterfaceError: It was connected before.
        """
        if self._generation() is not None:
            raise InterfaceError(0, "a pooled connection is not reconnected; check out a new one")
        super().connect(sock)
        self._autocommit = self.autocommit_mode
        self.bgpool_charset = self.charset, self.collation

    def close(self) -> None:
        """Close, and free the slot of the pool; closing it again does nothing.

        In a fork's child the parent's connection is left alone.
        """
        if self._is_inherited():
            keep_forever(self)
        elif self.bgpool_lent:
            self.bgpool_generation.take_closed(self)
        elif self.bgpool_is_open:
            # Another thread may be closing it: then PyMySQL raises.
            with contextlib.suppress(MySQLError):
                super().close()

    def _force_close(self) -> None:
        if self._is_inherited():
            keep_forever(self)
            return
        if self._result is not None:
            # Or PyMySQL would read the rest of it from the closed connection, and say so on stderr.
            self._result.unbuffered_active = False
        if self.bgpool_is_open and not self._closed:
            # Here, where also an interrupt comes by. What is asked of the connection afterwards is not sent, and says
            # nothing of what was.
            self.bgpool_in_doubt = self._transaction.doubt(self.server_status, self._text())
        super()._force_close()

    def __del__(self) -> None:
        is_lost = self.bgpool_lent or self.bgpool_slot is not None
        if is_lost and not self._is_inherited() and not sys.is_finalizing():
            self.bgpool_generation.take_lost(self)
        else:
            self._force_close()

    # -- what it exchanges ---------------------------------------------------------------------------------------

    def _execute_command(self, command: int, sql: str | bytes) -> None:
        generation = self._generation()
        if generation is None:
            # Still being set up by the connect that makes it; nobody else has it yet.
            super()._execute_command(command, sql)
            return
        statement = statements.beginning(sql, self.encoding)
        # Before anything is decided by the status, and while what was sent last is still what is being read.
        self.bgpool_settle()
        failure = self._transaction.failure
        if (
            failure is not None
            and command == COMMAND.COM_QUERY
            and self.bgpool_is_open
            and not failure.may_pass(statement)
        ):
            self.bgpool_check_transaction()
        if not generation.live[0]:
            self._before_sending(command, statement, generation)
        if self.bgpool_in_unit and command == COMMAND.COM_QUERY:
            self._note_in_unit(statement)
        if self._unanswered:
            self._force_close()
        if not self.bgpool_is_open:
            self._fail(InterfaceError(0, ""))
        self._transaction.sent = (command, statement, self.server_status)
        try:
            # Before it is sent: an interrupt may come right after.
            self._unanswered = True
            super()._execute_command(command, sql)
        except BaseException:
            # Interrupted: nobody knows how much of it has gone.
            self._force_close()
            raise

    def _read_query_result(self, unbuffered: bool = False) -> int:
        count = super()._read_query_result(unbuffered)
        status = self.server_status
        if self.bgpool_in_unit and not status & _IN_TRANS and self._transaction.has_ended(status):
            self.bgpool_ended = True
        return count

    def _answered(self) -> None:
        self._transaction.note_answer()

    def _before_sending(self, command: int, statement: bytes, generation: Generation) -> None:
        """Hold what would begin a transaction while it is not known what becomes of the connection.

        What the pool itself does to a connection that nobody has (configure, reset) is nobody's transaction.
        """
        is_open = self.server_status & _IN_TRANS
        begins = self.bgpool_lent and command == COMMAND.COM_QUERY and self.bgpool_is_open and not is_open
        word, _ = statements.first_words(statement)
        if generation.inherited or (begins and not statements.ends_nothing_else(word)):
            try:
                generation.wait_usable()
            except SwitchoverInterrupted:
                # For good, so that whoever keeps the connection replaces it.
                self._lose_unsent()
                raise
        elif self.bgpool_cut and is_open and self.bgpool_is_open and not self._unanswered and word != b"XA":
            # Nothing of it reaches the server, be it a COMMIT. A prepared transaction outlives the connection.
            self._lose_unsent()

    def _lose_unsent(self) -> None:
        """Close before a statement is sent, and while none is under way: nothing was committed."""
        self._force_close()
        self.bgpool_in_doubt = NO_DOUBT

    def _note_in_unit(self, statement: bytes) -> None:
        """Note what *statement* may do to the transaction of a unit, be it in the middle of a procedure.

        Raises:
            ProgrammingError: It ends the transaction, which is for the unit's runner to do.
        """
        # Of each statement of each unit.
        if (
            self.bgpool_writes is not False
            and not self.client_flag & CLIENT.MULTI_STATEMENTS
            and statements.is_ordinary(statement)
        ):
            return
        word, to_savepoint = statements.first_words(statement)
        if statements.ends_transaction(word) and not to_savepoint:
            raise ProgrammingError(
                f"{word.decode()} in a unit of work: a unit of work is committed, or rolled back, by its runner"
            )
        text = self._text()
        self.bgpool_ended = self.bgpool_ended or statements.may_end(statement, text, word)
        if self.bgpool_writes is False:
            self.bgpool_writes = statements.may_write(statement, text)

    # -- what became of it ---------------------------------------------------------------------------------------

    def _explained(self, error: MySQLError, generation: Generation) -> Exception:
        """*error*, or what it means in a switchover."""
        code = code_of(error)
        if code in CUT_CODES and self.bgpool_is_open:
            # The server has said that it ends the connection; whatever comes after that is not for us.
            self._force_close()
        if not self.bgpool_is_open:
            generation.note_cut()
            if generation.is_switching():
                return generation.explain_cut(error, self.bgpool_in_doubt or NO_DOUBT)
            return error
        self._transaction.note_error(error, self.server_status, self._text())
        if may_be_servers_refusal(error):
            self.bgpool_refused, self.bgpool_unfit = False, True
        elif is_servers_refusal(error):
            self.bgpool_refused, self.bgpool_unfit = True, generation.note_refusal()
            if generation.is_switching():
                if self._transaction.failure is not None:
                    self._transaction.failure.refuse_commit(error)
                return generation.explain_read_only(error)
        return error

    def _text(self) -> Text:
        many = bool(self.client_flag & CLIENT.MULTI_STATEMENTS)
        backslash = not self.server_status & SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES
        return Text(self.encoding, many, backslash)
