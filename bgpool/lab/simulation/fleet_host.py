"""A host of the model of a fleet: the core's own member, duty, state machine and plan, with the parts that drive them.

It is the model of bgpool/monitor: a main loop that takes one event after the other, a subscriber and a publisher.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

from bgpool.core.duty import Duty, Publication, duty, published
from bgpool.core.events import (
    Answered,
    Event,
    Instant,
    MetadataAbsent,
    Nudged,
    ProbeFailed,
    Resolved,
    StatusRead,
    Tick,
)
from bgpool.core.fleet import (
    PLACES,
    AnyEvent,
    BusFailed,
    Claimed,
    FleetOrder,
    FleetRole,
    Message,
    MessageHeard,
    PublishRefused,
    Report,
    ReportsRead,
    StreamLost,
)
from bgpool.core.limits import (
    FLEET_BLOCK_S,
    FLEET_BLOCK_SWITCHING_S,
    FLEET_HOSTS,
    FLEET_LOOK_S,
    FLEET_NUDGE_S,
    FLEET_PAUSE_MAX_S,
    FLEET_PAUSE_S,
    FLEET_REPORT_S,
    FLEET_SILENCE_S,
    FLEET_SILENCE_SWITCHING_S,
    FLEET_TERM_AHEAD_S,
    FLEET_TURN_TO_REPORT_S,
    NUDGE_INTERVAL_S,
)
from bgpool.core.machine import Rules, step
from bgpool.core.member import Member, take
from bgpool.core.phase import SWITCHING, Role
from bgpool.core.plan import Intervals, Target, plan
from bgpool.core.snapshot import Snapshot
from bgpool.fleet.roster import Roster, RosterCounts
from bgpool.lab.simulation.clock import MS, SECOND, Clock
from bgpool.lab.simulation.fleet_bus import FAILED, MISSING, OK, REFUSED, Bus, Node, Place
from bgpool.lab.simulation.fleet_probe import Lookup, Probe
from bgpool.lab.simulation.world import World

__all__ = ["Host", "Watcher"]

_FLEET_EVENTS: Final = (MessageHeard, Claimed, PublishRefused, StreamLost, BusFailed, ReportsRead)
_ALL: Final = Duty()
_NUDGE_NS: Final = int(NUDGE_INTERVAL_S * SECOND)
_PASS_ON_NS: Final = int(FLEET_NUDGE_S * SECOND)
_LOOK_NS: Final = int(FLEET_LOOK_S * SECOND)
_REPORT_NS: Final = int(FLEET_REPORT_S * SECOND)
#: The leader reads reports together that arrive shortly after each other.
_GATHER_NS: Final = 20 * MS


class Watcher(Protocol):
    """An observer of a host."""

    @property
    def traces(self) -> bool:
        """True if every event is traced."""

    def see(self, before: Snapshot, after: Snapshot) -> None:
        """Handle a change of the snapshot."""

    def tell(self, event: Event) -> None:
        """Handle the answer to the host's own query, of a server or of DNS."""

    def count(self, host: Host, role: Role) -> None:
        """Handle a query to the server of *role*."""

    def trace(self, text: str) -> None:
        """Handle a line of the trace."""


