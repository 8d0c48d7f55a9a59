"""DBUtils' PooledDB on a bgpool pool. Only the import changes::

    from bgpool.integrations.dbutils import PooledDB  # was: from dbutils.pooled_db import PooledDB

    pool = PooledDB(pymysql, mincached=2, maxconnections=20, blocking=True, host="...", user="app", bg_id="ledger")

Source: docs/dbutils.md.
"""

from __future__ import annotations

import _thread
import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterable
from numbers import Integral
from types import TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

import pymysql
from dbutils.pooled_db import InvalidConnectionError, NotSupportedError, PooledDBError, TooManyConnectionsError
from pymysql.connections import Connection
from pymysql.constants import CR
from pymysql.cursors import Cursor

from bgpool.core.limits import MYSQL_CONNECTIONS_MAX
from bgpool.dsn import mysql
from bgpool.errors import ConfigurationError, TooManyRequests
from bgpool.pools import fork
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.pool import Pool
from bgpool.registry import get_pool

__all__ = [
    "PooledDB", "PooledDedicatedDBConnection", "TooManyConnections", "InvalidConnection",
    "PooledDBError", "InvalidConnectionError", "NotSupportedError", "TooManyConnectionsError",
]  # fmt: skip

InvalidConnection = InvalidConnectionError

#: The parameters of PyMySQL's connect; every other keyword is an option of get_pool.
_PARAMETERS: Final = frozenset(inspect.signature(Connection.__init__).parameters) - {"self"}
_PYMYSQL: Final = (pymysql, pymysql.connect, Connection)

#: The connections of the handles. The collector finds an abandoned handle alone, and its connection is returned.
_lent: Final[WeakKeyDictionary[PooledDedicatedDBConnection, MysqlConnection]] = WeakKeyDictionary()


class TooManyConnections(TooManyRequests, TooManyConnectionsError):  # type: ignore[misc]  # DBUtils has no types
    """All ``maxconnections`` are in use, and ``blocking`` is false."""


