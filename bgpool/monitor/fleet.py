"""A monitor's part in its fleet: the member's state, and the threads that carry it to the bus and back."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from bgpool._version import __version__
from bgpool.core.duty import Duty, duty, farewell, published
from bgpool.core.events import Event, Nudged
from bgpool.core.fleet import AnyEvent, FleetRole, FleetView, Report
from bgpool.core.fleet_lines import LoggedState, tell
from bgpool.core.limits import FLEET_LEAVE_S, FLEET_LOOK_S, FLEET_MISSING, FLEET_NUDGE_S, FLEET_TURN_TO_REPORT_S
from bgpool.core.member import Member, take, view_of
from bgpool.core.phase import SWITCHING, Phase
from bgpool.core.snapshot import Snapshot
from bgpool.fleet.bus import Bus
from bgpool.fleet.config import FleetConfig
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.inbox import Inbox
from bgpool.monitor.keys import Keys
from bgpool.monitor.probe import now
from bgpool.monitor.publisher import Publisher
from bgpool.monitor.stoppable import StoppableThread
from bgpool.monitor.subscriber import Subscriber
from bgpool.report.reading import read_status
from bgpool.segment.paths import RunFiles

__all__ = ["NoFleet", "FleetMembership", "Membership", "membership_of"]


class Membership(Protocol):
    """What a monitor does with its fleet, if it has one."""

    @property
    def threads(self) -> tuple[StoppableThread, ...]:
        """Threads that it needs; a monitor can do without them."""

    @property
    def view(self) -> FleetView | None:
        """The host's place; None without a fleet."""

    @property
    def heard_ns(self) -> int:
        """When a message that counts was heard last, on the monotonic clock; 0 for never."""

    @property
    def leads(self) -> bool:
        """Whether others go by what this host is answered."""

    @property
    def counts_answers(self) -> bool:
        """Whether an answer tells something by its time alone, so that the same one is to be told again."""

    def take(self, snapshot: Snapshot, event: AnyEvent, /) -> tuple[Event, ...]:
        """What *event* says of the fleet; the events that the deployment's state machine is to be given."""

    def attend(self, snapshot: Snapshot, /) -> Duty:
        """Do what is to be done on the bus; what is to be done at the database."""

    def tell(self, snapshot: Snapshot, /) -> Snapshot:
        """*snapshot* with what the log is to be told of the fleet; the same object where that is nothing."""

    def leave(self, snapshot: Snapshot, /) -> None:
        """Let the others know; waits for no more than FLEET_LEAVE_S."""


class NoFleet:
    """The part of a monitor without a fleet: it asks for itself."""

    threads: Final[tuple[StoppableThread, ...]] = ()
    view: Final = None
    heard_ns: Final = 0
    leads: Final = False
    counts_answers: Final = False

    def take(self, _snapshot: Snapshot, _event: AnyEvent, /) -> tuple[Event, ...]:
        """Nothing."""
        return ()

    def attend(self, _snapshot: Snapshot, /) -> Duty:
        """To ask both servers as often as ever."""
        return Duty()

    def tell(self, snapshot: Snapshot, /) -> Snapshot:
        """Nothing."""
        return snapshot

    def leave(self, _snapshot: Snapshot, /) -> None:
        """Nobody is there to be told."""


