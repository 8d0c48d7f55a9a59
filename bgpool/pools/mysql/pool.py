"""The MySQL pool: the parts that are specific to PyMySQL."""

from __future__ import annotations

from bgpool.pools import options
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.recipe import MysqlRecipe
from bgpool.pools.mysql.unit import MysqlUnit
from bgpool.pools.pool import Pool

__all__ = ["MysqlPool"]


class MysqlPool(Pool[MysqlConnection]):
    """A pool of PyMySQL connections that survives Blue/Green switchovers. Created by get_pool."""

    OPTIONS = options.MYSQL
    _recipe_class = MysqlRecipe
    _unit_class = MysqlUnit

    def end_block(self, conn: MysqlConnection, error: BaseException | None) -> None:
        """See Pool."""
        if error is None:
            conn.bgpool_commit_block()
        else:
            conn.bgpool_rollback_quietly()