class PooledDB:
    """DBUtils' PooledDB for MySQL. ``close()`` returns a connection to the pool.

    Attributes:
        pool: The bgpool pool underneath, for ``run()``, ``stats()`` and its other methods.
    """

    def __init__(
        self,
        creator: object,
        mincached: int | None = 0,
        maxcached: int | None = 0,
        maxshared: int | None = 0,
        maxconnections: int | None = 0,
        blocking: bool = False,
        maxusage: int | None = None,
        setsession: Iterable[str] | None = None,
        reset: object = True,
        failures: object = None,  # noqa:ARG002  # DBUtils has it
        ping: object = 1,
        isfatal: object = None,  # noqa:ARG002  # DBUtils has it
        **kwargs: Any,
    ) -> None:
        """Create a pool that connects at its first checkout.

        Args:
            creator: The module ``pymysql``, its ``connect``, or a ``mysql://`` URL.
            mincached: The number of connections that are kept open, >= 0.
            maxcached: The maximum of idle connections; a further one is closed when it is returned. 0 for no limit.
            maxshared: Raises *maxconnections*. PyMySQL's connections are never shared, in DBUtils neither.
            maxconnections: The maximum of connections; 0 for as many as the server accepts.
            blocking: Wait for a free connection, up to ``timeout`` (30 s), instead of raising TooManyConnections.
            maxusage: The number of times that a connection is lent before it is replaced; 0 or None for no limit.
            setsession: SQL statements for every new connection.
            reset: True, False and None mean the same: an open transaction is rolled back. ``"session"`` or a function
                as for get_pool.
            failures: Not used: no statement is ever sent a second time.
            ping: 0 to lend an idle connection without a check; SQL or a function for a check other than a ping.
                DBUtils' other numbers, and a pair of number and check, are accepted.
            isfatal: Not used, like *failures*.
            kwargs: PyMySQL's connection parameters, ``bg_id`` and the other ``bg_`` parameters, and options of get_pool
                such as ``timeout``.

        Raises:
            ConfigurationError: The driver is not PyMySQL, or a value cannot be used.
        """
        numbers = {"mincached": mincached, "maxcached": maxcached, "maxshared": maxshared, "maxusage": maxusage,
                   "maxconnections": maxconnections}  # fmt: skip
        least, idle, shared, usage, most = (_whole(name, value) for name, value in numbers.items())
        self._maxcached: Final = max(idle, least) if idle else 0
        self._maxusage: Final = usage
        self._maxconnections: Final = max(most, self._maxcached, shared, least) if most else 0
        self._blocking: Final = bool(blocking)
        dsn, options = _target(creator, kwargs)
        options["configure"] = _configure(setsession, options.get("configure"))
        if "check" not in options:
            options["check"] = _check(ping)
        if not isinstance(reset, bool):
            options["reset"] = reset
        size = {"min_size": least, "max_size": self._maxconnections or MYSQL_CONNECTIONS_MAX, "close_returns": True}
        self._make: Final[Callable[[], Pool[Any]]] = lambda: get_pool(dsn, **{**options, **size})
        self._pool = self._make()
        self._begin()
        fork.call_in_child(self)

    def __repr__(self) -> str:
        return f"<PooledDB {self._pool!r}>"

    def __del__(self) -> None:
        pool: Pool[Any] | None = getattr(self, "_pool", None)
        if pool is not None and not sys.is_finalizing():
            # In a thread, because the collector may have interrupted a thread that holds a lock. Does not wait.
            with contextlib.suppress(RuntimeError):
                _thread.start_new_thread(pool.close, (0,))

    def _begin(self) -> None:
        # The handles that are in use. A handle that is gone, even by an interrupt, no longer counts. Its connection is
        # being returned, and the pool waits for it.
        self._out: WeakSet[PooledDedicatedDBConnection] = WeakSet()
        self._lock = threading.Lock()

    @property
    def pool(self) -> Pool[Any]:
        """The bgpool pool, a new one if it was closed: as in DBUtils, a pool can be used again after close()."""
        if self._pool.closed:
            self._pool = self._make()
        return self._pool

    def connection(self, shareable: bool = True) -> PooledDedicatedDBConnection:  # noqa:ARG002  # DBUtils' interface
        """Return a connection. The caller returns it with its ``close()``, by a ``with`` block, or by dropping it.

        Raises:
            TooManyConnections: All are in use and *blocking* is false.
            PoolTimeout: No connection became free, or could be opened, in time.
            SwitchoverHoldTimeout: A switchover held the caller for the maximum time.
        """
        handle = PooledDedicatedDBConnection(self)
        try:
            if self._maxconnections and not self._blocking:
                self._take_place(handle)
            handle._con = self.pool.getconn()
            _lent[handle] = handle._con
            return handle
        except BaseException:
            self._out.discard(handle)
            raise

    def dedicated_connection(self) -> PooledDedicatedDBConnection:
        """Return a connection like connection()."""
        return self.connection()

    def steady_connection(self) -> PooledDedicatedDBConnection:
        """Return a connection that ``close()`` closes. It counts towards *maxconnections*."""
        connection = self.connection()
        connection.dbapi_connection.bgpool_unfit = True
        return connection

    def close(self) -> None:
        """Close idle connections; those in use are closed when they are returned. connection() opens a new pool."""
        self._pool.close()

    def after_fork_in_child(self) -> None:
        """Forget the parent's connections: they do not count in the child."""
        self._begin()

    def _take_place(self, handle: PooledDedicatedDBConnection) -> None:
        with self._lock:
            most, out = self._maxconnections, self._out
            # len() also counts dead references if an interrupt came before they were removed.
            if len(out) < most or sum(1 for _ in out) < most:
                out.add(handle)
                return
        raise TooManyConnections(
            CR.CR_CONN_HOST_ERROR,
            f"all maxconnections={most} are in use; return connections with close(), or set blocking=True to wait "
            "for one",
        )

    def _is_worn(self, connection: MysqlConnection) -> bool:
        """Return whether the returned *connection* exceeds *maxcached* or was lent *maxusage* times."""
        if self._maxusage:
            connection.bgpool_uses += 1
            if connection.bgpool_uses >= self._maxusage:
                return True
        inner = connection.bgpool_generation.inner
        return bool(self._maxcached) and inner.get_stats()["pool_available"] >= self._maxcached


