"""The example project under the servers that people run, through switchovers of real servers.

Half of the clients ask for a view in plain ``atomic``, the others for one that is a unit of work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.switchover_run import QUICK, SCENARIOS, Scenario
from bgpool.core.engine import Engine
from tests.servers.harness import Batch, Quota, Result, Stage, WebServer
from tests.servers.played import Played, part

pytestmark = [pytest.mark.lab, pytest.mark.slow]

EXAMPLE = Path(__file__).parents[2] / "docs/examples/django"
#: Bounds in seconds: what a switchover adds to the down time, and what other tests on the same cores add to that.
EXCESS_S, LOAD_S = 0.2, 0.8
CLIENTS = 4
HEALTHY, FROZEN, ROLLBACK = SCENARIOS[:3]

_GUNICORN = ["{bin}/gunicorn", "-b", "127.0.0.1:{port}", "-w", "2", "--graceful-timeout", "5", "--timeout", "60"]
_THREADS = [*_GUNICORN, "-k", "gthread", "--threads", "4"]
SYNC = [*_GUNICORN, "shop.wsgi"]
GTHREAD = [*_THREADS, "shop.wsgi"]
PRELOAD = [*_THREADS, "--preload", "shop.wsgi"]
UVICORN = [*_GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "shop.asgi:application"]
CELERY = [
    "{bin}/celery", "-A", "tests.django.programs.tasks:celery", "worker", "-c", "2", "-Q", "queue", "-l", "WARNING",
    "-P", "prefork", "--without-gossip", "--without-mingle", "--without-heartbeat", "-n", "w{number}@127.0.0.1",
]  # fmt: skip
SEND = "from tests.django.programs import tasks; tasks.send({number})"
#: Under ASGI a thread lives as long as its request: a connection is not kept there, but pooled.
POOLED = {"CONN_MAX_AGE": "0", "APP_OPTIONS": "&pool=true"}

WEB: Mapping[str, tuple[list[str], Mapping[str, str]]] = {
    "sync": (SYNC, {}),
    "gthread": (GTHREAD, {}),
    "gthread, pool": (GTHREAD, POOLED),
    "preload": (PRELOAD, {"APP_WARM_UP": "1"}),
    "uvicorn": (UVICORN, POOLED),
}
STOCK = {"pool": {"APP_POOL": "1"}, "health checks": {}}


class Views(WebServer):
    """The example, asked for one of its two views by each client."""

    def path_of(self, key: tuple[int, int, int]) -> str:
        """The unit of work for every other client."""
        return "/unit/" if is_unit(key) else "/plain/"


class AsyncViews(WebServer):
    """The same with the asynchronous view."""

    def path_of(self, key: tuple[int, int, int]) -> str:
        """The paths of Views."""
        return "/async/" if is_unit(key) else "/plain/"


def is_unit(key: tuple[int, int, int]) -> bool:
    """Return whether a row is written in a unit of work: by its client, or by the slot of its task."""
    return key[1] % 2 == 1


def environment(stage: Stage, more: Mapping[str, str]) -> dict[str, str]:
    """Return the example's environment: the variables that its README names, and none of the tests'."""
    resolver = stage.environment["APP_RESOLVER"]
    options = "&bg_id=servers&bg_interval_baseline_ms=500" + more.get("APP_OPTIONS", "")
    path = os.pathsep.join((str(EXAMPLE), stage.environment["PYTHONPATH"]))
    return {
        "DATABASE_URL": stage.pair.dsn + ("" if "?" in stage.pair.dsn else "?") + options,
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "BGPOOL_RESOLVER": resolver,
        "PYTHONPATH": path,
        **more,
    }


def serve(stage: Stage, name: str) -> None:
    """Start one of the servers."""
    if name == "celery":
        stage.serve(name, CELERY, Batch, environment(stage, {}), before=SEND, quota=Quota(rows=100))
    else:
        command, more = WEB[name]
        kind = AsyncViews if name == "uvicorn" else Views
        stage.serve(name, command, kind, environment(stage, more), quota=Quota(rows=100, processes=2))


def play(engine: Engine, scenario: Scenario, names: tuple[str, ...]) -> Result:
    with Stage(engine) as stage:
        for name in names:
            serve(stage, name)
        return stage.switch_over(CLIENTS, scenario)


def play_stock(engine: Engine, scenario: Scenario, name: str) -> Result:
    with Stage(engine) as stage:
        more = {**STOCK[name], "DJANGO_SETTINGS_MODULE": "tests.django.programs.stock"}
        stage.serve(name, GTHREAD, Views, environment(stage, more))
        return stage.switch_over(2 * CLIENTS, scenario, monitored=False)


def judged(result: Result, name: str, *, units: bool) -> Played:
    """Return the outcome of the rows of one kind on one server."""
    return part(result, name, lambda key: is_unit(key) is units)


def told(result: Result, name: str) -> str:
    plain, unit = judged(result, name, units=False), judged(result, name, units=True)
    return f"{name}: plain {plain}; units {unit}"


def assert_rows(result: Result) -> None:
    """Nothing is lost, doubled or split, old blue has no clients, and there was one monitor for all."""
    assert result.verdict.clean, result.verdict
    assert result.strayed == 0
    assert result.connections == 2


def assert_good(result: Result, name: str, engine: Engine) -> None:
    server = result.servers[name]
    units, plain = judged(result, name, units=True), judged(result, name, units=False)
    errors = units.load.errors
    failed = [error for error in errors if engine is Engine.POSTGRESQL or "CommitOutcomeUnknown" not in error]
    assert failed == [], f"{told(result, name)}\n{server.output}"
    assert server.exit_status == 0, server.output
    load = server.load
    assert server.quota.is_met(load), f"{server.quota}: {len(load.acknowledged)} by {load.pids}\n{server.output}"
    if isinstance(server, WebServer):
        assert len(units.load.errors) <= units.in_flight, told(result, name)
        assert len(plain.load.errors) <= plain.in_flight, told(result, name)
        for each in (units, plain):
            assert each.excess_s is not None, told(result, name)
            assert each.excess_s < EXCESS_S + LOAD_S, told(result, name)
    else:
        assert len(plain.load.errors) <= 2, "one for each child"
        assert result.excess_s(name) < 4.0
    # What a plain view's clients met is logged by Django as an error of the request.
    lines = [line for line in server.output.splitlines() if re.search("ERROR|CRITICAL", line)]
    assert len(lines) <= len(server.load.errors), server.output


QUICK_NAMES = ("gthread", "preload", "uvicorn", "celery")
ALL_NAMES = (*WEB, "celery")


class TestHealthy:
    @pytest.fixture(scope="class")
    @classmethod
    def result(cls) -> Result:
        return play(Engine.POSTGRESQL, QUICK, QUICK_NAMES)

    @pytest.mark.parametrize("name", QUICK_NAMES)
    def test_goes_through(self, result: Result, name: str) -> None:
        assert_good(result, name, Engine.POSTGRESQL)

    def test_rows(self, result: Result) -> None:
        assert_rows(result)


@pytest.mark.full
@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", list(Engine), ids=lambda engine: engine.value)
@pytest.mark.parametrize("scenario", [HEALTHY, FROZEN, ROLLBACK], ids=lambda scenario: scenario.name)
class TestEveryScenario:
    @pytest.mark.parametrize("name", ALL_NAMES)
    def test_goes_through(self, engine: Engine, scenario: Scenario, name: str, record_property: object) -> None:
        """Alone, so that its gaps are its own."""
        result = play(engine, scenario, (name,))
        assert callable(record_property)
        gap = f"gap {result.excess_s(name):.2f} s over the down time"
        record_property("told", f"{engine.value}, {scenario.name}, {told(result, name)}, {gap}")
        assert_rows(result)
        assert_good(result, name, engine)

    @pytest.mark.parametrize("name", STOCK)
    def test_djangos_own_engine_is_not_good(
        self, engine: Engine, scenario: Scenario, name: str, record_property: object
    ) -> None:
        """Or the others would show nothing."""
        if engine is Engine.MYSQL and name == "pool":
            pytest.skip("Django's engine for MySQL has no pool")
        result = play_stock(engine, scenario, name)
        assert callable(record_property)
        record_property("told", f"{engine.value}, {scenario.name}, Django's own, {told(result, name)}")
        failed = judged(result, name, units=False).load.errors + judged(result, name, units=True).load.errors
        assert len(failed) > 8, "more than were in flight"
