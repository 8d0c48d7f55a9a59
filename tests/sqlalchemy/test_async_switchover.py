"""AsyncSessions under uvicorn through switchovers of real servers: who fails, and who is kept waiting.

The clients and the judge are those of tests.servers.test_asgi.
"""

from __future__ import annotations

import pytest

from benchmarks.switchover_run import QUICK, SCENARIOS, Scenario
from tests.servers.harness import AsyncServer, Stage
from tests.servers.test_asgi import CLIENTS, COMMANDS, assert_good

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def play(scenario: Scenario, name: str, clients: int) -> None:
    command = [word.replace("tests.servers.fastapi_app", "tests.sqlalchemy.async_app") for word in COMMANDS[name]]
    with Stage() as stage:
        stage.serve(name, command, AsyncServer)
        result = stage.switch_over(clients, scenario)
    assert_good(result, name)


def test_goes_through() -> None:
    play(QUICK, "uvicorn, asyncio", CLIENTS // 2)


@pytest.mark.full
@pytest.mark.parametrize("name", ["uvicorn, 2 workers, uvloop", "gunicorn asgi, asyncio"])
@pytest.mark.parametrize("scenario", SCENARIOS[:4], ids=lambda scenario: scenario.name)
def test_every_scenario(scenario: Scenario, name: str) -> None:
    play(scenario, name, CLIENTS)
