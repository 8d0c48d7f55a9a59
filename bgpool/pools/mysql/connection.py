"""A PyMySQL connection that knows its generation: it holds new transactions, and explains the effect of a cut.

Every statement goes through ``_execute_command``, where it can be stopped before it is sent. ``exchange`` sends and
reads, and catches the driver's errors; this module turns them into errors that say what to do.
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
#: Returns a row if InnoDB takes no writes, or if transactions are read-only by default; the name of that setting
#: depends on the server's version. A server with --read-only reports it in the error itself.
_READ_ONLY_SETTINGS: Final = (
    "SHOW GLOBAL VARIABLES WHERE Value <> 'OFF' AND Variable_name IN"
    " ('innodb_read_only', 'transaction_read_only', 'tx_read_only')"
)


class MysqlConnection(Exchange):
    """A connection of a MySQL pool.

    Attributes:
        bgpool_generation: The generation in which it was opened. A returned connection goes back to it.
        bgpool_unfit: Set once the server turned out to be read-only, or may be: closed on return instead of used again.
        bgpool_cut: Set once it was cut at the socket. It is closed, even if the driver has not noticed that.
        bgpool_refused: After a refused write, true if the server itself takes none: preliminary, until that is settled.
        bgpool_in_unit: True while a unit of work has it: the unit's runner begins and ends the transaction.
        bgpool_ended: Set once the function of a unit may have ended the unit's transaction itself.
        bgpool_writes: In a unit of work that may insert a receipt, true if one of its statements may have written data;
            None elsewhere.
        bgpool_lent: True while a caller has it.
        bgpool_charset: Character set and collation that the application requested when it connected.
        bgpool_slot: Its slot in the store, until the store has freed that.
        bgpool_uses: The number of checkouts, if they are counted.
        bgpool_idle_since, bgpool_expires_at: On the monotonic clock, in seconds; the store's.
        bgpool_in_doubt: None until the connection is lost. Then the reason for which it may have committed data, empty
            if it cannot have.
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
    # PyMySQL sets it after the server's greeting; a connect can fail before that.
    server_status: int = 0
    # The autocommit mode that the application requested when it connected.
    _autocommit: bool | None = None

    def __init__(self, **params: Any) -> None:
        """Like BoundedConnection."""
        self._transaction: Final = Transaction()
        super().__init__(**params)

    # -- called by the pool --------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """True if it may be used for another transaction. PyMySQL's own name for not *closed*."""
        return self._sock is not None and not looks_closed(self)

    @property
    def closed(self) -> bool:
        """True if it was closed, is broken, or must not be used for another transaction."""
        return not self.open

    @property
    def bgpool_is_idle(self) -> bool:
        """See Aware."""
        result = self._result
        is_unread = self._unanswered or (result is not None and (result.unbuffered_active or result.has_next))
        return not is_unread and not self.bgpool_in_transaction

    @property
    def bgpool_in_transaction(self) -> bool:
        """True if a transaction is open by the server's last status; after an error, true if one may be."""
        return self._transaction.may_be_open(self.server_status)

    def bgpool_discard(self) -> None:
        """See Aware."""
        if self.bgpool_is_open:
            self.close()

    def bgpool_pass_on(self) -> MysqlConnection | None:
        """See Aware; not if a result was left unread, because that may have no end."""
        if not self.bgpool_is_open or (self._result is not None and self._result.unbuffered_active):
            return None
        return hand_over(self)

    async def bgpool_asettle_refusal(self) -> None:
        """See Aware: a transaction or a table may be read-only because of a setting of the server."""
        generation, result = self.bgpool_generation, self._result
        if self.bgpool_refused is not False or not self.bgpool_unfit:
            return
        # None until the server has answered. A connection that is closed on return is not queried: another one meets
        # the same refusal.
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
        """End the last user's state: unread results, a transaction, another autocommit mode.

        Raises:
            pymysql.Error: This failed; the connection must not be used again.
        """
        if self._unanswered:
            # An interrupt came in between. The next user would take the answer for that of its own statement.
            raise ProgrammingError("an answer was not read")
        if self._result is not None and self._result.unbuffered_active:
            # The rest of the result may have no end.
            raise ProgrammingError("a result was left unread")
        self.rollback()
        if self._autocommit is not None and self.get_autocommit() != self._autocommit:
            self.autocommit(self._autocommit)

    @property
    def bgpool_can_commit(self) -> bool:
        """True if a transaction is certainly open, and no statement in it has failed. Sends and reads nothing."""
        result = self._result
        if result is not None and (result.unbuffered_active or result.has_next):
            return False
        if self._sock is None or self.bgpool_refused or self._transaction.failure is not None:
            return False
        return bool(self.server_status & _IN_TRANS)

    def bgpool_check_transaction(self) -> None:
        """Check that a transaction may continue after a failed statement; query the server once if needed.

        Raises:
            SwitchoverInterrupted: Its writes are refused in a switchover.
            pymysql.Error: The error that ended it, or the loss of the connection.
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
        """Roll back after an error, which the user gets; close the connection if the rollback fails."""
        if not self.bgpool_is_open:
            return
        try:
            self.rollback()
        except Exception:
            self._force_close()

    # -- called by its user --------------------------------------------------------------------------------------

    def cursor(self, cursor: Any = None) -> Any:
        """Like PyMySQL's; its executemany() reports whether data was committed before it was stopped."""
        chosen: Any = cursor or self.cursorclass
        return aware(chosen)(self)

    def commit(self) -> None:
        """Commit; send nothing if no transaction is open, so that nothing can be cut."""
        self.bgpool_settle()
        if self.bgpool_in_transaction or not self.bgpool_is_open:
            super().commit()

    def rollback(self) -> None:
        """Roll back; send nothing if no transaction is open."""
        self.bgpool_settle()
        if self.bgpool_in_transaction or not self.bgpool_is_open:
            super().rollback()

    def ping(self, reconnect: bool | None = False) -> None:
        """Check that the server answers. Never reconnect, because only the pool knows the destination.

        Raises:
            InterfaceError: It is no longer open, and *reconnect* was requested.
            OperationalError: It must not be used for another transaction, so that a pool that checks it replaces it.
        """
        if reconnect and not self.open:
            raise InterfaceError(0, "a pooled connection is not reconnected; check out a new one")
        if self.bgpool_is_open and not self.open and not self._is_inherited():
            raise OperationalError(CR.CR_SERVER_GONE_ERROR, "the connection is no longer fit; check out a new one")
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
        """Close, and free the slot of the pool; a repeated call does nothing.

        In a fork's child the parent's connection is not touched.
        """
        if self._is_inherited():
            keep_forever(self)
        elif self.bgpool_lent:
            self.bgpool_generation.take_closed(self)
        elif self.bgpool_is_open:
            # If another thread is closing it, PyMySQL raises.
            with contextlib.suppress(MySQLError):
                super().close()

    def _force_close(self) -> None:
        if self._is_inherited():
            keep_forever(self)
            return
        if self._result is not None:
            # Otherwise PyMySQL would read the rest of it from the closed connection, and print the error on stderr.
            self._result.unbuffered_active = False
        if self.bgpool_is_open and not self._closed:
            # Set here, because an interrupt also ends up here. Later statements on the connection are not sent, and say
            # nothing about the earlier ones.
            self.bgpool_in_doubt = self._transaction.doubt(self.server_status, self._text())
        super()._force_close()

    def __del__(self) -> None:
        is_lost = self.bgpool_lent or self.bgpool_slot is not None
        if is_lost and not self._is_inherited() and not sys.is_finalizing():
            self.bgpool_generation.take_lost(self)
        else:
            self._force_close()

    # -- statements and answers ----------------------------------------------------------------------------------

    def _execute_command(self, command: int, sql: str | bytes) -> None:
        generation = self._generation()
        if generation is None:
            # The connection is still being opened, and has no user yet.
            super()._execute_command(command, sql)
            return
        statement = statements.beginning(sql, self.encoding)
        # Before any decision by the status, and while the last statement sent is still the one whose results are read.
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
            # Set before it is sent, because an interrupt may come right after.
            self._unanswered = True
            super()._execute_command(command, sql)
        except BaseException:
            # It was interrupted, and it is unknown how much was sent.
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
        """Hold a statement that would begin a transaction while it is unknown whether the connection stays fit.

        Statements of the pool itself on an idle connection (configure, reset) belong to no user's transaction.
        """
        is_open = self.server_status & _IN_TRANS
        begins = self.bgpool_lent and command == COMMAND.COM_QUERY and self.bgpool_is_open and not is_open
        word, _ = statements.first_words(statement)
        if generation.inherited or (begins and not statements.ends_nothing_else(word)):
            try:
                generation.wait_usable()
            except SwitchoverInterrupted:
                # Closed for good, so that the owner of the connection replaces it.
                self._lose_unsent()
                raise
        elif self.bgpool_cut and is_open and self.bgpool_is_open and not self._unanswered and word != b"XA":
            # No statement reaches the server, not even a COMMIT. A prepared transaction outlives the connection.
            self._lose_unsent()

    def _lose_unsent(self) -> None:
        """Close before a statement is sent, while none is in progress: nothing was committed."""
        self._force_close()
        self.bgpool_in_doubt = NO_DOUBT

    def _note_in_unit(self, statement: bytes) -> None:
        """Record the possible effect of *statement* on a unit's transaction, even from within a procedure.

        Raises:
            ProgrammingError: It ends the transaction, which only the unit's runner may do.
        """
        # This runs for each statement of each unit.
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

    # -- the meaning of an error ---------------------------------------------------------------------------------

    def _explained(self, error: MySQLError, generation: Generation) -> Exception:
        """Return *error*, or the error that it means in a switchover."""
        code = code_of(error)
        if code in CUT_CODES and self.bgpool_is_open:
            # The server has reported that it ends the connection; later data belongs to no statement.
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
