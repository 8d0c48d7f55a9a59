"""The pool under an AsyncPool: psycopg_pool's AsyncConnectionPool, in one event loop.

It hands out no connection that was retired while its caller waited. It takes every connection back, whatever happens to
the task that returns it. It ends with its loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool
from psycopg_pool.pool_async import AddConnection, MaintenanceTask, ReturnConnection, WaitingClient

from bgpool.core.limits import RECONNECT_INTERVAL_MAX_S, RECONNECT_INTERVAL_S
from bgpool.failures import first_line
from bgpool.logs import log_fields
from bgpool.pools.loops import LoopTurns, begin, cancels, is_ours, running_loop, whole
from bgpool.pools.postgres.inner import ReconnectBackoff, note_connected, watch_log
from bgpool.pools.waits import finish, settled

__all__ = ["AsyncInnerPool"]

_logger: Final = logging.getLogger("bgpool.pool")

#: psycopg_pool's own default.
_WORKERS: Final = 3
#: The time by which a loop's timer may be early.
_CLOCK_S: Final = 0.01
#: Errors that end only the code that raised them, or that are asyncio's and Python's own.
_PASSED_ON: Final = (Exception, asyncio.CancelledError, GeneratorExit)
_HOOKS: Final = ("configure", "check", "reset", "reconnect_failed")


class Dialer(Protocol):
    """The object that opens the connections: a generation."""

    retired: bool

    async def aconnect(self, _conninfo: str = "", **kwargs: Any) -> Any:
        """Return a new connection."""
        ...


class AsyncInnerPool:
    """The interface of a driver's pool for a generation, see DriversPool.

    ``getconn`` and ``keep`` are coroutine functions. The other methods may be called in any thread. The pool starts in
    the loop that opens it, and belongs to that loop.
    """

    opened_by_callers = False

    def __init__(self, dialer: Dialer, options: dict[str, Any]) -> None:
        """Create a pool that is not open yet; *options* are AsyncConnectionPool's."""
        self._pool: Final = _Pool(dialer, options)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.timeout = self._pool.timeout
        self.close_returns = self._pool.close_returns
        self.num_workers = self._pool.num_workers
        self.getconn: Final = self._pool.getconn
        self.keep: Final = self._pool.keep

    @property
    def max_size(self) -> int:
        """See DriversPool."""
        return self._pool.max_size

    @property
    def failure(self) -> str:
        """See DriversPool."""
        return self._pool.failure

    @failure.setter
    def failure(self, text: str) -> None:
        self._pool.failure = text

    def open(self) -> None:
        """Start connecting, in the running loop; idempotent."""
        if self.loop is None:
            self.loop = running_loop()
            self._pool.begin()

    def tasks(self) -> set[asyncio.Task[Any]]:
        """Return its tasks in the running loop."""
        return self._pool.tasks if self._is_here() else set()

    def replace(self, conn: Any) -> None:
        """See DriversPool."""
        self._in_loop(self._pool.replace, conn)

    def close(self, timeout: float = 0) -> None:  # noqa:ARG002  # it does not wait
        """Close the pool in its loop, or immediately if the loop no longer runs."""
        if self.loop is None or not self.loop.is_running():
            self._pool.abandon()
        self._in_loop(self._pool.end)

    def get_stats(self) -> dict[str, int]:
        """See DriversPool."""
        return self._pool.get_stats()

    def forget_who_gave_up(self) -> None:
        """See DriversPool."""
        self._pool.forget_who_gave_up()

    def _in_loop(self, function: Callable[..., object], *args: Any) -> None:
        if self._is_here():
            function(*args)
        elif self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self.loop.call_soon_threadsafe(function, *args)

    def _is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False


