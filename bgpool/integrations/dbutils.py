"""DBUtils' PooledDB on a bgpool pool. The import is the line that changes::

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

#: What PyMySQL's connect takes; every other keyword is get_pool's.
_PARAMETERS: Final = frozenset(inspect.signature(Connection.__init__).parameters) - {"self"}
_PYMYSQL: Final = (pymysql, pymysql.connect, Connection)

#: What handles have: whatever the collector finds, it finds the handle alone, and what that had comes back.
_lent: Final[WeakKeyDictionary[PooledDedicatedDBConnection, MysqlConnection]] = WeakKeyDictionary()


class TooManyConnections(TooManyRequests, TooManyConnectionsError):  # type: ignore[misc]  # DBUtils has no types
    """All ``maxconnections`` are in use, and ``blocking`` is false."""


class PooledDB:
    """DBUtils' PooledDB for MySQL: connections that ``close()`` gives back.

    Attributes:
        pool: The bgpool pool underneath, for ``run()``, ``stats()`` and the rest.
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
        """A pool that connects at its first checkout.

        Args:
            creator: The module ``pymysql``, its ``connect``, or a ``mysql://`` URL.
            mincached: Connections that are kept open, >= 0.
            maxcached: Connections that may be idle; another one that comes back is closed. 0 for any number.
            maxshared: Raises *maxconnections*. PyMySQL's connections are never shared, in DBUtils neither.
            maxconnections: Connections at most; 0 for as many as the server lets in.
            blocking: Wait for a free connection, up to ``timeout`` (30 s), instead of raising TooManyConnections.
            maxusage: How often a connection is lent before it is replaced; 0 or None for any number.
            setsession: SQL statements for every new connection.
            reset: True, False and None are the same: an open transaction is rolled back. ``"session"`` or a function
                as for get_pool.
            failures: Not used: no statement is ever sent a second time.
            ping: 0 for no check of a connection that was idle before it is lent; SQL or a function for another check
                than a ping. DBUtils' other numbers, and a pair of number and check, are understood.
            isfatal: Not used, as *failures*.
            kwargs: PyMySQL's connection parameters, ``bg_id`` and the other ``bg_`` parameters, and options of
                get_pool such as ``timeout``.

        Raises:
            ConfigurationError: Another driver, or a value that cannot be used.
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
            # In a thread, because the collector may have interrupted one that holds a lock. Waits for nothing.
            with contextlib.suppress(RuntimeError):
                _thread.start_new_thread(pool.close, (0,))

    def _begin(self) -> None:
        # Handles that are in use. One that is gone, be it by an interrupt, counts no longer; what it had is on its way
        # back, and the pool waits for it.
        self._out: WeakSet[PooledDedicatedDBConnection] = WeakSet()
        self._lock = threading.Lock()

    @property
    def pool(self) -> Pool[Any]:
        """The bgpool pool; another one once that was closed, as DBUtils' goes on after close()."""
        if self._pool.closed:
            self._pool = self._make()
        return self._pool

    def connection(self, shareable: bool = True) -> PooledDedicatedDBConnection:  # noqa:ARG002  # DBUtils' interface
        """A connection, to be given back with its ``close()``, by a ``with`` block, or by dropping it.

        Raises:
            TooManyConnections: All are in use and *blocking* is false.
            PoolTimeout: None became free, or could be opened, in time.
            SwitchoverHoldTimeout: Held by a switchover for as long as it may be.
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
        """The same as connection()."""
        return self.connection()

    def steady_connection(self) -> PooledDedicatedDBConnection:
        """A connection that ``close()`` closes. It counts as one of *maxconnections*."""
        connection = self.connection()
        connection.dbapi_connection.bgpool_unfit = True
        return connection

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back. connection() begins again."""
        self._pool.close()

    def after_fork_in_child(self) -> None:
        """The parent's connections take no places here."""
        self._begin()

    def _take_place(self, handle: PooledDedicatedDBConnection) -> None:
        with self._lock:
            most, out = self._maxconnections, self._out
            # len() counts the dead, too, where an interrupt came before they were taken out.
            if len(out) < most or sum(1 for _ in out) < most:
                out.add(handle)
                return
        raise TooManyConnections(
            CR.CR_CONN_HOST_ERROR,
            f"all maxconnections={most} are in use; give connections back with close(), or set blocking=True to wait "
            "for one",
        )

    def _is_worn(self, connection: MysqlConnection) -> bool:
        """Whether *connection*, which comes back, is one too many or was lent often enough."""
        if self._maxusage:
            connection.bgpool_uses += 1
            if connection.bgpool_uses >= self._maxusage:
                return True
        inner = connection.bgpool_generation.inner
        return bool(self._maxcached) and inner.get_stats()["pool_available"] >= self._maxcached


class PooledDedicatedDBConnection:
    """One checkout: a PyMySQL connection until ``close()``, which gives it back, and nothing after that.

    Whatever it does not have itself is the PyMySQL connection's. Its cursors keep it from being collected.

    Attributes:
        closed: Whether it was given back, or the connection is broken or must not be used again.
    """

    _con: MysqlConnection | None = None

    def __init__(self, owner: PooledDB) -> None:
        """Made by PooledDB.connection(), which then gives it its connection."""
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
        # In a thread, because the collector may have interrupted one that holds a lock, and to roll back takes time.
        # Where no thread is to be had, the connection's own end frees its slot.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(_give_back, (self._owner, connection))

    @property
    def dbapi_connection(self) -> MysqlConnection:
        """The PyMySQL connection.

        Raises:
            InvalidConnectionError: It was given back.
        """
        if self._con is None:
            raise InvalidConnectionError("the connection was given back by close(); take another one")
        return self._con

    @property
    def closed(self) -> bool:
        """Whether it was given back, or the connection is broken or must not be used again."""
        return self._con is None or self._con.closed

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """A PyMySQL cursor; the connection is not given back by dropping it while the cursor is there."""
        cursor: Any = self.dbapi_connection.cursor(*args, **kwargs)
        cursor.bgpool_keeps = self
        return cursor

    def cancel(self) -> None:
        """Nothing, as with DBUtils: PyMySQL cannot cancel."""

    def dbapi(self) -> Any:
        """The module ``pymysql``."""
        return pymysql

    def threadsafety(self) -> int:
        """PyMySQL's."""
        return pymysql.threadsafety

    def close(self) -> None:
        """Give the connection back, rolled back; does nothing the second time."""
        # One step for the interpreter: of two threads that close it, one gives it back.
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


# -- what DBUtils' arguments mean --------------------------------------------------------------------------------


def _whole(name: str, value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ConfigurationError(f"{name}={value!r}: a whole number from 0, or None, is allowed")
    return int(value)


def _target(creator: object, kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The DSN, and the options of get_pool that *kwargs* are."""
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
    """What is done to every new connection. A function of its own for each PooledDB, which so has a pool of its own."""
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
    """The check of a connection that was idle; None for a ping."""
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
