"""One switchover or failover: half of the application's threads leave receipts, and the ledger judges."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import ledger, metadata
from bgpool.lab.errors import DRIVER_ERRORS, LabError
from bgpool.lab.once.draws import Draw
from bgpool.lab.once.holds import Hold, cut, hold_of, open_commits, prepare, wait_for_replica
from bgpool.lab.once.results import Result, findings_of, part_of
from bgpool.lab.pair import ROLE
from bgpool.lab.scenarios.evidence import silence_metadata
from bgpool.lab.scenarios.hosts import black_hole_blue
from bgpool.lab.scenarios.scenario import FAST
from bgpool.lab.server import Server
from bgpool.lab.trial import Trial
from bgpool.lab.waiting import wait_until
from bgpool.lab.worker import Worker
from bgpool.pools.mysql import receipts as mysql
from bgpool.pools.postgres import receipts as postgres

__all__ = ["TABLE", "create_table", "play"]

TABLE: Final = "bgpool_receipts"
THREADS: Final = 4
"""The number of threads with receipts, and of those without."""

PAUSE_S: Final = 0.015
"""The pause between two units of a thread, and before each COMMIT. The COMMITs that will be cut are held, so few are
enough. A lock that also holds INSERTs finds some that are done."""

HOLD_S: Final = 10.0
RESUME_S: Final = 15.0
"""The longest time until every thread has written again."""

LONGEST_CALL_S: Final = 2 * HOLD_S + 5.0
"""The bound of a unit of work: the longest hold, the pool's timeout, and the load of a machine."""

OPEN_S: Final = 1.0
"""The longest time until half of the threads are in a COMMIT that is held."""

LOOKED_S: Final = 10.0
"""The longest time until every pool with receipts has checked green; the pools do this at the same time."""

SEEN_S: Final = 3.0
"""The longest time until every worker has seen PREPARATION."""

#: PREPARATION lasts as long as a monitor that polls at its slower interval may need to see it.
SCHEDULE: Final = replace(FAST, initiated_s=-1.0)
UNDER_WAY_S: Final = 0.6
"""The time at which a switchover is rolled back with COMMITs under way."""

CUT_S: Final = 0.17
DRAIN_MS: Final = 200


def play(draw: Draw, engine: Engine, pair_options: Mapping[str, Any] | None = None) -> Result:
    """Run *draw* on servers of its own; takes five to ten seconds.

    Args:
        draw: The events.
        engine: The engine of the servers.
        pair_options: More keywords for Pair.

    Raises:
        LabError: The lab failed, or a worker did not end.
    """
    began = time.monotonic()
    options: dict[str, Any] = {
        "bg_connect_timeout_ms": int(HOLD_S * 1000),
        "bg_interval_baseline_ms": 500,
        "bg_interval_high_ms": 50,
        "timeout": HOLD_S,
    }
    if draw.story == "rollback under way":
        options["bg_drain_timeout_ms"] = DRAIN_MS
    with Trial(
        engine=engine,
        workers=0,
        threads=THREADS,
        job="write unit",
        schedule=SCHEDULE,
        own_monitor=True,
        pair_options=dict(pair_options or {}),
        pool_options=options,
    ) as trial:
        return (_Failover if draw.is_failover else _Switchover)(trial, draw).run(began)


