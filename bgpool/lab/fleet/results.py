"""The result of one switchover of a fleet, and its findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from bgpool.core.fleet import FleetRole
from bgpool.core.limits import FLEET_BUDGET_PER_S
from bgpool.core.phase import Phase
from bgpool.lab.fleet.observer import HostView
from bgpool.lab.fleet.plan import PHASES, Plan
from bgpool.lab.fleet.traffic import Query, Traffic, busiest, most_at_once
from bgpool.lab.ledger import Verdict
from bgpool.lab.worker import Worker

__all__ = ["HEARD_S", "Host", "Load", "Result", "FaultTarget", "findings_of", "heard_findings", "result_of"]

MOST_EXAMPLES: Final = 5

SHARE: Final = 1.1
"""The allowed number of a fleet's queries, as a multiple of one host's."""

EDGES: Final = 2
"""The allowed number of additional queries in a phase: at its beginning and end, the phase of a query is uncertain."""

CONNECTIONS: Final = 4
"""The largest number of the monitors' connections to the pair while hosts follow."""

HEARD_S: Final = 0.05
"""The longest time from the first host that knows to the last one, in the median of switchovers."""

RELEASE_S: Final = 0.25
"""The longest time from the evidence to the release on a host that queries for itself: the same as in scenarios."""

LATER_S: Final = 1.0
"""The additional time for that after a fault of the leader or the bus."""

REPLACED_S: Final = {"kill leader": 2.0, "stop leader": 7.0}
"""The same on the leader's own host, which has to start another monitor first, with a fleet or without."""

#: Phases in which no connection is cut or refused: a follower has no reason to query the database itself.
QUIET: Final = (Phase.CREATED, Phase.PREPARATION, Phase.COMPLETED)

#: The director's step with which each phase begins.
_EVENTS: Final[Mapping[Phase, str]] = {
    Phase.PREPARATION: "initiated",
    Phase.IN_PROGRESS: "in_progress",
    Phase.POST: "green_open",
    Phase.COMPLETED: "completed",
}

#: A host that has just joined still has connections. At the beginning of COMPLETED, a host queries as before until it
#: has read the change.
_SETTLED_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class FaultTarget:
    """The target of a fault, a host's monitor or (host None) the bus, and the time of it, on the monotonic clock."""

    host: int | None
    at_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """The queries of the monitors to both servers in a phase.

    Attributes:
        seconds: The duration of the phase.
        questions: The number of queries, including refused logins.
        of_leaders: The number of queries of hosts that led at that time.
        refused: The number of refused logins.
        connections: The largest number of simultaneous connections.
        busiest_per_s: The queries per second at the busier server, in the busiest window of `Result.window_s`.
    """

    seconds: float
    questions: int
    of_leaders: int
    refused: int
    connections: int
    busiest_per_s: float

    @property
    def per_s(self) -> float:
        """The queries per second."""
        return self.questions / self.seconds

    @property
    def of_leaders_per_s(self) -> float:
        """The leaders' queries per second."""
        return self.of_leaders / self.seconds


@dataclass(frozen=True, slots=True)
class Host:
    """The history of a host; times are in seconds, None for events that the host never learned of.

    Attributes:
        in_progress_s: The time from the first host that knew of IN_PROGRESS to this one.
        heard_release_s: The time from the first host that released its callers to this one.
        release_s: The time from green's first writable moment to the release on this host.
        excess_s: The part of its callers' longest time without a write that the database did not cause.
        fallbacks: The number of times it fell back to querying the database itself.
    """

    in_progress_s: float | None
    heard_release_s: float | None
    release_s: float | None
    excess_s: float
    last_phase: str
    fallbacks: int


@dataclass(frozen=True)
class Result:
    """One switchover of a fleet. Times are in seconds.

    Attributes:
        fault: The description of the fault; empty for none.
        struck: The host of the monitor that was the target; None for none.
        rows, lost, doubled, split, half: The counts of the ledger.
        errors, examples: Calls that failed, threads that never returned, workers that crashed.
        down_s: The time for which neither server accepted a write.
        window_s: The window in which the budget of queries counts.
        loads: The queries, by phase.
        per_host: The history of each host.
        leaders: The leaders, in order.
    """

    hosts: int
    fleet: bool
    fault: str
    struck: int | None
    rows: int
    lost: int
    doubled: int
    split: int
    half: int
    errors: int
    examples: tuple[str, ...]
    down_s: float
    window_s: float
    loads: Mapping[str, Load]
    per_host: tuple[Host, ...]
    leaders: tuple[int, ...]

    @property
    def others(self) -> tuple[Host, ...]:
        """The hosts except for the fault's target, whose monitor was gone for a while."""
        return tuple(host for number, host in enumerate(self.per_host) if number != self.struck)

    @property
    def heard_s(self) -> float | None:
        """The time from the first host that knew of IN_PROGRESS to the last; None if one never did."""
        return _last([host.in_progress_s for host in self.others])

    @property
    def heard_release_s(self) -> float | None:
        """The same for the release."""
        return _last([host.heard_release_s for host in self.others])

    @property
    def release_s(self) -> float | None:
        """The time from green's first writable moment to the last host's release; None if one was never released."""
        return _last([host.release_s for host in self.others])

    @property
    def excess_s(self) -> float:
        """The part of the longest time without a write, of all hosts, that the database did not cause."""
        return max(host.excess_s for host in self.others)

    @property
    def connections(self) -> int:
        """The largest number of simultaneous connections of monitors, in phases without cuts."""
        return max(self.loads[phase.name].connections for phase in QUIET)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        found = asdict(self)
        for name in ("heard_s", "heard_release_s", "release_s", "excess_s", "connections"):
            found[name] = getattr(self, name)
        for name, load in self.loads.items():
            found["loads"][name] |= {"per_s": load.per_s, "of_leaders_per_s": load.of_leaders_per_s}
        return found


