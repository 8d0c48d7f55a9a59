"""The thread that watches all deployments of a process: it sleeps until a snapshot is published in one of them.

If the kernel lets a thread wait for several words at once (Linux 5.16), one thread is enough. On older kernels, and in
a sandbox that refuses this call, each deployment has a thread of its own. If waiters poll, one thread is enough again.

No step of a watch may block, but some steps call the application's code: log handlers, a connector's ``in_use``. If a
thread has several watches, a second thread, the deputy, checks on it. When a step stalls, the stalled thread keeps only
that watch, and another thread continues the others.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from bgpool.core.limits import STALL_S, WATCH_INTERVAL_S
from bgpool.pools import fork
from bgpool.segment.wake import OwnWord, Word, wait_any, words_at_once
from bgpool.signals import refusing

__all__ = ["Watched", "drop", "is_watched", "stir", "take"]


class Watched(Protocol):
    """A deployment, from the view of its watcher. None of its methods may block."""

    def hear(self, now: float) -> None:
        """Act on a publication and on expired timers; do nothing if there is nothing new."""
        ...

    def attend(self, now: float) -> None:
        """Do the work for which no caller waits."""
        ...

    def fail(self, error: BaseException) -> None:
        """Handle *error*, which hear() or attend() has raised; the step will be repeated."""
        ...

    def due_at(self, now: float) -> float:
        """Return the time at which hear() or attend() is due without a publication, on the monotonic clock.

        It is *now* if attend() may be called because the thread is awake anyway.
        """
        ...

    def word(self) -> Word | None:
        """Return the word that shows the next publication; None while there is no such word."""
        ...


class _Step:
    """The current step of a thread, and its start time."""

    __slots__ = ("since", "watch")

    def __init__(self, watch: Watched, since: float) -> None:
        self.watch: Final = watch
        self.since: Final = since


class _Watcher:
    """One thread and its watches."""

    def __init__(self, watches: tuple[Watched, ...]) -> None:
        """Create a watcher of *watches*; the thread that creates it also starts it."""
        self._watches = watches
        # Its own word is one of the words that it waits for.
        self._most: Final = max(1, words_at_once() - 1)
        self._stirred: Final = OwnWord()
        # True once it has stalled, so that it takes no other watches.
        self._apart = False
        # Protects the step, and ensures that no step begins after its watch was given to another thread.
        self._lock: Final = threading.RLock()
        self._step: _Step | None = None
        self._thread: Final = threading.Thread(target=refusing(self._run), name="bgpool-watch", daemon=True)
        self.start: Final = self._thread.start
        self.is_alive: Final = self._thread.is_alive

    # -- with the lock of all watchers held ----------------------------------------------------------------------

    @property
    def watches(self) -> tuple[Watched, ...]:
        """Its watches."""
        return self._watches

    def has_room(self) -> bool:
        """Return whether it can take another watch."""
        return 0 < len(self._watches) < self._most and not self._apart and self.is_alive()

    def change(self, watches: tuple[Watched, ...]) -> None:
        """Watch exactly *watches*; the thread ends if there are none."""
        with self._lock:
            self._watches = watches
        self.stir()

    def stir(self) -> None:
        """Make the thread check which work is due."""
        self._stirred.change()

    def leave_alone(self, now: float) -> tuple[Watched, ...]:
        """Leave a stalled thread only the watch that it stalls at, for good, and return the others; else none."""
        with self._lock:
            step = self._step
            if step is None or now - step.since < STALL_S or len(self._watches) < 2:
                return ()
            others = tuple(one for one in self._watches if one is not step.watch)
            self._watches, self._apart = tuple(one for one in self._watches if one is step.watch), True
            return others

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                # The word is read before the list, so that a change of the list after that wakes the thread.
                stirred, watches = self._stirred.word(), self._watches
                if not watches and _end(self):
                    return
                if self._round(watches, time.monotonic()):
                    words = [word for word in (watch.word() for watch in watches) if word is not None]
                    until = watches[0].due_at if len(watches) == 1 else partial(_due_at, watches)
                    wait_any([*words, stirred], until)
            except Exception:
                # For example, there is no memory. If the thread ended, pools would never learn of another snapshot.
                time.sleep(WATCH_INTERVAL_S)

    def _round(self, watches: tuple[Watched, ...], now: float) -> bool:
        """Do the work that is due; return whether that was all."""
        # Publications go before all other work, in every deployment.
        for watch in watches:
            self._do(watches, watch, watch.hear, now)
        # After that one look at a time, so that a new publication goes first again.
        for watch in watches:
            if watch.due_at(now) <= now:
                self._do(watches, watch, watch.attend, now)
                return False
        return True

    def _do(self, watches: tuple[Watched, ...], watch: Watched, step: Callable[[float], None], now: float) -> None:
        """Run *step* of *watch*, one of *watches*. No failure may end the thread."""
        with self._lock:
            if self._watches is not watches:
                return
            self._step = _Step(watch, time.monotonic())
        try:
            step(now)
        except BaseException as error:
            # The report of the error may fail, too, in a handler of the application.
            with contextlib.suppress(BaseException):
                watch.fail(error)
        self._step = None


def _due_at(watches: Sequence[Watched], now: float) -> float:
    """Return the time at which the first of *watches* has work."""
    return min((watch.due_at(now) for watch in watches), default=now)


class _Watchers:
    """The watchers of this process; a single one if the kernel supports it."""

    def __init__(self) -> None:
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Start without watchers: the threads and their watches are the parent's."""
        # Reentrant, because a signal handler of the application may close pools during a change.
        self.lock = threading.RLock()
        self.all: list[_Watcher] = []
        # Set to end the deputy; None if there is none.
        self.deputy: threading.Event | None = None


