"""Servers with MySQL pools. The inheritance by forks and the set of threads differ from those of the other driver."""

from __future__ import annotations

import pytest

from bgpool.core.engine import Engine
from tests.servers.harness import Batch, Result, Script, Stage
from tests.servers.test_servers import (
    CELERY,
    CHILDREN,
    GUNICORN,
    QUOTAS,
    UWSGI,
    WARM,
    assert_good,
    assert_one_monitor_for_all,
)

pytestmark = [pytest.mark.lab, pytest.mark.slow]

WEB = {
    **{name: GUNICORN[name] for name in ("sync, preloaded", "gthread, preloaded", "gevent, preloaded", "uvicorn")},
    **{name: UWSGI[name] for name in ("threads, warm master", "no threads, lazy")},
}


@pytest.mark.full
class TestWeb:
    @pytest.fixture(scope="class")
    @classmethod
    def result(cls) -> Result:
        with Stage(Engine.MYSQL) as stage:
            for name, command in WEB.items():
                warm = {"APP_WARM_UP": "1"} if name in WARM else {}
                stage.serve(name, command, environment=warm, quota=QUOTAS[name])
            return stage.switch_over()

    @pytest.mark.parametrize("name", WEB)
    def test_goes_through(self, result: Result, name: str) -> None:
        assert_good(result, name)

    def test_one_monitor_for_all(self, result: Result) -> None:
        assert_one_monitor_for_all(result)


@pytest.mark.full
class TestBatches:
    @pytest.fixture(scope="class")
    @classmethod
    def result(cls) -> Result:
        with Stage(Engine.MYSQL) as stage:
            send = "from tests.servers import tasks; tasks.send({number})"
            warm = {"APP_WARM_UP": "1"}
            stage.serve("prefork", CELERY["prefork"], Batch, warm, before=send, quota=QUOTAS["prefork"])
            for method in ("fork", "forkserver"):
                stage.serve(method, CHILDREN[method], Script, quota=QUOTAS[method])
            return stage.switch_over()

    @pytest.mark.parametrize("name", ["prefork", "fork", "forkserver"])
    def test_goes_through(self, result: Result, name: str) -> None:
        assert_good(result, name)

    def test_one_monitor_for_all(self, result: Result) -> None:
        assert result.verdict.clean, result.verdict
        assert result.connections == 2