class Host:
    """One monitor's life; the next one at its place continues with its snapshot.

    Attributes:
        alive: False once it was killed.
        member: Its membership of the fleet; None for a host that queries for itself as if there were no fleet.
        duty: Its current duty.
    """

    def __init__(
        self,
        world: World,
        place: Place,
        snapshot: Snapshot,
        rules: Rules,
        intervals: Intervals,
        watcher: Watcher,
    ) -> None:
        self.place: Final = place
        self.alive = True
        self.member: Member | None = None
        self.duty = _ALL
        self.snapshot = snapshot
        self._world: Final = world
        self._clock: Final[Clock] = world.clock
        self._rules: Final = rules
        self._intervals: Final = intervals
        self._watcher: Final = watcher
        self._probes: Final = {role: Probe(self, world, role) for role in Role}
        self._lookup: Final = Lookup(self, world, self._resolved)
        # Facts that changed nothing, each with the snapshot that it did not change.
        self._idle: dict[tuple[type, Role], tuple[Snapshot, Event]] = {}
        self._resolved_last: tuple[dict[str, tuple[str, ...]], Snapshot] | None = None
        self._subscriber: Subscriber | None = None
        self._publisher: Publisher | None = None
        self._phase = snapshot.phase
        self._timer_ns = 2**63
        self._nudge_due, self._nudged_ns, self._passed_on_ns = False, -SECOND, -SECOND

    def join(self, bus: Bus, member: Member, rng: random.Random) -> None:
        """Become a member of a fleet."""
        self.member = member
        self._subscriber = Subscriber(self, bus, rng)
        self._publisher = Publisher(self, bus, rng)

    def start(self) -> None:
        """Begin to watch."""
        self._replan()
        if self._subscriber is not None and self._publisher is not None:
            self._subscriber.start()
            self._publisher.start()
            self._attend()
        for probe in self._probes.values():
            probe.wake()
        self.take(Tick(self.now()))

    def kill(self) -> None:
        """End it: answers to its queries are ignored from now on."""
        self.alive = False
        for probe in self._probes.values():
            probe.close()
        if self._subscriber is not None:
            self._subscriber.close()

    @property
    def listeners(self) -> list[Any]:
        """Its waiting connection to the bus."""
        return [self._subscriber] if self._subscriber is not None else []

    @property
    def leads(self) -> bool:
        """True if other hosts use the answers to this host's queries."""
        return self.member is not None and self.member.standing is FleetRole.LEADER

    def now(self) -> Instant:
        """Return the current time on the host's clocks."""
        return Instant(self._clock.now, self.place.wall_ns)

    # -- events ------------------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Handle the cut of a worker."""
        if self.alive and not self._nudge_due:
            self._nudge_due = True
            self._clock.at(self._nudged_ns + _NUDGE_NS, self._hear_nudge)

    def _hear_nudge(self) -> None:
        if not self.alive:
            return
        if self.place.stopped:
            self.place.park(self._hear_nudge)
            return
        self._nudge_due, self._nudged_ns = False, self._clock.now
        self.take(Nudged(self.now()))

    def take(self, event: AnyEvent) -> None:
        """Handle one event, of the database's or of the fleet's."""
        if not self.alive:
            return
        member = self.member
        if member is not None:
            self.member, told = take(member, self.snapshot, event)
            if self._watcher.traces:
                self._tell_place(member, self.member, event)
            for heard in told:
                self._step(heard)
            self._speak(member, self.member, event)
        if isinstance(event, ReportsRead):
            if event.nudged:
                self._nudge_probes()
        elif not isinstance(event, _FLEET_EVENTS):
            self._watcher.tell(event)
            self._step(event)
            if isinstance(event, Nudged):
                self._nudge_probes()
        self._attend()

    def _speak(self, before: Member, member: Member, event: AnyEvent) -> None:
        """Forward a nudge, and trace changes."""
        publisher, now_ns = self._publisher, self._clock.now
        if publisher is None:
            return
        is_nudge = isinstance(event, Nudged) and member.standing is FleetRole.FOLLOWER
        if is_nudge and now_ns - self._passed_on_ns > _PASS_ON_NS:
            self._passed_on_ns = now_ns
            publisher.nudge()
        if before.standing is not member.standing or before.order != member.order:
            publisher.look(member)

    def _tell_place(self, before: Member, member: Member, event: AnyEvent) -> None:
        if (before.standing, before.vacant, before.leader) != (member.standing, member.vacant, member.leader):
            why = member.vacant or member.reason
            self._watcher.trace(f"{member.standing.value} {member.leader[:4]} {member.term or ''} {why}")
        elif before.doubts != member.doubts:
            self._watcher.trace(f"doubts {member.doubts} at {type(event).__name__}")

    def note_question(self, role: Role) -> None:
        """Count a query to the server of *role*."""
        self._watcher.count(self, role)

    def note_silence(self, role: Role, asked_ns: int) -> None:
        """Handle a query that has been unanswered for a while."""
        waited_ns = self._clock.now - asked_ns
        if self.snapshot.phase in SWITCHING or (self.leads and waited_ns > FLEET_SILENCE_S * SECOND):
            self.take(ProbeFailed(self.now(), role, "silent"))

    def tick(self) -> None:
        """Handle the passing of time, or a free publisher."""
        if not self.alive:
            return
        if self.place.stopped:
            self.place.park(self.tick)
            return
        self.take(Tick(self.now()))

    def _resolved(self, found: dict[str, tuple[str, ...]]) -> None:
        last = self._resolved_last
        if last is not None and last[1] is self.snapshot and last[0] == found:
            # It changed nothing then, and the snapshot is the same.
            return
        self.take(Resolved(self.now(), found))
        self._resolved_last = (found, self.snapshot)

    def _nudge_probes(self) -> None:
        for probe in self._probes.values():
            probe.wake()

    def _step(self, event: Event) -> None:
        before = self.snapshot
        role = getattr(event, "role", None)
        if role is not None:
            known, last = self._idle.get((type(event), role), (None, None))
            if known is before and _tells_same(last, event):
                # It changed nothing then, and the snapshot is the same; changes by time alone follow a tick.
                return
        after = step(before, event, self._rules)
        if after is before or after == before:
            if role is not None:
                self._idle[type(event), role] = (before, event)
            return
        self.snapshot = after
        self._watcher.see(before, after)
        self._replan()

    # -- reactions ---------------------------------------------------------------------------------------------

    def _attend(self) -> None:
        """Do this host's duty, and set the timer for the next one."""
        now_ns, snapshot = self._clock.now, self.snapshot
        due_ns = min((end for end in snapshot.timers if end > now_ns), default=2**63)
        member = self.member
        if member is not None and self._publisher is not None and self._subscriber is not None:
            if snapshot.phase is not self._phase:
                self._phase = snapshot.phase
                self._publisher.look(member)
            before = self.duty
            at = self.now()
            todo = duty(member, snapshot, at)
            publication = todo.publication
            if publication is not None and not self._publisher.is_busy:
                self.member = published(member, publication, at)
                self._publisher.publish(publication, member.fence)
                todo = duty(self.member, snapshot, at)
            if todo.publication is not None:
                # The publisher calls tick() when it is free.
                todo = replace(todo, publication=None, due_ns=now_ns + SECOND)
            self.duty = todo
            if before.asks != todo.asks or before.pace_ms != todo.pace_ms:
                self._replan()
                for role, probe in self._probes.items():
                    place = PLACES[role]
                    if todo.asks[place] not in (None, before.asks[place]):
                        probe.wake()
            due_ns = min(due_ns, todo.due_ns)
        if due_ns < self._timer_ns or self._timer_ns <= now_ns:
            self._timer_ns = max(due_ns, now_ns + 1)
            if due_ns < 2**62:
                self._clock.at(self._timer_ns, self._time_up, self._timer_ns)

    def _time_up(self, timer_ns: int) -> None:
        if timer_ns != self._timer_ns or not self.alive:
            return
        if self.place.stopped:
            self.place.park(self._time_up, timer_ns)
            return
        self._timer_ns = 2**63
        self.take(Tick(self.now()))

    def _replan(self) -> None:
        todo = plan(self.snapshot, self._intervals)
        for role, probe in self._probes.items():
            place = PLACES[role]
            target = todo.target if role is Role.TARGET else todo.source or Target(self._world.blue_name, 5432)
            interval_ms, retry_ms = todo.pace_ms(role)
            asked = target if self.duty.asks[place] is not None else None
            probe.assign(asked, interval_ms, retry_ms, self.duty.pace_ms)
        self._lookup.assign(todo.names, todo.resolve_ms)

    def report(self, *, nudged: bool = False) -> Report:
        """Return the report of the host's current state."""
        member = self.member
        assert member is not None
        return Report(
            member.id,
            f"host{self.place.number}",
            f"place{self.place.number}",
            "1",
            self.place.wall_ns,
            member.application,
            self.snapshot.phase,
            (),
            1,
            0,
            member.standing,
            order=member.order.number if member.order is not None else "",
            fallbacks=member.fallbacks,
            nudged=nudged,
        )