class _Play(ABC):
    """A trial in which the events of a draw happen."""

    def __init__(self, trial: Trial, draw: Draw) -> None:
        self.trial: Final = trial
        self.pair: Final = trial.pair
        self.draw: Final = draw
        self.hold: Final[Hold] = hold_of(draw.hold, trial.pair)
        self.open_commits = 0
        self._kills = 0
        self._timers: list[threading.Timer] = []
        self._one_at_a_time: Final = threading.Lock()

    def run(self, began_s: float) -> Result:
        """Run the events and judge the result."""
        create_table(self.trial)
        prepare(self.pair)
        self._engage()
        try:
            self.direct()
            for timer in self._timers:
                timer.join()
            self._wait_resumed()
        finally:
            for timer in self._timers:
                timer.cancel()
            self.hold.end()
        self.trial.stop_workers()
        return self._result(began_s)

    @abstractmethod
    def direct(self) -> None:
        """Run the events."""

    @abstractmethod
    def judge(self, acknowledged: list[ledger.Key], unknown: list[ledger.Key]) -> ledger.Verdict:
        """Return the ledger's verdict."""

    # -- the application -----------------------------------------------------------------------------------------

    def _engage(self) -> None:
        """Fork the workers: one that leaves receipts, one that runs tasks, one without receipts."""
        always = {"bg_receipts": "always"} if self.draw.is_failover else {}
        with_receipts = self.trial.make_pool(self.pair.dsn, name="receipts", bg_receipts_table=TABLE, **always)
        self._with_receipts = with_receipts
        self._writer = self._add(pool=with_receipts, threads=THREADS // 2)
        self._tasks = self._add_tasks()
        self._plain = self._add()
        wait_until(self._all_write, timeout_s=RESUME_S, what="every thread to write")

    def _add_tasks(self, tasks: Sequence[ledger.Key] = ()) -> Worker:
        return self._add(pool=self._with_receipts, threads=THREADS // 2, job="task unit", tasks=tasks)

    def _add(self, **options: Any) -> Worker:
        return self.trial.add_worker(tells_commits=False, pause_s=PAUSE_S, think_s=PAUSE_S, **options)

    @property
    def _living(self) -> list[Worker]:
        return [self._writer, self._tasks, self._plain]

    def _all_write(self, since_s: float = 0.0) -> bool:
        return all(times and times[-1] > since_s for worker in self._living for times in worker.write_times())

    def _wait_resumed(self) -> None:
        since_s = time.monotonic()
        # A thread that never continues shows in the verdict: as a call without an answer, or one that took too long.
        with contextlib.suppress(LabError):
            wait_until(lambda: self._all_write(since_s), timeout_s=RESUME_S, what="every thread writes again")

    # -- failures ------------------------------------------------------------------------------------------------

    def count_open(self) -> None:
        """Record the number of COMMITs under way. With a hold, wait until half of the threads are in one."""

        def found() -> bool:
            self.open_commits = max(self.open_commits, open_commits(self.pair))
            return self.open_commits >= THREADS or not self.draw.hold

        # A loaded machine may be slow, and a stopped server does not answer.
        with contextlib.suppress(LabError, *DRIVER_ERRORS):
            wait_until(found, timeout_s=OPEN_S, what="COMMITs are under way")

    def set_timers(self) -> None:
        """Start the timers of the kills, whose times count from now; times in the past are due at once."""
        blows: list[tuple[float, Callable[[], None]]] = [(at_s, self._kill_worker) for at_s in self.draw.worker_kills]
        if self.draw.monitor_kill is not None:
            blows.append((self.draw.monitor_kill, self._kill_monitor))
        for at_s, blow in blows:
            timer = threading.Timer(max(0.0, at_s), blow)
            timer.daemon = True
            self._timers.append(timer)
            timer.start()

    def _kill_worker(self) -> None:
        """Kill the worker with the tasks; its queue delivers them to another one."""
        with self._one_at_a_time:
            victim = self._tasks
            os.kill(victim.pid, signal.SIGKILL)
            victim.kill()
            self._kills += 1
            self._tasks = self._add_tasks(victim.left_tasks())

    def _kill_monitor(self) -> None:
        with contextlib.suppress(LabError, ProcessLookupError):
            os.kill(self.trial.monitor_pid(), signal.SIGKILL)
            self._kills += 1

    # -- the verdict ---------------------------------------------------------------------------------------------

    def _result(self, began_s: float) -> Result:
        crew = self.trial.crew
        acknowledged = [key for worker in crew for key in worker.acknowledged]
        unknown = [key for worker in crew for key in worker.unknown]
        verdict = self.judge(acknowledged, unknown)
        receipts = part_of([worker for worker in crew if worker is not self._plain])
        without = part_of([self._plain])
        is_postgres = self.trial.engine is Engine.POSTGRESQL
        findings = findings_of(
            verdict,
            receipts,
            without,
            is_failover=self.draw.is_failover,
            may_ask=is_postgres and not self.draw.is_failover,
        )
        if verdict.abandoned and self.draw.story != "asynchronous":
            findings.append(f"{verdict.abandoned} rows were acknowledged by a former primary")
        longest_s = max(receipts.longest_call_s, without.longest_call_s)
        if longest_s > LONGEST_CALL_S:
            findings.append(f"a caller waited {longest_s:.1f} s, the bound is {LONGEST_CALL_S:g} s")
        return Result(
            seed=self.draw.seed,
            story=self.draw.story,
            hold=self.draw.hold,
            open_commits=self.open_commits,
            kills=self._kills,
            rows=verdict.acknowledged,
            lost=verdict.lost,
            doubled=verdict.doubled,
            split=verdict.split,
            half=verdict.half,
            abandoned=verdict.abandoned,
            receipts=receipts,
            without=without,
            findings=tuple(findings),
            took_s=round(time.monotonic() - began_s, 1),
        )


class _Switchover(_Play):
    @property
    def _is_rolled_back(self) -> bool:
        return self.draw.story in ("rollback", "rollback under way")

    def direct(self) -> None:
        """Run a deployment and the director's steps, altered as drawn."""
        trial, director, draw = self.trial, self.trial.director, self.draw
        director.add("commits_held", draw.held_s, self._hold_when_seen)
        director.add("blows", -0.3, self.set_timers)
        if draw.story == "frozen metadata":
            silence_metadata(trial)
        if draw.story == "black hole":
            black_hole_blue(trial)
        if draw.story == "rollback under way":
            # Blue neither cuts nor refuses clients, and finishes all work that it has begun.
            kept = ("initiated", "in_progress", "commits_held", "blows")
            director.steps = [step for step in director.steps if step.name in kept]
            director.add("commits_counted", CUT_S, self.count_open)
            director.add("rolled_back", UNDER_WAY_S, lambda: director.publish(metadata.AVAILABLE))
        elif not self.hold.outlives_cut:
            director.add("commits_cut", CUT_S, self._cut)
        else:
            last = "old_blue_open" if draw.story == "black hole" else "connections_dropped"
            step = next(step for step in director.steps if step.name == last)

            def drop() -> None:
                step.action()
                self.hold.end()

            director.change(last, action=drop)
            director.add("commits_counted", CUT_S, self.count_open)
        director.create_deployment()
        trial.wait_ready()
        if self.pair.upgrade == "major":
            # Until each pool has checked green, old blue is queried. A worker that is started later queries it, too.
            wait_until(
                lambda: all(worker.reach_green for worker in (self._writer, self._tasks)),
                timeout_s=LOOKED_S,
                what="the pools know that receipts reach green",
            )
        if draw.story == "rollback":
            trial.direct(lambda: director.rollback_from("IN_PROGRESS"))
        else:
            trial.direct(director.run)
        if draw.story == "rollback under way":
            time.sleep(draw.longer_s)
            self.hold.end()

    def _hold_when_seen(self) -> None:
        """Hold COMMITs once PREPARATION was seen: bgpool makes no promise for those sent earlier."""
        phases = {Phase.PREPARATION.name, Phase.IN_PROGRESS.name}
        wait_until(
            lambda: all(worker.phase in phases for worker in self._living),
            timeout_s=SEEN_S,
            what="every worker has seen PREPARATION",
        )
        self.hold.begin()

    def _cut(self) -> None:
        self.count_open()
        cut(self.pair)
        wait_until(lambda: not open_commits(self.pair), timeout_s=5.0, what="no COMMIT is under way")
        self.hold.end()

    def judge(self, acknowledged: list[ledger.Key], unknown: list[ledger.Key]) -> ledger.Verdict:
        """Return the verdict on green, or on blue after a rollback."""
        judge = ledger.judge_rollback if self._is_rolled_back else ledger.judge
        return judge(self.pair, acknowledged, unknown)


class _Failover(_Play):
    def direct(self) -> None:
        """Fail blue without a deployment: green is promoted and gets the name, or blue returns."""
        draw = self.draw
        if draw.story != "asynchronous":
            wait_for_replica(self.pair)
        self.set_timers()
        self.hold.begin()
        time.sleep(-draw.held_s)
        self.count_open()
        if draw.story == "network lost":
            for worker in self._living:
                worker.lose_network()
            time.sleep(draw.longer_s)
            self.hold.end()
        elif draw.story == "restarted":
            self.pair.blue.kill()
            self.pair.blue.start()
            self.hold.end()
        else:
            self._promote()

    def _promote(self) -> None:
        blue, green = self.pair.blue, self.pair.green
        if self.draw.story == "cut off":
            if self.draw.hold == "lock":
                cut(self.pair)
                self.hold.end()
            blue.refuse_clients()
            cut(self.pair)
            blue.stop("immediate")
        else:
            blue.kill()
        self.hold.end()
        green.thaw()
        green.promote()
        self.pair.hosts.set(self.pair.names.blue.primary, green.address)

    @property
    def _survivor(self) -> Server:
        return self.pair.blue if self.draw.story in ("restarted", "network lost") else self.pair.green

    def judge(self, acknowledged: list[ledger.Key], unknown: list[ledger.Key]) -> ledger.Verdict:
        """Return the verdict on the survivor, except for rows that replication has lost."""
        former = self.pair.blue if self._survivor is not self.pair.blue else None
        if former is not None:
            former.start()
        return ledger.judge_failover(self._survivor, former, acknowledged, unknown)


def create_table(trial: Trial) -> None:
    """Create the receipts table with the DDL that users receive."""
    is_mysql = trial.engine is Engine.MYSQL
    module = mysql if is_mysql else postgres
    ddl = module.DDL.format(table=module.quoted(TABLE), user=f"'{ROLE}'@'%'" if is_mysql else ROLE)
    trial.pair.define(*filter(None, map(str.strip, ddl.split(";"))))
