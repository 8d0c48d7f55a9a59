"""Real servers that run the same application side by side, through one switchover under load."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final

from benchmarks.crew import Attempt
from benchmarks.switchover_run import Scenario
from bgpool.core.engine import Engine
from bgpool.core.snapshot import Snapshot
from bgpool.lab import Director, Event, Outage, Pair, Schedule, TruthProbe, Verdict, ledger
from bgpool.lab.ledger import Key
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import WorkerRow, workers
from bgpool.segment.reader import Reader

START_S: Final = 40.0
STOP_S: Final = 20.0
#: The time that a slow machine has to meet its quota after the switchover.
QUOTA_S: Final = 40.0
#: Each task has its own slot. Slot n continues the series of answers of slot n - SLOTS, whose task has ended by then.
SLOTS: Final = 4
#: Slots from this number on belong to a parent, which writes once before its children and once after them.
PARENTS_SLOTS: Final = 9998
ROOT: Final = Path(__file__).parents[2]

#: A switchover of four seconds.
SCHEDULE: Final = Schedule(
    initiated_s=-0.7,
    writes_stopped_s=0.3,
    connections_dropped_s=0.4,
    caught_up_s=0.5,
    green_promoted_s=1.5,
    old_blue_open_s=1.8,
    names_changed_s=2.0,
    blue_dns_moved_s=2.3,
    green_dns_gone_s=2.8,
    completed_s=3.0,
)
HEALTHY: Final = Scenario("healthy", SCHEDULE)


@dataclass(frozen=True)
class Quota:
    """The minimum of work that a server must do for a switchover to be meaningful.

    Servers replace their workers at different speeds, so the load continues until this minimum is reached.

    Attributes:
        rows: The minimum of acknowledged rows.
        processes: The minimum of processes that wrote them.
    """

    rows: int = 0
    processes: int = 0

    def is_met(self, load: Load) -> bool:
        """Return whether *load* reaches the minimum."""
        return len(load.acknowledged) >= self.rows and len(load.pids) >= self.processes


@dataclass
class Load:
    """The observations of one server's clients.

    Attributes:
        acknowledged, unknown: Keys whose request was answered with 200, and keys without such an answer.
        errors: The errors of requests without such an answer.
        times: The times of each client's answers, on the monotonic clock.
        attempts: Every completed HTTP request of each client.
        pids: The server's processes that answered.
        longest_s: The duration of the longest request.
    """

    acknowledged: list[Key] = field(default_factory=list)
    unknown: list[Key] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    times: dict[int, list[float]] = field(default_factory=dict)
    attempts: dict[int, list[Attempt]] = field(default_factory=dict)
    pids: set[str] = field(default_factory=set)
    longest_s: float = 0.0

    def gap_s(self, since_s: float) -> float:
        """Return the longest time after *since_s* that a client was without an answer."""
        gaps = [0.0]
        for times in self.times.values():
            later = [since_s, *(at for at in times if at > since_s)]
            gaps += [b - a for a, b in itertools.pairwise(later)]
        return max(gaps)

    def resumed_s(self, since_s: float) -> float:
        """Return the time from *since_s* to the first answer of the last client."""
        return max(min((at for at in times if at > since_s), default=float("inf")) for times in self.times.values()) - (
            since_s
        )


NO_QUOTA: Final = Quota()


class Server:
    """A server in its own process group.

    Attributes:
        load: The observations of its clients, or its own notes.
        quota: The work that it must do before the load ends.
        output: Its complete output, once it has ended.
        exit_status: The exit status of a server that ended by itself after its stop signal; None if it was killed.
    """

    def __init__(self, number: int, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.number: Final = number
        self.name: Final = name
        self.load = Load()
        self.quota = NO_QUOTA
        self.exit_status: int | None = None
        self.output = ""
        self._log: Final = log
        self.port: Final = free_port()
        command = [part.format(port=self.port, bin=Path(sys.executable).parent, number=number) for part in command]
        with log.open("wb") as output:
            self.process: Final = subprocess.Popen(
                command, cwd=ROOT, env=dict(environment), stdout=output, stderr=output, start_new_session=True
            )

    def wait_serving(self) -> None:
        """Wait until rows are written."""
        deadline = time.monotonic() + START_S
        while not self._is_serving():
            assert self.process.poll() is None, f"{self.name} ended: {self._log.read_text()}"
            assert time.monotonic() < deadline, f"{self.name} does not serve: {self._log.read_text()}"
            time.sleep(0.1)

    def _is_serving(self) -> bool:
        raise NotImplementedError

    def begin_load(self, clients: int) -> None:
        """Start *clients* clients that write rows, each one request at a time."""

    def wait_loaded(self) -> None:
        """Wait until the load has begun, for servers where that takes time."""

    def end_load(self) -> None:
        """Stop the writing of rows."""

    def load_so_far(self) -> Load:
        """Return the load as known while it runs."""
        return self.load

    def tell_to_stop(self) -> None:
        """Stop the server in the operator's way."""
        if self.process.poll() is None:
            self.process.terminate()

    def stop(self) -> None:
        """Wait for its end; kill its remaining processes."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.exit_status = self.process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self.output = self._log.read_text(encoding="utf-8", errors="replace")


class WebServer(Server):
    """A server that receives HTTP requests for rows."""

    _stopping: threading.Event
    _clients: list[threading.Thread]

    def path_of(self, _key: Key) -> str:
        """Return the path of the request for a row."""
        return "/"

    def begin_load(self, clients: int) -> None:
        """Start the clients."""
        self._stopping, self._clients = threading.Event(), []
        for client in range(clients):
            self.load.times[client], self.load.attempts[client] = [], []
            thread = threading.Thread(target=self._use, args=(client,), daemon=True)
            self._clients.append(thread)
            thread.start()

    def end_load(self) -> None:
        """Stop the clients after their current requests."""
        self._stopping.set()
        for thread in self._clients:
            thread.join(40.0)
            assert not thread.is_alive(), f"a client of {self.name} still waits: {self._log.read_text()}"

    def _is_serving(self) -> bool:
        try:
            self._ask((self.number, 99, 0), 10.0)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _use(self, client: int) -> None:
        n = 0
        while not self._stopping.wait(0.02):
            n += 1
            key, began, is_answered = (self.number, client, n), time.monotonic(), False
            try:
                pid = self._ask(key, 35.0)
            except (OSError, http.client.HTTPException) as error:
                self.load.unknown.append(key)
                self.load.errors.append(f"{key}: {error!r}")
            else:
                is_answered = True
                self.load.acknowledged.append(key)
                self.load.times[client].append(time.monotonic())
                self.load.pids.add(pid)
            self.load.attempts[client].append(Attempt(began, time.monotonic(), is_answered))
            self.load.longest_s = max(self.load.longest_s, time.monotonic() - began)

    def _ask(self, key: Key, timeout_s: float) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", f"{self.path_of(key)}?key=" + ".".join(map(str, key)))
            answer = connection.getresponse()
            body = answer.read().decode()
            if answer.status != 200:
                raise http.client.HTTPException(f"status {answer.status}: {body[:200]}")
            return body
        finally:
            connection.close()


class AsyncServer(WebServer):
    """A server whose clients, in a separate process, request units of work, plain blocks and ``/ping``: see crowd.py.

    Attributes:
        pings: The times when each request without database began and was answered, on the monotonic clock.
        unanswered: The errors of such requests without an answer.
    """

    PINGS: Final = 2

    pings: list[tuple[float, float]]
    unanswered: list[str]
    _app_processes: subprocess.Popen[str]

    @staticmethod
    def is_unit(key: Key) -> bool:
        """Return whether a row is written in a unit of work."""
        return key[1] % 2 == 1

    @property
    def workers(self) -> int:
        """The number of processes that the command starts."""
        words = self.process.args
        assert isinstance(words, list)
        return next((int(words[words.index(flag) + 1]) for flag in ("-w", "--workers") if flag in words), 1)

    def path_of(self, key: Key) -> str:
        """See WebServer; used before the clients start."""
        return "/ping" if key[2] else "/run"

    def _is_serving(self) -> bool:
        """Wait for the server and then for each worker: a worker that starts late would get no clients."""
        if not super()._is_serving():
            return False
        deadline = time.monotonic() + START_S
        there: set[str] = set()
        while len(there) < self.workers:
            assert time.monotonic() < deadline, f"not all workers of {self.name} answer: {self._log.read_text()}"
            there.add(self._ask((self.number, 99, 1), 10.0))
        return True

    def begin_load(self, clients: int) -> None:
        """Start the process of the clients."""
        self._count = clients
        words = map(str, (self.port, self.number, clients, self.PINGS))
        command = [sys.executable, "-m", "tests.servers.crowd", *words]
        pipe = subprocess.PIPE
        self._app_processes = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def wait_loaded(self) -> None:
        """Wait until each client has had an answer."""
        assert self._app_processes.stdout is not None
        assert self._app_processes.stdout.readline() == "begun\n"

    def end_load(self) -> None:
        """Stop the clients and read their observations."""
        load, self.pings, self.unanswered = self.load, [], []
        try:
            notes = json.loads(self._app_processes.communicate(timeout=40.0)[0])
        finally:
            self._app_processes.kill()
            self._app_processes.wait()
        for client, n, began_s, ended_s, body, error in notes:
            if client >= self._count:
                self.pings.append((began_s, ended_s))
                self.unanswered += [error] if error else []
                continue
            key = (self.number, client, n)
            load.attempts.setdefault(client, []).append(Attempt(began_s, ended_s, error is None))
            load.longest_s = max(load.longest_s, ended_s - began_s)
            if error is None:
                load.acknowledged.append(key)
                load.times.setdefault(client, []).append(ended_s)
                load.pids.add(body)
            else:
                load.unknown.append(key)
                load.errors.append(f"{key}: {error}")

    def ping_ms(self, since_s: float, until_s: float) -> float:
        """Return the p99 of the pings that were answered in that time, in milliseconds."""
        taken = sorted(ended_s - began_s for began_s, ended_s in self.pings if since_s <= ended_s <= until_s)
        return 1000 * taken[int(0.99 * len(taken))]


class Batch(Server):
    """A server that writes rows by itself and keeps notes of them: see rows.py."""

    def __init__(self, number: int, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.notes: Final = Path(environment["APP_NOTES"])
        super().__init__(number, name, command, environment, log)

    def begin_load(self, clients: int) -> None:
        """Continue the writing. A few rows are written earlier, to show that the server works."""
        del clients  # its command contains their number
        (self.notes / "begin").touch()

    def end_load(self) -> None:
        """Stop the writing of rows."""
        (self.notes / "stop").touch()

    def stop(self) -> None:
        """Wait for its end, and read the notes."""
        super().stop()
        self.load = self.load_so_far()

    def load_so_far(self) -> Load:
        """Return the load according to the notes."""
        load = Load()
        for path in self.notes.glob(f"{self.number}.*"):
            slot = int(path.suffix[1:])
            # The last line may still be incomplete.
            for line in path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines():
                mark, *rest = line.split(" ", 2)
                if mark == "!":
                    load.unknown.append((self.number, slot, int(rest[0])))
                    load.errors.append(line)
                else:
                    load.acknowledged.append((self.number, slot, int(mark)))
                    load.pids.add(rest[1])
                    if slot < PARENTS_SLOTS:
                        load.times.setdefault(slot % SLOTS, []).append(float(rest[0]))
        for times in load.times.values():
            times.sort()
        return load

    def _is_serving(self) -> bool:
        return any(self.notes.glob(f"{self.number}.*"))


class Script(Batch):
    """A batch that ends by itself once it has written its rows. A signal would only interrupt it."""

    def tell_to_stop(self) -> None:
        """Do nothing: end_load() has already stopped it."""


@dataclass(frozen=True)
class Result:
    """The result of a switchover.

    Attributes:
        cut_s: The time when the servers had cut their clients.
        writable_s: The time when the next primary admitted clients.
        strayed: The number of connections at the end to the side that is not the primary.
    """

    servers: Mapping[str, Server]
    verdict: Verdict
    outage: Outage
    began_s: float
    cut_s: float
    writable_s: float
    connections: int
    strayed: int
    rows: tuple[WorkerRow, ...]
    snapshot: Snapshot | None

    @property
    def down_s(self) -> float:
        """The time for which no server accepted a write."""
        return self.outage.down_s

    def excess_s(self, name: str) -> float:
        """Return the longest gap of the server's clients beyond the downtime of the database."""
        return self.servers[name].load.gap_s(self.began_s) - self.down_s