def _tells_same(one: object, other: object) -> bool:
    """Return whether two facts of one kind and role have the same content."""
    if isinstance(one, StatusRead) and isinstance(other, StatusRead):
        return one.rows is other.rows
    if isinstance(one, Answered) and isinstance(other, Answered):
        flags = (one.read_only, one.replica, one.role_read_only, one.subscribes)
        return flags == (other.read_only, other.replica, other.role_read_only, other.subscribes)
    if isinstance(one, ProbeFailed) and isinstance(other, ProbeFailed):
        return one.error == other.error
    return isinstance(one, MetadataAbsent) and isinstance(other, MetadataAbsent) and one.remedy == other.remedy


class Subscriber:
    """The model of bgpool/monitor/subscriber.py, a thread that reads the bus."""

    def __init__(self, host: Host, bus: Bus, rng: random.Random) -> None:
        self._host: Final = host
        self._bus: Final = bus
        self._rng: Final = rng
        self._clock: Final[Clock] = host._clock
        self._node: Node | None = None
        self._cursor = self._end = (0, 0)
        self._heard_ns = -SECOND
        self._pending = False
        self._error = ""
        self._pause_ns = int(FLEET_PAUSE_S * SECOND)
        self._ticket = 0
        self._roll: Roster | None = None
        self._counted: RosterCounts | None = None
        self._counted_ns = -SECOND
        self._reports_from_ns = 0
        # The number of entries read of the hosts' stream, including those before its beginning; -1 while they are not
        # read.
        self._reports_read = -1

    @property
    def place(self) -> Place:
        """The host's place."""
        return self._host.place

    @property
    def counts(self) -> bool:
        """True if it reads the hosts' reports."""
        return self._host.leads

    def start(self) -> None:
        """Begin to listen."""
        self._connect()
        self._clock.after(self._block_ns, self._look)

    def close(self) -> None:
        """Disconnect."""
        if self._node is not None:
            self._node.listeners.pop(self, None)
        self._node = None

    # -- events of the bus ---------------------------------------------------------------------------------------

    def notice(self) -> None:
        """Handle new entries."""
        if not self._pending:
            self._pending = True
            delay_ns = self._bus.latency_ns(self.place)
            self._clock.after(delay_ns, self._read)

    def hang_up(self) -> None:
        """Handle the server's close of the connection."""
        self._node = None
        self._clock.after(
            self._rng.randrange(MS, 30 * MS), self._fail, "the bus has closed the connection", self._next()
        )

    def wait_in_vain(self) -> None:
        """Handle a connection on which nothing arrives any longer."""
        if self._node is not None:
            self._clock.after(self._rng.randrange(500 * MS, 1100 * MS), self._time_out, self._next())

    # -- the thread ------------------------------------------------------------------------------------------------

    @property
    def _block_ns(self) -> int:
        hurries = self._host.snapshot.phase in SWITCHING
        return int((FLEET_BLOCK_SWITCHING_S if hurries else FLEET_BLOCK_S) * SECOND)

    def _next(self) -> int:
        self._ticket += 1
        return self._ticket

    def _connect(self) -> None:
        if not self._host.alive:
            return
        if self.place.stopped:
            self.place.park(self._connect)
            return
        how = self._bus.reach(self.place)
        if how is OK:
            self._clock.after(4 * self._bus.latency_ns(self.place), self._connected, self._next())
        else:
            delay_ns = MS if how is REFUSED else SECOND
            self._clock.after(delay_ns, self._fail, "the bus cannot be reached", self._next())

    def _connected(self, ticket: int) -> None:
        if ticket != self._ticket or not self._host.alive:
            return
        if self.place.stopped:
            self.place.park(self._connected, ticket)
            return
        if self._bus.reach(self.place) is not OK:
            self._fail("the bus does not answer", ticket)
            return
        self._node = self._bus.node_of(self.place)
        self._node.listeners[self] = None
        self._pause_ns = int(FLEET_PAUSE_S * SECOND)
        self._take_cursor_anew(self._node)
        if self._node.after(self._cursor):
            self.notice()
        if self._error:
            self._clock.after(self._block_ns, self._works)

    def _works(self) -> None:
        if self._node is not None and self._error and self._bus.reach(self.place) is OK and self._host.alive:
            self._tell_error("")

    def _fail(self, error: str, ticket: int) -> None:
        if ticket != self._ticket or not self._host.alive:
            return
        if self.place.stopped:
            self.place.park(self._fail, error, ticket)
            return
        self.close()
        self._heard_ns = -SECOND
        self._reports_read, self._reports_from_ns = -1, self._clock.now + int(FLEET_PAUSE_MAX_S * SECOND)
        self._clock.after(self._pause_ns, self._connect)
        self._pause_ns = min(2 * self._pause_ns, int(FLEET_PAUSE_MAX_S * SECOND))
        self._tell_error(error)

    def _time_out(self, ticket: int) -> None:
        # A read that has returned in time has not failed.
        if ticket == self._ticket and self._bus.reach(self.place) is not OK:
            self._fail("the bus does not answer", ticket)

    def _tell_error(self, error: str) -> None:
        if error != self._error:
            self._error = error
            self._host.take(BusFailed(self._host.now(), error))

    def _look(self) -> None:
        """Run after each empty read."""
        host = self._host
        if not host.alive:
            return
        if self.place.stopped:
            self.place.park(self._look)
            return
        limit_s = FLEET_SILENCE_SWITCHING_S if host.snapshot.phase in SWITCHING else FLEET_SILENCE_S
        silent_ns = self._heard_ns + int(limit_s * SECOND)
        node = self._node
        if node is not None and self._clock.now > silent_ns and self._bus.reach(self.place) is OK:
            self._take_cursor_anew(node)
            if node.after(self._cursor):
                self.notice()
        if node is not None and self._bus.reach(self.place) is OK:
            self._read_reports(node)
        self._clock.after(self._block_ns + self._rng.randrange(0, 20 * MS), self._look)

    def _take_cursor_anew(self, node: Node) -> None:
        top = node.top()
        if top is None or (top.term, top.seq) < self._cursor:
            self._cursor = (0, 0)
        self._end = (top.term, top.seq) if top is not None else (0, 0)
        self._heard_ns = self._clock.now

    def _read(self) -> None:
        host, node = self._host, self._node
        self._pending = False
        if not host.alive or node is None:
            return
        if self.place.stopped:
            self._pending = True
            self.place.park(self._read)
            return
        if self._bus.reach(self.place) is not OK or self._bus.node_of(self.place) is not node:
            return
        for place, message in node.after(self._cursor):
            self._cursor, self._heard_ns = place, self._clock.now
            host.take(MessageHeard(host.now(), message, is_past=place <= self._end))
        self._read_reports(node)

    def _read_reports(self, node: Node) -> None:
        member, now_ns = self._host.member, self._clock.now
        if member is None or not self._host.leads:
            self._roll, self._reports_read = None, -1
            return
        if self._reports_read < 0:
            if now_ns < self._reports_from_ns:
                return
            if self._roll is None:
                self._roll, self._counted = Roster(member.id), None
            begin = len(node.reports) - FLEET_HOSTS
        else:
            begin = self._reports_read - node.trimmed
        self._reports_read = node.trimmed + len(node.reports)
        self._call(node.reports[max(0, begin) :])

    def _call(self, reports: list[tuple[int, Report | FleetOrder]]) -> None:
        roll, nudged = self._roll, False
        if roll is None:
            return
        for at_ms, told in reports:
            roll.add(at_ms, told)
            nudged |= isinstance(told, Report) and told.nudged
        if not nudged and self._clock.now - self._counted_ns < int(FLEET_BLOCK_SWITCHING_S * SECOND):
            # The next look counts them.
            return
        self._counted_ns = self._clock.now
        count = roll.count()
        if nudged or count != self._counted:
            self._counted = count
            host = self._host
            host.take(ReportsRead(host.now(), count.hosts, count.order, nudged, count.switching, count.strangers))


