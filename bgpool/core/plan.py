"""What the monitor should be doing, as a function of what is true. A monitor that takes over does the same at once."""

from __future__ import annotations

from dataclasses import dataclass

from bgpool.core.endpoints import name_after
from bgpool.core.limits import AWAITED_QUESTIONS, EVIDENCE_INTERVAL_MS, EVIDENCE_QUESTIONS, SWITCHING_TIMEOUT_S
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.routing import names_now
from bgpool.core.snapshot import Snapshot

__all__ = ["Intervals", "Plan", "Target", "is_awaited", "plan"]


@dataclass(frozen=True, slots=True)
class Intervals:
    """How often to read the status, in ms: nothing going on, a deployment exists, a switchover is under way."""

    baseline_ms: int = 60_000
    increased_ms: int = 1_000
    high_ms: int = 100


@dataclass(frozen=True, slots=True)
class Target:
    """Where a role's monitoring connection goes.

    Attributes:
        addresses: Recorded addresses to use instead of resolving *host*; empty to go by name.
        names: The names that the host may go by now, in the order to be tried where they matter; empty for *host*.
        timeout_s: Longest wait for a connection and for an answer; 0 for the connection parameters' own.
        anew: Over a new connection at every question: the name may lead elsewhere by now, and the server that it led
            to goes on answering.
    """

    host: str
    port: int
    addresses: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    timeout_s: int = 0
    anew: bool = False

    def supersedes(self, other: Target | None) -> bool:
        """Whether a connection opened for *other* leads elsewhere: another name, or a name that may have moved."""
        if self.anew or other is None or (self.host, self.port) != (other.host, other.port):
            return True
        return bool(other.addresses) and not self.addresses


@dataclass(frozen=True, slots=True)
class Plan:
    """What to watch, and how closely.

    Attributes:
        interval_ms: Between two readings of a role that answers.
        retry_ms: Between two attempts to reach a role that does not.
        source: Blue's monitoring connection; None to use the application's own endpoint.
        target: Green's; None while there is no green to watch.
        names: What to resolve; empty while DNS has nothing to tell.
        resolve_ms: How often.
        renewals: Green hosts to be asked, where certificates matter, whether they let us in under the name that
            they have after the switchover, in every interval_ms of CREATED.
        evidence_ms: Between two questions to green, answered or not, while its answer would let callers go on; 0 while
            it would not, and green is asked as blue is.
    """

    interval_ms: int
    retry_ms: int
    resolve_ms: int
    source: Target | None = None
    target: Target | None = None
    names: tuple[str, ...] = ()
    renewals: tuple[Target, ...] = ()
    evidence_ms: int = 0

    def pace_ms(self, role: Role) -> tuple[int, int]:
        """The pauses of *role*'s questions: after one that was answered, and after one that was not."""
        if role is Role.TARGET and self.evidence_ms:
            return self.evidence_ms, self.evidence_ms
        return self.interval_ms, min(self.retry_ms, self.interval_ms)

    def await_ms(self, role: Role) -> int:
        """How long a question of *role* may wait for a promotion at the server, where it can; 0 for not at all."""
        return self.interval_ms // AWAITED_QUESTIONS if role is Role.TARGET and self.evidence_ms else 0


def plan(snapshot: Snapshot, intervals: Intervals) -> Plan:
    """The plan for *snapshot*.

    Source: behaviour.md §2, "Poll intervals" and "Inventory".
    """
    baseline, increased, high = intervals.baseline_ms, intervals.increased_ms, intervals.high_ms
    if snapshot.phase is Phase.NOT_CREATED:
        return Plan(baseline, increased, baseline)
    names = tuple(host.name for host in snapshot.hosts)
    if snapshot.phase is Phase.COMPLETED and not snapshot.is_overdue:
        # By name from here on: blue's endpoint now leads to the host that the next deployment starts from.
        settled = snapshot.green_gone and not snapshot.pinned
        return Plan(baseline, increased, increased, names=() if settled else names, renewals=_renewals(snapshot))
    switching = snapshot.phase in SWITCHING
    by_address = switching or snapshot.is_overdue
    interval = high if switching else increased
    return Plan(
        interval,
        high,
        interval,
        source=_target(snapshot, Role.SOURCE, by_address=by_address),
        target=_target(snapshot, Role.TARGET, by_address=by_address),
        names=names,
        renewals=_renewals(snapshot),
        evidence_ms=_evidence_ms(high) if is_awaited(snapshot) else 0,
    )


def is_awaited(snapshot: Snapshot) -> bool:
    """Whether callers wait for green's answer: before the release, or for a green that was released too early."""
    too_early = snapshot.phase is Phase.POST and snapshot.target_read_only is True
    return too_early or snapshot.phase is Phase.IN_PROGRESS


def _evidence_ms(high_ms: int) -> int:
    return min(high_ms, max(EVIDENCE_INTERVAL_MS, high_ms // EVIDENCE_QUESTIONS))


def _target(snapshot: Snapshot, role: Role, *, by_address: bool) -> Target | None:
    hosts = snapshot.hosts_of(role)
    if not hosts:
        return None
    host = hosts[0]
    if not by_address:
        return Target(host.name, host.port)
    # Hosts are renamed before anybody is let in again.
    return Target(host.name, host.port, host.addresses, names_now(snapshot, host), SWITCHING_TIMEOUT_S)


def _renewals(snapshot: Snapshot) -> tuple[Target, ...]:
    if not snapshot.pinned:
        return ()
    return tuple(
        Target(host.name, host.port, host.addresses, (name_after(host.name),), SWITCHING_TIMEOUT_S)
        for host in snapshot.hosts_of(Role.TARGET)
        if host.addresses and host.name not in snapshot.certified
    )
