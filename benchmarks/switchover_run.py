"""One switchover of a fresh pair of servers under one client: its steps and its results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks import gaps, hosts
from benchmarks.clients import CLIENTS, Config
from benchmarks.crew import PAUSE_S, Crew, Report
from bgpool.lab import Director, LabError, Pair, Schedule, TruthProbe, ledger
from bgpool.lab.ledger import Key
from bgpool.lab.scenarios.evidence import metadata_frozen
from bgpool.lab.scenarios.hosts import black_hole_blue
from bgpool.lab.scenarios.scenario import FAST, Stage
from bgpool.lab.truth import Outage, Side
from bgpool.lab.waiting import wait_until

__all__ = [
    "CPU_AFTER_S",
    "HEALTHY",
    "HIGH_MS",
    "QUICK",
    "SCENARIOS",
    "SETTLE_S",
    "Application",
    "Run",
    "Scenario",
    "play",
]

SCHEDULE: Final = Schedule(
    initiated_s=-1.5,
    in_progress_s=0.0,
    writes_stopped_s=0.05,
    connections_dropped_s=0.05,
    caught_up_s=0.1,
    green_promoted_s=2.2,
    old_blue_open_s=2.5,
    names_changed_s=3.0,
    blue_dns_moved_s=3.5,
    green_dns_gone_s=4.0,
    completed_s=4.5,
    rolled_back_s=1.5,
)

HIGH_MS: Final = 100
"""The high interval of clients that poll, in their defaults."""

CPU_AFTER_S: Final = 1.0
"""The time after the last step during which CPU time is still counted, for every client alike."""

SETTLE_S: Final = 4.0
"""The time after the last step within which a thread must come back."""

_GRACE_S: Final = 1.0
"""The longest time for the last attempt. A thread that is back needs milliseconds."""

_SEEN_TIMEOUT_S: Final = 60.0
_START_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class _Stage:
    pair: Pair
    director: Director


@dataclass(frozen=True)
class Scenario:
    """A switchover that is compared.

    Attributes:
        stage: A function that changes the director's steps before the deployment is created.
        rolled_back: True if the switchover is rolled back in IN_PROGRESS, and blue survives.
    """

    name: str
    schedule: Schedule = SCHEDULE
    stage: Callable[[Stage], None] | None = None
    rolled_back: bool = False

    @property
    def loser(self) -> Side:
        """The side on which no application should have a connection at the end."""
        return "green" if self.rolled_back else "blue"

    def prepare(self, pair: Pair, director: Director) -> None:
        """Change the steps of *director* before the deployment is created."""
        if self.stage is not None:
            self.stage(_Stage(pair, director))

    def direct(self, director: Director) -> None:
        """Play the scenario. Returns after the last step."""
        if self.rolled_back:
            director.rollback_from("IN_PROGRESS")
        else:
            director.run()

    def outage(self, truth: TruthProbe) -> Outage:
        """Return the outage of the switchover.

        Raises:
            LabError: There was no outage, or the longest did not end on the side that the scenario expects.
        """
        outage = max(truth.outages, key=lambda each: each.down_s, default=None)
        if outage is None:
            raise LabError("the database was never down")
        if outage.next_side == self.loser:
            raise LabError(f"the longest outage ended on {outage.next_side}")
        return outage

    def judge(self, pair: Pair, acknowledged: Iterable[Key], unknown: Iterable[Key]) -> ledger.Verdict:
        """Return the ledger's verdict for the side that survives."""
        return (ledger.judge_rollback if self.rolled_back else ledger.judge)(pair, acknowledged, unknown)


