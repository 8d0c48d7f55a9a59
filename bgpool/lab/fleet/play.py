"""One switchover of a fleet on real servers."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import bgpool
from bgpool.core.fleet import FleetRole
from bgpool.core.snapshot import Snapshot
from bgpool.errors import SegmentError
from bgpool.lab import ledger
from bgpool.lab.director import Director, Event
from bgpool.lab.errors import LabError
from bgpool.lab.fleet.observer import SegmentObserver
from bgpool.lab.fleet.plan import FLEET, STOPPED_S, Plan
from bgpool.lab.fleet.results import FaultTarget, Result, result_of
from bgpool.lab.fleet.traffic import SETTINGS, make_roles, read_log, role_of
from bgpool.lab.pair import Pair
from bgpool.lab.truth import TruthProbe
from bgpool.lab.waiting import wait_until
from bgpool.lab.worker import Worker
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader, SegmentMap

if TYPE_CHECKING:
    from bgpool.lab.fleet.bus import LabBus

__all__ = ["play"]

BG_ID: Final = "fleet"
HOSTS_PER_WORKER: Final = 10
"""A host is only its monitor, so one process may use the pools of several."""

#: The pause between two units of work of a host: short enough to measure the outage, with little load on two cores.
PAUSE_S: Final = 0.1
TRUTH_S: Final = 0.01
HOLD_S: Final = 15.0
START_S: Final = 20.0
"""The longest time until the monitors of a worker's hosts watch: many interpreters start at the same time."""

READY_S: Final = 30.0
JOINED_S: Final = 20.0
LEAVE_S: Final = 60.0
#: The interval at which the lab reads segments while it waits, in seconds.
LOOK_S: Final = 0.05
CONNECTIONS_OF_OTHERS: Final = 60


def play(plan: Plan, tell: Callable[[str], object] = lambda _line: None) -> Result:
    """Run *plan* on servers of its own; takes half a minute.

    Args:
        plan: The plan to run.
        tell: A callable that receives a line for each step.

    Raises:
        LabError: The lab failed: a deployment did not become ready, hosts did not join, or a worker hangs.
    """
    with contextlib.ExitStack() as stack:
        settings = {**SETTINGS, "max_connections": str(CONNECTIONS_OF_OTHERS + 6 * plan.hosts)}
        pair = stack.enter_context(Pair(settings=settings, **plan.pair_options))
        bus = None
        if plan.fleet:
            # Independent hosts do not need the client library of a bus.
            from bgpool.lab.fleet.bus import LabBus

            with_replica = plan.fault is not None and plan.fault.bus == "failover"
            bus = stack.enter_context(LabBus(BG_ID, secrets.token_bytes(32), with_replica=with_replica))
        return _Play(plan, pair, bus, tell).run()


