"""The pool under a PostgreSQL pool: psycopg_pool's, with no way back into it that bypasses bgpool.

It reports the reason for a lack of connections, and retries while a caller waits. psycopg_pool alone pauses for 1, 2, 4
... seconds after a failed attempt to connect, and reports the reason only in its log.
"""

from __future__ import annotations

import contextlib
import logging
import time
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed
from psycopg_pool.pool import AddConnection, MaintenanceTask, Schedule, ShrinkPool

from bgpool.core.limits import LOG_REPEAT_S, RECONNECT_INTERVAL_MAX_S
from bgpool.failures import first_line
from bgpool.signals import refusing

__all__ = ["InnerPool", "ReconnectBackoff", "note_connected", "watch_log"]


class ReconnectBackoff:
    """The mixin in front of a pool of psycopg_pool's: the time at which a failed attempt is repeated, and its reason.

    Attributes:
        failure: The reason for which the last attempt to open a connection failed; empty once one was opened.
    """

    failure: str = ""
    _early_at: float = 0.0

    def may_try_early(self) -> bool:
        """Return whether an attempt to connect has paused enough: it may succeed, or a caller waits.

        While all attempts fail, one in RECONNECT_INTERVAL_MAX_S is enough for all waiting callers.
        """
        if not self.failure:
            return True
        pool: Any = self
        now = time.monotonic()
        if now < self._early_at or not pool._waiting:
            return False
        self._early_at = now + RECONNECT_INTERVAL_MAX_S
        return True

    def forget_who_gave_up(self) -> None:
        """Remove callers that have timed out from the queue: psycopg_pool counts them until a connection arrives."""
        pool: Any = self
        waiting = [client for client in pool._waiting if client.error is None]
        pool._waiting.clear()
        pool._waiting.extend(waiting)


class InnerPool(ReconnectBackoff, ConnectionPool[Any]):
    """psycopg_pool's pool. Its connections are closed by bgpool's rules, even if psycopg_pool is called directly.

    After a release the first connection is opened by the caller that needs it. Otherwise a thread of psycopg_pool's
    would have to be started, and would have to wake the caller, while all processes of the host need the same cores.
    """

    opened_by_callers = True

    #: The function that takes back a usable connection. A method that calls it would make every return slower.
    keep = ConnectionPool.putconn

    def __init__(
        self,
        conninfo: str,
        *,
        name: str,
        reset: Callable[[Any], object] | None = None,
        reconnect_failed: Callable[[Any], object] | None = None,
        **options: Any,
    ) -> None:
        """Create a pool of *name*; the other arguments are ConnectionPool's."""
        reset, reconnect_failed = reset and _as_exception(reset), reconnect_failed and _as_exception(reconnect_failed)
        super().__init__(conninfo, name=name, reset=reset, reconnect_failed=reconnect_failed, **options)
        watch_log(name)
        # The connections whose opening has not begun, the number of callers that open one, and whether threads are not
        # started yet. psycopg_pool's lock protects all three.
        self._unbegun: Final[deque[AddConnection]] = deque()
        self._openers = 0
        self._is_lazy = False

    def putconn(self, conn: Any) -> None:
        """Return *conn* as Pool.putconn does. Django's backend calls ``conn._pool.putconn(conn)``.

        Raises:
            ValueError: *conn* was not checked out from a pool of this process, or was returned before.
        """
        if not hasattr(conn, "bgpool_generation"):
            raise ValueError(f"{conn!r} was not checked out from the pool {self.name!r}")
        conn.bgpool_generation.take_back(conn)

    def open_lazily(self) -> None:
        """Open without starting to connect: that is left to callers, which call fetch() immediately, or to begin().

        Idempotent, because all callers that are released at the same time call it.
        """
        with self._lock:
            if self._closed:
                self._is_lazy = True
                self._open()

    def begin(self) -> None:
        """Make psycopg_pool's threads open the missing connections, as far as that has not begun; idempotent."""
        with self._lock:
            self._begin()

    def fetch(self, timeout: float, openers: int) -> Any:
        """Like getconn; but a caller opens a connection if no thread has begun to. The others follow the first one.

        Args:
            timeout: The longest wait in seconds, the attempt to connect included.
            openers: The maximum of callers that may be connecting at a time.
        """
        until = time.monotonic() + timeout
        task = None
        with self._lock:
            if self._unbegun and not self._pool and self._openers < openers and not self._closed:
                task = self._unbegun.popleft()
                self._openers += 1
        if task is not None:
            self._open_here(task, timeout)
        return self.getconn(until - time.monotonic())

    def _open_here(self, task: AddConnection, timeout: float) -> None:
        """Try the work of *task* once; if that fails, a thread continues it."""
        opened = False
        try:
            self._add_to_pool(self._connect(timeout))
            opened = True
        except Exception as error:
            # Not the error: its frames refer to this pool.
            self.failure = first_line(error)
        finally:
            with self._lock, contextlib.suppress(RuntimeError):  # no thread could be started: the next caller tries
                self._openers -= 1
                if not opened:
                    self._unbegun.append(task)
                self._begin()

    def _begin(self) -> None:
        """Like begin. The lock must be held."""
        if self._unbegun:
            self._start_lazy()
        while self._unbegun:
            super().run_task(self._unbegun.popleft())

    def _start_lazy(self) -> None:
        """Start the threads if they are not running yet. The lock must be held."""
        if not self._is_lazy or self._closed:
            return
        self._is_lazy = False
        try:
            self._start_threads()
        except BaseException:
            self._signal_stop_worker()
            self._is_lazy = True
            raise
        super().run_task(Schedule(self, ShrinkPool(self), self.max_idle))

    def _start_initial_tasks(self) -> None:
        if self._is_lazy:
            self._unbegun.extend(AddConnection(self) for _ in range(self._nconns))
        else:
            super()._start_initial_tasks()

    def run_task(self, task: MaintenanceTask) -> None:
        """Like ConnectionPool's; must not be called with the lock held while there are no threads."""
        if self._is_lazy:
            with self._lock:
                self._start_lazy()
        super().run_task(task)

    def _start_workers(self) -> None:
        if not self._is_lazy:
            self._start_threads()

    def _start_threads(self) -> None:
        """Like ConnectionPool's _start_workers, but with threads that block signals."""
        schedule, work = self._sched.run, self.worker
        self._sched.run, self.worker = refusing(schedule), refusing(work)  # type: ignore[method-assign]  # for a moment
        try:
            super()._start_workers()
        finally:
            # Otherwise the attributes and the scheduler would refer to each other.
            del self._sched.run, self.worker

    def replace(self, conn: Any) -> None:
        """Free the slot of *conn*, which is closed, and open another connection in its place."""
        conn._pool = None
        if not self.closed:
            self.run_task(AddConnection(self))

    def forget_who_gave_up(self) -> None:
        """See ReconnectBackoff."""
        with self._lock:
            super().forget_who_gave_up()

    def schedule_task(self, task: MaintenanceTask, delay: float) -> None:
        """Like ConnectionPool's; but an attempt to connect does not pause for *delay* seconds while a caller waits."""
        if isinstance(task, AddConnection):
            task, delay = _Pause(self, task, time.monotonic() + delay), min(delay, RECONNECT_INTERVAL_MAX_S)
        super().schedule_task(task, delay)

    def _maybe_grow_pool(self) -> None:
        """Handle a caller that has joined the queue; called with the lock held.

        psycopg_pool checks if it is closed before it takes the lock. A caller that joins the queue after close() would
        wait for its whole timeout.
        """
        if not self._closed:
            if not self._openers:
                self._begin()
            if self._nconns < self._max_size:
                self._start_lazy()
            super()._maybe_grow_pool()
            return
        while self._waiting:
            self._waiting.popleft().fail(PoolClosed(f"the pool {self.name!r} is closed"))

    def _connect(self, timeout: float | None = None) -> Any:
        """Like ConnectionPool's, in a thread of its own; with *timeout* in a caller's thread, and only once."""
        try:
            if timeout is None:
                connection = super()._connect()
            else:
                with cast(Any, self.connection_class).within(timeout):
                    connection = super()._connect()
        except BaseException as error:
            # Not the error: its frames refer to this pool, which would live until the garbage collector runs.
            self.failure = first_line(error)
            if isinstance(error, Exception) or timeout is not None:
                raise
            # It would end the thread of psycopg_pool that raises it, and the connection's slot would be lost.
            raise psycopg.OperationalError(f"connecting was ended by {self.failure}") from error
        self.failure = ""
        note_connected(self.name)
        return connection