class Publisher:
    """The model of bgpool/monitor/publisher.py, a thread that writes to the bus, one message after the other."""

    def __init__(self, host: Host, bus: Bus, rng: random.Random) -> None:
        self._host: Final = host
        self._bus: Final = bus
        self._rng: Final = rng
        self._clock: Final[Clock] = host._clock
        self._publication: tuple[Publication, tuple[int, int]] | None = None
        self._writing = self._nudges = False
        self._reported: Report | None = None
        self._reported_ns = -_REPORT_NS
        self._look_ns = 0

    @property
    def is_busy(self) -> bool:
        """True if the last publication has not been written yet."""
        return self._publication is not None

    def start(self) -> None:
        """Begin to report."""
        self._look_at(self._clock.now)

    def publish(self, publication: Publication, fence: tuple[int, int]) -> None:
        """Write *publication*."""
        self._publication = (publication, fence)
        self._go()

    def nudge(self) -> None:
        """Make the leader query at once."""
        self._nudges = True
        self._go()

    def look(self, member: Member) -> None:
        """Report in this host's turn if there is a change to report."""
        turn_s = min(FLEET_LOOK_S, member.hosts * FLEET_TURN_TO_REPORT_S)
        self._look_at(self._clock.now + int(member.jitter * turn_s * SECOND))

    def _look_at(self, moment_ns: int) -> None:
        self._look_ns = moment_ns
        self._clock.at(moment_ns, self._wake, moment_ns)

    def _wake(self, moment_ns: int) -> None:
        if not self._host.alive or moment_ns != self._look_ns:
            return
        if self.place.stopped:
            self.place.park(self._wake, moment_ns)
            return
        self._go()

    @property
    def place(self) -> Place:
        """The host's place."""
        return self._host.place

    def _go(self) -> None:
        if self._writing:
            return
        if self._publication is not None:
            publication, fence = self._publication
            self._writing = True
            message = publication.message
            if publication.is_claim:
                self._bus.call(self.place, Node.top, lambda top: self._claim(top, message, fence))
            else:
                self._write(message)
        elif self._nudges:
            self._nudges = False
            self._say(self._host.report(nudged=True))
        else:
            self._report()

    def _report(self) -> None:
        now_ns = self._clock.now
        if now_ns < self._look_ns:
            return
        self._look_at(now_ns + _LOOK_NS)
        report, before = self._host.report(), self._reported
        if before is not None and now_ns - self._reported_ns < _REPORT_NS and _news(before) == _news(report):
            return
        self._reported, self._reported_ns = report, now_ns
        self._say(report)

    def _say(self, report: Report) -> None:
        self._writing = True
        self._bus.call(self.place, lambda node: node.report(report), self._said)

    def _said(self, found: object) -> None:
        if self._waits(self._said, found):
            return
        if found is FAILED:
            self._pause()
            return
        self._writing = False
        self._go()

    def _pause(self) -> None:
        """Pause after a failure, as an immediate retry may fail, too."""
        self._look_ns = self._clock.now + _LOOK_NS
        self._clock.after(int(FLEET_PAUSE_S * SECOND), self._go_on)
        self._host.take(BusFailed(self._host.now(), "the bus does not answer"))

    def _go_on(self) -> None:
        if self._waits(self._go_on):
            return
        self._writing = False
        self._look_at(max(self._look_ns, self._clock.now))
        self._go()

    def _waits(self, call: Callable[..., object], *args: Any) -> bool:
        """Return whether the process cannot handle the call now; one that is only stopped handles it later."""
        if self.place.stopped and self._host.alive:
            self.place.park(call, *args)
            return True
        return not self._host.alive

    def _write(self, message: Message) -> None:
        self._bus.call(self.place, lambda node: node.add(message), lambda found: self._written(message, found))

    def _written(self, message: Message, found: object) -> None:
        if self._waits(self._written, message, found):
            return
        self._publication = None
        host = self._host
        if found is FAILED:
            self._pause()
            host.tick()
            return
        self._writing = False
        if found is MISSING:
            host.take(StreamLost(host.now()))
        elif found is REFUSED:
            host.take(PublishRefused(host.now(), message.term))
        elif message.seq == 0:
            host.take(Claimed(host.now(), message.term))
        else:
            host.tick()
        self._go()

    def _claim(self, top: object, message: Message, fence: tuple[int, int]) -> None:
        if self._waits(self._claim, top, message, fence):
            return
        host = self._host
        if top is FAILED:
            self._written(message, FAILED)
            return
        if isinstance(top, Message):
            if (top.term, top.seq) > fence and not top.resigns:
                self._writing = False
                self._publication = None
                host.take(MessageHeard(host.now(), top, is_past=True))
                self._go()
                return
            term = max(message.term, top.term + 1)
        else:
            term = max(message.term, self.place.wall_ns // SECOND)
        if term > self.place.wall_ns // SECOND + FLEET_TERM_AHEAD_S:
            self._written(message, FAILED)
            return
        self._write(replace(message, term=term, issued_ns=self.place.wall_ns))


def _news(report: Report) -> tuple[object, ...]:
    """Return the parts of a report whose changes other hosts must receive at once."""
    return report.phase, report.standing, report.order, report.fallbacks
