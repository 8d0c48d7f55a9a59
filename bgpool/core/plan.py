"""The monitor's plan, a pure function of the snapshot. A monitor that takes over has the same plan immediately."""

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
    """The intervals between status reads, in ms: without a deployment, with a deployment, during a switchover."""

    baseline_ms: int = 60_000
    increased_ms: int = 1_000
    high_ms: int = 100


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a role's monitoring connection.

    Attributes:
        addresses: Recorded addresses to use instead of resolving *host*; empty to connect by name.
        names: The names that the host may have now, in the order in which to try them if names are verified; empty for
            *host*.
        timeout_s: The limit of a connection attempt and of a query, in seconds; 0 for that of the connection
            parameters.
        anew: True to open a new connection for every query: the name may lead elsewhere by now, while the server that
            it led to still answers.
    """

    host: str
    port: int
    addresses: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    timeout_s: int = 0
    anew: bool = False

    def supersedes(self, other: Target | None) -> bool:
        """Return whether a connection opened for *other* may lead elsewhere: to another name, or by a moved name."""
        if self.anew or other is None or (self.host, self.port) != (other.host, other.port):
            return True
        return bool(other.addresses) and not self.addresses


@dataclass(frozen=True, slots=True)
class Plan:
    """The servers and names to watch, and the intervals.

    Attributes:
        interval_ms: The interval between two readings of a role that answers.
        retry_ms: The interval between two attempts to reach a role that does not answer.
        source: The target of blue's monitoring connection; None for the application's own endpoint.
        target: The target of green's; None while there is no green to watch.
        names: The names to resolve; empty while DNS is irrelevant.
        resolve_ms: The interval between two look-ups.
        renewals: If names are verified: the green hosts to try a login at under their names after the switchover, in
            every interval_ms of CREATED.
        evidence_ms: The interval between two queries to green, answered or not, while its answer would release callers;
            0 while it would not, and green is queried like blue.
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
        """Return the pause of *role*'s queries in ms: after an answer, and after a failure."""
        if role is Role.TARGET and self.evidence_ms:
            return self.evidence_ms, self.evidence_ms
        return self.interval_ms, min(self.retry_ms, self.interval_ms)

    def await_ms(self, role: Role) -> int:
        """Return the time for which a query of *role* may wait at the server for a promotion, in ms; 0 for none."""
        return self.interval_ms // AWAITED_QUESTIONS if role is Role.TARGET and self.evidence_ms else 0


def plan(snapshot: Snapshot, intervals: Intervals) -> Plan:
    """Return the plan for *snapshot*.

    Source: behaviour.md §2, "Poll intervals" and "Inventory".
    """
    baseline, increased, high = intervals.baseline_ms, intervals.increased_ms, intervals.high_ms
    if snapshot.phase is Phase.NOT_CREATED:
        return Plan(baseline, increased, baseline)
    names = tuple(host.name for host in snapshot.hosts)
    if snapshot.phase is Phase.COMPLETED and not snapshot.is_overdue:
        # Connect by name from here on: blue's endpoint now leads to the host that the next deployment starts from.
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
    """Return whether callers wait for green's answer: before the release, or because the release was too early."""
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
    # Hosts are renamed before they accept logins again.
    return Target(host.name, host.port, host.addresses, names_now(snapshot, host), SWITCHING_TIMEOUT_S)


def _renewals(snapshot: Snapshot) -> tuple[Target, ...]:
    if not snapshot.pinned:
        return ()
    return tuple(
        Target(host.name, host.port, host.addresses, (name_after(host.name),), SWITCHING_TIMEOUT_S)
        for host in snapshot.hosts_of(Role.TARGET)
        if host.addresses and host.name not in snapshot.certified
    )
