"""A minute of chaos, and half of one on MySQL; ten by hand: ``bgpool lab chaos``."""

from __future__ import annotations

import os

import pytest

from bgpool.core.engine import Engine
from bgpool.lab.chaos import Chaos

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SECONDS = float(os.environ.get("BGPOOL_CHAOS_S", "50"))
SEED = int(os.environ.get("BGPOOL_SEED", "0")) or int.from_bytes(os.urandom(4), "little")


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("engine", Engine, ids=lambda engine: engine.value)
def test_nothing_is_lost_and_nobody_hangs(engine: Engine) -> None:
    told: list[str] = []
    seconds = SECONDS if engine is Engine.POSTGRESQL else SECONDS / 2
    report = Chaos(SEED, seconds, told.append, engine).run()
    story = f"BGPOOL_SEED={SEED}: " + "; ".join(told)
    assert report.findings == [], story
    assert report.switchovers >= 2, story
    assert report.verdict.acknowledged > 1000, story
    assert sum(report.blows.values()) >= seconds / 5, story
