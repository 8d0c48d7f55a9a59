"""The host at which a monitor looks for the next deployment: blue's name, with its current address."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bgpool.core.engine import Engine
from bgpool.core.events import StatusRow
from bgpool.core.phase import Phase, Role
from bgpool.core.plan import Target
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import parse
from bgpool.monitor import process
from bgpool.monitor.config import MonitorConfig
from bgpool.monitor.process import run_monitor
from bgpool.monitor.session import Answer, SessionError
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader

pytestmark = pytest.mark.slow

WaitUntil = Callable[..., None]

ZONE = "abc.eu-west-1.rds.amazonaws.com"
BLUE, GREEN, NEXT_GREEN = f"shop.{ZONE}", f"shop-green-a1b2c3.{ZONE}", f"shop-green-z9y8x7.{ZONE}"
READER = f"shop-reports.{ZONE}"


def rows(status: str, green: str = GREEN) -> tuple[StatusRow, ...]:
    return StatusRow(BLUE, 5432, Role.SOURCE.value, status), StatusRow(green, 5432, Role.TARGET.value, status)


class World:
    """Servers that answer by address, and names that resolve to them; in files, because the monitor is a process."""

    def __init__(self, directory: Path) -> None:
        self.hosts = directory / "hosts"
        self._state = directory / "servers"
        self._life = 0

    def lead(self, **names: str) -> None:
        """Let names, given by their first label, resolve to addresses; all other names do not resolve."""
        lines = [f"{address} {name.replace('_', '-')}.{ZONE}\n" for name, address in names.items()]
        self._put(self.hosts, "".join(lines).encode())

    def serve(self, servers: dict[str, tuple[bool, tuple[StatusRow, ...]]]) -> None:
        """Set the *servers*, by address: True if the server is read-only, and its rows."""
        self._put(self._state, pickle.dumps((self._life, servers)))

    def cut(self) -> None:
        """Terminate every connection, at the next call of serve()."""
        self._life += 1

    def session(self, _params: object, target: Target, _password: object, _application: object) -> _Session:
        """Connect like a monitor."""
        life, servers = self.state()
        if target.addresses[0] not in servers:
            raise SessionError("connection refused")
        return _Session(self, target.addresses[0], life)

    def state(self) -> tuple[int, dict[str, tuple[bool, tuple[StatusRow, ...]]]]:
        """Return the number that valid connections must have, and the servers."""
        found: tuple[int, dict[str, tuple[bool, tuple[StatusRow, ...]]]] = pickle.loads(self._state.read_bytes())
        return found

    def _put(self, path: Path, content: bytes) -> None:
        # Replace the file atomically: a reader of a partial file would see names disappear.
        path.with_suffix(".new").write_bytes(content)
        path.with_suffix(".new").replace(path)


class _Session:
    def __init__(self, world: World, address: str, life: int) -> None:
        self._world, self._address, self._life = world, address, life
        self._ends = socket.socketpair()

    @property
    def socket(self) -> int:
        return self._ends[0].fileno()

    def ask(self) -> Answer:
        life, servers = self._world.state()
        if life != self._life or self._address not in servers:
            raise SessionError("connection lost")
        read_only, found = servers[self._address]
        return Answer(read_only, read_only, rows=found)

    def await_promotion(self, _seconds: float) -> bool:
        return False

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(process, "SESSIONS", {Engine.POSTGRESQL: world.session})
    return world


@pytest.fixture
def watch(world: World, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Start a monitor that looks for a deployment at a host, and stop it at the end."""
    begun: list[int] = []

    def start(host: str) -> None:
        options = {
            "bg_resolver": f"hosts:{world.hosts}",
            "bg_interval_baseline_ms": 100,
            "bg_interval_increased_ms": 50,
            "bg_interval_high_ms": 20,
        }
        place, settings, _ = parse(f"postgresql://app@{host}/app", options)
        config = MonitorConfig.of(place, settings, tmp_path / "run")
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                run_monitor(config, linger_s=None)
            os._exit(1)
        begun.append(pid)

    yield start
    for pid in begun:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def snapshot(tmp_path: Path) -> Callable[[], Snapshot]:
    """Return a function that reads the segment."""
    reader = Reader(RunFiles.of(tmp_path / "run", "1"))

    def read() -> Snapshot:
        reader.check_path()
        return reader.refresh().snapshot or Snapshot("1")

    return read


def test_an_old_blue_that_still_answers_is_abandoned(
    world: World, watch: Callable[[str], None], snapshot: Callable[[], Snapshot], wait_until: WaitUntil
) -> None:
    # The state after a switchover, before DNS has followed.
    world.serve({"10.0.0.1": (True, ()), "10.0.0.2": (False, ())})
    world.lead(shop="10.0.0.1")
    watch(BLUE)
    wait_until(lambda: snapshot().timeline != ())
    world.lead(shop="10.0.0.2", shop_green_z9y8x7="10.0.0.3")
    world.serve(
        {
            "10.0.0.1": (True, ()),
            "10.0.0.2": (False, rows("AVAILABLE", NEXT_GREEN)),
            "10.0.0.3": (True, rows("AVAILABLE", NEXT_GREEN)),
        }
    )
    wait_until(lambda: snapshot().ready)
    assert snapshot().phase is Phase.CREATED


@pytest.mark.parametrize("entrance", [BLUE, GREEN, READER])
def test_the_next_deployment_is_found_from_any_first_host(
    entrance: str,
    world: World,
    watch: Callable[[str], None],
    snapshot: Callable[[], Snapshot],
    wait_until: WaitUntil,
) -> None:
    world.serve({"10.0.0.1": (False, rows("AVAILABLE")), "10.0.0.2": (True, rows("AVAILABLE"))})
    world.lead(shop="10.0.0.1", shop_reports="10.0.0.1", shop_green_a1b2c3="10.0.0.2")
    watch(entrance)
    wait_until(lambda: snapshot().ready)
    for status, phase in (
        ("SWITCHOVER_INITIATED", Phase.PREPARATION),
        ("SWITCHOVER_IN_PROGRESS", Phase.IN_PROGRESS),
        ("SWITCHOVER_IN_POST_PROCESSING", Phase.POST),
    ):
        world.serve({"10.0.0.1": (False, rows(status)), "10.0.0.2": (True, rows(status))})
        wait_until(partial(_is_in, snapshot, phase))
    world.cut()
    # Green has blue's name now. Of the other servers only old blue remains, under a name that no connection uses.
    world.serve({"10.0.0.2": (False, ())})
    world.lead(shop="10.0.0.2")
    wait_until(lambda: snapshot().phase is Phase.NOT_CREATED)
    world.serve(
        {
            "10.0.0.2": (False, rows("AVAILABLE", NEXT_GREEN)),
            "10.0.0.3": (True, rows("AVAILABLE", NEXT_GREEN)),
        }
    )
    world.lead(shop="10.0.0.2", shop_green_z9y8x7="10.0.0.3")
    wait_until(lambda: snapshot().ready)
    assert [host.name for host in snapshot().hosts] == [BLUE, NEXT_GREEN]


def _is_in(snapshot: Callable[[], Snapshot], phase: Phase) -> bool:
    return snapshot().phase is phase
