"""One real server for all, and a hand on the segment in place of a monitor."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bgpool.core.engine import Engine
from bgpool.core.machine import EPOCH_OF_DECISION
from bgpool.core.phase import SWITCHING, Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.dsn import parse
from bgpool.lab import Pair, ledger
from bgpool.lab.ledger import INSERT_SQL
from bgpool.pools.participant import Participant
from bgpool.pools.pool import Pool
from bgpool.registry import POOLS
from bgpool.segment.paths import RunFiles, prepare_run_dir
from bgpool.segment.writer import Writer
from tests.engines import KITS, Kit
from tests.pools.proxy import CommitCutter


@pytest.fixture(scope="session")
def postgres_pair() -> Iterator[Pair]:
    """A blue and a green PostgreSQL server that no test switches over."""
    with Pair() as pair:
        ledger.create(pair)
        yield pair


@pytest.fixture(scope="session")
def mysql_pair() -> Iterator[Pair]:
    """The same of MySQL."""
    with Pair(engine="mysql") as pair:
        ledger.create(pair)
        yield pair


@pytest.fixture
def kit() -> Kit:
    """Where a promise names PostgreSQL; a module whose promises name no engine is marked with any_engine."""
    return KITS[Engine.POSTGRESQL]


@pytest.fixture
def pair(kit: Kit, request: pytest.FixtureRequest) -> Pair:
    """The servers of the engine."""
    found: Pair = request.getfixturevalue("mysql_pair" if kit.engine is Engine.MYSQL else "postgres_pair")
    return found


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
        changes.setdefault("epoch", self.snapshot.epoch + EPOCH_OF_DECISION * unfit)
        self.snapshot = replace(self.snapshot, phase=phase, **changes)
        self._writer.publish(self.snapshot)


@pytest.fixture
def hand(pair: Pair, tmp_path: Path) -> Hand:
    """The hand on the segment of *make_pool*."""
    return Hand(pair, tmp_path / "run")


@pytest.fixture
def make_pool(pair: Pair, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes pools that follow the segment in the test's own directory and start no monitor."""
    made: list[Pool[Any]] = []

    def make(dsn: str | None = None, **options: Any) -> Pool[Any]:
        options = {"bg_resolver": pair.resolver, "min_size": 1, "max_size": 2, "timeout": 5.0} | options
        place, settings, left = parse(dsn or pair.dsn, options)
        participant = Participant(settings.bg_id, tmp_path / "run", lambda _files: None)
        pool = POOLS[place.engine](place, settings, participant, left)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()


@pytest.fixture(autouse=True)
def _quiet_driver() -> None:
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class Work:
    """A function of a connection that inserts one row of its own, and how often it was called."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.key = (99, 0, next(_numbers))
        self.calls = 0
        self.meanwhile: Callable[[Any], object] = lambda _conn: None

    def __call__(self, conn: Any) -> str:
        self.calls += 1
        self.kit.execute(conn, INSERT_SQL, self.key)
        self.meanwhile(conn)
        return f"call {self.calls}"

    def rows(self, pair: Pair, colour: str = "blue") -> int:
        """How often its row is there."""
        server = pair.blue if colour == "blue" else pair.green
        return sum(row.key == self.key for row in ledger.read(server))


_numbers = iter(range(1, 10_000))


@pytest.fixture
def work(kit: Kit) -> Work:
    """A unit of work."""
    return Work(kit)


@pytest.fixture
def cutter(pair: Pair) -> Iterator[CommitCutter]:
    """Stands where blue's name leads to."""
    address = pair.blue.address.rsplit(".", 1)[0] + ".99"
    with CommitCutter(address, pair.port, (pair.blue.address, pair.port)) as cutter:
        yield cutter


@pytest.fixture
def prepared(hand: Hand, cutter: CommitCutter) -> Hand:
    """A switchover is prepared, and blue is behind the cutter."""
    blue, green = hand.snapshot.hosts
    hand.publish(
        Phase.PREPARATION,
        hosts=(replace(blue, addresses=(cutter.address,)), green),
        green_was_read_only=True,
        green_was_replica=True,
    )
    return hand
