"""The connection parameters that monitors have used, what each of them could see, and which to try next.

A monitor gets one set of parameters at its start. It keeps them unless they show it no deployment while another
process, or another pool of the same process, has parameters that may show more. Then it exits, and the next monitor is
started with those. The snapshot records the parameters that were tried, without secrets, so that none is retried too
soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from bgpool.core.endpoints import Kind, parse_endpoint
from bgpool.core.events import Event, Instant, MetadataAbsent, ProbeFailed, StatusRead
from bgpool.core.limits import BLIND_S, LOCKED_OUT_S, OBSERVATIONS, SAME_NAME_TRIES, SIGHT_LIFE_S
from bgpool.core.phase import Phase, Role

if TYPE_CHECKING:
    from bgpool.core.snapshot import Snapshot

__all__ = [
    "BLIND",
    "Parameters",
    "Visibility",
    "Observation",
    "begin_to_watch",
    "leave",
    "note",
    "should_leave",
    "worth",
]


class Visibility(IntEnum):
    """The information that parameters give a monitor access to. A higher value is a better choice."""

    #: There are no parameters to choose.
    NONE = 0
    #: No server has ever answered.
    SILENT = 1
    #: The server refuses the login.
    REFUSED = 2
    #: The metadata are not visible: no function, no table, or no grant.
    MISSING = 3
    #: The metadata can be read, and contain no deployment.
    EMPTY = 4
    #: Never tried, or too long ago.
    UNTRIED = 5
    #: A deployment was seen.
    SEEN = 6

    @property
    def text(self) -> str:
        """The explanation that operators read."""
        return _TEXTS[self]


_TEXTS: Final = {
    Visibility.NONE: "nothing is known",
    Visibility.SILENT: "no server answers",
    Visibility.REFUSED: "the server refuses the login",
    Visibility.MISSING: "the server shows no metadata to this user in this database",
    Visibility.EMPTY: "the metadata can be read, and no deployment is in them",
    Visibility.UNTRIED: "not known yet",
    Visibility.SEEN: "the deployment is seen",
}


class Parameters(NamedTuple):
    """The public part of a monitor's parameters; it holds no secret. Equal ones count as the same parameters."""

    user: str
    host: str
    port: int
    database: str

    def __str__(self) -> str:
        host = self.host if self.host and not self.host.startswith("/") else "local socket"
        return f"{self.user}@{host}:{self.port}{f'/{self.database}' if self.database else ''}"

    def is_beside(self, other: Parameters) -> bool:
        """Return whether both lead to the same server, or to the writer and the reader endpoint of one cluster."""
        if self.port != other.port:
            return False
        mine, others = parse_endpoint(self.host), parse_endpoint(other.host)
        if mine is None or others is None or not {mine.kind, others.kind} <= {Kind.WRITER, Kind.READER}:
            return self.host == other.host
        return (mine.name, mine.id, mine.zone) == (others.name, others.id, others.zone)


@dataclass(frozen=True, slots=True)
class Observation:
    """The visibility that a monitor had with its parameters.

    Attributes:
        at_ns: The time since which the monitor has this visibility, or the time of its exit; on the monotonic clock.
        tries: The number of consecutive monitors that were started with parameters of this name and were refused.
    """

    parameters: Parameters
    visibility: Visibility
    at_ns: int
    tries: int = 1

    def is_fresh(self, now_ns: int) -> bool:
        """Return whether it is too early to retry these parameters."""
        return 0 <= now_ns - self.at_ns < SIGHT_LIFE_S.get(self.visibility.name, 0) * 1_000_000_000


#: The values with which a monitor sees no deployment.
BLIND: Final = (Visibility.SILENT, Visibility.REFUSED, Visibility.MISSING, Visibility.EMPTY)


def begin_to_watch(snapshot: Snapshot, parameters: Parameters, at: Instant) -> Snapshot:
    """Return the first snapshot of a monitor that watches with *parameters*: its own observation is the last one."""
    known = next((s for s in snapshot.observations if s.parameters == parameters), None)
    others = [s for s in snapshot.observations if s is not known]
    if len(others) >= OBSERVATIONS:
        others.remove(min(others, key=lambda s: (s.visibility is Visibility.SEEN, s.at_ns)))
    # Another monitor has seen the known deployment; with the same parameters this one sees it as well.
    keeps = known is not None and snapshot.phase is not Phase.NOT_CREATED
    again = known is not None and known.visibility is Visibility.REFUSED and known.is_fresh(at.mono_ns)
    mine = Observation(
        parameters,
        known.visibility if known is not None and keeps else Visibility.UNTRIED,
        at.mono_ns,
        known.tries + 1 if known is not None and again else 1,
    )
    return replace(snapshot, observations=(*others, mine))


