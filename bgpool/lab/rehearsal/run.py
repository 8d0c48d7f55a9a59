"""The run of a rehearsal, from the start of the servers to the removal of everything."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from bgpool.base_errors import Error, SegmentError
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.lab.director import Director, Event
from bgpool.lab.errors import DRIVER_ERRORS
from bgpool.lab.pair import Pair
from bgpool.lab.rehearsal.application import Application
from bgpool.lab.rehearsal.load import Load
from bgpool.lab.rehearsal.plan import (
    FLAVOURS,
    KEPT,
    SCENARIOS,
    UPGRADES,
    NotRehearsedError,
    Plan,
    UnusablePlanError,
    check,
    environment,
)
from bgpool.lab.rehearsal.processes import LOOK_S, ApplicationProcesses
from bgpool.lab.rehearsal.report import Rehearsed, Requests, findings, how
from bgpool.lab.rehearsal.script import ScriptError, run_script
from bgpool.lab.scenarios.scenario import FAST
from bgpool.lab.server_factories import find_servers
from bgpool.lab.truth import TruthProbe
from bgpool.report import Status, find
from bgpool.report.reading import events_of
from bgpool.segment.paths import RunFiles, prepare_run_dir

__all__ = ["rehearse"]

#: Seven seconds for what takes AWS a minute; the database is down for nearly two. A monitor that polls once a second
#: (bg_interval_increased_ms) sees the beginning.
SCHEDULE: Final = replace(FAST, initiated_s=-1.2, scale=2.0)

READY_TIMEOUT_S: Final = 60.0
"""The longest time from the start of the command to a deployment that is ready: applications need time to load."""

END_TIMEOUT_S: Final = 20.0
"""The longest time from the director's last step to the end according to the monitor."""


