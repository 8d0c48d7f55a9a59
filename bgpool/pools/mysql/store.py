"""The pool under a MySQL pool: it opens, checks, resets and replaces connections.

No lock is held during communication with a server, and every wait has an end.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from pymysql.constants import CR

from bgpool.core.limits import (
    CHECK_AFTER_IDLE_S,
    CHECK_TIMEOUT_S,
    KEEP_INTERVAL_S,
    LIFETIME_JITTER,
    RECONNECT_INTERVAL_MAX_S,
    RECONNECT_INTERVAL_S,
)
from bgpool.errors import PoolClosed, PoolTimeout, TooManyRequests
from bgpool.failures import first_line
from bgpool.pools.mysql.connection import MysqlConnection
from bgpool.pools.mysql.slots import Slot, Slots, Waiter
from bgpool.signals import refusing

__all__ = ["Store"]

Hook = Callable[[MysqlConnection], object]


class Store:
    """Between *min_size* and *max_size* connections, each lent to one caller at a time; first come, first served.

    Attributes:
        timeout: The default of the longest wait for a connection, in seconds.
        close_returns: True if close() of a connection returns it, provided that it can be used again.
        failure: The reason for which the last attempt to open a connection failed; empty once one was opened.
        opened_by_callers: True if callers may open connections. Not if a function of the user is called for each,
            because that may take any time.
    """

    def __init__(
        self,
        connector: Any,
        *,
        min_size: int = 4,
        max_size: int | None = None,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        configure: Hook | None = None,
        check: Hook | None = None,
        reset: Hook | None = None,
        close_returns: bool = False,
        name: str | None = None,
    ) -> None:
        """Create a store, not open yet, whose connections ``connector.connect()`` opens.

        Args:
            connector: The object that connects.
            min_size: The number of connections that are kept open, >= 0.
            max_size: The maximum number of connections; None for *min_size*, which must then be above 0.
            timeout: The default of the longest wait for a connection, in seconds.
            max_waiting: The maximum of callers that wait at a time; 0 for no limit.
            max_lifetime: The age at which a connection is replaced, in seconds, less up to a tenth.
            max_idle: The time after which an unused connection above *min_size* is closed, in seconds.
            configure: Called with every new connection.
            check: Called with a connection that was idle, before it is handed out; raises if it is not fit. None for a
                ping.
            reset: Called with every returned connection, after the rollback.
            close_returns: True if close() of a connection returns it, provided that it can be used again.
            name: The name in thread names.

        Raises:
            ValueError: A number is out of range.
        """
        most = min_size if max_size is None else max_size
        if min_size < 0 or most < max(1, min_size):
            raise ValueError(f"max_size={most} must be at least 1 and at least min_size={min_size}")
        if max_waiting < 0 or max_lifetime <= 0 or max_idle <= 0 or timeout < 0:
            raise ValueError("max_waiting and timeout must be >= 0, max_lifetime and max_idle > 0")
        self.timeout: float = timeout
        self.close_returns: bool = close_returns
        self.opened_by_callers = configure is None
        self.num_workers = 1
        self.max_size: Final = most
        self.failure = ""
        self._connector: Final = connector
        self._max_waiting: Final = max_waiting
        self._max_lifetime_s: Final = max_lifetime
        self._max_idle_s: Final = max_idle
        self._configure: Final = configure
        self._check: Final[Hook] = check or MysqlConnection.ping
        self._reset: Final = reset
        self._name: Final = name or "mysql"
        self._lock: Final = threading.Lock()
        self._slots: Final = Slots(min_size, most)
        self._ending: Final = threading.Event()
        # Without a keeper no connection is opened: it retries when no thread could be started.
        self._keeper: threading.Thread | None = None
        self._keeper_due: Final = threading.Event()

    def __repr__(self) -> str:
        has = self._slots
        return f"<Store {self._name} size={has.size()} idle={len(has.idle)} waiting={len(has.waiters)}>"

    # -- checkout and return -------------------------------------------------------------------------------------

    def getconn(self, timeout: float | None = None) -> MysqlConnection:
        """Return a fit connection within *timeout* seconds; None for the store's own.

        Raises:
            PoolTimeout: There was none in time.
            TooManyRequests: max_waiting callers wait already.
            PoolClosed: The store was closed, perhaps during the wait.
        """
        timeout_s = self.timeout if timeout is None else timeout
        return self._get(timeout_s, time.monotonic() + timeout_s)

    def _get(self, timeout_s: float, deadline: float) -> MysqlConnection:
        while True:
            connection = self._take(timeout_s, deadline)
            try:
                self._make_sure(connection, deadline)
            except BaseException as error:
                self._drop(connection, "connections_lost", error)
                if not isinstance(error, Exception):
                    raise  # an interrupt, or a time limit of gevent's
            else:
                return connection

    def fetch(self, timeout: float, openers: int) -> MysqlConnection:
        """Like getconn; but a caller opens a connection itself if no thread has begun to.

        The other callers follow the first one. Otherwise a thread would have to be started, and its caller woken, while
        all processes of the host need the cores.

        Args:
            timeout: The longest wait in seconds, the attempt to connect included.
            openers: The maximum of callers that may be connecting at a time.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            slot = self._slots.claim_first(openers) if self._keeper is None else None
        if slot is not None:
            try:
                self._open_here(slot, timeout)
            finally:
                self._begin_opening()
        return self._get(timeout, deadline)

    def putconn(self, conn: MysqlConnection) -> None:
        """Take a connection back: roll back and reset it, or close it if it is no longer fit."""
        if self._keeper is None:
            # A caller has opened this connection.
            self._begin_keeping()
        try:
            fit = conn.bgpool_is_open and not self._slots.closed and time.monotonic() < conn.bgpool_expires_at
            if fit:
                conn.bgpool_clean()
                if self._reset is not None:
                    self._reset(conn)
                    fit = conn.bgpool_is_open and not conn.bgpool_in_transaction
        except BaseException as error:
            self._drop(conn, "returns_bad", error)
            if not isinstance(error, Exception):
                raise
            return
        if fit:
            self._arrive(conn)
        else:
            self._drop(conn, "" if conn.bgpool_is_open else "returns_bad")

    #: The common name in drivers' pools; psycopg_pool's own name is putconn.
    keep = putconn

    def replace(self, conn: MysqlConnection) -> None:
        """Free the slot of a closed connection, and open another one if it is needed."""
        self._drop(conn, "")

    def _make_sure(self, connection: MysqlConnection, deadline: float) -> None:
        """Check a connection that was idle for long, or whose server has sent data; raise if it is not fit."""
        idle_s = time.monotonic() - connection.bgpool_idle_since
        if idle_s >= CHECK_AFTER_IDLE_S or connection.bgpool_is_readable():
            with connection.bounded(min(CHECK_TIMEOUT_S, max(0.001, deadline - time.monotonic()))):
                self._check(connection)

    def _take(self, timeout_s: float, deadline: float) -> MysqlConnection:
        slots = self._slots
        waiter: Waiter | None = None
        try:
            with self._lock:
                slots.counts["requests_num"] += 1
                if slots.closed:
                    raise PoolClosed(CR.CR_CONN_HOST_ERROR, f"the pool {self._name!r} is closed")
                if slots.idle:
                    return slots.idle.popleft()
                waiting = len(slots.waiters)
                if self._max_waiting and waiting >= self._max_waiting:
                    slots.counts["requests_errors"] += 1
                    text = f"the pool {self._name!r} has {waiting} requests waiting already"
                    raise TooManyRequests(CR.CR_CONN_HOST_ERROR, text)
                slots.counts["requests_queued"] += 1
                waiter = Waiter()
                slots.waiters.append(waiter)
            self._wait_answered(waiter, deadline)
            return self._answer_of(waiter, timeout_s)
        except BaseException:
            if waiter is not None:
                self._leave_queue(waiter)
            raise

    def _wait_answered(self, waiter: Waiter, deadline: float) -> None:
        """Wait until *waiter* has its answer, the store was closed, or *deadline* is reached; open what is needed."""
        while not self._begin_keeping():
            left_s = max(0.0, deadline - time.monotonic())
            if waiter.wait(min(left_s, RECONNECT_INTERVAL_MAX_S)) or not left_s:
                return
        self._begin_opening()
        waiter.wait(max(0.0, deadline - time.monotonic()))

    def _answer_of(self, waiter: Waiter, timeout_s: float) -> MysqlConnection:
        """Return the connection that *waiter* was given, after the wait; raise like getconn."""
        with self._lock:
            if waiter.connection is not None:
                return waiter.connection
            if self._slots.closed:
                raise PoolClosed(CR.CR_CONN_HOST_ERROR, f"the pool {self._name!r} was closed while its callers waited")
            self._slots.leave_queue(waiter)
            self._slots.counts["requests_errors"] += 1
        raise PoolTimeout(CR.CR_CONN_HOST_ERROR, f"couldn't get a connection after {timeout_s:.2f} sec")

    def _leave_queue(self, waiter: Waiter) -> None:
        """Handle an interrupted caller; a connection that it may have been given goes to the next one."""
        with self._lock:
            given = self._slots.leave_queue(waiter)
        if given is not None:
            self._arrive(given)

    def _arrive(self, connection: MysqlConnection, *, opened: bool = False) -> None:
        """Hand *connection* to the caller that has waited longest, or keep it."""
        connection.bgpool_idle_since = time.monotonic()
        slots = self._slots
        with self._lock:
            if opened and connection.bgpool_slot is not None:
                slots.opening.discard(connection.bgpool_slot)
                slots.counts["connections_num"] += 1
                self.failure = ""
            if slots.put(connection):
                return
            slots.free(connection.bgpool_slot)
        self._discard(connection)

    def _drop(self, connection: MysqlConnection, count: str, error: BaseException | None = None) -> None:
        """Close *connection*, and open another one if callers wait."""
        with self._lock:
            self._slots.free(connection.bgpool_slot)
            if count:
                self._slots.counts[count] += 1
            self.failure = first_line(error) if error is not None else self.failure
        try:
            self._discard(connection)
        finally:
            self._begin_opening()

    @staticmethod
    def _discard(connection: MysqlConnection) -> None:
        """Close *connection*, whose slot is free."""
        connection.bgpool_slot = None
        connection.bgpool_discard()

    # -- opening -------------------------------------------------------------------------------------------------

    def _begin_opening(self) -> bool:
        """Open as many connections as are needed; return False if a thread was missing and the keeper must retry.

        Each has a thread of its own, so that no caller waits for a slow host in a queue, and a returned connection can
        serve instead.
        """
        claimed: list[Slot] = []
        try:
            with self._lock:
                self._slots.claim_needed(claimed)
            for slot in claimed:
                _thread("open", self._name, self._open_one, slot).start()
        except BaseException as error:
            # After an interrupt it is unknown which threads have started: each slot is freed by the thread that gets
            # its claim.
            with self._lock:
                for slot in claimed:
                    if slot.claim.acquire(blocking=False):
                        self._slots.free(slot)
            self._keeper_due.set()
            if not isinstance(error, _NO_THREAD):
                raise
            self.failure = first_line(error)
            return False
        return True

    def _open_one(self, slot: Slot) -> None:
        """Open a connection for *slot*, with as many attempts as needed while a caller waits."""
        if not slot.claim.acquire(blocking=False):
            return
        pause_s = RECONNECT_INTERVAL_S
        while True:
            began = time.monotonic()
            try:
                connection = self._connect()
            except BaseException as error:
                if not self._is_worth_trying_again(slot, error):
                    return
                self._ending.wait(pause_s)
                pause_s = min(2 * pause_s, RECONNECT_INTERVAL_MAX_S)
                continue
            self._admit(connection, slot, began)
            return

    def _open_here(self, slot: Slot, timeout: float) -> None:
        """Try once to open a connection for *slot*, in the caller's thread; another thread continues if that fails."""
        began = time.monotonic()
        try:
            with self._connector.within(timeout):
                connection = self._connect()
        except BaseException as error:
            with self._lock:
                self._note_failure(error)
                self._slots.free(slot)
            if not isinstance(error, Exception):
                raise
            return
        self._admit(connection, slot, began)

    def _connect(self) -> MysqlConnection:
        """Return a new, configured connection."""
        connection: MysqlConnection = self._connector.connect()
        if self._configure is not None:
            try:
                self._configure(connection)
                connection.bgpool_clean()
            except BaseException:
                connection.bgpool_discard()
                raise
        return connection

    def _admit(self, connection: MysqlConnection, slot: Slot, began: float) -> None:
        """Accept *connection*, which was opened for *slot* since *began*."""
        now = time.monotonic()
        self._slots.counts["connections_ms"] += int(1000 * (now - began))
        connection.bgpool_expires_at = now + self._max_lifetime_s * (1 - LIFETIME_JITTER * random.random())
        connection.bgpool_slot = slot
        self._arrive(connection, opened=True)

    def _note_failure(self, error: BaseException) -> None:
        """Record that a connection could not be opened. The lock must be held."""
        self._slots.counts["connections_num"] += 1
        self._slots.counts["connections_errors"] += 1
        self.failure = first_line(error)

    def _is_worth_trying_again(self, slot: Slot, error: BaseException) -> bool:
        slots = self._slots
        with self._lock:
            self._note_failure(error)
            if not slots.closed and slots.waiters and isinstance(error, Exception):
                return True
            # The keeper retries for min_size.
            slots.free(slot)
            return False

    # -- life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to keep min_size connections; idempotent. If no thread can be started now, a checkout retries.

        Raises:
            PoolClosed: It was closed before.
        """
        self.open_lazily()
        self.begin()

    def open_lazily(self) -> None:
        """Open without starting to connect: that is left to callers, which call fetch() immediately, or to begin().

        Raises:
            PoolClosed: The same as in open().
        """
        with self._lock:
            if self._ending.is_set():
                raise PoolClosed(CR.CR_CONN_HOST_ERROR, f"the pool {self._name!r} is closed")
            self._slots.closed = False

    def begin(self) -> None:
        """Start threads that open the missing connections, as far as that has not begun; idempotent."""
        if self._keeper is None and self._begin_keeping():
            self._begin_opening()

    def close(self, timeout: float = 5.0) -> None:
        """Close idle connections and send waiting callers away; connections in use are closed at their return.

        Args:
            timeout: The longest wait for the store's keeper thread, in seconds. It does not wait for connecting
                threads.
        """
        with self._lock:
            self._ending.set()
            waiters, idle = self._slots.close()
        self._keeper_due.set()
        for waiter in waiters:
            waiter.answer(None)
        for connection in idle:
            self._discard(connection)
        keeper = self._keeper
        if keeper is not None and keeper.is_alive():
            keeper.join(timeout)

    def get_stats(self) -> dict[str, int]:
        """Return its figures, under psycopg_pool's names."""
        with self._lock:
            return self._slots.stats()

    def forget_who_gave_up(self) -> None:
        """Do nothing: such callers leave the queue by themselves."""

    def _begin_keeping(self) -> bool:
        """Start the keeper unless it is running; return whether it is."""
        with self._lock:
            if self._keeper is not None or self._slots.closed:
                return True
            keeper = self._keeper = _thread("keep", self._name, self._keep)
        try:
            keeper.start()
        except BaseException as error:
            # If the start was interrupted but succeeded, there will be two keepers, which do not disturb each other.
            self._keeper = None
            if not isinstance(error, _NO_THREAD):
                raise
            self.failure = first_line(error)
            return False
        return True

    def _keep(self) -> None:
        """Replace old connections, close unneeded ones, and open those that min_size or waiting callers need."""
        interval_s = min(KEEP_INTERVAL_S, self._max_idle_s / 2, self._max_lifetime_s / 2)
        try:
            while True:
                self._keeper_due.wait(interval_s)
                self._keeper_due.clear()
                if self._ending.is_set():
                    return
                self._tidy()
                if not self._begin_opening():
                    self._ending.wait(RECONNECT_INTERVAL_MAX_S)
        finally:
            self._keeper = None

    def _tidy(self) -> None:
        with self._lock:
            leaving = self._slots.take_unneeded(time.monotonic(), self._max_idle_s)
        for connection in leaving:
            self._discard(connection)


#: The errors of a thread that cannot be started.
_NO_THREAD: Final = (RuntimeError, MemoryError)


def _thread(purpose: str, name: str, run: Callable[..., object], *args: object) -> threading.Thread:
    return threading.Thread(target=refusing(run), args=args, name=f"bgpool-{purpose}-{name}", daemon=True)
