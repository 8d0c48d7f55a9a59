"""The thread that watches all deployments of a process: it sleeps until something is published in one of them.

A kernel that lets a thread wait for several words at once (Linux 5.16) makes one thread enough. Elsewhere, and where a
sandbox refuses that, each deployment has a thread of its own; where waiters poll, one is enough again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from bgpool.pools import fork
from bgpool.segment.wake import OwnWord, Word, wait_any, words_at_once
from bgpool.signals import refusing

__all__ = ["Watched", "Watcher", "drop", "stir", "take"]


class Watched(Protocol):
    """A deployment, as its watcher sees it. None of its methods may wait for anything."""

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


class Watcher:
    """One thread, and what it watches."""

    def __init__(self) -> None:
        """A watcher of nothing, to be started by the thread that makes it."""
        self._watches: tuple[Watched, ...] = ()
        # Its own word is one of those that it waits for.
        self._most: Final = max(1, words_at_once() - 1)
        self._stirred: Final = OwnWord()
        self._over = False
        self._thread: Final = threading.Thread(target=refusing(self._run), name="bgpool-watch", daemon=True)

    def is_alive(self) -> bool:
        """Whether its thread is at work."""
        return self._thread.is_alive()

    # -- under the lock of all -----------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether it can watch one more."""
        return not self._over and len(self._watches) < self._most

    def has(self, watch: Watched) -> bool:
        """Whether it watches *watch*."""
        return any(one is watch for one in self._watches)

    def add(self, watch: Watched) -> None:
        """Watch *watch*, too."""
        self._watches += (watch,)
        self._stirred.change()

    def remove(self, watch: Watched) -> None:
        """Watch *watch* no more; without any left the thread ends."""
        self._watches = tuple(one for one in self._watches if one is not watch)
        self._stirred.change()

    def stir(self) -> None:
        """Have the thread look when each of its watches is due."""
        self._stirred.change()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: There is none to be had.
        """
        self._thread.start()

    def ends(self) -> bool:
        """Whether there is nothing left to watch, so that the thread is to end; from then on there is no room."""
        self._over = not self._watches
        return self._over

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            # What is said of the list before the list is looked at.
            stirred, watches = self._stirred.word(), self._watches
            if not watches and _end(self):
                return
            now = time.monotonic()
            # Whatever is published goes before everything else, in whichever deployment.
            for watch in watches:
                _do(watch, watch.hear, now)
            # Then one look at a time: what is published meanwhile goes first again.
            due = [watch for watch in watches if watch.due_at(now) <= now]
            if due:
                _do(due[0], due[0].attend, now)
                continue
            words = [word for word in (watch.word() for watch in watches) if word is not None]
            wait_any([*words, stirred], partial(_due_at, watches))


def _due_at(watches: Sequence[Watched], now: float) -> float:
    """When the first of *watches* has something to do."""
    return min((watch.due_at(now) for watch in watches), default=now)


def _do(watch: Watched, step: Callable[[float], None], now: float) -> None:
    """Make *step* of *watch*. Nothing that goes wrong may end the thread: pools would never hear again."""
    try:
        step(now)
    except BaseException as error:
        # Telling of it may fail as well, in a handler of the application's.
        with contextlib.suppress(BaseException):
            watch.fail(error)


class _Watchers:
    """Those of this process: one, where the kernel can do it."""

    def __init__(self) -> None:
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """The threads are the parent's, and so is what they watch."""
        self.lock = threading.Lock()
        self.all: list[Watcher] = []


_watchers: Final = _Watchers()
fork.call_in_child(_watchers)


def take(watch: Watched) -> Watcher:
    """Have a thread watch *watch*: that of others, where it can.

    Raises:
        RuntimeError: There is no thread to be had.
    """
    with _watchers.lock:
        watcher = next((one for one in _watchers.all if one.has_room() and one.is_alive()), None)
        if watcher is not None:
            watcher.add(watch)
            return watcher
        watcher = Watcher()
        watcher.add(watch)
        _watchers.all.append(watcher)
        try:
            watcher.start()
        except BaseException:
            # Interrupted, it may have been started all the same, and ends.
            watcher.remove(watch)
            _watchers.all.remove(watcher)
            raise
        return watcher


def drop(watch: Watched) -> None:
    """Have nobody watch *watch* any more; what its watcher is just doing for it, it ends."""
    with _watchers.lock:
        for watcher in _watchers.all:
            if watcher.has(watch):
                watcher.remove(watch)


def stir(watch: Watched) -> None:
    """Have the watcher of *watch* look when it is due: that has changed."""
    with _watchers.lock:
        for watcher in _watchers.all:
            if watcher.has(watch):
                watcher.stir()


def _end(watcher: Watcher) -> bool:
    """Whether *watcher* ends, because there is nothing to watch."""
    with _watchers.lock:
        if not watcher.ends():
            return False
        if watcher in _watchers.all:
            _watchers.all.remove(watcher)
        return True
