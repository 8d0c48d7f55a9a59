"""What the application's log is told of a host's place in its fleet.

``tell(said, snapshot, member, at)`` goes by what is true and what was said last, so that a place that changes to and
fro does not fill the log, and that the log's last word is right once it stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from bgpool.core.events import Instant
from bgpool.core.fleet import FleetRole
from bgpool.core.limits import FLEET_CLOCK_ERROR_S, FLEET_FRESH_S, FLEET_WORKS_S, LOG_REPEAT_S
from bgpool.core.member import Member
from bgpool.core.records import add_notice
from bgpool.core.snapshot import Snapshot

__all__ = ["LoggedState", "tell"]

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LoggedState:
    """What the log knows.

    Attributes:
        place: The standing that it was told last; DIRECT, which needs no words, before it was told of any.
        fallbacks: How many there were when it was told of the last one.
        bus_fails, clock_differs: It was told so, and has not been told that it is over; of a clock, it need not be.
        failed_ns: When the bus was last seen to fail, on the monotonic clock.
        at_ns: When each kind of line was said last, on the monotonic clock.
    """

    place: FleetRole = FleetRole.DIRECT
    fallbacks: int = 0
    bus_fails: bool = False
    clock_differs: bool = False
    failed_ns: int = 0
    at_ns: Mapping[str, int] = field(default_factory=dict)

    def may_say(self, kind: str, at: Instant) -> bool:
        """Whether a line of *kind* would not follow another one within LOG_REPEAT_S."""
        then_ns = self.at_ns.get(kind)
        return then_ns is None or at.mono_ns - then_ns >= LOG_REPEAT_S * _NS

    def noting(self, kind: str, at: Instant) -> LoggedState:
        """With a line of *kind* that is said now."""
        return replace(self, at_ns={**self.at_ns, kind: at.mono_ns})


def tell(said: LoggedState, snapshot: Snapshot, member: Member, at: Instant) -> tuple[LoggedState, Snapshot]:
    """*snapshot* with the lines that are due, and what the log knows then. To be called with each event.

    Returns:
        The same two objects where nothing is to be said.
    """
    said, snapshot = _tell_bus(said, snapshot, member, at)
    said, snapshot = _tell_clock(said, snapshot, member, at)
    return _tell_place(said, snapshot, member, at)


def _tell_place(said: LoggedState, snapshot: Snapshot, member: Member, at: Instant) -> tuple[LoggedState, Snapshot]:
    standing = member.standing
    if standing is said.place and member.fallbacks == said.fallbacks:
        return said, snapshot
    if standing is FleetRole.DIRECT:
        # A leader that steps down, and claims anew or follows in a moment, has not fallen back.
        if member.fallbacks == said.fallbacks or not said.may_say("fallback", at):
            return said, snapshot
        text = f"this host asks the database itself: {member.bus_error or member.reason}"
        snapshot = add_notice(snapshot, logging.WARNING, "monitor", "fleet_fallback", text, once=False)
        return replace(said.noting("fallback", at), place=standing, fallbacks=member.fallbacks), snapshot
    if standing is said.place:
        # It fell back, and was back before that was said.
        return replace(said, fallbacks=member.fallbacks), snapshot
    if not said.may_say(standing.value, at):
        return said, snapshot
    what = "leads its fleet" if standing is FleetRole.LEADER else f"follows {member.leader} in its fleet"
    text = f"this host {what}"
    snapshot = add_notice(snapshot, logging.INFO, "monitor", "fleet_joined", text, once=False)
    return replace(said.noting(standing.value, at), place=standing, fallbacks=member.fallbacks), snapshot


def _tell_bus(said: LoggedState, snapshot: Snapshot, member: Member, at: Instant) -> tuple[LoggedState, Snapshot]:
    if member.bus_error:
        said = replace(said, failed_ns=at.mono_ns)
        if said.bus_fails or not said.may_say("bus", at):
            return said, snapshot
        text = f"the fleet's bus fails: {member.bus_error}"
        snapshot = add_notice(snapshot, logging.WARNING, "monitor", "fleet_bus_failed", text, once=False)
        return replace(said.noting("bus", at), bus_fails=True), snapshot
    if not said.bus_fails or at.mono_ns - said.failed_ns < FLEET_WORKS_S * _NS:
        return said, snapshot
    text = "the fleet's bus works again"
    snapshot = add_notice(snapshot, logging.INFO, "monitor", "fleet_bus_failed", text, once=False)
    return replace(said, bus_fails=False), snapshot


def _tell_clock(said: LoggedState, snapshot: Snapshot, member: Member, at: Instant) -> tuple[LoggedState, Snapshot]:
    text = _about_clocks(member)
    if bool(text) is said.clock_differs or (text and not said.may_say("clock", at)):
        return said, snapshot
    if not text:
        return replace(said, clock_differs=False), snapshot
    text = f"{text}; have the hosts' clocks set (chrony, ntpd)"
    snapshot = add_notice(snapshot, logging.WARNING, "monitor", "fleet_clock", text, once=False)
    return replace(said.noting("clock", at), clock_differs=True), snapshot


def _about_clocks(member: Member) -> str:
    """What is wrong with the hosts' clocks; empty where nothing is."""
    if member.standing is FleetRole.LEADER:
        who = "1 host" if member.strangers == 1 else f"{member.strangers} hosts"
        return f"the clocks of {who} and of this one, which leads, differ" if member.strangers else ""
    off_s = (member.clock_off_ns or 0) / _NS
    if off_s < -FLEET_CLOCK_ERROR_S:
        return f"messages of the fleet's leader seem to come from {-off_s:.1f} s ahead"
    if off_s > FLEET_FRESH_S + FLEET_CLOCK_ERROR_S:
        return f"messages of the fleet's leader seem to be {off_s:.1f} s old, if the bus does not stall"
    return ""
