"""One simulated switchover: drawn from a seed, run on a clock that jumps, and checked against bgpool's promises."""

from __future__ import annotations

import functools
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
from bgpool.dsn import Dsn, parse
from bgpool.lab.simulation.clock import MS, SECOND, Clock
from bgpool.lab.simulation.monitor import Monitor
from bgpool.lab.simulation.script import UNHURRIED_MS, Script, draw
from bgpool.lab.simulation.workers import Job, Run, Worker
from bgpool.lab.simulation.world import ACCOUNT, Key, Server, World
from bgpool.settings import Settings

__all__ = ["Outcome", "script_of", "simulate", "simulate_many"]

INTERVALS: Final = Intervals(baseline_ms=1000, increased_ms=1000, high_ms=100)
#: The calm time at the end of a run: longer than the work under way may take, for example a function of 3 s.
CALM_NS: Final = 6 * SECOND
#: The longest duration of a unit of work that begins in the calm, on the slowest servers.
SHORT_NS: Final = 3 * SECOND
CHUNK: Final = 100
TABLE: Final = "bgpool_receipts"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a seed.

    Attributes:
        story: The description of the drawn events.
        acknowledged: The number of units of work that were reported to their callers as applied.
        unknown: The number of units that were reported with an unknown outcome.
        already: The number of runs of a unit that another run had applied.
        release_s: The time from the first evidence to the release; None if there was none.
        violations: The broken promises.
    """

    seed: int
    story: str
    acknowledged: int
    unknown: int
    already: int
    release_s: float | None
    violations: tuple[str, ...]


def simulate(seed: int, *, trace: Callable[[str], None] | None = None) -> Outcome:
    """Draw a switchover from *seed* and run it; the same for the same seed, on every machine.

    Args:
        seed: Any whole number.
        trace: A callable that receives a line for each event.
    """
    return _Run(seed, trace).run()


def script_of(seed: int) -> Script:
    """Return the script of *seed*."""
    return draw(random.Random(seed))


def simulate_many(count: int, first_seed: int = 0, *, processes: int = 1) -> Iterator[Outcome]:
    """Yield the outcomes of *count* seeds from *first_seed* on, in order; in *processes* processes if more than one."""
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
        self._script.prepare(self._world)
        self._rules: Final = Rules(self._script.timeout_ms, self._script.release_on_dns)
        self._published = Snapshot("sim")
        self._sequence = 0
        self._monitor: Monitor | None = None
        self._watched_since = 0
        self._workers: Final[list[Worker]] = []
        # The jobs to run again, and the keys of jobs whose worker died.
        self._again: Final[list[Job]] = []
        self._died: Final[set[Key]] = set()
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
            self._clock.at(at_ns, self._kill_worker)
        for at_ns in script.network_cuts:
            self._clock.at(at_ns, self._cut_network)
        self._clock.at(script.calm_ns, self._world.calm_down)
        self._clock.run(script.calm_ns + CALM_NS)
        self._judge()
        evidence = script.evidence_ns
        release_s = None
        if self._released_ns is not None and evidence is not None:
            release_s = (self._released_ns - evidence) / SECOND
        told = [run.told for worker in self._workers for run in worker.runs]
        applied, unknown, already = (told.count(word) for word in ("applied", "unknown", "already"))
        return Outcome(self._seed, script.story, applied, unknown, already, release_s, tuple(self._violations))

    # -- events ------------------------------------------------------------------------------------------------

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
        script = self._script
        place = _place(script.mysql, script.receipts, script.timeout_ms, script.release_on_dns)
        number = len(self._workers)
        worker = Worker(
            self._world, number, rng, place, self._published, self._complain, self._nudge, self._choose, self._take_run
        )
        self._workers.append(worker)
        worker.start(threads=2)
        self._clock.after(rng.randrange(0, 8 * SECOND), self._try_green, worker)

    def _try_green(self, worker: Worker) -> None:
        """Try the login on green that shows, while the deployment waits, if receipts reach it."""
        world = self._world
        if worker.receipts is not None and self._published.phase is Phase.CREATED:
            worker.receipts.reach_green = world.logical and world.receipts_reach

    def _kill_worker(self) -> None:
        self._note("worker killed")
        worker = next(worker for worker in self._workers if worker.alive)
        worker.kill()
        for job in worker.jobs.values():
            self._died.add(job.key)
            self._run_again(job)

    def _cut_network(self) -> None:
        chance = self._rng.random()
        self._note("network cut")
        for worker in self._workers:
            worker.cut_network(chance)

    def _run_again(self, job: Job) -> None:
        if job.receipt_id is not None:
            self._clock.after(self._rng.randrange(0, 2 * SECOND), self._again.append, job)

    def _choose(self, worker: Worker) -> Job:
        """Return the next job of *worker*."""
        rng = self._rng
        if not self._script.tasks or rng.random() > 0.5:
            return Job(worker.new_key())
        if self._again and rng.random() < 0.6:
            return self._again.pop(rng.randrange(len(self._again)))
        key = worker.new_key()
        job = Job(key, f"task-{key[0]}-{key[1]}")
        if rng.random() < 0.4:
            # Another worker gets it as well, like from a queue whose worker takes long.
            self._run_again(job)
        return job

    def _take_run(self, run: Run) -> None:
        if run.told in ("unknown", "not applied"):
            self._note(f"row {run.job.key}: {run.told}, {run.text}")
            self._run_again(run.job)

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
        # In the timeline: a monitor that returns late may go through POST within one step.
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

    # -- the promises ------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        script, world = self._script, self._world
        survivor, other = (world.blue, world.green) if script.rolled_back else (world.green, world.blue)
        world.blue.settle_rest()
        for worker in self._workers:
            if not script.hangs and worker.longest_wait_ns() > SHORT_NS:
                self._complain("a caller waits forever")
            errors = [run.text for run in worker.runs if run.told == "not applied"]
            if errors and not script.may_fail:
                self._complain(f"a caller received an error: {errors[0]}")
        self._judge_units(survivor)
        doubled = [key for key, count in survivor.rows.items() if count > 1]
        if doubled:
            self._complain(f"{len(doubled)} rows were written twice, such as {doubled[0]}")
        split = [key for key, count in other.rows.items() if count and not survivor.rows[key]]
        if split:
            self._complain(f"{len(split)} rows are only on the losing side, such as {split[0]}")
        if self._published.phase in SWITCHING and self._clock.now > self._published.deadline_ns:
            self._complain(f"{self._published.phase.name} was not left in time")
        if script.rolled_back and self._released_ns is not None:
            self._complain("a rollback was taken for a release")
        self._judge_release()

    def _judge_units(self, survivor: Server) -> None:
        """Check that every unit was applied once if it was reported so, otherwise at most once, and as reported."""
        told: dict[Key, list[Run]] = {}
        for worker in self._workers:
            for run in worker.runs:
                told.setdefault(run.job.key, []).append(run)
        under_way = {job.key for worker in self._workers for job in worker.jobs.values()}
        for key, runs in told.items():
            count, words = survivor.rows[key], [run.told for run in runs]
            if "applied" in words and not count:
                self._complain(f"an acknowledged row is lost: {key}")
            if "already" in words and not count:
                self._complain(f"a caller received AlreadyApplied for a unit that no run has applied: {key}")
            if words.count("applied") > 1:
                self._complain(f"two runs have applied a unit: {key}")
            if count and words == ["not applied"] * len(words) and key not in self._died | under_way:
                self._complain(f"a caller received an error for a row that was applied: {key}")
            for run in runs:
                if run.told == "unknown" and run.decidable and self._script.unhurried:
                    self._complain(f"a caller received an unknown outcome that can be found out: {key}")

    def _judge_release(self) -> None:
        script = self._script
        evidence = script.evidence_ns
        if evidence is None or script.rolled_back:
            return
        if self._released_ns is None:
            self._complain("never released")
            return
        # A monitor that was away must return first, and a stalled one must get an answer.
        bound = max(evidence, self._watched_since) + script.release_bound_ns
        if self._released_ns > bound:
            late = (self._released_ns - bound) / SECOND
            self._complain(f"released {late:.3f} s later than the bound")
        recent = self._clock.now - SHORT_NS
        if any(worker.alive and worker.last_ack_ns < recent for worker in self._workers):
            self._complain("a worker did not continue after the release")


@functools.cache
def _dsn(mysql: bool) -> Dsn:
    scheme = "mysql" if mysql else "postgresql"
    return parse(f"{scheme}://app:secret@db.{ACCOUNT}:5432/app", {"bg_id": "sim"})[0]


def _place(mysql: bool, receipts: str, timeout_ms: int, release_on_dns: bool) -> tuple[Dsn, Settings]:
    """Return the destination of the workers' pools, and their parameters."""
    settings = Settings(
        bg_id="sim",
        bg_receipts_table=TABLE if receipts else None,
        bg_receipts=receipts or "switchover",
        bg_switchover_timeout_ms=timeout_ms,
        bg_release_on_blue_dns_update=release_on_dns,
    )
    return _dsn(mysql), settings
