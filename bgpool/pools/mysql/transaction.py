"""The state of a transaction after one of its statements has failed: is it still the one that was begun?

Some errors undo one statement, others the whole transaction: a deadlock (1213), a changed record (1020 with
``innodb_snapshot_isolation``), a lock wait (1205 with ``innodb_rollback_on_timeout``), a COMMIT that a read-only server
refuses (1290). The server then accepts the next statement in a new transaction, and commits the second half alone.

An error packet has no status, and its number does not show the difference. The status in the answer to a ping does, as
long as no statement was sent in between. It agreed with a savepoint set before the error on MariaDB 10.11 and 11.8 and
on MySQL 9.7, for 13 kinds of errors, with BEGIN, a consistent snapshot, XA and without autocommit. The exception is a
procedure that ends the transaction and begins another one before it fails: neither its error nor the status shows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pymysql.constants import COMMAND, SERVER_STATUS
from pymysql.err import MySQLError

from bgpool.mysql import is_servers_refusal
from bgpool.pools.doubt import NO_DOUBT
from bgpool.pools.mysql import statements
from bgpool.pools.mysql.expressions import Text
from bgpool.pools.mysql.statements import Effect

__all__ = ["Failure", "Transaction"]

_HINT: Final = "the transaction did not survive this error; roll back and run all of it again"
_COMMITTED_HINT: Final = (
    "the transaction ended before this error, and what failed may have committed it; roll back and find out before any "
    "of it is run again"
)


class Transaction:
    """A connection's knowledge of its transaction, in addition to the last status of the server.

    Attributes:
        sent: The last command: its code, the beginning of its statement, and the server's status before.
        failure: The failed statement after which a transaction may be open, or gone; None while the status is valid.
    """

    __slots__ = ("failure", "sent")

    def __init__(self) -> None:
        self.sent: tuple[int, bytes, int] | None = None
        self.failure: Failure | None = None

    def may_be_open(self, status: int) -> bool:
        """Return whether a transaction may be open, by the last *status* of the server."""
        return self.failure is not None or _is_open(status)

    def has_ended(self, status: int) -> bool:
        """Return whether the last command, which was answered with *status*, has ended the transaction.

        If none was open before, and statements do not commit by themselves, there was no transaction to end.
        """
        if self.may_be_open(status):
            return False
        return _is_autocommit(status) or self.sent is None or _is_open(self.sent[2])

    def note_answer(self) -> None:
        """Record that the last command succeeded. After a failure only a statement that settles it is sent."""
        if self.failure is not None and self.sent is not None and self.sent[0] == COMMAND.COM_QUERY:
            self.failure = None

    def note_error(self, error: MySQLError, status: int, text: Text) -> None:
        """Record that the last command failed. The state of the transaction is unknown until the server is queried.

        Args:
            error: The server's.
            status: Its last status; perhaps from an earlier one of several statements.
            text: The rules for reading the statement.
        """
        if self.failure is not None or self.sent is None or self.sent[0] != COMMAND.COM_QUERY:
            return
        _, statement, before = self.sent
        was_open = _is_open(before) or (text.many and _is_open(status))
        if was_open or not _is_autocommit(before) or statements.judge(statement, text) > Effect.WRITES:
            # A read-only server refuses the implicit COMMIT before the statement, so nothing was committed.
            committed = statements.commits_first(statement, text) and not is_servers_refusal(error)
            # An INSERT of any length is recognized by its first word, and most errors that applications expect are an
            # INSERT's.
            anything = statements.may_end(statement, text) and statements.judge(statement, text) is Effect.ANYTHING
            hint = _COMMITTED_HINT if anything else _HINT
            self.failure = Failure(_copy(error), is_loss=was_open and not committed, hint=hint)

    def settle(self, status: int) -> None:
        """Decide on the state of the transaction by a *status* that the server gave after the failure."""
        failure = self.failure
        if failure is None or failure.is_final:
            return
        if failure.is_loss and not _is_open(status):
            failure.is_final = True
        else:
            self.failure = None

    def doubt(self, status: int, text: Text) -> str:
        """Return the reason for which the last command, once cut, may have taken effect; NO_DOUBT if it cannot have.

        Args:
            status: The server's last.
            text: The rules for reading the statement.
        """
        if self.sent is None or self.sent[0] != COMMAND.COM_QUERY:
            return NO_DOUBT
        return statements.doubt_of(
            statements.judge(self.sent[1], text),
            surely_open=_is_open(status) and self.failure is None,
            may_be_open=self.may_be_open(status),
            autocommit=_is_autocommit(status),
        )


@dataclass(slots=True)
class Failure:
    """A statement that has failed.

    Attributes:
        error: The server's error, without its traceback.
        is_loss: True if a closed transaction means a rollback of the one that was open; false if none was open, or if
            the statement had committed it first, as DDL does.
        hint: The advice once it is final.
        is_final: True if the transaction must not continue: it was rolled back, or was refused a write in a switchover.
        is_open: True for a transaction that must not continue, although the server would allow it.
    """

    error: MySQLError
    is_loss: bool
    hint: str
    is_final: bool = False
    is_open: bool = False

    def may_pass(self, statement: bytes) -> bool:
        """Return whether *statement* may be sent in any state of the transaction.

        ROLLBACK ends the transaction and BEGIN starts over. The server itself refuses a savepoint that was lost with
        the transaction (1305), and the continuation of an XA transaction that it has rolled back.
        """
        word, to_savepoint = statements.first_words(statement)
        if self.is_open:
            return word == b"ROLLBACK" and not to_savepoint
        return word in (b"ROLLBACK", b"RELEASE") or statements.starts_over(statement)

    def refuse_commit(self, error: MySQLError) -> None:
        """Refuse COMMIT after a switchover refused a write with *error*: the earlier writes must not stay alone."""
        self.error, self.hint, self.is_final, self.is_open = _copy(error), _HINT, True, True

    def again(self) -> MySQLError:
        """Return the error again, for a statement that must not be sent."""
        code, *texts = self.error.args
        return type(self.error)(code, f"{texts[0]} ({self.hint})" if texts else self.hint)


def _copy(error: MySQLError) -> MySQLError:
    """Return *error* without its traceback, which would keep variables of its callers alive, such as a handle."""
    return type(error)(*error.args)


def _is_open(status: int) -> bool:
    return bool(status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)


def _is_autocommit(status: int) -> bool:
    return bool(status & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT)