class PooledDedicatedDBConnection:
    """One checkout: a PyMySQL connection until ``close()``, which returns it to the pool.

    All attributes that it lacks are the PyMySQL connection's. Its cursors keep it from being collected.

    Attributes:
        closed: True if it was returned, or the connection is broken or must not be used again.
    """

    _con: MysqlConnection | None = None

    def __init__(self, owner: PooledDB) -> None:
        """Created by PooledDB.connection(), which then sets its connection."""
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dbapi_connection, name)

    def __enter__(self) -> PooledDedicatedDBConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        connection = self._con
        if connection is None or sys.is_finalizing():
            return
        # In a thread, because the collector may have interrupted a thread that holds a lock, and a rollback takes time.
        # If no thread can be started, the end of the connection itself frees its slot.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(_give_back, (self._owner, connection))

    @property
    def dbapi_connection(self) -> MysqlConnection:
        """The PyMySQL connection.

        Raises:
            InvalidConnectionError: It was returned.
        """
        if self._con is None:
            raise InvalidConnectionError("the connection was returned by close(); get another one")
        return self._con

    @property
    def closed(self) -> bool:
        """True if it was returned, or the connection is broken or must not be used again."""
        return self._con is None or self._con.closed

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a PyMySQL cursor. Dropping the handle does not return the connection while the cursor exists."""
        cursor: Any = self.dbapi_connection.cursor(*args, **kwargs)
        cursor.bgpool_keeps = self
        return cursor

    def cancel(self) -> None:
        """Do nothing, as in DBUtils: PyMySQL cannot cancel."""

    def dbapi(self) -> Any:
        """Return the module ``pymysql``."""
        return pymysql

    def threadsafety(self) -> int:
        """Return PyMySQL's thread safety level."""
        return pymysql.threadsafety

    def close(self) -> None:
        """Roll back and return the connection; a second call does nothing."""
        # One atomic step of the interpreter: if two threads close it, only one returns it.
        connection = vars(self).pop("_con", None)
        if connection is not None:
            try:
                _give_back(self._owner, connection)
            finally:
                _lent.pop(self, None)
                self._owner._out.discard(self)


def _give_back(owner: PooledDB, connection: MysqlConnection) -> None:
    usable = connection.bgpool_is_open and not connection.bgpool_generation.inherited
    if usable and owner._is_worn(connection):
        connection.bgpool_unfit = True
    connection.close()


# -- DBUtils' arguments -----------------------------------------------------------------------------------------


def _whole(name: str, value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ConfigurationError(f"{name}={value!r}: a whole number from 0, or None, is allowed")
    return int(value)


def _target(creator: object, kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the DSN, and the options of get_pool in *kwargs*."""
    for name in ("min_size", "max_size", "close_returns"):
        if name in kwargs:
            raise ConfigurationError(f"{name}: PooledDB takes mincached and maxconnections, and close() gives back")
    parameters = mysql.renamed({name: kwargs[name] for name in kwargs if name in _PARAMETERS})
    options = {name: value for name, value in kwargs.items() if name not in _PARAMETERS}
    if any(creator is known for known in _PYMYSQL):
        creator = mysql.url_of(parameters)
    elif not isinstance(creator, str) or not creator.strip().startswith("mysql"):
        shown = "a text" if isinstance(creator, str) else repr(creator)
        raise ConfigurationError(
            f"creator={shown}: the module pymysql, pymysql.connect or a mysql:// URL is allowed; for PostgreSQL use "
            "bgpool.get_pool(dsn, close_returns=True)"
        )
    options["kwargs"] = {**(options.get("kwargs") or {}), **parameters}
    return creator, options


def _configure(setsession: Any, own: Callable[[Any], object] | None) -> Callable[[Any], None]:
    """Return the function that configures new connections. It is unique per PooledDB, so that each has its own pool."""
    given = [setsession] if isinstance(setsession, str) else setsession or ()
    statements = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(statement, str) for statement in statements):
        raise ConfigurationError(f"setsession={setsession!r}: a list of SQL statements is allowed")

    def configure(connection: Any) -> None:
        with Cursor(connection) as cursor:
            for statement in statements:
                cursor.execute(statement)
        if own is not None:
            own(connection)

    return configure


def _check(ping: object) -> Callable[[Any], None] | None:
    """Return the check of a connection that was idle; None for a ping."""
    flag, pinger = ping if isinstance(ping, tuple) and len(ping) == 2 else (ping, None)
    if pinger is None and (isinstance(flag, str) or callable(flag)):
        flag, pinger = 1, flag
    known = flag is None or isinstance(flag, int), pinger is None or isinstance(pinger, str) or callable(pinger)
    if not all(known):
        raise ConfigurationError(f"ping={ping!r}: a number, SQL, a function or a pair of a number and one is allowed")
    if flag and pinger is None:
        return None

    def check(connection: Any) -> None:
        alive = True
        if flag and callable(pinger):
            answer = pinger(connection)
            alive = answer is None or bool(answer)
        elif flag:
            with Cursor(connection) as cursor:
                cursor.execute(str(pinger))
        if not alive:
            raise pymysql.OperationalError(CR.CR_SERVER_GONE_ERROR, "the ping function says that it is not alive")

    return check