class _Pool(ReconnectBackoff, AsyncConnectionPool[Any]):
    def __init__(self, dialer: Dialer, options: dict[str, Any]) -> None:
        self._dialer: Final = dialer
        self.tasks: Final[set[asyncio.Task[Any]]] = set()
        self._timers: Final[dict[MaintenanceTask, asyncio.TimerHandle]] = {}
        self._turns: Final = LoopTurns(options.get("num_workers", _WORKERS))
        hooks = {name: _awaited(options[name]) for name in _HOOKS if options.get(name) is not None}
        super().__init__("", **{**options, **hooks, "open": False, "connection_class": _Connector(dialer)})
        watch_log(self.name)

    # -- checkout and return -------------------------------------------------------------------------------------

    async def _getconn_with_check_loop(self, deadline: float) -> Any:
        pause_s = RECONNECT_INTERVAL_S
        while True:
            if self._pool and time.monotonic() < deadline:
                # Like psycopg_pool, but without the lock: no other task of this loop runs before the next await.
                connection = self._pool.popleft()
                self._nconns_min = min(self._nconns_min, len(self._pool))
                connection._pool = self
            else:
                connection = await self._getconn_unchecked(deadline - time.monotonic())
            if self._check and not (self._dialer.retired or connection.bgpool_cut):
                try:
                    await self._check(connection)
                except BaseException as error:
                    await whole(self._putconn(connection, from_getconn=True))
                    if not isinstance(error, Exception):
                        # The first versions of psycopg_pool 3.3 would look for another connection here.
                        raise
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, RECONNECT_INTERVAL_MAX_S)
                    continue
            if not (self._dialer.retired or connection.bgpool_cut):
                return connection
            # psycopg_pool does not notice that an idle connection was cut, nor that the pool is about to be closed.
            connection.bgpool_discard()
            self.replace(connection)
            if self._dialer.retired:
                # The request was not served.
                self._stats[self._REQUESTS_ERRORS] += 1
                raise psycopg_pool.PoolClosed(f"the pool {self.name!r} is retired")

    async def _getconn_unchecked(self, timeout: float) -> Any:
        # Like AsyncConnectionPool's, with another kind of place in the queue.
        async with self._lock:
            connection = await self._get_ready_connection(timeout)
            if connection is None:
                place = _Place(timeout)
                self._waiting.append(place)
                self._stats[self._REQUESTS_QUEUED] += 1
                self._maybe_grow_pool()
        if connection is None:
            began = time.monotonic()
            try:
                connection = await place.wait()
            except BaseException:
                self._stats[self._REQUESTS_ERRORS] += 1
                if place.conn is not None:
                    # The task was cancelled just after it got the connection.
                    self.run_task(ReturnConnection(self, place.conn, from_getconn=True))
                else:
                    with contextlib.suppress(ValueError):
                        self._waiting.remove(place)
                raise
            finally:
                self._stats[self._REQUESTS_WAIT_MS] += int(1000 * (time.monotonic() - began))
        connection._pool = self
        return connection

    #: The function that takes back a usable connection.
    keep = AsyncConnectionPool.putconn

    async def putconn(self, conn: Any) -> None:
        """Return *conn* as AsyncPool.putconn does; for callers of ``conn._pool.putconn(conn)``.

        Raises:
            ValueError: *conn* was not checked out from a pool of this process, or was returned before.
        """
        if not hasattr(conn, "bgpool_generation"):
            raise ValueError(f"{conn!r} was not checked out from the pool {self.name!r}")
        await whole(conn.bgpool_generation.atake_back(conn))

    async def _putconn(self, conn: Any, from_getconn: bool) -> None:
        is_idle = conn.pgconn.transaction_status == TransactionStatus.IDLE
        if is_idle and not (self._reset or self._waiting or self._closed) and time.monotonic() < conn._expire_at:
            # Like psycopg_pool, but without the lock.
            conn._pool = None
            self._pool.append(conn)
            return
        returning = super()._putconn(conn, from_getconn)
        if is_idle and not self._lock.locked():
            # It never suspends, so it cannot be cancelled: a place in the queue gets its connection immediately.
            await returning
        else:
            await whole(returning)

    def _maybe_grow_pool(self) -> None:
        if not self._closed:
            super()._maybe_grow_pool()
            return
        # The pool was closed while a caller was about to join the queue. It would wait for its whole timeout.
        while self._waiting:
            finish(self._waiting.popleft().fail(self._closed_error()))

    # -- connecting ----------------------------------------------------------------------------------------------

    async def _connect(self, timeout: float | None = None) -> Any:
        try:
            connection = await super()._connect(timeout)
        except BaseException as error:
            self.failure = first_line(error)
            if isinstance(error, _PASSED_ON):
                raise
            raise psycopg.OperationalError(f"connecting was ended by {self.failure}") from error
        self.failure = ""
        note_connected(self.name)
        return connection

    def replace(self, conn: Any) -> None:
        conn._pool = None
        if not self._closed:
            self.run_task(AddConnection(self))

    # -- life ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Like AsyncConnectionPool.open, which does not wait either."""
        self._open()

    # Each piece of work is a task of its own, with as many at a time as there would be workers. The loop's timers
    # replace the scheduler. psycopg_pool's workers would treat a CancelledError as a failure of their current work and
    # continue, its scheduler may miss one, and a loop that ends its tasks waits for all of them.

    def _start_workers(self) -> None:
        """Start no workers, and no scheduler."""

    def run_task(self, task: MaintenanceTask) -> None:
        """Do *task* soon; but not for a cancelled task of bgpool, after which no further work may follow."""
        current = asyncio.current_task()
        if current is not None and is_ours(current) and cancels(current):
            return
        work = begin(self._work(task), name=f"{self.name}-work")
        self.tasks.add(work)
        work.add_done_callback(self.tasks.discard)
        if isinstance(task, ReturnConnection):
            work.add_done_callback(functools.partial(self._forget, task.conn))

    async def schedule_task(self, task: MaintenanceTask, delay: float) -> None:
        """Do *task* after *delay* seconds; an attempt to connect pauses for less time while a caller waits."""
        self._later(task, time.monotonic() + delay)

    def _later(self, task: MaintenanceTask, at: float) -> None:
        left_s = at - time.monotonic()
        if isinstance(task, AddConnection):
            left_s = min(left_s, RECONNECT_INTERVAL_MAX_S)
        self._timers[task] = asyncio.get_running_loop().call_later(left_s, self._due, task, at)

    def _due(self, task: MaintenanceTask, at: float) -> None:
        del self._timers[task]
        early = isinstance(task, AddConnection) and self.may_try_early()
        if early or time.monotonic() >= at - _CLOCK_S:
            self.run_task(task)
        else:
            self._later(task, at)

    async def _work(self, task: MaintenanceTask) -> None:
        await self._turns.acquire(None)
        try:
            await task.run()
        except Exception as error:
            extra = log_fields("pool_task_failed", host=self.name)
            text = "pool %s: the background task %r failed: %s: %s"
            _logger.warning(text, self.name, task, type(error).__name__, error, extra=extra)
        finally:
            self._turns.release()

    def _forget(self, connection: Any, work: asyncio.Task[None]) -> None:
        """Close *connection* if *work*, which was to return it, ended before that."""
        if self._closed or work.cancelled():
            connection.bgpool_discard()

    def end(self) -> None:
        """Close idle connections, send waiting callers away, stop all work. Must be called in the loop."""
        for place in self.abandon():
            finish(place.fail(self._closed_error()))
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in self.tasks:
            task.cancel()

    def abandon(self) -> list[Any]:
        """Do the part of end() that needs no loop; return the places of waiting callers."""
        self._closed = True
        waiting, idle = list(self._waiting), list(self._pool)
        self._waiting.clear()
        self._pool.clear()
        for connection in idle:
            connection.bgpool_discard()
        return waiting

    def _closed_error(self) -> Exception:
        return psycopg_pool.PoolClosed(f"the pool {self.name!r} is closed")


