"""One simulated switchover: drawn from a seed, run on a clock that jumps, and held to what was promised."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final

from bgpool.core.limits import GREEN_WAIT_S
from bgpool.core.machine import Rules
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.plan import Intervals
from bgpool.core.routing import Action, Purpose, decide
from bgpool.core.snapshot import Snapshot
from bgpool.core.timeline import METADATA
from bgpool.lab.simulation.clock import MS, SECOND, Clock
from bgpool.lab.simulation.monitor import Monitor
from bgpool.lab.simulation.script import UNHURRIED_MS, Script, draw
from bgpool.lab.simulation.workers import HOLD_NS, Worker
from bgpool.lab.simulation.world import World

__all__ = ["Outcome", "simulate", "simulate_many"]

INTERVALS: Final = Intervals(baseline_ms=1000, increased_ms=1000, high_ms=100)
AFTER_NS: Final = 5 * SECOND
CHUNK: Final = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a seed came to.

    Attributes:
        story: What was drawn.
        acknowledged: Rows whose commit was answered.
        release_s: From the first evidence to the release; None where there was none.
        violations: What was promised and not kept.
    """

    seed: int
    story: str
    acknowledged: int
    release_s: float | None
    violations: tuple[str, ...]


def simulate(seed: int, *, trace: Callable[[str], None] | None = None) -> Outcome:
    """Draw a switchover from *seed* and run it; the same for the same seed, on every machine.

    Args:
        seed: Any whole number.
        trace: Called with a line for everything that happens.
    """
    return _Run(seed, trace).run()


def simulate_many(count: int, first_seed: int = 0, *, processes: int = 1) -> Iterator[Outcome]:
    """The outcomes of *count* seeds from *first_seed* on, in order; in *processes* processes if more than one."""
    seeds = range(first_seed, first_seed + count)
    if processes <= 1:
        yield from map(simulate, seeds)
        return
    with ProcessPoolExecutor(processes) as executor:
        yield from executor.map(simulate, seeds, chunksize=CHUNK)


