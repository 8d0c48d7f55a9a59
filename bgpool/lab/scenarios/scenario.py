"""Scenarios: their description, their run, and the check of their outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, get_args

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab.director import Director, Schedule
from bgpool.lab.pair import Pair
from bgpool.lab.report import Report
from bgpool.lab.server import Upgrade
from bgpool.lab.trial import Trial

__all__ = ["FAST", "Outcome", "Scenario", "Stage", "findings", "play"]

#: A short switchover: two seconds for what takes AWS a minute, in the same order.
FAST: Final = Schedule(
    initiated_s=-0.4,
    writes_stopped_s=0.2,
    connections_dropped_s=0.3,
    caught_up_s=0.35,
    green_promoted_s=1.0,
    old_blue_open_s=1.2,
    names_changed_s=1.5,
    blue_dns_moved_s=1.8,
    green_dns_gone_s=2.1,
    completed_s=2.2,
    rolled_back_s=0.9,
)

#: The options of a scenario's pools, unless it overrides them. No caller waits longer than HOLD_S.
HOLD_S: Final = 10.0
_POOL_OPTIONS: Final[Mapping[str, Any]] = {
    "bg_connect_timeout_ms": int(HOLD_S * 1000),
    "bg_interval_baseline_ms": 500,
    "bg_interval_high_ms": 50,
    "timeout": HOLD_S,
}

RELEASE_S: Final = 0.25
"""The longest time from the evidence to the release, as promised."""

RESUME_S: Final = 1.0
"""The longest time from the evidence to the first answer of the last thread: large, because it includes the machine's
load."""

MONITORING_CONNECTIONS: Final = 2
"""The largest number on all servers together, however many workers there are."""

MOST_UNDECIDED: Final = 6
"""The number of threads that write: each may be cut in its COMMIT once."""

GRACE_S: Final = 1.0
"""The time by which a call may exceed its bound: a hold ends on time, and then the call fails or connects."""


class Stage(Protocol):
    """The parts of a trial or a rehearsal that a scenario alters."""

    @property
    def pair(self) -> Pair:
        """The servers."""

    @property
    def director(self) -> Director:
        """The director; its steps have the times of FAST."""


@dataclass(frozen=True)
class Scenario:
    """One switchover, and its expected outcome.

    Attributes:
        name: The name on the command line.
        story: The course of events, in one line.
        evidence: The evidence that may release the callers, as named in the timeline; empty if no release is expected.
        evidence_event: The director's step after which the release is due, except in a rollback.
        last_phases: The allowed phases of the deployment at the end.
        rolled_back: True if blue is expected to remain the primary.
        excused: Errors that callers may see, by the names of their classes.
        trial: More keywords for Trial.
        pool_options: More keywords for get_pool, which override those of all scenarios.
        stage: A callable for the time before the deployment is created: it alters the director's steps and adds
            workers.
        play: The events that are directed; None for a deployment, a wait until it is ready, and one switchover.
        check: A callable for the time after the workers have ended, which returns more findings.
        hold_s: The longest time for which a caller may wait.
        release_s: The longest time from the evidence to the release, in seconds.
        connections: The largest number of simultaneous monitoring connections.
        engines: The engines on whose servers it runs.
        upgrades: The kinds of pairs on which it runs; a major upgrade exists only with PostgreSQL and without readers.
    """

    name: str
    story: str
    evidence: tuple[str, ...] = ("metadata", "green promoted")
    evidence_event: str = "green_open"
    last_phases: tuple[Phase, ...] = (Phase.COMPLETED,)
    rolled_back: bool = False
    excused: tuple[str, ...] = ()
    trial: Mapping[str, Any] = field(default_factory=dict)
    pool_options: Mapping[str, Any] = field(default_factory=dict)
    stage: Callable[[Trial], None] | None = None
    play: Callable[[Trial], None] | None = None
    check: Callable[[Trial], list[str]] | None = None
    hold_s: float = HOLD_S
    release_s: float = RELEASE_S
    connections: int = MONITORING_CONNECTIONS
    engines: tuple[Engine, ...] = tuple(Engine)
    upgrades: tuple[Upgrade, ...] = get_args(Upgrade)

    @property
    def description(self) -> str:
        """The story, with the engines or pairs on which it runs if it does not run on all."""
        alone = [] if len(self.engines) == len(Engine) else [engine.value for engine in self.engines]
        alone += (
            [] if len(self.upgrades) == len(get_args(Upgrade)) else [f"{upgrade} pair" for upgrade in self.upgrades]
        )
        return f"{self.story} ({', '.join(alone)} alone)" if alone else self.story


@dataclass(frozen=True)
class Outcome:
    """The result of a scenario, and its findings."""

    scenario: Scenario
    report: Report
    findings: tuple[str, ...]


def play(
    scenario: Scenario, engine: Engine = Engine.POSTGRESQL, pair_options: Mapping[str, Any] | None = None
) -> Outcome:
    """Run *scenario* on servers of its own; takes about seven seconds.

    Args:
        scenario: The scenario to run.
        engine: The engine of the servers.
        pair_options: More keywords for Pair; the scenario's own take precedence.

    Raises:
        LabError: The lab failed, or a worker did not end.
    """
    options: dict[str, Any] = {
        "engine": engine,
        "workers": 3,
        "threads": 2,
        "job": "write unit",
        "schedule": FAST,
        "settle_s": 0.5,
        "evidence_event": scenario.evidence_event,
        **scenario.trial,
        "pair_options": {**(pair_options or {}), **scenario.trial.get("pair_options", {})},
        "pool_options": {**_POOL_OPTIONS, **scenario.pool_options},
    }
    with Trial(**options) as trial:
        if scenario.stage is not None:
            scenario.stage(trial)
        report = trial.run(scenario.play, rolled_back=scenario.rolled_back)
        more = scenario.check(trial) if scenario.check is not None else []
    return Outcome(scenario, report, (*findings(scenario, report), *more))


def findings(scenario: Scenario, report: Report) -> list[str]:
    """Return descriptions of everything that is wrong with *report*."""
    found = []
    if not report.verdict.clean:
        found.append(f"rows: {report.verdict}")
    errors = report.errors - sum(report.error_counts.get(name, 0) for name in scenario.excused)
    if errors:
        found.append(f"{errors} callers saw an error: {report.error_examples}")
    if report.undecided > MOST_UNDECIDED:
        found.append(f"{report.undecided} units of work have an unknown outcome")
    if report.strays:
        found.append(f"connections to the wrong side: {report.strays}")
    if report.longest_call_s > scenario.hold_s + GRACE_S:
        found.append(f"a caller waited {report.longest_call_s:.1f} s, the bound is {scenario.hold_s:g} s")
    if report.monitoring_connections > scenario.connections:
        found.append(f"{report.monitoring_connections} monitoring connections")
    phase = report.snapshot.phase if report.snapshot is not None else None
    if phase not in scenario.last_phases:
        found.append(f"the phase at the end is {phase!r}")
    if report.snapshot is not None and report.snapshot.rolled_back is not scenario.rolled_back:
        found.append(f"rolled_back is {report.snapshot.rolled_back}")
    return found + _release_findings(scenario, report) + _resume_findings(scenario, report)


def _release_findings(scenario: Scenario, report: Report) -> list[str]:
    if not scenario.evidence:
        return [f"released, on the evidence of {report.evidence}"] if report.evidence else []
    if report.release_s is None:
        return ["never released"]
    found = []
    if report.evidence not in scenario.evidence:
        found.append(f"released on the evidence of {report.evidence}, not of {' or '.join(scenario.evidence)}")
    if report.release_s > scenario.release_s:
        found.append(f"released {report.release_s:.3f} s after the evidence, the bound is {scenario.release_s:g} s")
    return found


def _resume_findings(scenario: Scenario, report: Report) -> list[str]:
    if report.resume_s is None:
        return ["a thread never continued"]
    if report.resume_s > scenario.release_s + RESUME_S:
        return [f"the last thread continued {report.resume_s:.3f} s after the evidence, or the rollback"]
    return []