class _Place(WaitingClient[Any]):
    """A caller's place in the queue for a connection, which it leaves as soon as it gives up.

    psycopg_pool's place keeps a task, and stays in the queue. Before Python 3.12, a cancellation that arrives together
    with the connection is lost there, so that the caller continues.
    """

    __slots__ = ("_come", "_timeout")

    def __init__(self, timeout: float) -> None:
        self.conn = self.error = None
        self._timeout: Final = timeout
        self._come: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()

    async def wait(self, timeout: float = math.inf) -> Any:  # noqa:ARG002  # it has run since the creation
        """Return the connection, once there is one.

        Raises:
            PoolTimeout: There was none in time.
            Exception: The argument of fail().
        """
        timer = self._come.get_loop().call_later(self._timeout, self._give_up)
        try:
            await self._come
        finally:
            timer.cancel()
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                # Otherwise its own traceback would keep it alive.
                del error
        return self.conn

    async def set(self, conn: Any) -> bool:
        """Hand over *conn*; return whether it was accepted. Never suspends."""
        if self._come.done():
            return False
        self.conn = conn
        self._come.set_result(None)
        return True

    async def fail(self, error: Exception) -> bool:
        """Do the same with an error."""
        if self._come.done():
            return False
        self.error = error
        self._come.set_result(None)
        return True

    def _give_up(self) -> None:
        # Its text is AsyncConnectionPool's.
        finish(self.fail(psycopg_pool.PoolTimeout()))


class _Connector:
    """The part of a connection class that AsyncConnectionPool uses."""

    def __init__(self, dialer: Dialer) -> None:
        self.connect: Final = getattr(dialer, "aconnect", None)


def _awaited(hook: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Return *hook* as a coroutine function whose SystemExit or the like does not end the calling task."""

    # psycopg_pool uses the hook's name when it reports a problem with one.
    @functools.wraps(hook)
    async def call(subject: Any) -> None:
        try:
            await settled(hook(subject))
        except _PASSED_ON:
            raise
        except BaseException as error:
            raise RuntimeError(f"{hook!r} raised {type(error).__name__}") from error

    return call
