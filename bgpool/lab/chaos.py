"""Chaos: an application goes through repeated switchovers while its workers and their monitor are killed.

The kills, their kinds and their times are drawn from a seed. Some workers are spared for the whole run. Their memory
and descriptors at the end are compared with those after the first switchovers.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bgpool.core.engine import Engine
from bgpool.core.phase import Phase
from bgpool.lab import ledger
from bgpool.lab.director import Director
from bgpool.lab.errors import LabError
from bgpool.lab.ledger import Verdict
from bgpool.lab.scenarios.scenario import FAST
from bgpool.lab.trial import Trial
from bgpool.lab.waiting import wait_until
from bgpool.lab.worker import Worker

__all__ = ["Chaos", "ChaosReport", "Footprint"]

SPARED: Final = 2
MORTAL: Final = 2
THREADS: Final = 2
HOLD_S: Final = 10.0
#: The longest pause between two faults, in seconds.
PAUSE_S: Final = 1.2
#: The longest time for which a monitor is stopped, in seconds: longer than another one waits before it takes over.
STOPPED_S: Final = 6.0
#: The number of switchovers before memory counts: caches fill, pools grow to their size.
WARM_UP: Final = 2
COMPLETED_TIMEOUT_S: Final = 30.0
#: A unit of work ends after the longest hold and the pool's own timeout; a machine under load adds to that.
LONGEST_CALL_S: Final = 2 * HOLD_S + 5.0
#: The time in which a worker's resources at rest are measured, in seconds: a worker that is just starting a monitor
#: holds the lock, pipes and other resources for it.
REST_S: Final = 2.0
#: The allowed number of additional descriptors at rest: connections are opened and closed with the work, too.
DESCRIPTORS: Final = 6
RESIDENT_KIB: Final = 8 * 1024


@dataclass(frozen=True, slots=True)
class Footprint:
    """The resources of a process: open descriptors and resident memory, in KiB."""

    descriptors: int
    resident_kib: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Return the footprint of the process *pid*."""
        process = Path(f"/proc/{pid}")
        pages = int((process / "statm").read_text().split()[1])
        return cls(len(list((process / "fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE") // 1024)

    @classmethod
    def at_rest(cls, pids: Sequence[int]) -> tuple[Footprint, ...]:
        """Return the smallest footprint of each of *pids* within REST_S: a leaked resource is held all the time."""
        end = time.monotonic() + REST_S
        seen = [[cls.of(pid) for pid in pids]]
        while time.monotonic() < end:
            time.sleep(0.05)
            seen.append([cls.of(pid) for pid in pids])
        return tuple(
            cls(min(one.descriptors for one in ones), min(one.resident_kib for one in ones))
            for ones in zip(*seen, strict=True)
        )


@dataclass(frozen=True)
class ChaosReport:
    """The result of a run.

    Attributes:
        verdict: The ledger's verdict, over all switchovers.
        split: The number of rows that only an old blue had when it was replaced, in any of the switchovers.
        blows: The number of faults of each kind.
        errors: Errors of callers; a worker that is killed reports nothing.
        ended: Workers that ended without an order to.
        missing: Threads that never returned, and workers that crashed; killed ones are not included.
        longest_call_s: The longest time that a caller waited.
        before, after: Footprints of the spared workers, after the first switchovers and at the end.
    """

    seed: int
    switchovers: int
    verdict: Verdict
    split: int
    blows: Counter[str]
    errors: tuple[str, ...]
    ended: tuple[int, ...]
    missing: int
    longest_call_s: float
    before: tuple[Footprint, ...]
    after: tuple[Footprint, ...]

    @property
    def descriptors_grown(self) -> int:
        """The largest increase in descriptors of a spared worker."""
        return max((b.descriptors - a.descriptors for a, b in zip(self.before, self.after, strict=True)), default=0)

    @property
    def findings(self) -> list[str]:
        """Descriptions of everything that is wrong."""
        found = []
        if not self.verdict.clean or self.split:
            found.append(f"rows: {self.verdict}, and {self.split} split before")
        if self.ended:
            found.append(f"workers ended by themselves: {self.ended}")
        if self.missing:
            found.append(f"{self.missing} threads never came back, or workers crashed: {'; '.join(self.errors[-5:])}")
        if self.longest_call_s > LONGEST_CALL_S:
            found.append(f"a caller waited {self.longest_call_s:.1f} s, the bound is {LONGEST_CALL_S:g} s")
        if self.descriptors_grown > DESCRIPTORS:
            found.append(f"a worker has {self.descriptors_grown} more descriptors than at the beginning")
        if self.resident_grown_kib > RESIDENT_KIB:
            found.append(f"a worker has {self.resident_grown_kib} KiB more than at the beginning")
        return found

    @property
    def resident_grown_kib(self) -> int:
        """The largest increase in memory of a spared worker, in KiB."""
        return max((b.resident_kib - a.resident_kib for a, b in zip(self.before, self.after, strict=True)), default=0)


@dataclass
class Chaos:
    """One run.

    Attributes:
        seed: The seed that decides the order of actions; their effects depend on the machine, too.
        seconds: The time after which no switchover begins, except for the second.
        tell: A callable that receives a line for each action.
        engine: The engine of the servers.
        pair_options: More keywords for Pair.
    """

    seed: int
    seconds: float
    tell: Callable[[str], object] = lambda _line: None
    engine: Engine = Engine.POSTGRESQL
    pair_options: Mapping[str, Any] = field(default_factory=dict)
    _split: int = field(default=0, init=False)
    _switchovers: int = field(default=0, init=False)

    def run(self) -> ChaosReport:
        """Run it.

        Raises:
            LabError: A deployment did not become ready or did not end, or a worker hangs.
        """
        self._random = random.Random(self.seed)
        self._blows: Counter[str] = Counter()
        self._before: tuple[Footprint, ...] = ()
        self._ended: list[int] = []
        options: dict[str, Any] = {
            "bg_connect_timeout_ms": int(HOLD_S * 1000),
            "bg_interval_baseline_ms": 500,
            "bg_interval_high_ms": 50,
            "timeout": HOLD_S,
        }
        with Trial(
            engine=self.engine,
            pair_options=dict(self.pair_options),
            workers=SPARED,
            threads=THREADS,
            job="write unit",
            schedule=FAST,
            pool_options=options,
            settle_s=0.5,
        ) as trial:
            self._trial, self._spared = trial, list(trial.crew)
            self._mortal = [trial.add_worker() for _ in range(MORTAL)]
            report = trial.run(self._play)
            return ChaosReport(
                self.seed,
                self._switchovers,
                report.verdict,
                self._split,
                self._blows,
                tuple(f"worker {worker.number}: {error}" for worker in trial.crew for error in worker.errors),
                tuple(self._ended),
                report.missing,
                report.longest_call_s,
                self._before,
                self._after,
            )

    def _play(self, trial: Trial) -> None:
        stopping = threading.Event()
        reaper = threading.Thread(target=self._deal_blows, args=(stopping,), name="bgpool-chaos", daemon=True)
        end = time.monotonic() + self.seconds
        reaper.start()
        try:
            while True:
                trial.switch_over()
                self._wait(Phase.COMPLETED)
                self._switchovers += 1
                self.tell(f"switchover {self._switchovers} completed")
                if self._switchovers <= WARM_UP:
                    self._before = self._footprints()
                if time.monotonic() > end and self._switchovers >= WARM_UP:
                    break
                # The rows of old blue, before it is replaced: no client may have written there after the cut.
                self._split += ledger.judge(trial.pair, ()).split
                trial.pair.renew()
                self._wait(Phase.NOT_CREATED)
                trial.director = Director(trial.pair, FAST)
        finally:
            stopping.set()
            reaper.join(STOPPED_S + 1.0)
        self._after = self._footprints()

    def _wait(self, phase: Phase) -> None:
        def reached() -> bool:
            snapshot = self._trial.snapshot()
            return snapshot is not None and snapshot.phase is phase

        wait_until(reached, timeout_s=COMPLETED_TIMEOUT_S, what=f"{phase.name} after switchover {self._switchovers}")

    def _footprints(self) -> tuple[Footprint, ...]:
        return Footprint.at_rest([worker.pid for worker in self._spared])

    # -- faults --------------------------------------------------------------------------------------------------

    def _deal_blows(self, stopping: threading.Event) -> None:
        while not stopping.wait(self._random.uniform(0.05, PAUSE_S)):
            blow = self._random.choice((self._kill_worker, self._kill_monitor, self._kill_monitor, self._stop_monitor))
            blow(stopping)

    def _kill_worker(self, _: threading.Event) -> None:
        index = self._random.randrange(MORTAL)
        number = self._random.choice((signal.SIGKILL, signal.SIGTERM))
        victim: Worker = self._mortal[index]
        if not victim.is_reporting:
            self._ended.append(victim.number)
            return
        os.kill(victim.pid, number)
        self._note("worker", number, victim.number)
        victim.kill()
        self._mortal[index] = self._trial.add_worker()

    def _kill_monitor(self, _: threading.Event) -> None:
        number = self._random.choice((signal.SIGKILL, signal.SIGTERM))
        with contextlib.suppress(LabError, ProcessLookupError):
            os.kill(self._trial.monitor_pid(), number)
            self._note("monitor", number)

    def _stop_monitor(self, stopping: threading.Event) -> None:
        pause_s = self._random.uniform(0.1, STOPPED_S)
        with contextlib.suppress(LabError, ProcessLookupError):
            pid = self._trial.monitor_pid()
            os.kill(pid, signal.SIGSTOP)
            self._note("monitor", signal.SIGSTOP)
            stopping.wait(pause_s)
            os.kill(pid, signal.SIGCONT)

    def _note(self, victim: str, blow: signal.Signals, number: int | None = None) -> None:
        self._blows[f"{victim} {blow.name}"] += 1
        self.tell(f"{victim} {number} gets {blow.name}" if number is not None else f"{victim} gets {blow.name}")
