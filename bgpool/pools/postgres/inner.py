"""The pool under a PostgreSQL pool: psycopg_pool's, with no way back into it that passes by bgpool.

It says why it has nothing, and tries again while somebody waits. psycopg_pool alone pauses for 1, 2, 4 ... seconds
after a failed attempt to connect, and tells nobody but its log why that failed.
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
    """Mixed in before a pool of psycopg_pool's: when a failed attempt to connect is repeated, and what is said of it.

    Attributes:
        failure: Why the last attempt to open a connection failed; empty once one was opened.
    """

    failure: str = ""
    _early_at: float = 0.0

    def may_try_early(self) -> bool:
        """Whether an attempt to connect has rested enough: it may succeed, or somebody waits.

        While all fail, one attempt in RECONNECT_INTERVAL_MAX_S is enough for all who wait.
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
        """Take callers whose time was up out of the queue: psycopg_pool counts them until a connection comes by."""
        pool: Any = self
        waiting = [client for client in pool._waiting if client.error is None]
        pool._waiting.clear()
        pool._waiting.extend(waiting)


class InnerPool(ReconnectBackoff, ConnectionPool[Any]):
    """psycopg_pool's pool. Its connections are closed by bgpool's rules, also where psycopg_pool is called directly.

    After a release the first connection is opened by the caller who needs it: a thread of psycopg_pool's would have to
    be started, and the caller to be woken by it, while all the processes of the host want the same cores.
    """

    opened_by_callers = True

    #: Takes a usable connection back. The function itself: a method that calls it would cost every return.
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
        """A pool of *name*; the other arguments are ConnectionPool's."""
        reset, reconnect_failed = reset and _as_exception(reset), reconnect_failed and _as_exception(reconnect_failed)
        super().__init__(conninfo, name=name, reset=reset, reconnect_failed=reconnect_failed, **options)
        watch_log(name)
        # Connections that nobody has begun to open, callers who open one, and whether there are no threads yet. All
        # under psycopg_pool's lock.
        self._unbegun: Final[deque[AddConnection]] = deque()
        self._openers = 0
        self._is_lazy = False

    def putconn(self, conn: Any) -> None:
        """Return *conn* as Pool.putconn does. Django's backend calls ``conn._pool.putconn(conn)``.

        Raises:
            ValueError: *conn* was not checked out from a pool of this process, or was given back before.
        """
        if not hasattr(conn, "bgpool_generation"):
            raise ValueError(f"{conn!r} was not checked out from the pool {self.name!r}")
        conn.bgpool_generation.take_back(conn)

    def open_lazily(self) -> None:
        """Open, but begin nothing: that is up to the callers, who come at once and call fetch(), or to begin().

        Idempotent: callers who are let go at the same moment all do it.
        """
        with self._lock:
            if self._closed:
                self._is_lazy = True
                self._open()

    def begin(self) -> None:
        """Have psycopg_pool's threads open what is missing, as far as nobody has begun; idempotent."""
        with self._lock:
            self._begin()

    def fetch(self, timeout: float, openers: int) -> Any:
        """As getconn; but a caller opens a connection where nobody has begun to. The others follow the first one.

        Args:
            timeout: Longest wait in seconds, the attempt to connect included.
            openers: How many callers may be connecting at a time.
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
        """Try once what *task* would go on trying; where it fails a thread takes it up."""
        opened = False
        try:
            self._add_to_pool(self._connect(timeout))
            opened = True
        except Exception as error:
            # Not the error: its frames hold this pool.
            self.failure = first_line(error)
        finally:
            with self._lock, contextlib.suppress(RuntimeError):  # no thread could be started: whoever comes next tries
                self._openers -= 1
                if not opened:
                    self._unbegun.append(task)
                self._begin()

    def _begin(self) -> None:
        """As begin, under the lock."""
        if self._unbegun:
            self._start_lazy()
        while self._unbegun:
            super().run_task(self._unbegun.popleft())

    def _start_lazy(self) -> None:
        """Under the lock: start the threads, if they are not there yet."""
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
        """As ConnectionPool's; not to be called under the lock while there are no threads."""
        if self._is_lazy:
            with self._lock:
                self._start_lazy()
        super().run_task(task)

    def _start_workers(self) -> None:
        if not self._is_lazy:
            self._start_threads()

    def _start_threads(self) -> None:
        """As ConnectionPool's _start_workers, whose threads would take signals."""
        schedule, work = self._sched.run, self.worker
        self._sched.run, self.worker = refusing(schedule), refusing(work)  # type: ignore[method-assign]  # for a moment
        try:
            super()._start_workers()
        finally:
            # What stayed would hold the scheduler, and be held by it.
            del self._sched.run, self.worker

    def replace(self, conn: Any) -> None:
        """Free the slot of *conn*, which is closed: open another connection in its place."""
        conn._pool = None
        if not self.closed:
            self.run_task(AddConnection(self))

    def forget_who_gave_up(self) -> None:
        """As Patience says."""
        with self._lock:
            super().forget_who_gave_up()

    def schedule_task(self, task: MaintenanceTask, delay: float) -> None:
        """As ConnectionPool's; but an attempt to connect does not rest for *delay* seconds while somebody waits."""
        if isinstance(task, AddConnection):
            task, delay = _Pause(self, task, time.monotonic() + delay), min(delay, RECONNECT_INTERVAL_MAX_S)
        super().schedule_task(task, delay)

    def _maybe_grow_pool(self) -> None:
        """Called under the lock for a caller that has joined the queue.

        psycopg_pool looks whether it is closed before it takes the lock, and a caller that joins the queue after
        close() would wait for its whole timeout.
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
        """As ConnectionPool's, in a thread of its own; with *timeout* in a caller's, and once."""
        try:
            if timeout is None:
                connection = super()._connect()
            else:
                with cast(Any, self.connection_class).within(timeout):
                    connection = super()._connect()
        except BaseException as error:
            # Not the error: its frames hold this pool, which would live until the collector comes by.
            self.failure = first_line(error)
            if isinstance(error, Exception) or timeout is not None:
                raise
            # It would end the thread of psycopg_pool that it is raised in, and take the connection's place with it.
            raise psycopg.OperationalError(f"connecting was ended by {self.failure}") from error
        self.failure = ""
        note_connected(self.name)
        return connection


class _Pause(MaintenanceTask):
    """The pause after a failed attempt: looks again and again whether it is over."""

    def __init__(self, pool: InnerPool, task: AddConnection, until: float) -> None:
        super().__init__(pool)
        self._task: Final = task
        self._until: Final = until

    def tick(self) -> None:
        """Called by the pool's scheduler."""
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
    """*hook*, whose SystemExit or the like does not end the thread of psycopg_pool that calls it."""

    def call(subject: Any) -> None:
        try:
            hook(subject)
        except Exception:
            raise
        except BaseException as error:
            raise RuntimeError(f"{hook!r} raised {type(error).__name__}") from error

    return call


# -- psycopg_pool's log ------------------------------------------------------------------------------------------

#: What psycopg_pool has logged last of a failed attempt, and when, by the names of our pools.
_said: Final[dict[str, tuple[str, float]]] = {}


def watch_log(name: str) -> None:
    """Have psycopg_pool's log not repeat itself about the pool of *name*."""
    _said.setdefault(name, ("", 0.0))


def note_connected(name: str) -> None:
    """The pool of *name* has connected: its next failure is news."""
    _said[name] = ("", 0.0)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether psycopg_pool's *record* says what was not said of the pool within LOG_REPEAT_S.

    That a task was cancelled is no news: somebody wanted it, or its pool or loop has ended. Nor is a thread that has
    not ended in the moment at which a pool was closed, which waits for none.
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