class _Run:
    def __init__(self, seed: int, trace: Callable[[str], None] | None) -> None:
        self._seed: Final = seed
        self._trace: Final = trace
        self._rng: Final = random.Random(seed)
        self._clock: Final = Clock()
        self._world: Final = World(self._clock, self._rng)
        self._script: Final[Script] = draw(self._rng)
        self._rules: Final = Rules(self._script.timeout_ms, self._script.release_on_dns)
        self._published = Snapshot("sim")
        self._sequence = 0
        self._monitor: Monitor | None = None
        self._watched_since = 0
        self._workers: Final[list[Worker]] = []
        self._violations: Final[dict[str, None]] = {}
        self._released_ns: int | None = None
        self._promoted_ns: int | None = None

    def run(self) -> Outcome:
        script = self._script
        self._begin_monitor()
        for _ in range(2):
            self._begin_worker()
        script.stage(self._world, self._note)
        for moment in script.monitor_deaths:
            self._clock.at(moment.at_ns, self._kill_monitor, moment.away_ns)
        for at_ns in script.worker_starts:
            self._clock.at(at_ns, self._begin_worker)
        for at_ns in script.worker_deaths:
            self._clock.at(at_ns, self._workers[0].kill)
        self._clock.run(script.end_ns + AFTER_NS)
        self._judge()
        evidence = script.evidence_ns
        release_s = None
        if self._released_ns is not None and evidence is not None:
            release_s = (self._released_ns - evidence) / SECOND
        acknowledged = sum(len(worker.acknowledged) for worker in self._workers)
        return Outcome(self._seed, script.story, acknowledged, release_s, tuple(self._violations))

    # -- what happens --------------------------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        if text == "green promoted":
            self._promoted_ns = self._clock.now
        if self._trace is not None:
            self._trace(f"{self._clock.now / SECOND - self._script.zero_ns / SECOND:9.3f}  {text}")

    def _complain(self, text: str) -> None:
        if text not in self._violations:
            self._violations[text] = None
            self._note(f"VIOLATION {text}")

    def _begin_monitor(self) -> None:
        self._watched_since = self._clock.now
        self._monitor = Monitor(self._world, self._published, self._rules, INTERVALS, self._publish)
        self._monitor.start()

    def _kill_monitor(self, away_ns: int) -> None:
        self._note("monitor killed")
        if self._monitor is not None:
            self._monitor.kill()
        self._clock.after(away_ns, self._begin_monitor)

    def _begin_worker(self) -> None:
        rng = random.Random(self._rng.getrandbits(32))
        worker = Worker(self._world, len(self._workers), rng, self._rules, self._published, self._complain, self._nudge)
        self._workers.append(worker)
        worker.start(threads=2)

    def _nudge(self) -> None:
        if self._monitor is not None:
            self._clock.after(self._world.rng.randrange(0, MS), self._monitor.nudge)

    def _publish(self, snapshot: Snapshot) -> None:
        before, self._published = self._published, snapshot
        self._sequence += 1
        if snapshot.epoch < before.epoch:
            self._complain(f"the epoch fell from {before.epoch} to {snapshot.epoch}")
        if snapshot.timeline != before.timeline:
            self._look_for_release(snapshot)
        if snapshot.phase is not before.phase:
            self._note(f"phase {before.phase.name} -> {snapshot.phase.name}")
            self._inspect(before, snapshot)
        for worker in self._workers:
            self._clock.after(self._rng.randrange(0, 3 * MS), worker.see, self._sequence, snapshot)

    def _look_for_release(self, snapshot: Snapshot) -> None:
        # In the timeline: a monitor that comes back late may go through POST within one step.
        if self._released_ns is None and any(entry.event == Phase.POST.name for entry in snapshot.timeline):
            self._released_ns = self._clock.now
            world = self._world
            if not world.may_be_released:
                self._complain("released before green was promoted")
            waited = self._promoted_ns is not None and self._clock.now >= self._promoted_ns + int(GREEN_WAIT_S * SECOND)
            told = any(entry.evidence == METADATA for entry in snapshot.timeline)
            # The timer ends that wait as well.
            unhurried = self._script.timeout_ms == UNHURRIED_MS
            if world.green.subscribes and unhurried and not (waited or told or snapshot.blue_moved):
                self._complain("released while green followed blue")

    def _inspect(self, before: Snapshot, snapshot: Snapshot) -> None:
        if snapshot.phase < before.phase and before.phase is Phase.POST:
            self._complain("back from POST without the end of the switchover")
        for host in snapshot.hosts_of(Role.TARGET):
            if snapshot.phase in (Phase.IN_PROGRESS, Phase.POST):
                action = decide(snapshot, host.name, Purpose.CHECKOUT).action
                if action not in (Action.HOLD, Action.REJECT):
                    self._complain(f"green is {action.value} in {snapshot.phase.name}")

    # -- what was promised ---------------------------------------------------------------------------------------

    def _judge(self) -> None:
        script, world = self._script, self._world
        survivor, other = (world.blue, world.green) if script.rolled_back else (world.green, world.blue)
        for worker in self._workers:
            lost = [key for key in worker.acknowledged if not survivor.rows[key]]
            if lost:
                self._complain(f"{len(lost)} acknowledged rows are lost, such as {lost[0]}")
            if worker.longest_wait_ns() > 2 * HOLD_NS + SECOND:
                self._complain("a caller waits for ever")
            if worker.errors and not script.may_fail:
                self._complain(f"a caller was told: {worker.errors[0]}")
        doubled = [key for key, count in survivor.rows.items() if count > 1]
        if doubled:
            self._complain(f"{len(doubled)} rows were written twice, such as {doubled[0]}")
        split = [key for key, count in other.rows.items() if count and not survivor.rows[key]]
        if split:
            self._complain(f"{len(split)} rows are on the losing side alone, such as {split[0]}")
        if self._published.phase in SWITCHING and self._clock.now > self._published.deadline_ns:
            self._complain(f"{self._published.phase.name} was not left in time")
        if script.rolled_back and self._released_ns is not None:
            self._complain("a rollback was taken for a release")
        self._judge_release()

    def _judge_release(self) -> None:
        script = self._script
        evidence = script.evidence_ns
        if evidence is None or script.rolled_back:
            return
        if self._released_ns is None:
            self._complain("never released")
            return
        # A monitor that was away has to come back first, and one that was stalled to be answered.
        bound = max(evidence, self._watched_since) + script.release_bound_ns
        if self._released_ns > bound:
            late = (self._released_ns - bound) / SECOND
            self._complain(f"released {late:.3f} s later than it had to be")
        recent = self._clock.now - 3 * SECOND
        alive = [worker for worker in self._workers if worker.alive]
        if any(worker.last_ack_ns < recent for worker in alive):
            self._complain("a worker did not go on after the release")
