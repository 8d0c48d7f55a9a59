"""One real server for all, and a hand on the segment in place of a monitor."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bgpool.core.machine import EPOCH_OF_DECISION
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.dsn import parse
from bgpool.lab import Pair, ledger
from bgpool.pools.participant import Participant
from bgpool.pools.postgres.pool import PostgresPool
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.writer import Writer


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """A blue and a green server that no test switches over."""
    with Pair() as pair:
        ledger.create(pair)
        yield pair


class Hand:
    """Publishes snapshots as a monitor would."""

    def __init__(self, pair: Pair, directory: Path) -> None:
        prepare_run_dir(directory)
        blue, green = pair.names.blue.primary, pair.names.green.primary
        self.snapshot = Snapshot(
            "1",
            Phase.CREATED,
            ready=True,
            hosts=(
                Host(blue, pair.port, Role.SOURCE, (pair.blue.address,)),
                Host(green, pair.port, Role.TARGET, (pair.green.address,)),
            ),
            twins=((blue, green),),
        )
        self._writer = Writer(RunFiles.of(directory, "1"), 1, self.snapshot)

    def publish(self, phase: Phase, **changes: Any) -> None:
        """Go to *phase*; the epoch moves as it does in a switchover."""
        unfit = phase is Phase.IN_PROGRESS or (phase >= Phase.POST and self.snapshot.phase < Phase.POST)
        changes.setdefault("deadline_ns", time.monotonic_ns() + 60_000_000_000 if phase in SWITCHING else 0)
        self.snapshot = replace(
            self.snapshot, phase=phase, epoch=self.snapshot.epoch + EPOCH_OF_DECISION * unfit, **changes
        )
        self._writer.publish(self.snapshot)


@pytest.fixture
def hand(pair: Pair, tmp_path: Path) -> Hand:
    """The hand on the segment of *make_pool*."""
    return Hand(pair, tmp_path / "run")


@pytest.fixture
def make_pool(pair: Pair, tmp_path: Path) -> Iterator[Callable[..., PostgresPool]]:
    """Makes pools that follow the segment in the test's own directory and start no monitor."""
    made: list[PostgresPool] = []

    def make(dsn: str | None = None, **options: Any) -> PostgresPool:
        options = {"bg_resolver": pair.resolver, "min_size": 1, "max_size": 2, "timeout": 5.0} | options
        place, settings, left = parse(dsn or pair.dsn, options)
        participant = Participant(settings.bg_id, tmp_path / "run", lambda _files: None)
        pool = PostgresPool(place, settings, participant, left)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()


@pytest.fixture(autouse=True)
def _quiet_driver() -> None:
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
