"""Some chaos in ``make test``, minutes of it in ``make test-full``; for longer runs see ``bgpool lab chaos``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from bgpool.cli.app import app
from bgpool.core.engine import Engine
from bgpool.lab.chaos import Chaos
from tests.lab.majors import major_options

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SEED = int(os.environ.get("BGPOOL_SEED", "0")) or int.from_bytes(os.urandom(4), "little")


def test_sigterm_ends_it_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def be_terminated(*_args: object, **_options: object) -> None:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    monkeypatch.setattr("bgpool.cli.lab.run_chaos", be_terminated)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert CliRunner().invoke(app, ["lab", "chaos"]).exit_code == 130
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("engine", "pair_options", "seconds"),
    [
        pytest.param(Engine.POSTGRESQL, dict, 20.0, id="postgresql"),
        pytest.param(Engine.POSTGRESQL, dict, 120.0, id="postgresql-long", marks=pytest.mark.full),
        pytest.param(Engine.POSTGRESQL, major_options, 60.0, id="postgresql-major-long", marks=pytest.mark.full),
        pytest.param(Engine.MYSQL, dict, 60.0, id="mysql-long", marks=pytest.mark.full),
    ],
)
def test_nothing_is_lost_and_no_caller_hangs(
    engine: Engine, pair_options: Callable[[], dict[str, Any]], seconds: float
) -> None:
    told: list[str] = []
    report = Chaos(SEED, seconds, told.append, engine, pair_options()).run()
    story = f"BGPOOL_SEED={SEED}: " + "; ".join(told)
    assert report.findings == [], story
    assert report.switchovers >= 2, story
    assert report.verdict.acknowledged > 1000, story
    assert sum(report.blows.values()) >= seconds / 5, story