class Stage:
    """A pair, its run directory, and the servers on it; all are removed at the end."""

    def __init__(self, engine: Engine = Engine.POSTGRESQL) -> None:
        self._engine: Final = engine
        self._stack: Final = contextlib.ExitStack()
        self.servers: Final[dict[str, Server]] = {}

    def __enter__(self) -> Stage:
        self.directory = Path(tempfile.mkdtemp(prefix="bgpool-servers-"))
        self._stack.callback(remove, self.directory)
        self.pair = self._stack.enter_context(Pair(engine=self._engine))
        self.files = RunFiles.of(self.directory / "run", "servers")
        ledger.create(self.pair)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the application."""
        return {
            **os.environ,
            "APP_DSN": self.pair.dsn,
            "APP_RESOLVER": self.pair.resolver,
            "BGPOOL_RUN_DIR": str(self.files.directory),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "PYTHONUNBUFFERED": "1",
        }

    def serve(
        self,
        name: str,
        command: list[str],
        kind: type[Server] = WebServer,
        environment: Mapping[str, str] = MappingProxyType({}),
        before: str = "",
        quota: Quota = NO_QUOTA,
    ) -> Server:
        """Start a server; ``{port}``, ``{bin}`` and ``{number}`` in *command* are filled in.

        Args:
            quota: The work that it must do before the load ends.
            before: A Python statement to be executed first, in the same environment, with ``{number}`` filled in.
        """
        number = len(self.servers) + 1
        notes, runtime = (self.directory / f"{number}.{what}" for what in ("notes", "runtime"))
        notes.mkdir()
        runtime.mkdir()
        # For gunicorn's control socket, which would otherwise be in the home directory, where only one gunicorn can
        # have it.
        own = {"APP_NOTES": str(notes), "APP_BROKER": str(notes), "XDG_RUNTIME_DIR": str(runtime)}
        all_of_it = {**self.environment, **own, **environment}
        if before:
            code = [sys.executable, "-c", before.format(number=number)]
            subprocess.run(code, cwd=ROOT, env=all_of_it, check=True, timeout=START_S)
        server = self.servers[name] = kind(number, name, command, all_of_it, self.directory / f"{number}.log")
        server.quota = quota
        return server

    def switch_over(
        self,
        clients: int = 3,
        scenario: Scenario = HEALTHY,
        *,
        monitored: bool = True,
        on_event: Sequence[Callable[[Event], None]] = (),
    ) -> Result:
        """Run load on all servers, a switchover and the end of the servers; return the result.

        Args:
            monitored: False if no server uses bgpool.
            on_event: Called with each completed step, in the director's thread.
        """
        for server in self.servers.values():
            server.wait_serving()
        director = Director(self.pair, scenario.schedule)
        scenario.prepare(self.pair, director)
        director.on_event.extend(on_event)
        with self.loaded(clients), TruthProbe(self.pair) as truth:
            truth.wait_writing()
            director.create_deployment()
            if monitored:
                self.wait_ready()
                self._wait_connected()
            began_s = time.monotonic()
            connections = self.pair.lasting_monitoring_connections()
            scenario.direct(director)
            time.sleep(1.5)
            self._wait_quotas_met()
            strayed = self.pair.application_connections(scenario.loser)
            rows = workers(self.files)
            snapshot = Reader(self.files).refresh().snapshot
            connections = max(connections, self.pair.lasting_monitoring_connections())
        self.stop()
        loads = [server.load for server in self.servers.values()]
        verdict = scenario.judge(
            self.pair,
            [key for load in loads for key in load.acknowledged],
            [key for load in loads for key in load.unknown],
        )
        return Result(
            self.servers,
            verdict,
            scenario.outage(truth),
            began_s,
            cut_s=director.event("connections_dropped").monotonic_s,
            writable_s=director.event("green_open").monotonic_s,
            connections=connections,
            strayed=strayed,
            rows=rows,
            snapshot=snapshot,
        )

    def stop(self) -> None:
        """Stop all servers, concurrently."""
        for server in self.servers.values():
            server.tell_to_stop()
        for server in self.servers.values():
            server.stop()

    @contextlib.contextmanager
    def loaded(self, clients: int) -> Iterator[None]:
        """Run clients on every server."""
        for server in self.servers.values():
            server.begin_load(clients)
        try:
            for server in self.servers.values():
                server.wait_loaded()
            yield
        finally:
            for server in self.servers.values():
                server.end_load()

    def _wait_quotas_met(self) -> None:
        """Continue until each server has met its quota, or the time is up; the tests report the missing work."""
        deadline = time.monotonic() + QUOTA_S
        for server in self.servers.values():
            while not server.quota.is_met(server.load_so_far()) and time.monotonic() < deadline:
                time.sleep(0.1)

    def _wait_connected(self) -> None:
        """Wait until the monitor is connected to both sides: on a busy machine it may be reconnecting."""
        deadline = time.monotonic() + START_S
        while self.pair.monitoring_connections() < 2 and time.monotonic() < deadline:
            time.sleep(0.05)

    def wait_ready(self) -> None:
        """Wait until the monitor reports that the switchover may begin."""
        deadline = time.monotonic() + START_S
        while not ((snapshot := Reader(self.files).refresh().snapshot) and snapshot.ready):
            assert time.monotonic() < deadline, f"not ready: {snapshot}"
            time.sleep(0.05)


def remove(directory: Path) -> None:
    """Remove *directory*. The monitor may write into it until it has noticed that no process needs it any longer."""
    deadline = time.monotonic() + 10
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=time.monotonic() < deadline)


def free_port() -> int:
    """Return a port of 127.0.0.1 on which no process listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