def result_of(
    plan: Plan,
    *,
    events: Mapping[str, float],
    joined_s: float,
    wall_off_s: float,
    traffic: Mapping[str, Traffic],
    views: Sequence[HostView],
    struck: FaultTarget | None,
    crew: Sequence[Worker],
    down_s: float,
    verdict: Verdict,
) -> Result:
    """Combine all observations; times of *events*, *joined_s* and *views* are on the monotonic clock.

    Args:
        plan: The plan that was run.
        events: The director's events, by name.
        joined_s: The time at which all hosts had joined.
        wall_off_s: The offset of the wall clock, which *traffic* uses, from the monotonic one.
        traffic: The logged queries, by server.
        views: The observed states of all hosts.
        struck: The target of the fault.
        crew: The workers; their threads are hosts, in sequence.
        down_s: The time for which neither server accepted a write.
        verdict: The ledger's verdict.
    """
    window_s = max(1.0, plan.hosts / FLEET_BUDGET_PER_S)
    firsts = {phase: _firsts(views, plan.hosts, phase) for phase in (Phase.IN_PROGRESS, Phase.POST)}
    gaps = [gap_s for worker in crew for gap_s in worker.longest_gaps_s(joined_s)]
    hosts = []
    for number in range(plan.hosts):
        mine = [view for view in views if view.host == number]
        post_s = firsts[Phase.POST][number]
        hosts.append(
            Host(
                _since(firsts[Phase.IN_PROGRESS], number),
                _since(firsts[Phase.POST], number),
                post_s - events["green_open"] if post_s is not None else None,
                gaps[number] - down_s,
                mine[-1].phase if mine else "",
                mine[-1].fallbacks if mine else 0,
            )
        )
    leading = _leading(views)
    # From the time at which the first host knows of a phase: the delay before depends on chance, and on the phase
    # before.
    seen = {phase: min((at for at in _firsts(views, plan.hosts, phase) if at is not None), default=None)
            for phase in PHASES[1:]}  # fmt: skip
    begins = [joined_s, *(seen[phase] or events[name] for phase, name in _EVENTS.items())]
    bounds = (*begins, events["end"])
    loads = {}
    for place, phase in enumerate(PHASES):
        from_s, to_s = bounds[place], bounds[place + 1]
        if phase in (Phase.CREATED, Phase.COMPLETED):
            from_s += _SETTLED_S
        loads[phase.name] = _load(traffic, from_s, to_s, wall_off_s, leading, window_s)
    errors = [f"worker {worker.number}: {error}" for worker in crew for error in worker.errors]
    return Result(
        hosts=plan.hosts,
        fleet=plan.fleet,
        fault=str(plan.fault or ""),
        struck=struck.host if struck is not None else None,
        rows=verdict.acknowledged,
        lost=verdict.lost,
        doubled=verdict.doubled,
        split=verdict.split,
        half=verdict.half,
        errors=len(errors),
        examples=tuple(errors[:MOST_EXAMPLES]),
        down_s=down_s,
        window_s=window_s,
        loads=loads,
        per_host=tuple(hosts),
        leaders=tuple(host for _, host in _begins(views)),
    )


def findings_of(result: Result, one: Result | None = None) -> list[str]:
    """Return descriptions of everything that is wrong.

    Args:
        result: The result to judge.
        one: The result with one host and without a fleet, for the comparison of queries; None for no comparison.
    """
    found = []
    if result.lost or result.doubled or result.split or result.half:
        found.append(f"rows: {result.lost} lost, {result.doubled} doubled, {result.split} split, {result.half} in half")
    if result.errors:
        found.append(f"{result.errors} callers saw an error: {result.examples}")
    found += [
        f"host {number} is at {host.last_phase or 'nothing'} at the end"
        for number, host in enumerate(result.per_host)
        if host.last_phase != Phase.COMPLETED.name
    ]
    return found + _release_findings(result) + (_load_findings(result, one) if one is not None else [])