def note(snapshot: Snapshot, event: Event) -> Snapshot:
    """Return *snapshot* with the visibility that follows from *event* for the monitor's own parameters."""
    if not snapshot.observations:
        return snapshot
    mine = snapshot.observations[-1]
    visibility = _visibility(mine, snapshot.phase, event)
    if visibility is mine.visibility:
        return snapshot
    return _with_mine(snapshot, replace(mine, visibility=visibility, at_ns=event.at.mono_ns))


def leave(snapshot: Snapshot, at: Instant) -> Snapshot:
    """Return the last snapshot of a monitor that exits because its parameters show no deployment."""
    return _with_mine(snapshot, replace(snapshot.observations[-1], at_ns=at.mono_ns))


def should_leave(snapshot: Snapshot, best_offer: int, now_ns: int) -> bool:
    """Return whether a monitor should exit in favor of parameters with the value *best_offer*.

    A monitor never exits once a deployment is known, and never because a server is down that has answered before. It
    does not exit while an operator's order is in force, because only a running monitor can change that.
    """
    if snapshot.phase is not Phase.NOT_CREATED or not snapshot.observations:
        return False
    if max(snapshot.hold_until_ns, snapshot.release_until_ns) > now_ns:
        return False
    mine = snapshot.observations[-1]
    patience_s = LOCKED_OUT_S if mine.visibility is Visibility.REFUSED else BLIND_S
    return (
        mine.visibility in BLIND and best_offer > mine.visibility and now_ns - mine.at_ns >= patience_s * 1_000_000_000
    )


def worth(observations: Sequence[Observation], parameters: Parameters, now_ns: int) -> Visibility:
    """Return the visibility that a monitor with *parameters* can expect, judged by earlier observations.

    Args:
        observations: The observations of the snapshot; the last one belongs to the current monitor.
        parameters: The parameters to judge.
        now_ns: The current time on the monotonic clock.
    """
    known = next((s for s in observations if s.parameters == parameters), None)
    if known is not None and known.visibility >= Visibility.UNTRIED:
        return known.visibility
    current = observations[-1] if observations else None
    if known is not None and known is current and known.visibility is Visibility.REFUSED:
        # The name is the same, but the password may differ.
        return known.visibility if known.tries >= SAME_NAME_TRIES and known.is_fresh(now_ns) else Visibility.UNTRIED
    if known is not None and (known is current or known.is_fresh(now_ns)):
        return known.visibility
    for other in observations:
        told = other.visibility in (Visibility.EMPTY, Visibility.SILENT) and (
            other is current or other.is_fresh(now_ns)
        )
        if told and other.parameters.is_beside(parameters):
            # The same server would give the same answer.
            return other.visibility
    if len(observations) >= OBSERVATIONS and all(s is current or s.is_fresh(now_ns) for s in observations):
        return Visibility.MISSING
    return Visibility.UNTRIED


def _visibility(mine: Observation, phase: Phase, event: Event) -> Visibility:
    """Return the visibility after *event*; only blue's answers change it."""
    if not isinstance(event, (StatusRead, MetadataAbsent, ProbeFailed)) or event.role is not Role.SOURCE:
        return mine.visibility
    if isinstance(event, StatusRead) and event.rows:
        return Visibility.SEEN
    if phase is not Phase.NOT_CREATED:
        # Metadata and logins are unstable during a switchover.
        return mine.visibility
    if isinstance(event, StatusRead):
        return Visibility.EMPTY
    if isinstance(event, MetadataAbsent):
        return Visibility.MISSING
    if event.refused:
        return Visibility.REFUSED
    lost = mine.visibility is Visibility.UNTRIED and event.at.mono_ns - mine.at_ns >= LOCKED_OUT_S * 1_000_000_000
    return Visibility.SILENT if lost else mine.visibility


def _with_mine(snapshot: Snapshot, mine: Observation) -> Snapshot:
    return replace(snapshot, observations=(*snapshot.observations[:-1], mine))
