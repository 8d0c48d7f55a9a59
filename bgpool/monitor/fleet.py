"""A monitor's membership in its fleet: the member's state, and the threads that use the bus."""

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
    """The interface of a monitor to its fleet, if it has one."""

    @property
    def threads(self) -> tuple[StoppableThread, ...]:
        """The threads of the membership; a monitor can run without them."""

    @property
    def view(self) -> FleetView | None:
        """The host's role in its fleet; None without a fleet."""

    @property
    def heard_ns(self) -> int:
        """The time of the last valid message, on the monotonic clock; 0 if none."""

    @property
    def leads(self) -> bool:
        """True if this host's readings are used by others."""

    @property
    def counts_answers(self) -> bool:
        """True if the time of an answer matters, so that equal answers must be passed on."""

    def take(self, snapshot: Snapshot, event: AnyEvent, /) -> tuple[Event, ...]:
        """Handle *event*; return the events for the deployment's state machine."""

    def attend(self, snapshot: Snapshot, /) -> Duty:
        """Do the work that is due on the bus; return the duty at the database."""

    def tell(self, snapshot: Snapshot, /) -> Snapshot:
        """Return *snapshot* with log lines about the fleet; the same object if there are none."""

    def leave(self, snapshot: Snapshot, /) -> None:
        """Notify the other hosts of the end; waits at most FLEET_LEAVE_S."""


class NoFleet:
    """The membership of a monitor without a fleet: it queries for itself."""

    threads: Final[tuple[StoppableThread, ...]] = ()
    view: Final = None
    heard_ns: Final = 0
    leads: Final = False
    counts_answers: Final = False

    def take(self, _snapshot: Snapshot, _event: AnyEvent, /) -> tuple[Event, ...]:
        """Return no events."""
        return ()

    def attend(self, _snapshot: Snapshot, /) -> Duty:
        """Return the duty to query both servers at the normal rate."""
        return Duty()

    def tell(self, snapshot: Snapshot, /) -> Snapshot:
        """Return *snapshot* unchanged."""
        return snapshot

    def leave(self, _snapshot: Snapshot, /) -> None:
        """Do nothing: there is no other host to notify."""


class FleetMembership:
    """The membership of a monitor with a fleet. Only the main loop uses it, except for `describe`."""

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
        """The subscriber and the publisher."""
        return (self._subscriber, self._publisher)

    @property
    def view(self) -> FleetView | None:
        """The host's role."""
        return view_of(self._member)

    @property
    def heard_ns(self) -> int:
        """The time of the last valid message, on the monotonic clock; 0 if none."""
        return self._member.heard_ns

    @property
    def leads(self) -> bool:
        """True if this host's readings are used by others."""
        return self._member.standing is FleetRole.LEADER

    @property
    def counts_answers(self) -> bool:
        """True: readings are published with their times."""
        return True

    def take(self, snapshot: Snapshot, event: AnyEvent) -> tuple[Event, ...]:
        """Handle *event*; return the events for the deployment's state machine."""
        before = self._member
        self._member, told = take(before, snapshot, event)
        if isinstance(event, Nudged) and self._member.standing is FleetRole.FOLLOWER:
            self._pass_on()
        if (before.standing, before.order) != (self._member.standing, self._member.order):
            self._look()
        return told

    def attend(self, snapshot: Snapshot) -> Duty:
        """Publish what is due; return the duty at the database."""
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
        # Other work that is due waits at most for a tick, which the publisher sends as soon as it is free.
        return replace(todo, publication=None, due_ns=Duty().due_ns) if todo.publication is not None else todo

    def leave(self, snapshot: Snapshot, /) -> None:
        """Notify the other hosts of the end; waits at most FLEET_LEAVE_S."""
        member = self._member
        if member.standing is FleetRole.LEADER and member.sent is not None and not self._publisher.is_busy:
            self._publisher.publish(farewell(member, snapshot, now()), member.fence)
        self._publisher.leave(FLEET_LEAVE_S)

    def tell(self, snapshot: Snapshot, /) -> Snapshot:
        """Return *snapshot* with log lines about the fleet; the same object if there are none."""
        self._said, told = tell(self._said, snapshot, self._member, now())
        return told

    def _look(self) -> None:
        """Report a change in this host's turn: in a switchover all hosts have the same change at the same time."""
        self._publisher.look(self._member.jitter * min(FLEET_LOOK_S, self._member.hosts * FLEET_TURN_TO_REPORT_S))

    def _pass_on(self) -> None:
        """Forward a nudge to the leader, whose own host may have no connection that was cut."""
        if time.monotonic() - self._nudged_at > FLEET_NUDGE_S:
            self._nudged_at = time.monotonic()
            self._publisher.nudge()

    def _describe(self) -> Report:
        """Return a report of the host's current state; called in the publisher's thread."""
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
    """Return the membership of a monitor with *config*; events that it receives are put into *events*."""
    return FleetMembership(config.fleet, config, files, events) if config.fleet is not None else NoFleet()


def _maker(fleet: FleetConfig, bg_id: str) -> Callable[[], Bus]:
    def make() -> Bus:
        # Imported here, because only a monitor with a fleet needs the client.
        from bgpool.fleet.streams import StreamBus

        return StreamBus(fleet, bg_id)

    return make
