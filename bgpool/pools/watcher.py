"""The thread that watches all deployments of a process: it sleeps until something is published in one of them.

A kernel that lets a thread wait for several words at once (Linux 5.16) makes one thread enough. Elsewhere, and where a
sandbox refuses that, each deployment has a thread of its own; where waiters poll, one is enough again.

No step of a watch is to wait for anything, but some call what is the application's: handlers of logs, a connector's
``in_use``. Where a thread has several watches a second one, the deputy, sees to it that a step that stalls is left
alone with its watch: another thread takes the others on.
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
    """A deployment, as its watcher sees it. None of its methods is to wait for anything."""

    def hear(self, now: float) -> None:
        """Act on what is published, and on time that has run out; nothing, where there is nothing new."""
        ...

    def attend(self, now: float) -> None:
        """Do all that nobody waits for."""
        ...

    def fail(self, error: BaseException) -> None:
        """One of the two has raised *error*; to be tried again."""
        ...

    def due_at(self, now: float) -> float:
        """When one of the two has something to do though nothing is published, on the monotonic clock.

        *now*, where attend() may be called because the thread is awake anyway.
        """
        ...

    def word(self) -> Word | None:
        """What says that something else is published; None while there is nothing to say it."""
        ...


class _Step:
    """What a thread is doing, and since when."""

    __slots__ = ("since", "watch")

    def __init__(self, watch: Watched, since: float) -> None:
        self.watch: Final = watch
        self.since: Final = since


class _Watcher:
    """One thread, and what it watches."""

    def __init__(self, watches: tuple[Watched, ...]) -> None:
        """A watcher of *watches*, to be started by the thread that makes it."""
        self._watches = watches
        # Its own word is one of those that it waits for.
        self._most: Final = max(1, words_at_once() - 1)
        self._stirred: Final = OwnWord()
        # It has stalled, and takes no others any more.
        self._apart = False
        # Protects the step, and that none begins once its watch has been given to another thread.
        self._lock: Final = threading.RLock()
        self._step: _Step | None = None
        self._thread: Final = threading.Thread(target=refusing(self._run), name="bgpool-watch", daemon=True)
        self.start: Final = self._thread.start
        self.is_alive: Final = self._thread.is_alive

    # -- under the lock of all -----------------------------------------------------------------------------------

    @property
    def watches(self) -> tuple[Watched, ...]:
        """What it watches."""
        return self._watches

    def has_room(self) -> bool:
        """Whether it can watch one more."""
        return 0 < len(self._watches) < self._most and not self._apart and self.is_alive()

    def change(self, watches: tuple[Watched, ...]) -> None:
        """Watch *watches*, and no others; without any the thread ends."""
        with self._lock:
            self._watches = watches
        self.stir()

    def stir(self) -> None:
        """Have the thread look what there is to do."""
        self._stirred.change()

    def leave_alone(self, now: float) -> tuple[Watched, ...]:
        """Where it has stalled: keep for good what it stalls at, alone, and return all others; else none."""
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
                # What is said of the list before the list is looked at.
                stirred, watches = self._stirred.word(), self._watches
                if not watches and _end(self):
                    return
                if self._round(watches, time.monotonic()):
                    words = [word for word in (watch.word() for watch in watches) if word is not None]
                    until = watches[0].due_at if len(watches) == 1 else partial(_due_at, watches)
                    wait_any([*words, stirred], until)
            except Exception:
                # There is no memory, say. Pools would never hear again.
                time.sleep(WATCH_INTERVAL_S)

    def _round(self, watches: tuple[Watched, ...], now: float) -> bool:
        """Do what there is to do; whether that is all."""
        # Whatever is published goes before everything else, in whichever deployment.
        for watch in watches:
            self._do(watches, watch, watch.hear, now)
        # Then one look at a time: what is published meanwhile goes first again.
        for watch in watches:
            if watch.due_at(now) <= now:
                self._do(watches, watch, watch.attend, now)
                return False
        return True

    def _do(self, watches: tuple[Watched, ...], watch: Watched, step: Callable[[float], None], now: float) -> None:
        """Make *step* of *watch*, one of *watches*. Nothing that goes wrong may end the thread."""
        with self._lock:
            if self._watches is not watches:
                return
            self._step = _Step(watch, time.monotonic())
        try:
            step(now)
        except BaseException as error:
            # Telling of it may fail as well, in a handler of the application's.
            with contextlib.suppress(BaseException):
                watch.fail(error)
        self._step = None


def _due_at(watches: Sequence[Watched], now: float) -> float:
    """When the first of *watches* has something to do."""
    return min((watch.due_at(now) for watch in watches), default=now)


class _Watchers:
    """Those of this process: one, where the kernel can do it."""

    def __init__(self) -> None:
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """The threads are the parent's, and so is what they watch."""
        # A signal handler of the application's may close pools in the midst of a change.
        self.lock = threading.RLock()
        self.all: list[_Watcher] = []
        # Set to end the deputy; None where there is none.
        self.deputy: threading.Event | None = None


