"""Units of work on MySQL: begun again where a switchover cut them before their COMMIT, and never guessed at after it.

What became of a COMMIT that was cut no server can be asked: a transaction gets its GTID when it commits, so that
nobody knows it before, and to choose one takes rights that applications do not have.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import pymysql

from bgpool.errors import CommitOutcomeUnknown, SwitchoverInterrupted
from bgpool.mysql import CUT_CODES, code_of, is_servers_refusal, may_be_servers_refusal
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.recipe import like
from bgpool.pools.units import CLOSED_BY_FUNCTION, Outcome, Unit

__all__ = ["MysqlUnit"]

R = TypeVar("R")


class MysqlUnit(Unit[MysqlConnection, R]):
    """One unit of work on a MySQL pool."""

    driver_error: ClassVar[type[Exception]] = pymysql.MySQLError
    needs_begin: ClassVar[bool] = True

    def is_autocommit(self, connection: MysqlConnection) -> bool:
        """As Unit says."""
        return connection.get_autocommit()

    def was_cut(self, error: Exception) -> bool:
        """As Unit says."""
        if isinstance(error, SwitchoverInterrupted):
            return False
        return isinstance(error, CommitOutcomeUnknown) or code_of(error) in CUT_CODES or _is_closed(error)

    def was_refused(self, error: Exception) -> bool:
        """As Unit says."""
        return is_servers_refusal(error) or may_be_servers_refusal(error)

    async def afind_out(self) -> Outcome:
        """As Unit says; the server cannot tell."""
        return Outcome.UNKNOWN

    def check(self, connection: MysqlConnection) -> None:
        """As Unit says."""
        # No status is true before the last result.
        connection.bgpool_settle()
        self.check_lost(connection)
        if not connection.bgpool_is_open:
            raise pymysql.ProgrammingError(CLOSED_BY_FUNCTION)
        connection.bgpool_check_transaction()
        if not connection.bgpool_in_transaction:
            raise pymysql.ProgrammingError(
                "the function ended the transaction that it was called in (DDL does, too); a unit of work is committed "
                "by its runner"
            )

    def check_lost(self, connection: MysqlConnection) -> None:
        """As Unit says."""
        if connection.bgpool_in_doubt:
            text = "cut what may have committed by itself, and the function went on; find out whether it took effect"
            raise like(pymysql.InterfaceError(), CommitOutcomeUnknown, self._gate.describe(text))
        if connection.bgpool_in_doubt is not None or not (connection.bgpool_is_open or connection._closed):
            raise self._interrupted("cut the transaction, and the function went on; it did not commit, run it again")
        if connection.bgpool_refused:
            raise self._interrupted("takes no writes any more; run the transaction again")

    def _interrupted(self, text: str) -> Exception:
        return like(pymysql.InterfaceError(), SwitchoverInterrupted, self._gate.describe(text))

    def like(self, error: Exception, kind: Any, text: str) -> Exception:
        """As Unit says."""
        return like(error, kind, text)


def _is_closed(error: Exception) -> bool:
    """Whether *error* is what PyMySQL says of a connection that was closed under its user."""
    return type(error) is pymysql.InterfaceError and code_of(error) == 0