_watchers: Final = _Watchers()
fork.call_in_child(_watchers)


def take(watch: Watched) -> None:
    """Give *watch* to a thread, which it shares with other watches if possible.

    Raises:
        RuntimeError: No thread can be started.
    """
    with _watchers.lock:
        watcher = next((one for one in _watchers.all if one.has_room()), None)
        if watcher is None:
            _begin((watch,))
            return
        watcher.change((*watcher.watches, watch))
        if _watchers.deputy is None:
            # Without a deputy, a step that stalls delays the other watches.
            with contextlib.suppress(RuntimeError):
                ended = threading.Event()
                threading.Thread(
                    target=refusing(_stand_by), args=(ended,), name="bgpool-watch-deputy", daemon=True
                ).start()
                _watchers.deputy = ended


def drop(watch: Watched) -> None:
    """Stop watching *watch*; a step of it that is in progress is completed."""
    with _watchers.lock:
        for watcher in _having(watch):
            watcher.change(tuple(one for one in watcher.watches if one is not watch))
        if _watchers.deputy is not None and all(len(one.watches) < 2 for one in _watchers.all):
            _watchers.deputy.set()
            _watchers.deputy = None


def stir(watch: Watched) -> None:
    """Make the watcher of *watch* check its due time, which has changed."""
    with _watchers.lock:
        for watcher in _having(watch):
            watcher.stir()


def is_watched(watch: Watched) -> bool:
    """Return whether the thread that watches *watch* is alive."""
    return any(watcher.is_alive() for watcher in _having(watch))


def _having(watch: Watched) -> list[_Watcher]:
    return [one for one in list(_watchers.all) if any(its is watch for its in one.watches)]


def _begin(watches: tuple[Watched, ...]) -> None:
    """Start a new thread for *watches*. The lock must be held."""
    watcher = _Watcher(watches)
    _watchers.all.append(watcher)
    try:
        watcher.start()
    except BaseException:
        # If the start was interrupted, the thread may run nevertheless; without watches it ends.
        watcher.change(())
        _watchers.all.remove(watcher)
        raise


def _end(watcher: _Watcher) -> bool:
    """Return whether *watcher* ends because it has no watches; its own thread calls this."""
    with _watchers.lock:
        if watcher.watches:
            return False
        if watcher in _watchers.all:
            _watchers.all.remove(watcher)
        return True


def _stand_by(ended: threading.Event) -> None:
    """Run the deputy, which isolates steps that stall."""
    looked_at = time.monotonic()
    while not ended.wait(STALL_S):
        before, looked_at = looked_at, time.monotonic()
        if looked_at - before > 2 * STALL_S:
            # The whole process was stopped or got no CPU time, so a late watcher has not stalled.
            continue
        with _watchers.lock:
            for watcher in list(_watchers.all):
                others = watcher.leave_alone(looked_at)
                if others:
                    _give_away(watcher, others)


def _give_away(watcher: _Watcher, others: tuple[Watched, ...]) -> None:
    """Start a new thread for *others*, which *watcher* had. The lock must be held."""
    try:
        _begin(others)
    except RuntimeError:
        # No thread can be started. The stalled thread keeps these watches and is late with them, or the next attempt
        # succeeds.
        watcher.change((*watcher.watches, *others))