_watchers: Final = _Watchers()
fork.call_in_child(_watchers)


def take(watch: Watched) -> None:
    """Have a thread watch *watch*: that of others, where it can.

    Raises:
        RuntimeError: There is no thread to be had.
    """
    with _watchers.lock:
        watcher = next((one for one in _watchers.all if one.has_room()), None)
        if watcher is None:
            _begin((watch,))
            return
        watcher.change((*watcher.watches, watch))
        if _watchers.deputy is None:
            # Without one a step that stalls delays the others.
            with contextlib.suppress(RuntimeError):
                ended = threading.Event()
                threading.Thread(
                    target=refusing(_stand_by), args=(ended,), name="bgpool-watch-deputy", daemon=True
                ).start()
                _watchers.deputy = ended


def drop(watch: Watched) -> None:
    """Have nobody watch *watch* any more; what its watcher is just doing for it, it ends."""
    with _watchers.lock:
        for watcher in _having(watch):
            watcher.change(tuple(one for one in watcher.watches if one is not watch))
        if _watchers.deputy is not None and all(len(one.watches) < 2 for one in _watchers.all):
            _watchers.deputy.set()
            _watchers.deputy = None


def stir(watch: Watched) -> None:
    """Have the watcher of *watch* look when it is due: that has changed."""
    with _watchers.lock:
        for watcher in _having(watch):
            watcher.stir()


def is_watched(watch: Watched) -> bool:
    """Whether the thread is at work that watches *watch*."""
    return any(watcher.is_alive() for watcher in _having(watch))


def _having(watch: Watched) -> list[_Watcher]:
    return [one for one in list(_watchers.all) if any(its is watch for its in one.watches)]


def _begin(watches: tuple[Watched, ...]) -> None:
    """Have a thread of their own watch *watches*; under the lock."""
    watcher = _Watcher(watches)
    _watchers.all.append(watcher)
    try:
        watcher.start()
    except BaseException:
        # Interrupted, it may have been started all the same, and ends.
        watcher.change(())
        _watchers.all.remove(watcher)
        raise


def _end(watcher: _Watcher) -> bool:
    """Whether *watcher* ends, because there is nothing to watch; its thread asks."""
    with _watchers.lock:
        if watcher.watches:
            return False
        if watcher in _watchers.all:
            _watchers.all.remove(watcher)
        return True


def _stand_by(ended: threading.Event) -> None:
    """The deputy's life: sees to it that what stalls is left alone."""
    looked_at = time.monotonic()
    while not ended.wait(STALL_S):
        before, looked_at = looked_at, time.monotonic()
        if looked_at - before > 2 * STALL_S:
            # The whole process was stopped, or got no time: that the others were late says nothing.
            continue
        with _watchers.lock:
            for watcher in list(_watchers.all):
                others = watcher.leave_alone(looked_at)
                if others:
                    _give_away(watcher, others)


def _give_away(watcher: _Watcher, others: tuple[Watched, ...]) -> None:
    """Have a thread of their own watch *others*, which *watcher* had; under the lock."""
    try:
        _begin(others)
    except RuntimeError:
        # No thread is to be had: they are watched late, or by the next attempt.
        watcher.change((*watcher.watches, *others))
