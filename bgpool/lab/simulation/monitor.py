"""The monitor of the model: bgpool's own state machine and plan, fed by polls that take time or go unanswered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from bgpool.core.events import (
    Answered,
    Event,
    Instant,
    MetadataAbsent,
    MetadataFailed,
    Nudged,
    ProbeFailed,
    Resolved,
    StatusRead,
    Tick,
)
from bgpool.core.fleet import NEVER
from bgpool.core.limits import HEARTBEAT_S, MONITOR_STATEMENT_TIMEOUT_S, NUDGE_INTERVAL_S, SILENCE_S
from bgpool.core.machine import Rules, is_settled, step
from bgpool.core.phase import SWITCHING, Role
from bgpool.core.plan import Intervals, Plan, Target, plan
from bgpool.core.snapshot import Snapshot
from bgpool.lab.simulation.clock import SECOND, Clock, Promise, Task
from bgpool.lab.simulation.world import Link, World

__all__ = ["Monitor"]


class Monitor:
    """One monitor's life; the next one continues with the last published snapshot."""

    def __init__(
        self, world: World, snapshot: Snapshot, rules: Rules, intervals: Intervals, publish: Callable[[Snapshot], None]
    ) -> None:
        self._world: Final = world
        self._clock: Final[Clock] = world.clock
        self._rules: Final = rules
        self._intervals: Final = intervals
        self._publish: Final = publish
        self._snapshot = snapshot
        self._alive = True
        self._plan: Plan = plan(snapshot, intervals)
        self._replanned = Promise()
        self._nudged = Promise()
        self._nudge_due, self._nudged_ns = False, -SECOND
        self._sessions: dict[Role, tuple[Target, Link] | None] = dict.fromkeys(Role)
        # The last answers of each role, and of DNS, that have changed nothing; the main loop does not receive them
        # again.
        self._settled: dict[Role | None, list[Event]] = {}

    def start(self) -> None:
        """Begin to watch."""
        self._clock.start(self._beat())
        for role in Role:
            self._clock.start(self._probe(role))
        self._clock.start(self._look_up())

    def kill(self) -> None:
        """End it: answers to its queries are ignored from now on."""
        self._alive = False
        for session in self._sessions.values():
            if session is not None:
                session[1].server.end(session[1])

    def nudge(self) -> None:
        """Handle the cut of a worker, at most once in NUDGE_INTERVAL_S."""
        if self._alive and not self._nudge_due:
            self._nudge_due = True
            self._clock.after(max(0, self._nudged_ns + int(NUDGE_INTERVAL_S * SECOND) - self._clock.now), self._hear)

    def _hear(self) -> None:
        self._nudge_due, self._nudged_ns = False, self._clock.now
        self._take(Nudged(self._now()))
        nudged, self._nudged = self._nudged, Promise()
        nudged.keep()

    def _take(self, event: Event) -> None:
        if not self._alive:
            return
        after = step(self._snapshot, event, self._rules)
        if after is self._snapshot or after == self._snapshot:
            return
        self._snapshot = after
        self._settled.clear()
        self._publish(after)
        for end_ns in after.timers:
            if end_ns > self._clock.now:
                self._clock.at(end_ns, self._tick)
        self._plan = plan(after, self._intervals)
        replanned, self._replanned = self._replanned, Promise()
        replanned.keep()

    def _take_answer(self, who: Role | None, events: Sequence[Event]) -> None:
        """Handle the answer of *who*, None for DNS, unless it is known to change nothing."""
        said = [replace(event, at=NEVER) for event in events]
        if self._settled.get(who) == said:
            return
        before = self._snapshot
        for event in events:
            self._take(event)
        if is_settled(before, self._snapshot):
            self._settled[who] = said

    def _now(self) -> Instant:
        return Instant(self._clock.now, self._clock.now)

    def _beat(self) -> Task:
        while self._alive:
            yield int(HEARTBEAT_S * SECOND)
            self._tick()

    def _tick(self) -> None:
        self._take(Tick(self._now()))

    def _target(self, role: Role) -> Target | None:
        if role is Role.SOURCE:
            return self._plan.source or Target(self._world.blue_name, 5432)
        return self._plan.target

    def _probe(self, role: Role) -> Task:
        while self._alive:
            target = self._target(role)
            if target is None:
                yield self._replanned
                continue
            session = self._sessions[role]
            if session is not None and target.supersedes(session[0]):
                session[1].server.end(session[1])
                self._sessions[role] = None
            answered = yield from self._ask(role, target)
            interval_ms, retry_ms = self._plan.pace_ms(role)
            pause_ms = interval_ms if answered else retry_ms
            yield self._clock.within(self._sooner(role), pause_ms * SECOND // 1000)

    def _sooner(self, role: Role) -> Promise:
        """Return a promise that is kept when a poll is due sooner because the plan changes."""
        sooner, before = Promise(), (self._target(role), self._plan.pace_ms(role))

        def look(_: Any) -> None:
            if self._target(role) != before[0] or self._plan.pace_ms(role) < before[1]:
                sooner.keep()
            elif not sooner.kept and self._alive:
                self._replanned.then(look)

        self._replanned.then(look)
        self._nudged.then(sooner.keep)
        return sooner

    def _ask(self, role: Role, target: Target) -> Task:
        """Make one query; return whether it was answered."""
        limit_ns = int((target.timeout_s or MONITOR_STATEMENT_TIMEOUT_S) * SECOND)
        question = self._clock.within(self._question(role, target), limit_ns, "no answer")
        # The main loop notes silence in a switchover, long before the query times out.
        self._clock.after(int(SILENCE_S * SECOND), self._note_silence, role, question)
        answer = yield question
        if not self._alive:
            return False
        if isinstance(answer, str):
            session, self._sessions[role] = self._sessions[role], None
            if session is not None:
                session[1].server.end(session[1])
            self._take(ProbeFailed(self._now(), role, answer))
            return False
        self._take_answer(role, answer)
        return True

    def _note_silence(self, role: Role, question: Promise) -> None:
        if not question.kept and self._alive and self._snapshot.phase in SWITCHING:
            self._take(ProbeFailed(self._now(), role, "silent"))

    def _question(self, role: Role, target: Target) -> Promise:
        """Return a promise that is kept with the events of the answer, or with the text of an error."""
        answer = Promise()
        self._clock.start(self._exchange(role, target, answer))
        return answer

    def _exchange(self, role: Role, target: Target, answer: Promise) -> Task:
        session = self._sessions[role]
        if session is None:
            address = target.addresses or self._world.resolve(target.host) or ()
            if not address:
                answer.keep("no such name")
                return
            server = self._world.server_at(address[0])
            connection = yield server.connect()
            if connection is None or server.refuses_monitor or not self._alive or answer.kept:
                if connection is not None:
                    server.end(connection)
                answer.keep("refused")
                return
            self._sessions[role] = session = (target, connection)
        connection = session[1]
        said = connection.server.do(lambda: None if connection.lost.kept else self._state(role, connection))
        found = yield said
        answer.keep("cut" if found is None else found)

    def _state(self, role: Role, connection: Link) -> list[Event]:
        server, at = connection.server, self._now()
        events: list[Event] = [
            Answered(
                at,
                role,
                server.takes_no_writes,
                server.replica,
                role_read_only=server.role_read_only,
                subscribes=server.subscribes,
            )
        ]
        if server.metadata == "rows":
            events.append(StatusRead(at, role, server.status_rows))
        elif server.metadata == "empty":
            events.append(StatusRead(at, role, ()))
        elif server.metadata == "absent":
            events.append(MetadataAbsent(at, role, "nothing to be seen"))
        else:
            events.append(MetadataFailed(at, role, "broken"))
        return events

    def _look_up(self) -> Task:
        while self._alive:
            names = self._plan.names
            if not names:
                yield self._replanned
                continue
            found = {name: self._world.resolve(name) for name in names}
            yield self._world.dns_latency_ns
            known = {name: addresses for name, addresses in found.items() if addresses is not None}
            if known:
                self._take_answer(None, [Resolved(self._now(), known)])
            yield self._clock.within(self._replanned, self._plan.resolve_ms * SECOND // 1000)
