"""Log lines about a host's role in its fleet.

``tell(said, snapshot, member, at)`` compares the current state with the last logged one. A role that flaps does not
fill the log, and once it is stable the last line of the log is correct.
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
    """The state that was logged last.

    Attributes:
        place: The role that was logged last; DIRECT, which needs no line, before any.
        fallbacks: The number of fallbacks when one was logged last.
        bus_fails, clock_differs: The problem was logged, and its end was not. The end of a clock problem has no line.
        failed_ns: The time at which the bus failed last, on the monotonic clock.
        at_ns: The time of the last line of each kind, on the monotonic clock.
    """

    place: FleetRole = FleetRole.DIRECT
    fallbacks: int = 0
    bus_fails: bool = False
    clock_differs: bool = False
    failed_ns: int = 0
    at_ns: Mapping[str, int] = field(default_factory=dict)

    def may_say(self, kind: str, at: Instant) -> bool:
        """Return whether the last line of *kind* is at least LOG_REPEAT_S old."""
        then_ns = self.at_ns.get(kind)
        return then_ns is None or at.mono_ns - then_ns >= LOG_REPEAT_S * _NS

    def noting(self, kind: str, at: Instant) -> LoggedState:
        """Return this state with a line of *kind* logged at *at*."""
        return replace(self, at_ns={**self.at_ns, kind: at.mono_ns})


def tell(said: LoggedState, snapshot: Snapshot, member: Member, at: Instant) -> tuple[LoggedState, Snapshot]:
    """Add the lines that are due to *snapshot*. The monitor calls this with each event.

    Returns:
        The new logged state, and the snapshot with the lines. Both are the given objects if no line is due.
    """
    said, snapshot = _tell_bus(said, snapshot, member, at)
    said, snapshot = _tell_clock(said, snapshot, member, at)
    return _tell_place(said, snapshot, member, at)


def _tell_place(said: LoggedState, snapshot: Snapshot, member: Member, at: Instant) -> tuple[LoggedState, Snapshot]:
    standing = member.standing
    if standing is said.place and member.fallbacks == said.fallbacks:
        return said, snapshot
    if standing is FleetRole.DIRECT:
        # A leader that steps down and soon claims again, or follows, has not fallen back.
        if member.fallbacks == said.fallbacks or not said.may_say("fallback", at):
            return said, snapshot
        text = f"this host queries the database itself: {member.bus_error or member.reason}"
        snapshot = add_notice(snapshot, logging.WARNING, "monitor", "fleet_fallback", text, once=False)
        return replace(said.noting("fallback", at), place=standing, fallbacks=member.fallbacks), snapshot
    if standing is said.place:
        # The host fell back and returned before the fallback was logged.
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
    snapshot = add_notice(snapshot, logging.INFO, "monitor", "fleet_bus_recovered", text, once=False)
    return replace(said, bus_fails=False), snapshot


def _tell_clock(said: LoggedState, snapshot: Snapshot, member: Member, at: Instant) -> tuple[LoggedState, Snapshot]:
    text = _about_clocks(member)
    if bool(text) is said.clock_differs or (text and not said.may_say("clock", at)):
        return said, snapshot
    if not text:
        return replace(said, clock_differs=False), snapshot
    text = f"{text}; synchronize the clocks of all hosts (chrony, ntpd)"
    snapshot = add_notice(snapshot, logging.WARNING, "monitor", "fleet_clocks_differ", text, once=False)
    return replace(said.noting("clock", at), clock_differs=True), snapshot


def _about_clocks(member: Member) -> str:
    """Return the problem with the hosts' clocks; empty if there is none."""
    if member.standing is FleetRole.LEADER:
        who = "1 host" if member.strangers == 1 else f"{member.strangers} hosts"
        return f"the clocks of {who} differ from that of this host, which leads the fleet" if member.strangers else ""
    off_s = (member.clock_off_ns or 0) / _NS
    if off_s < -FLEET_CLOCK_ERROR_S:
        return f"messages of the fleet's leader are dated {-off_s:.1f} s in the future"
    if off_s > FLEET_FRESH_S + FLEET_CLOCK_ERROR_S:
        return f"messages of the fleet's leader are {off_s:.1f} s old: the clocks differ, or the bus delivers late"
    return ""