class FleetMembership:
    """The part of a monitor with a fleet. All of it is the main loop's, but for `describe`."""

    def __init__(
        self,
        fleet: FleetConfig,
        config: MonitorConfig,
        files: RunFiles,
        events: Inbox,
    ) -> None:
        self._files: Final = files
        self._bg_id: Final = config.bg_id
        self._member = Member(secrets.token_hex(8), config.application_mark)
        where = f"{os.uname().nodename} {files.directory}"
        self._place: Final = hashlib.sha256(os.fsencode(where)).hexdigest()[:16]
        self._phase = Phase.NOT_CREATED
        keys, bus = Keys(fleet), _maker(fleet, config.bg_id)
        self._subscriber: Final = Subscriber(bus, keys, config.bg_id, self._member.id, events)
        self._publisher: Final = Publisher(bus, keys, config.bg_id, self._describe, events)
        self._nudged_at = 0.0
        self._said = LoggedState()

    @property
    def threads(self) -> tuple[StoppableThread, ...]:
        """The ear and the voice."""
        return (self._subscriber, self._publisher)

    @property
    def view(self) -> FleetView | None:
        """The host's place."""
        return view_of(self._member)

    @property
    def heard_ns(self) -> int:
        """When a message that counts was heard last, on the monotonic clock; 0 for never."""
        return self._member.heard_ns

    @property
    def leads(self) -> bool:
        """Whether others go by what this host is answered."""
        return self._member.standing is FleetRole.LEADER

    @property
    def counts_answers(self) -> bool:
        """It does: readings are published with the time at which they were read."""
        return True

    def take(self, snapshot: Snapshot, event: AnyEvent) -> tuple[Event, ...]:
        """What *event* says of the fleet; the events that the deployment's state machine is to be given."""
        before = self._member
        self._member, told = take(before, snapshot, event)
        if isinstance(event, Nudged) and self._member.standing is FleetRole.FOLLOWER:
            self._pass_on()
        if (before.standing, before.order) != (self._member.standing, self._member.order):
            self._look()
        return told

    def attend(self, snapshot: Snapshot) -> Duty:
        """Publish what is to be published; what is to be asked."""
        at = now()
        if snapshot.phase is not self._phase:
            self._phase = snapshot.phase
            self._look()
        self._subscriber.assign(leads=self.leads, hurries=snapshot.phase in SWITCHING)
        todo = duty(self._member, snapshot, at)
        if todo.publication is None:
            return todo
        if not self._publisher.is_busy:
            self._publisher.publish(todo.publication, self._member.fence)
            self._member = published(self._member, todo.publication, at)
            todo = duty(self._member, snapshot, at)
        # What is due beside it waits for a tick at most; the voice sends one as soon as it is free.
        return replace(todo, publication=None, due_ns=Duty().due_ns) if todo.publication is not None else todo

    def leave(self, snapshot: Snapshot, /) -> None:
        """Let the others know; waits for no more than FLEET_LEAVE_S."""
        member = self._member
        if member.standing is FleetRole.LEADER and member.sent is not None and not self._publisher.is_busy:
            self._publisher.publish(farewell(member, snapshot, now()), member.fence)
        self._publisher.leave(FLEET_LEAVE_S)

    def tell(self, snapshot: Snapshot, /) -> Snapshot:
        """*snapshot* with what the log is to be told of the fleet; the same object where that is nothing."""
        self._said, told = tell(self._said, snapshot, self._member, now())
        return told

    def _look(self) -> None:
        """Report what has changed, in this host's turn: in a switchover all hosts have the same to say at once."""
        self._publisher.look(self._member.jitter * min(FLEET_LOOK_S, self._member.hosts * FLEET_TURN_TO_REPORT_S))

    def _pass_on(self) -> None:
        """A nudge, to the leader: its host may have no connection that was cut."""
        if time.monotonic() - self._nudged_at > FLEET_NUDGE_S:
            self._nudged_at = time.monotonic()
            self._publisher.nudge()

    def _describe(self) -> Report:
        """The host as it is, in the voice's thread."""
        member, status = self._member, read_status(self._files, self._bg_id)
        off_ns = member.clock_off_ns
        return Report(
            member.id,
            status.host,
            self._place,
            __version__,
            time.time_ns(),
            member.application,
            status.phase if status.phase is not None else Phase.NOT_CREATED,
            status.missing[:FLEET_MISSING],
            len(status.workers),
            sum(worker.held for worker in status.workers),
            member.standing,
            order=member.order.number if member.order is not None else "",
            clock_off_ms=off_ns // 1_000_000 if off_ns is not None else None,
            fallbacks=member.fallbacks,
            refused=member.refused + self._subscriber.refused.total(),
        )


def membership_of(config: MonitorConfig, files: RunFiles, events: Inbox) -> Membership:
    """The part that a monitor with *config* takes; what it hears comes to *events*."""
    return FleetMembership(config.fleet, config, files, events) if config.fleet is not None else NoFleet()


def _maker(fleet: FleetConfig, bg_id: str) -> Callable[[], Bus]:
    def make() -> Bus:
        # Only here: nobody but a monitor with a fleet is to need the client.
        from bgpool.fleet.streams import StreamBus

        return StreamBus(fleet, bg_id)

    return make