class _Play:
    def __init__(self, plan: Plan, pair: Pair, bus: LabBus | None, tell: Callable[[str], object]) -> None:
        self.plan: Final = plan
        self.pair: Final = pair
        self.bus: Final = bus
        self.tell: Final = tell
        self._crew: Final[list[Worker]] = []
        self._pools: Final[list[bgpool.Pool[Any]]] = []
        self._wakers: Final[list[threading.Timer]] = []
        self._struck: FaultTarget | None = None
        self._directories: Final = [pair.directory / "run" / str(host) for host in range(plan.hosts)]
        self._readers: Final = [Reader(RunFiles.of(path, BG_ID)) for path in self._directories]
        self._director: Final = Director(pair, FLEET)
        if plan.fault is not None:
            self._director.add("fault", plan.fault.at_s, self._strike)
        self._director.add("end", plan.end_s, lambda: None)
        self._director.on_event.append(self._tell_of)

    def _tell_of(self, event: Event) -> None:
        self.tell(event.name.replace("_", " "))

    def run(self) -> Result:
        """Run everything."""
        ledger.create(self.pair)
        make_roles(self.pair, self.plan.hosts)
        (self.pair.directory / "run").mkdir(mode=0o700)
        # The difference of the clocks: logs of servers use the wall clock, segments the monotonic one.
        wall_off_s = time.time() - time.monotonic()
        try:
            self._start_hosts()
            with SegmentObserver(BG_ID, self._directories, self.pair.directory / "sights") as observer:
                observer.wait_looking()
                with TruthProbe(self.pair, write_every_s=TRUTH_S) as truth:
                    joined_s = self._switch_over()
                    self._stop_workers()
                views = observer.views()
            if truth.down_s is None:
                raise LabError("green never took a write")
            return result_of(
                self.plan,
                events={event.name: event.monotonic_s for event in self._director.events},
                joined_s=joined_s,
                wall_off_s=wall_off_s,
                traffic={server.name: read_log(server.log_file) for server in (self.pair.blue, self.pair.green)},
                views=views,
                struck=self._struck,
                crew=self._crew,
                down_s=max(outage.down_s for outage in truth.outages),
                verdict=ledger.judge(self.pair, self._keys("acknowledged"), self._keys("unknown")),
            )
        finally:
            self._clean_up()

    # -- before --------------------------------------------------------------------------------------------------

    def _start_hosts(self) -> None:
        """Start the workers one after the other: ten interpreters at once would keep two cores busy for long."""
        for first in range(0, self.plan.hosts, HOSTS_PER_WORKER):
            hosts = range(first, min(first + HOSTS_PER_WORKER, self.plan.hosts))
            pools = [self._make_pool(host) for host in hosts]
            self._pools.extend(pools)
            worker = Worker(
                len(self._crew),
                pools[0],
                len(pools),
                close_first=self._crew,
                job="write unit",
                endpoint=self.pair.names.blue.primary,
                pause_s=PAUSE_S,
                more=pools[1:],
            )
            self._crew.append(worker)
            wait_until(
                partial(self._watch, hosts),
                timeout_s=START_S,
                what=f"the monitors of hosts {hosts[0]} to {hosts[-1]} watch",
                poll_s=LOOK_S,
            )
        self.tell(f"{self.plan.hosts} monitors watch")

    def _make_pool(self, host: int) -> bgpool.Pool[Any]:
        options: dict[str, Any] = {
            "bg_id": BG_ID,
            "bg_resolver": self.pair.resolver,
            "bg_run_dir": self._directories[host],
            "bg_connect_timeout_ms": int(HOLD_S * 1000),
            # Instead of a minute, until the deployment is found; from then on the defaults apply.
            "bg_interval_baseline_ms": 1000,
            "timeout": HOLD_S,
            "min_size": 1,
            "max_size": 1,
            "monitoring": {"user": role_of(host), "password": self.pair.lab_password},
            # Without a fleet, not that of the environment either.
            **(self.bus.options if self.bus is not None else {"bg_fleet": None}),
            **self.plan.pool_options,
        }
        return bgpool.get_pool(self.pair.dsn, **options)

    def _watch(self, hosts: Sequence[int]) -> bool:
        """Return whether the monitors of *hosts* have recent heartbeats."""
        for host in hosts:
            self._readers[host].check_path()
        return not any(self._readers[host].monitor_is_silent() for host in hosts)

    def _snapshots(self) -> Iterator[Snapshot | None]:
        for reader in self._readers:
            reader.check_path()
            yield reader.refresh().snapshot

    # -- the switchover ------------------------------------------------------------------------------------------

    def _switch_over(self) -> float:
        """Direct the switchover; return the time at which all hosts had joined, on the monotonic clock."""
        self._director.create_deployment()
        wait_until(
            lambda: all(snapshot is not None and snapshot.ready for snapshot in self._snapshots()),
            timeout_s=READY_S,
            what=f"{self.plan.hosts} hosts are ready",
            poll_s=LOOK_S,
        )
        if self.plan.fleet:
            wait_until(self._have_joined, timeout_s=JOINED_S, what="one host leads, the others follow", poll_s=LOOK_S)
        joined_s = time.monotonic()
        self.tell("ready, and joined" if self.plan.fleet else "ready")
        time.sleep(self.plan.calm_s)
        self._director.run()
        return joined_s

    def _have_joined(self) -> bool:
        standings = self._standings()
        return standings.count(FleetRole.LEADER) == 1 and standings.count(FleetRole.FOLLOWER) == self.plan.hosts - 1

    def _standings(self) -> list[FleetRole | None]:
        views = [snapshot.fleet if snapshot is not None else None for snapshot in self._snapshots()]
        return [view.standing if view is not None else None for view in views]

    def _strike(self) -> None:
        """Cause the fault; runs in the director's thread."""
        fault = self.plan.fault
        assert fault is not None
        if fault.bus:
            assert self.bus is not None
            self.bus.strike(fault.bus)
            self._struck = FaultTarget(None, time.monotonic())
            return
        standings = self._standings()
        if FleetRole.LEADER not in standings:
            raise LabError(f"{fault}: no host leads")
        host = standings.index(FleetRole.LEADER)
        pid = self._monitor_pid(host)
        self._struck = FaultTarget(host, time.monotonic())
        if fault.what == "kill leader":
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGSTOP)
        waker = threading.Timer(STOPPED_S, _wake, (pid,))
        waker.daemon = True
        waker.start()
        self._wakers.append(waker)

    def _monitor_pid(self, host: int) -> int:
        try:
            return SegmentMap(RunFiles.of(self._directories[host], BG_ID)).header.pid
        except (FileNotFoundError, SegmentError) as error:
            raise LabError(f"no monitor of host {host}: {error}") from None

    # -- after ---------------------------------------------------------------------------------------------------

    def _stop_workers(self) -> None:
        for worker in self._crew:
            worker.stop()
        for worker in self._crew:
            worker.wait(LEAVE_S)

    def _keys(self, name: str) -> list[ledger.Key]:
        return [key for worker in self._crew for key in getattr(worker, name)]

    def _clean_up(self) -> None:
        self._director.abort()
        for worker in self._crew:
            worker.kill()
        for waker in self._wakers:
            # Wake it early: a stopped process never ends.
            waker.cancel()
            waker.function(*waker.args)
        for pool in self._pools:
            pool.close()


def _wake(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