HEALTHY: Final = Scenario("healthy")
QUICK: Final = Scenario("healthy", schedule=replace(FAST, initiated_s=-0.8))
SCENARIOS: Final = (
    HEALTHY,
    Scenario("frozen", stage=metadata_frozen),
    Scenario("rollback", rolled_back=True),
    Scenario("black hole", stage=black_hole_blue),
    Scenario(
        "stale DNS", schedule=replace(SCHEDULE, blue_dns_moved_s=8.0, green_dns_gone_s=8.5, completed_s=9.0)
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Application:
    """The number of processes and threads that write, and the pause of each thread."""

    processes: int = 4
    threads: int = 2
    pause_s: float = PAUSE_S


@dataclass(frozen=True, slots=True)
class Run:
    """The result of one client. A value is None if a thread that never came back makes it undefined.

    Attributes:
        down_s: The longest time in which no server took a write.
        errors: The number of failed attempts.
        never: The number of threads that were not back at the end.
        longest_gap_s, median_gap_s: The longest gap of any thread, and the longest gap of the median thread.
        first_median_s, first_last_s: The time from the database's first write after the outage to the first success
            of a thread, for the median and the last thread.
        cpu_s: The CPU time of all the client's processes, from the first step to CPU_AFTER_S after the last.
        lost: The number of rows that were acknowledged and are gone.
        split: The number of rows on the wrong server, and of rows that exist twice.
        error_classes: The errors by their class.
        in_flight: The number of threads with a write under way when the database went down, between its last write and
            the moment at which connections were cut.
        strayed: The number of connections at the end to the side that is not the primary.
    """

    down_s: float
    errors: int
    never: int
    longest_gap_s: float | None
    median_gap_s: float | None
    first_median_s: float | None
    first_last_s: float | None
    cpu_s: float
    lost: int
    split: int
    error_classes: dict[str, int]
    in_flight: int
    strayed: int

    @property
    def excess_s(self) -> float | None:
        """The part of the longest gap that the database did not cause."""
        return None if self.longest_gap_s is None else self.longest_gap_s - self.down_s

    @property
    def median_excess_s(self) -> float | None:
        """The same part for the median thread."""
        return None if self.median_gap_s is None else self.median_gap_s - self.down_s


def play(
    scenario: Scenario,
    client: str,
    application: Application,
    *,
    high_ms: int = HIGH_MS,
    settle_s: float = SETTLE_S,
    build: Path | None = None,
) -> Run:
    """Play *scenario* on a fresh pair, with the bgpool in the directory *build*, or this one.

    Raises:
        LabError: The lab failed, or the client could not write before the switchover.
    """
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(Pair("rds"))
        ledger.create(pair)
        director = Director(pair, scenario.schedule)
        config = _config(pair, director, high_ms)
        crew = stack.enter_context(
            Crew(
                client,
                config,
                processes=application.processes,
                threads=application.threads,
                pause_s=application.pause_s,
                grace_s=_GRACE_S,
                build=build,
            )
        )
        crew.wait_writing(_START_TIMEOUT_S)
        scenario.prepare(pair, director)
        director.create_deployment()
        _wait_seen(client, crew)
        with TruthProbe(pair) as truth:
            began_s, cpu_s, strayed = _switch_over(scenario, director, crew, settle_s)
        return _judge(scenario, director, truth, crew.report(), began_s, cpu_s, strayed)


def _config(pair: Pair, director: Director, high_ms: int) -> Config:
    """Return the parameters of clients. If possible, their system names follow the lab's from now on."""
    if hosts.available():
        return Config.of(pair, high_ms=high_ms)
    return Config.of(pair, hosts.names_of(pair, director).path, high_ms=high_ms)


def _wait_seen(client: str, crew: Crew) -> None:
    spec = CLIENTS[client]
    wait_until(
        lambda: spec.has_seen(crew.config), timeout_s=_SEEN_TIMEOUT_S, what=f"{client} sees the deployment", poll_s=0.05
    )
    time.sleep(spec.sees_s)


def _switch_over(scenario: Scenario, director: Director, crew: Crew, settle_s: float) -> tuple[float, float, int]:
    """Run the switchover and wait until the application is back. Return start, CPU time and strayed connections."""
    began_s, cpu_before_s = time.monotonic(), crew.cpu_s()
    scenario.direct(director)
    last_step_s = time.monotonic()
    time.sleep(CPU_AFTER_S)
    cpu_s = crew.cpu_s() - cpu_before_s
    # The figures show the threads that are not back by then.
    with contextlib.suppress(LabError):
        crew.wait_written_since(last_step_s, settle_s - CPU_AFTER_S)
    strayed = director.pair.application_connections(scenario.loser)
    crew.stop()
    return began_s, cpu_s, strayed


def _judge(
    scenario: Scenario,
    director: Director,
    truth: TruthProbe,
    report: Report,
    began_s: float,
    cpu_s: float,
    strayed: int,
) -> Run:
    outage = scenario.outage(truth)
    verdict = scenario.judge(director.pair, report.acknowledged, report.unknown)
    back_s, cut_s = outage.next_write_s, director.event("connections_dropped").monotonic_s
    never, longest, firsts = 0, list[float | None](), list[float | None]()
    for place, attempts in report.attempts.items():
        back = gaps.is_back(attempts, back_s) and place not in report.stuck
        never += not back
        longest.append(gaps.longest_gap_s(attempts, began_s) if back else None)
        firsts.append(gaps.first_success_s(attempts, back_s))
    return Run(
        down_s=outage.down_s,
        errors=sum(report.errors.values()),
        never=never,
        longest_gap_s=gaps.most_s(longest),
        median_gap_s=gaps.median_s(longest),
        first_median_s=gaps.median_s(firsts),
        first_last_s=gaps.most_s(firsts),
        cpu_s=cpu_s,
        lost=verdict.lost,
        split=verdict.split + verdict.doubled,
        error_classes=dict(report.errors),
        in_flight=gaps.in_flight(report.attempts.values(), outage.last_write_s, cut_s),
        strayed=strayed,
    )
