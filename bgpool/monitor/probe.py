"""One role's monitoring connection: a thread that asks, and tells the main loop what it heard."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

import psycopg

from bgpool import sockets
from bgpool.core.events import Event, Instant, MetadataAbsent, ProbeFailed, StatusRead, StatusRow
from bgpool.core.phase import Role
from bgpool.core.plan import Target
from bgpool.monitor.dialects.postgres import MissingMetadata

__all__ = ["Probe", "Session", "now"]


def now() -> Instant:
    """This moment on both clocks."""
    return Instant(time.monotonic_ns(), time.time_ns())


class Session(Protocol):
    """A monitoring connection, whatever the engine."""

    @property
    def socket(self) -> int:
        """Its descriptor."""
        ...

    def read(self) -> tuple[tuple[StatusRow, ...], tuple[str, ...]]:
        """Status rows and server ids."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class Probe(threading.Thread):
    """Reads the status of one role in every interval; silent while it has no target."""

    def __init__(self, role: Role, connect: Callable[[Target], Session], events: queue.Queue[Event]) -> None:
        super().__init__(name=f"bgpool-probe-{role.colour}", daemon=True)
        self._role: Final = role
        self._connect: Final = connect
        self._events: Final = events
        self._nudged: Final = threading.Event()
        self._target: Target | None = None
        self._interval_s = self._retry_s = 1.0
        # What the session was opened for, and since when a question is unanswered; 0 while none is.
        self._opened: Target | None = None
        self._session: Session | None = None
        self._asked_at = 0.0
        self._socket: tuple[int, tuple[int, int]] | None = None

    def assign(self, target: Target | None, *, interval_ms: int, retry_ms: int) -> None:
        """Watch *target* from now on. A shorter interval than before counts at once."""
        sooner = interval_ms / 1000 < self._interval_s or target != self._target
        self._target, self._interval_s, self._retry_s = target, interval_ms / 1000, retry_ms / 1000
        if sooner:
            self._nudged.set()

    def cut_if_stuck(self, limit_s: float) -> None:
        """Cut the connection if a question has been unanswered for *limit_s*; a stopped host never answers."""
        asked_at, socket = self._asked_at, self._socket
        if asked_at and socket is not None and time.monotonic() - asked_at > limit_s:
            sockets.cut(*socket)

    def run(self) -> None:
        """Ask for ever."""
        while True:
            self._nudged.clear()
            target = self._target
            pause_s = self._interval_s
            if target is None:
                self._close()
            elif not self._ask(target):
                pause_s = min(self._retry_s, pause_s)
            self._nudged.wait(pause_s)

    def _ask(self, target: Target) -> bool:
        """One question; whether it was answered."""
        if self._session is not None and target.supersedes(self._opened):
            self._close()
        at = now()
        try:
            if self._session is None:
                self._open(target)
            assert self._session is not None
            self._asked_at = time.monotonic()
            rows, servers = self._session.read()
        except MissingMetadata as missing:
            self._events.put(MetadataAbsent(at, self._role, str(missing)))
        except (psycopg.Error, OSError) as error:
            self._close()
            self._events.put(ProbeFailed(at, self._role, _first_line(error)))
            return False
        else:
            self._events.put(StatusRead(at, self._role, rows, servers))
        finally:
            self._asked_at = 0.0
        return True

    def _open(self, target: Target) -> None:
        session = self._connect(target)
        self._session, self._opened = session, target
        self._socket = (session.socket, sockets.identity(session.socket))

    def _close(self) -> None:
        session, self._session, self._socket = self._session, None, None
        if session is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                session.close()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