def _release_findings(result: Result) -> list[str]:
    found = []
    if result.release_s is None or result.heard_s is None:
        found.append("a host never learned of IN_PROGRESS or of the release")
    bound_s = RELEASE_S
    if result.fault:
        bound_s += LATER_S
    if result.fault.startswith("bus "):
        bound_s += result.hosts / FLEET_BUDGET_PER_S
    if result.release_s is not None and result.release_s > bound_s:
        found.append(f"the last host was released {result.release_s:.3f} s after the evidence, allowed: {bound_s:.3f}")
    if result.struck is not None:
        own_s = result.per_host[result.struck].release_s
        allowed_s = bound_s + next(s for what, s in REPLACED_S.items() if result.fault.startswith(what))
        if own_s is None or own_s > allowed_s:
            found.append(f"the host of the leader was released after {own_s} s, allowed: {allowed_s:.3f}")
    return found


def _load_findings(result: Result, one: Result) -> list[str]:
    found = []
    for phase in PHASES:
        load, alone = result.loads[phase.name], one.loads[phase.name]
        if not result.fleet:
            continue
        # The queries of one host in addition to the budget: those of the leader, and of each host while it queries
        # itself.
        allowed = FLEET_BUDGET_PER_S + max(alone.busiest_per_s, alone.per_s)
        if load.busiest_per_s > allowed:
            found.append(
                f"{phase.name}: {load.busiest_per_s:.0f} queries per second at a server, allowed: {allowed:.0f}"
            )
        if result.fault:
            continue
        what = "queries" if phase in QUIET else "queries of the leader"
        asked = load.questions if phase in QUIET else load.of_leaders
        most = SHARE * alone.per_s * load.seconds + EDGES
        if asked > most:
            found.append(f"{phase.name}: {asked} {what} in {load.seconds:.1f} s, allowed: {most:.0f}")
        if phase in QUIET and load.connections > CONNECTIONS:
            found.append(f"{phase.name}: {load.connections} connections of monitors, allowed: {CONNECTIONS}")
    return found


def heard_findings(results: Sequence[Result]) -> list[str]:
    """Return the changes that some host learned too late, in the median of the results without faults."""
    found = []
    healthy = [result for result in results if result.fleet and not result.fault]
    for what, values in (
        ("IN_PROGRESS", [result.heard_s for result in healthy]),
        ("the release", [result.heard_release_s for result in healthy]),
    ):
        known = [value for value in values if value is not None]
        if known and median(known) > HEARD_S:
            found.append(
                f"the last host learned of {what} {median(known) * 1000:.0f} ms after the first, in the median, "
                f"allowed: {HEARD_S * 1000:.0f}"
            )
    return found


# -- observations ------------------------------------------------------------------------------------------------


def _firsts(views: Sequence[HostView], hosts: int, phase: Phase) -> list[float | None]:
    """Return the time at which each host was first observed in *phase*, or, for POST, in a later one."""
    wanted = {phase.name} if phase is not Phase.POST else {Phase.POST.name, Phase.COMPLETED.name}
    firsts: list[float | None] = [None] * hosts
    for view in views:
        if view.phase in wanted and firsts[view.host] is None:
            firsts[view.host] = view.mono_ns / 1e9
    return firsts


def _since(firsts: Sequence[float | None], number: int) -> float | None:
    own = firsts[number]
    return own - min(first for first in firsts if first is not None) if own is not None else None


def _begins(views: Sequence[HostView]) -> list[tuple[float, int]]:
    """Return the times at which hosts began to lead, in order."""
    standing: dict[int, str] = {}
    found = []
    for view in views:
        if view.standing == FleetRole.LEADER.value and standing.get(view.host) != view.standing:
            found.append((view.mono_ns / 1e9, view.host))
        standing[view.host] = view.standing
    return found


def _leading(views: Sequence[HostView]) -> Mapping[int, Sequence[tuple[float, float]]]:
    """Return the intervals in which each host led, on the monotonic clock."""
    spans: dict[int, list[tuple[float, float]]] = {}
    since: dict[int, float] = {}
    for view in views:
        leads, at_s = view.standing == FleetRole.LEADER.value, view.mono_ns / 1e9
        if leads:
            since.setdefault(view.host, at_s)
        elif view.host in since:
            spans.setdefault(view.host, []).append((since.pop(view.host), at_s))
    for host, from_s in since.items():
        spans.setdefault(host, []).append((from_s, float("inf")))
    return spans


def _load(
    traffic: Mapping[str, Traffic],
    from_s: float,
    to_s: float,
    wall_off_s: float,
    leading: Mapping[int, Sequence[tuple[float, float]]],
    window_s: float,
) -> Load:
    def leads(question: Query) -> bool:
        at_s = question.at_s - wall_off_s
        return any(begin <= at_s < end for begin, end in leading.get(question.host, ()))

    from_wall_s, to_wall_s = from_s + wall_off_s, to_s + wall_off_s
    asked = {name: of.between(from_wall_s, to_wall_s) for name, of in traffic.items()}
    every = [question for questions in asked.values() for question in questions]
    stays = [stay for of in traffic.values() for stay in of.stays]
    return Load(
        seconds=to_s - from_s,
        questions=len(every),
        of_leaders=sum(map(leads, every)),
        refused=sum(question.refused for question in every),
        connections=most_at_once(stays, from_wall_s, to_wall_s),
        busiest_per_s=max(busiest(questions, window_s) for questions in asked.values()) / window_s,
    )


def _last(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None) if None not in values else None
