"""ORM transactions under gunicorn, two workers of four threads each, through switchovers of real servers.

What benchmarks measure alone on a quiet machine is held to here, with the same clients, scenarios and judges.
"""

from __future__ import annotations

import re

import pytest

from benchmarks.switchover_run import QUICK, SCENARIOS, Scenario
from bgpool.core.engine import Engine
from tests.servers.harness import Quota, Stage
from tests.servers.played import Played

pytestmark = [pytest.mark.lab, pytest.mark.slow]

WORKERS, THREADS = 2, 4
COMMAND = [
    "{bin}/gunicorn", "-b", "127.0.0.1:{port}", "-w", str(WORKERS), "-k", "gthread", "--threads", str(THREADS),
    "--graceful-timeout", "5", "--timeout", "60", "tests.sqlalchemy.orm_app:wsgi",
]  # fmt: skip
PLAIN, RUN, PRE_PING = "SQLAlchemy, bgpool", "SQLAlchemy, bgpool run", "SQLAlchemy, pre-ping"
#: Bounds in seconds: what a switchover adds to the down time, and what other tests on the same cores add to that.
EXCESS_S, LOAD_S = 0.15, 0.6
#: Lines that show a failure in an application's log.
BAD_LINE = re.compile(r"\b(error|critical)\b|traceback", re.IGNORECASE)
#: Healthy, frozen, rollback and black hole. The servers cut their clients 0.05 s after the metadata have told of it,
#: which is less than the poll interval.
HARD = SCENARIOS[:4]


def play(scenario: Scenario, engine: Engine, *clients: str) -> dict[str, Played]:
    """*scenario* under the applications of *clients*, side by side."""
    with Stage(engine) as stage:
        for name in clients:
            environment = {"APP_CLIENT": name, "APP_DIRECTORY": str(stage.directory)}
            stage.serve(name, COMMAND, environment=environment, quota=Quota(processes=WORKERS))
        result = stage.switch_over(WORKERS * THREADS, scenario, monitored=clients != (PRE_PING,))
    return {name: Played(result, server.load, server.output) for name, server in result.servers.items()}


def assert_good(played: Played, errors: int) -> None:
    assert played.result.verdict.clean, played
    assert len(played.load.errors) <= errors, played
    assert played.late == [], played
    assert played.result.strayed == 0, played
    assert played.excess_s is not None, played
    assert played.excess_s < EXCESS_S + LOAD_S, played
    assert len(played.load.pids) == WORKERS, "every worker took part"


class TestHealthy:
    @pytest.fixture(
        scope="class",
        params=[Engine.POSTGRESQL, pytest.param(Engine.MYSQL, marks=pytest.mark.full)],
        ids=lambda engine: engine.value,
    )
    @classmethod
    def played(cls, request: pytest.FixtureRequest) -> dict[str, Played]:
        return play(QUICK, request.param, PLAIN, RUN)

    def test_no_transaction_fails_but_those_in_flight(self, played: dict[str, Played]) -> None:
        assert_good(played[PLAIN], errors=played[PLAIN].in_flight)

    def test_no_unit_of_work_fails(self, played: dict[str, Played]) -> None:
        assert_good(played[RUN], errors=0)

    @pytest.mark.parametrize("name", [PLAIN, RUN])
    def test_the_log_is_clean(self, played: dict[str, Played], name: str) -> None:
        output = played[name].output
        assert "INFO bgpool.pool" in output, "the libraries log there"
        assert [line for line in output.splitlines() if BAD_LINE.search(line)] == []


@pytest.mark.full
@pytest.mark.parametrize("scenario", HARD, ids=lambda scenario: scenario.name)
class TestEveryScenario:
    def test_no_transaction_fails_but_those_in_flight(self, scenario: Scenario) -> None:
        played = play(scenario, Engine.POSTGRESQL, PLAIN)[PLAIN]
        assert_good(played, errors=played.in_flight)

    def test_no_unit_of_work_fails(self, scenario: Scenario) -> None:
        assert_good(play(scenario, Engine.POSTGRESQL, RUN)[RUN], errors=0)

    def test_the_plain_dialect_is_not_good(self, scenario: Scenario) -> None:
        """Or the others would show nothing."""
        played = play(scenario, Engine.POSTGRESQL, PRE_PING)[PRE_PING]
        assert len(played.load.errors) > played.in_flight, played
        assert scenario.rolled_back or (played.excess_s is None and played.result.strayed > 0), played
