"""The monitoring connection of one role: a thread that queries the server, and passes the results to the main loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from bgpool import sockets
from bgpool.core.events import Answered, Event, Instant, MetadataAbsent, MetadataFailed, ProbeFailed, StatusRead
from bgpool.core.limits import MONITOR_STATEMENT_TIMEOUT_S
from bgpool.core.phase import Role
from bgpool.core.plan import Target
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.session import Answer, Session, SessionError
from bgpool.monitor.stoppable import StoppableThread

__all__ = ["Probe", "now"]


def now() -> Instant:
    """Return the current time on both clocks."""
    return Instant(time.monotonic_ns(), time.time_ns())


class Probe(StoppableThread):
    """Reads the status of one role in every interval; idle without a target.

    Attributes:
        asked_at: The start of the current query, or of the connection attempt for it, on the monotonic clock; 0 for
            none.
    """

    def __init__(self, role: Role, connect: Callable[[Target], Session], inbox: Inbox) -> None:
        super().__init__(f"bgpool-probe-{role.colour}")
        self._role: Final = role
        self._connect: Final = connect
        self._inbox: Final = inbox
        self._nudged: Final = threading.Event()
        self._target: Target | None = None
        self._interval_s = self._retry_s = 1.0
        self._least_s = self._await_s = 0.0
        # The target that the session was opened for.
        self._opened: Target | None = None
        self._session: Session | None = None
        self.asked_at = 0.0
        self._socket: tuple[int, tuple[int, int]] | None = None

    def assign(
        self, target: Target | None, *, interval_ms: int, retry_ms: int, least_ms: int = 0, await_ms: int = 0
    ) -> None:
        """Watch *target* from now on. A shorter interval takes effect immediately.

        Args:
            target: The server to query; None for none.
            interval_ms, retry_ms: The pause after an answer, and after a failure.
            least_ms: The minimum time between the beginnings of two queries, including nudges.
            await_ms: The time to wait at the server for its promotion, if that is supported, instead of the pause after
                a query; 0 for none.
        """
        sooner = interval_ms / 1000 < self._interval_s or target != self._target or least_ms / 1000 < self._least_s
        self._target, self._interval_s, self._retry_s = target, interval_ms / 1000, retry_ms / 1000
        self._least_s, self._await_s = least_ms / 1000, await_ms / 1000
        if sooner:
            self._nudged.set()

    def nudge(self) -> None:
        """Query immediately."""
        self._nudged.set()

    def unanswered_s(self) -> float:
        """Return the time since the current query began, including the connection attempt; 0 if there is none."""
        asked_at = self.asked_at
        return max(0.0, time.monotonic() - asked_at) if asked_at else 0.0

    def cut_if_stuck(self) -> None:
        """Cut the connection if a query has been unanswered for too long; a stopped host never answers."""
        target, socket = self._target, self._socket
        limit_s = target.timeout_s if target is not None and target.timeout_s else MONITOR_STATEMENT_TIMEOUT_S
        if socket is not None and self.unanswered_s() > limit_s:
            sockets.cut(*socket)

    def stop(self) -> None:
        """End; a query without an answer is aborted. A connection that is being opened is closed afterwards."""
        super().stop()
        self._nudged.set()
        socket = self._socket
        if socket is not None and self.asked_at:
            sockets.cut(*socket)

    def run(self) -> None:
        """Query until stopped."""
        try:
            self._run()
        finally:
            self._close()

    def _run(self) -> None:
        while self._is_wanted():
            target = self._target
            pause_s = self._interval_s
            begun_at = time.monotonic()
            if target is None:
                self._close()
            elif not self._ask(target):
                pause_s = self._retry_s
            elif target.anew:
                # The next query opens a new connection in any case, perhaps in a minute; with a thousand hosts, do not
                # keep idle ones.
                self._close()
            if not self._await_promotion():
                self._nudged.wait(pause_s)
            # A nudge does not shorten the minimum, which the other hosts' queries need.
            while target is not None and (left_s := begun_at + self._least_s - time.monotonic()) > 0:
                if not self._is_wanted():
                    return
                self._nudged.wait(left_s)

    def _await_promotion(self) -> bool:
        """Wait at the server for its promotion, if that is requested and supported; return whether it was done."""
        session, seconds = self._session, self._await_s
        if not seconds or session is None:
            return False
        # The answer is due only at the end of the wait.
        self.asked_at = time.monotonic() + seconds
        try:
            return not self.over.is_set() and session.await_promotion(seconds)
        except (SessionError, OSError):
            # The next query reports the error.
            self._close()
            return False
        finally:
            self.asked_at = 0.0

    def _is_wanted(self) -> bool:
        """Return whether to continue, with the latest assignment."""
        # Clear before checking, so that stop() is not missed.
        self._nudged.clear()
        return not self.over.is_set()

    def _ask(self, target: Target) -> bool:
        """Make one query; return whether it was answered."""
        if self._session is not None and target.supersedes(self._opened):
            self._close()
        self.asked_at = time.monotonic()
        try:
            session = self._session or self._open(target)
            # Check after the socket is known: either stop() cuts it, or this check sees that stop() was called.
            if self.over.is_set():
                return False
            answer = session.ask()
        except (SessionError, OSError) as error:
            self._close()
            failure = error if isinstance(error, SessionError) else SessionError(str(error))
            text = "; ".join(filter(None, (str(failure), failure.remedy)))
            self._inbox.put(ProbeFailed(now(), self._role, text, failure.refused))
            return False
        finally:
            self.asked_at = 0.0
        self._inbox.tell(self._role, answer, self._facts)
        return True

    def _facts(self, answer: Answer) -> tuple[Event, ...]:
        """Return the facts in *answer*: about the server, and its metadata."""
        at = now()
        answered = Answered(
            at,
            self._role,
            answer.read_only,
            answer.replica,
            answer.max_connections,
            role_read_only=answer.role_read_only,
            subscribes=answer.subscribes,
        )
        if answer.rows is not None:
            return answered, StatusRead(at, self._role, answer.rows, answer.servers)
        if answer.missing:
            return answered, MetadataAbsent(at, self._role, answer.missing)
        return answered, MetadataFailed(at, self._role, answer.failure)

    def _open(self, target: Target) -> Session:
        session = self._connect(target)
        self._session, self._opened = session, target
        self._socket = (session.socket, sockets.identity(session.socket))
        self.asked_at = time.monotonic()
        return session

    def _close(self) -> None:
        session, self._session, self._socket = self._session, None, None
        if session is not None:
            session.close()
