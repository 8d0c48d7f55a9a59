"""Cursors of a pool's MySQL connections: statements that executemany() has committed are reported when it is stopped.

PyMySQL sends a statement for each row, or several for many rows. In autocommit each of them commits by itself, and an
error of the third one does not mention the first two.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pymysql.cursors import Cursor

from bgpool.errors import CommitOutcomeUnknown, SwitchoverError
from bgpool.pools.doubt import COMMITTED_BEFORE

if TYPE_CHECKING:
    from bgpool.pools.mysql.connection import MysqlConnection

__all__ = ["aware"]


class _Aware(Cursor):
    """The mixin in front of another cursor class."""

    connection: MysqlConnection
    _executed: Any

    def executemany(self, query: Any, args: Any) -> Any:
        """Like the other class's.

        Raises:
            CommitOutcomeUnknown: Stopped by a switchover after a statement that has committed by itself.
        """
        before, self._executed = self._executed, None
        connection = self.connection
        try:
            return super().executemany(query, args)
        except CommitOutcomeUnknown:
            raise
        except SwitchoverError as error:
            # PyMySQL sets it after each statement.
            if self._executed is None or not connection.get_autocommit() or connection.bgpool_in_transaction:
                raise
            raise connection.bgpool_generation.explain_cut(error, COMMITTED_BEFORE) from error
        finally:
            if self._executed is None:
                self._executed = before


@functools.lru_cache(maxsize=32)
def aware(own: Any) -> Any:
    """Return the cursor class *own* with the mixin; return a class that is not based on PyMySQL's cursor as it is."""
    if not (isinstance(own, type) and issubclass(own, Cursor)):
        return own
    return type(own.__name__, (_Aware, own), {"__module__": own.__module__, "__qualname__": own.__qualname__})