def rehearse(
    plan: Plan,
    *,
    output: IO[bytes] | int,
    tell: Callable[[str], None] = lambda _: None,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Rehearsed:
    """Carry out *plan*. Nothing is left behind except the records in a run directory of the caller's.

    Args:
        plan: The plan to carry out.
        output: The file descriptor of the application's output.
        tell: A callable that receives a line for each step, also from another thread.
        ready_timeout_s: The longest time from the start of the command to a deployment that is ready, in seconds.

    Raises:
        UnusablePlanError: There is no such program, the SQL fails, the URL or the run directory cannot be used.
        NotRehearsedError: The command ended before the switchover, or was never ready for it.
        LabError: The servers did not start, or failed.
    """
    check(plan)
    stack = contextlib.ExitStack()
    try:
        return _Rehearsal(plan, stack, output, tell).run(ready_timeout_s)
    finally:
        # An interrupt during the clean-up would leave something behind.
        with _undisturbed():
            stack.close()


class _Rehearsal:
    """One rehearsal under way; *stack* has the resources that must be cleaned up."""

    def __init__(
        self, plan: Plan, stack: contextlib.ExitStack, output: IO[bytes] | int, tell: Callable[[str], None]
    ) -> None:
        self._plan: Final = plan
        self._play: Final = SCENARIOS[plan.scenario]
        self._stack: Final = stack
        self._output: Final = output
        self._tell: Final = tell
        self._load: Final = _load_of(plan)
        upgrade: Final = UPGRADES[plan.upgrade]
        self._servers: Final = find_servers(plan.engine, plan.programs, upgrade)
        tell(f"starting a blue and a green {self._servers}")
        pair = Pair(FLAVOURS[plan.flavour], engine=plan.engine, programs=plan.programs, upgrade=upgrade)
        self.pair: Final = stack.enter_context(pair)
        self._run_dir: Final = plan.run_dir.absolute() if plan.run_dir is not None else self.pair.directory / "run"
        self._stack.callback(_clear, self._run_dir)
        self.director: Final = Director(self.pair, replace(SCHEDULE, scale=SCHEDULE.scale * plan.scale))
        self._stack.callback(self.director.abort)
        self._connections = 0

    def run(self, ready_timeout_s: float) -> Rehearsed:
        """Run everything from the start of the servers to the report."""
        self._prepare()
        self._application = self._start()
        deadline_s = time.monotonic() + ready_timeout_s
        files = self._wait_ready(deadline_s)
        self._app_processes = ApplicationProcesses(files)
        if self._load is not None:
            self._load.count()
        self._tell(f"ready; the switchover begins in {self._plan.warm_up_s:g} s")
        with TruthProbe(self.pair) as truth:
            self._look_on(self._plan.warm_up_s)
            # Processes that started in the meantime must be ready, too.
            self._wait_ready(max(deadline_s, time.monotonic() + END_TIMEOUT_S))
            self._app_processes.look()
            self._app_processes.begin()
            self._count_connections()
            ended_early = self._switch_over()
            self._look_on(self._plan.cool_down_s)
            self._app_processes.look()
            self._count_connections()
        return self._report(truth, ended_early)

    # -- before --------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if self._play.stage is not None:
            self._play.stage(self)
        if self._plan.sql is not None:
            try:
                run_script(self.pair, self._plan.sql)
            except ScriptError as error:
                raise UnusablePlanError(str(error)) from None
            self.pair.catch_up_definitions()
        self.director.create_deployment()
        self.director.on_event.append(self._tell_of)
        try:
            prepare_run_dir(self._run_dir)
        except SegmentError as error:
            raise UnusablePlanError(str(error)) from None

    def _start(self) -> Application:
        plan = self._plan
        own = environment(plan, self.pair.dsn)
        told = {
            **os.environ,
            **own,
            "BGPOOL_RESOLVER": self.pair.resolver,
            "BGPOOL_RUN_DIR": str(self._run_dir),
        }
        self._tell(f"starting {plan.command[0]}, with the DSN in {', '.join(own)}")
        try:
            application = Application(plan.command, told, self._output)
        except OSError as error:
            raise UnusablePlanError(f"{plan.command[0]} cannot be started: {error.strerror}") from None
        if self._load is not None:
            self._stack.callback(self._load.stop)
            self._load.start()
        # The first step at the end: an interrupt must not wait for an answer.
        self._stack.callback(application.stop)
        return application

    def _wait_ready(self, deadline_s: float) -> RunFiles:
        """Wait until the application's deployment is ready for a switchover; return its files."""
        while True:
            try:
                statuses = [deployment.status() for deployment in find(None, self._run_dir)]
            except Error as error:
                raise NotRehearsedError(f"the run directory can no longer be used: {error}") from None
            mine = [status for status in statuses if self._is_the_lab(status)]
            if len(mine) > 1:
                names = ", ".join(repr(status.bg_id) for status in mine)
                raise NotRehearsedError(f"several bg_ids are in use for one deployment: {names}; they must be the same")
            if mine and mine[0].ready and mine[0].workers and (self._load is None or self._load.answers):
                return RunFiles.of(self._run_dir, mine[0].bg_id)
            if (status := self._application.exit_status) is not None:
                raise NotRehearsedError(f"the command ended by itself, {how(status)}, before the switchover began")
            if time.monotonic() >= deadline_s:
                raise NotRehearsedError(f"never ready for a switchover: {self._missing(statuses, mine)}")
            time.sleep(LOOK_S)

    def _is_the_lab(self, status: Status) -> bool:
        names = self.pair.names.blue.all
        return any(endpoint.blue in names for endpoint in status.endpoints)

    def _missing(self, statuses: list[Status], mine: list[Status]) -> str:
        """Return the reason why it is not, as far as it is visible to this process."""
        asked = ""
        if self._load is not None and not self._load.answers:
            asked = f"; {self._load.url} has not answered: {self._load.last_error}"
        if mine:
            return ("; ".join(mine[0].missing) or "the load has had no answer") + asked
        told = [f"bg_id {status.bg_id!r}: {'; '.join(status.missing)}" for status in statuses]
        variables = ", ".join(f"${name}" for name in environment(self._plan, self.pair.dsn))
        if told:
            return f"no pool connects to the database in {variables} ({' / '.join(told)}){asked}"
        return (
            "no process has used a pool. A pool begins with its first checkout, or with open(): give --url, or have "
            f"the application open it. It must take its DSN from {variables}, and no bg_run_dir of its own; "
            f"SQLAlchemy takes it with --env NAME={self._plan.engine.value}+bgpool{asked}"
        )

    # -- the switchover ------------------------------------------------------------------------------------------

    def _switch_over(self) -> int | None:
        """Direct the switchover in a thread to its end; return the status of a command that ended before the release.

        Raises:
            LabError: A step failed.
        """
        failures: list[BaseException] = []

        def direct() -> None:
            try:
                if self._play.rolled_back:
                    self.director.rollback_from("IN_PROGRESS")
                else:
                    self.director.run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=direct, name="bgpool-director", daemon=True)
        thread.start()
        ended_early: int | None = None
        deadline_s = float("inf")
        while time.monotonic() < deadline_s:
            self._app_processes.look()
            if ended_early is None and not self._is_released():
                ended_early = self._application.exit_status
            if not thread.is_alive():
                deadline_s = min(deadline_s, time.monotonic() + END_TIMEOUT_S)
                if failures or ended_early is not None or _outcome(self._app_processes) != "not ended":
                    break
            time.sleep(LOOK_S)
        if failures:
            raise failures[0]
        return ended_early

    def _is_released(self) -> bool:
        return _outcome(self._app_processes) != "not ended" or self._app_processes.phase is Phase.POST

    def _look_on(self, duration_s: float) -> None:
        """Observe the processes for *duration_s* seconds, or until the command has ended."""
        deadline_s = time.monotonic() + duration_s
        while time.monotonic() < deadline_s and self._application.exit_status is None:
            self._app_processes.look()
            time.sleep(LOOK_S)

    def _count_connections(self) -> None:
        self._connections = max(self._connections, self.pair.lasting_monitoring_connections())

    def _tell_of(self, event: Event) -> None:
        self._tell(event.name.replace("_", " "))

    # -- after ---------------------------------------------------------------------------------------------------

    def _report(self, truth: TruthProbe, ended_early: int | None) -> Rehearsed:
        on_blue, on_green = (self._application_connections(colour) for colour in ("blue", "green"))
        here, by_itself = self._app_processes.here, self._application.exit_status is not None
        down_s = max((outage.down_s for outage in truth.outages), default=0.0)
        if self._load is not None:
            self._load.stop()
        self._application.stop()
        processes = self._app_processes.processes()
        report = Rehearsed(
            scenario=self._plan.scenario,
            engine=self._plan.engine.value,
            flavour=self._plan.flavour,
            servers=self._servers,
            outcome=_outcome(self._app_processes),
            findings=(),
            down_s=round(down_s, 3),
            events=events_of(self._app_processes.snapshot or Snapshot("")),
            processes=processes,
            monitoring_connections=self._connections,
            connections_on_blue=on_blue,
            connections_on_green=on_green,
            requests=_requests(self._load, down_s) if self._load is not None else None,
            exit_status=self._application.exit_status,
            ended_by_itself=by_itself,
            killed=self._application.killed,
        )
        wanted = "rolled back" if self._play.rolled_back else "completed"
        return replace(report, findings=findings(report, wanted=wanted, here=here, ended_early=ended_early))

    def _application_connections(self, colour: str) -> int | None:
        try:
            return self.pair.application_connections(colour)
        except DRIVER_ERRORS:
            return None


def _load_of(plan: Plan) -> Load | None:
    try:
        return Load(plan.url, plan.every_s) if plan.url is not None else None
    except ValueError as error:
        raise UnusablePlanError(str(error)) from None


def _outcome(app_processes: ApplicationProcesses) -> str:
    snapshot = app_processes.snapshot
    happened = {entry.event for entry in snapshot.timeline} if snapshot is not None else set()
    if snapshot is not None and snapshot.rolled_back and app_processes.phase is Phase.CREATED:
        return "rolled back"
    # If the metadata no longer exist, this is the only indication of the end.
    over = app_processes.phase is Phase.COMPLETED or (
        app_processes.phase is Phase.NOT_CREATED and Phase.POST.name in happened
    )
    return "completed" if over else "not ended"


def _requests(load: Load, down_s: float) -> Requests:
    gap_s = load.longest_gap_s
    return Requests(
        load.url, load.answered, load.failed, load.examples, round(gap_s, 3), round(max(0.0, gap_s - down_s), 3)
    )


def _clear(run_dir: Path) -> None:
    """Remove all files except the records; no process is left that could create more."""
    with contextlib.suppress(OSError):
        for path in run_dir.iterdir():
            if not path.name.endswith(KEPT):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