class _Pause(MaintenanceTask):
    """The pause after a failed attempt, which checks repeatedly whether it is over."""

    def __init__(self, pool: InnerPool, task: AddConnection, until: float) -> None:
        super().__init__(pool)
        self._task: Final = task
        self._until: Final = until

    def tick(self) -> None:
        """Check the pause; called by the pool's scheduler."""
        pool = self.pool()
        if not isinstance(pool, InnerPool) or pool.closed:
            return
        if time.monotonic() >= self._until or pool.may_try_early():
            pool.run_task(self)
        else:
            pool.schedule_task(self, RECONNECT_INTERVAL_MAX_S)

    def _run(self, pool: ConnectionPool[Any]) -> None:
        self._task._run(pool)


def _as_exception(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """Return *hook* with an error instead of SystemExit or the like, which would end psycopg_pool's thread."""

    def call(subject: Any) -> None:
        try:
            hook(subject)
        except Exception:
            raise
        except BaseException as error:
            raise RuntimeError(f"{hook!r} raised {type(error).__name__}") from error

    return call


# -- psycopg_pool's log ------------------------------------------------------------------------------------------

#: The last log text of psycopg_pool about a failed attempt, and its time, by the pools' names.
_said: Final[dict[str, tuple[str, float]]] = {}


def watch_log(name: str) -> None:
    """Suppress repetitions in psycopg_pool's log about the pool of *name*."""
    _said.setdefault(name, ("", 0.0))


def note_connected(name: str) -> None:
    """Record that the pool of *name* has connected, so that its next failure is logged."""
    _said[name] = ("", 0.0)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether psycopg_pool's *record* was not logged for the pool within LOG_REPEAT_S.

    The cancellation of a task is not logged: it was requested, or the pool or loop has ended. A thread that has not
    ended when a pool is closed without waiting is not logged either.
    """
    args = record.args
    if str(record.msg).startswith("couldn't stop thread") and isinstance(args, tuple) and not args[-1]:
        return False
    if isinstance(args, tuple) and any(isinstance(arg, CancelledError) for arg in args):
        return False
    if record.msg != "error connecting in %r: %s" or not isinstance(args, tuple) or args[0] not in _said:
        return True
    (text, at), now = _said[str(args[0])], time.monotonic()
    if str(args[1]) == text and now < at + LOG_REPEAT_S:
        return False
    _said[str(args[0])] = (str(args[1]), now)
    return True


logging.getLogger("psycopg.pool").addFilter(_is_news)
