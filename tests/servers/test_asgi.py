"""FastAPI on an AsyncPool, under widely used servers, through switchovers: the requests that fail and those that wait.

Half of the 64 clients request a unit of work, the others a plain block. In addition, some clients request an endpoint
that needs no database, which must keep answering.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.switchover_run import QUICK, SCENARIOS, Scenario
from bgpool import Phase
from bgpool.lab.ledger import Key
from bgpool.testing import deployment
from tests.servers.harness import AsyncServer, Result, Stage
from tests.servers.played import part

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CLIENTS = 64
#: The time that a switchover may add to the downtime, and that other tests on the same cores may add, in seconds.
EXCESS_S, LOAD_S = 0.15, 0.85
#: The maximum interval between two queries of the monitor during a switchover, in seconds.
NOTICE_S = 0.1
#: The same for the 99th percentile of the answers that need no database, in milliseconds.
PING_MS, PING_LOAD_MS = 10.0, 490.0

_UVICORN = [
    "{bin}/uvicorn", "tests.servers.fastapi_app:app", "--port", "{port}", "--no-access-log", "--log-level", "warning",
    "--timeout-graceful-shutdown", "5",
]  # fmt: skip
_GUNICORN = [
    "{bin}/gunicorn", "-c", "python:tests.servers.gunicorn_conf", "-b", "127.0.0.1:{port}", "-w", "2", "-k", "asgi",
    "--graceful-timeout", "5", "--log-level", "warning", "tests.servers.fastapi_app:app",
]  # fmt: skip
COMMANDS = {
    f"{server}, {loop}": [*command, *options, loop]
    for server, command, options in (
        ("uvicorn", _UVICORN, ["--workers", "1", "--loop"]),
        ("uvicorn, 2 workers", _UVICORN, ["--workers", "2", "--loop"]),
        ("gunicorn asgi", _GUNICORN, ["--asgi-loop"]),
    )
    for loop in ("asyncio", "uvloop")
}


#: The master has used the pool, in a loop that is closed, before it forks.
PRELOADED = "gunicorn asgi, preloaded"
COMMANDS[PRELOADED] = [*_GUNICORN, "--preload"]


def play(scenario: Scenario, *names: str, clients: int = CLIENTS) -> Result:
    with Stage() as stage:
        for name in names:
            warm = {"APP_WARM_UP": "1"} if name == PRELOADED else {}
            stage.serve(name, COMMANDS[name], AsyncServer, warm)
        return stage.switch_over(clients, scenario)


def told(result: Result, name: str) -> str:
    """Return everything that is judged of one server, in one line."""
    server = result.servers[name]
    assert isinstance(server, AsyncServer)
    units, blocks = part(result, name, server.is_unit), part(result, name, lambda key: not server.is_unit(key))
    before_ms, held_ms = pings_ms(result, server)
    excess = " / ".join("never" if one.excess_s is None else f"{one.excess_s:.3f}" for one in (units, blocks))
    return (
        f"{name}: down {result.down_s:.2f} s; units: {len(units.load.errors)} failed; blocks: {len(blocks.load.errors)}"
        f" failed, {blocks.in_flight} in flight, late {blocks.late}; excess {excess} s; ping {before_ms:.1f} ms, held"
        f" {held_ms:.1f} ms; {result.verdict}; {len(server.load.acknowledged)} rows; {server.load.errors[:3]}"
    )


def pings_ms(result: Result, server: AsyncServer) -> tuple[float, float]:
    """Return the p99 of the two seconds before the outage, and of the outage."""
    down_s, up_s = result.outage.last_write_s, result.outage.next_write_s
    return server.ping_ms(down_s - 2.0, down_s), server.ping_ms(down_s, up_s)


def assert_good(result: Result, name: str) -> None:
    server = result.servers[name]
    assert isinstance(server, AsyncServer)
    units, blocks = part(result, name, server.is_unit), part(result, name, lambda key: not server.is_unit(key))
    before_ms, held_ms = pings_ms(result, server)
    print(told(result, name))
    assert units.load.errors == [], told(result, name)
    # The monitor detects a server that has stopped answering only with its next query.
    unwarned = sum(late_s < NOTICE_S for late_s in blocks.late)
    assert len(blocks.load.errors) <= blocks.in_flight + unwarned, told(result, name)
    for played in (units, blocks):
        assert played.excess_s is not None, told(result, name)
        assert played.excess_s < EXCESS_S + LOAD_S, told(result, name)
    assert server.unanswered == []
    assert held_ms < before_ms + PING_MS + PING_LOAD_MS, told(result, name)
    assert len(server.load.pids) == server.workers
    assert result.verdict.clean, result.verdict
    assert result.strayed == 0
    assert result.connections == 2
    # uvicorn ends by the signal that stops it.
    assert server.exit_status in (0, -signal.SIGTERM), f"{name} did not end in time: {server.output}"
    # The server's log contains the traceback of each block that was cut.
    said = r"Task .* destroyed|never awaited|couldn't stop|error connecting in '.*': $"
    assert not re.search(said, server.output, re.MULTILINE), server.output


class TestSideBySide:
    NAMES = ("uvicorn, asyncio", PRELOADED)

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls) -> Result:
        return play(QUICK, *cls.NAMES, clients=CLIENTS // 2)

    @pytest.mark.parametrize("name", NAMES)
    def test_goes_through(self, result: Result, name: str) -> None:
        assert_good(result, name)


@pytest.mark.full
@pytest.mark.parametrize("scenario", SCENARIOS[:4], ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != PRELOADED])
def test_every_scenario(scenario: Scenario, name: str) -> None:
    assert_good(play(scenario, name), name)


ENDING = {
    "uvicorn": [*_UVICORN[:-1], "1"],
    "gunicorn asgi": [*(word if word != "5" else "1" for word in _GUNICORN)],
}


class Asked(AsyncServer):
    """A server that receives one kind of request at a time."""

    path = "/ping"

    def path_of(self, _key: Key) -> str:
        """See WebServer."""
        return self.path


@pytest.mark.parametrize("name", ENDING)
def test_a_server_with_a_held_request_ends_in_time(name: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    own = {"APP_DSN": "postgresql://app@127.0.0.1/app", "APP_RESOLVER": "system", "BGPOOL_RUN_DIR": str(run_dir)}
    with deployment(run_dir, bg_id="servers") as switchover:
        switchover.phase(Phase.IN_PROGRESS)
        server = Asked(1, name, ENDING[name], {**os.environ, **own}, tmp_path / "log")
        try:
            server.wait_serving()
            server.path = "/run"
            asked = ThreadPoolExecutor(1).submit(server._ask, (1, 1, 1), 30.0)
            switchover.wait_held(timeout_s=20.0)
            began_s = time.monotonic()
            server.tell_to_stop()
            server.stop()
            taken_s = time.monotonic() - began_s
        finally:
            server.stop()
    assert server.exit_status in (0, -signal.SIGTERM), server.output
    # Callers are held for 30 s.
    assert taken_s < 15.0, server.output
    assert isinstance(asked.exception(30.0), (OSError, http.client.HTTPException))
