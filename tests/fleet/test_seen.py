"""A fleet as users see it: two hosts with real monitors and pools, through a switchover and the end of their bus."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

import bgpool
from bgpool.cli.app import app
from bgpool.core.phase import Phase
from bgpool.core.timeline import HEARD
from bgpool.fleet.streams import RIGHTS
from bgpool.lab import Director, Pair
from bgpool.lab.director import Schedule
from bgpool.lab.redis import RedisServer
from bgpool.lab.waiting import wait_until
from bgpool.metrics.prometheus import Collector
from bgpool.report import Fleet, Status
from tests.cli.screens import as_text

pytestmark = [pytest.mark.lab, pytest.mark.slow]

KEY = "a key of thirty-two bytes at least"
PASSWORD = "s3cret-of-the-bus"


class Seen:
    """Two hosts, which are two run directories of this process.

    Attributes:
        lines: The log lines of their monitors: host, event, level, text.
    """

    def __init__(self, pair: Pair, redis: RedisServer, directory: Path) -> None:
        redis.user("monitors", PASSWORD, *RIGHTS.split())
        redis.require_password()
        self.directories = [directory / name for name in ("first", "second")]
        self.pools: list[bgpool.Pool[Any]] = []
        for number, path in enumerate(self.directories):
            options: dict[str, Any] = {
                "bg_id": "seen",
                "bg_fleet": redis.url(user="monitors", password=PASSWORD),
                "bg_fleet_key": KEY,
                "bg_resolver": pair.resolver,
                "bg_run_dir": path,
                "bg_interval_baseline_ms": 1000,
                "bg_switchover_timeout_ms": 300_000,
                "min_size": 1,
                "max_size": 1,
                # Another pool for the same DSN would be the same pool.
                "name": f"seen-{number}",
            }
            pool = bgpool.get_pool(pair.dsn, **options)
            self.pools.append(pool)
            with pool.connection():
                pass

    def statuses(self) -> list[Status]:
        return [bgpool.status("seen", path) for path in self.directories]

    def places(self) -> list[Fleet]:
        return [status.fleet for status in self.statuses() if status.fleet is not None]

    def standings(self) -> list[str]:
        return [place.standing for place in self.places()]

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        wait_until(condition, timeout_s=timeout_s, what=what, poll_s=0.02)

    def scraped(self, number: int) -> str:
        registry = CollectorRegistry()
        registry.register(Collector("seen", self.directories[number]))
        return generate_latest(registry).decode()

    def told(self, number: int) -> list[str]:
        """The events of the last switchover of a host."""
        called = ["timeline", "--json", "--run-dir", str(self.directories[number])]
        (story,) = json.loads(CliRunner().invoke(app, called).stdout)
        return [event["event"] for event in story["events"]]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def seen(redis: RedisServer, tmp_path: Path, own_log: pytest.LogCaptureFixture) -> Iterator[tuple[Seen, Director]]:
    with own_log.at_level(logging.INFO, "bgpool"), Pair() as pair:
        seen = Seen(pair, redis, tmp_path)
        try:
            yield seen, Director(pair, Schedule(scale=0.5))
        finally:
            for pool in seen.pools:
                pool.close()


def lines(log: pytest.LogCaptureFixture, prefix: str = "fleet_") -> list[tuple[str, int]]:
    found = [(getattr(record, "event", ""), record.levelno) for record in log.records]
    return [line for line in found if line[0].startswith(prefix)]


def test_a_fleet_is_seen(seen: tuple[Seen, Director], redis: RedisServer, own_log: pytest.LogCaptureFixture) -> None:
    hosts, director = seen
    director.create_deployment()
    hosts.wait(lambda: all(status.ready for status in hosts.statuses()), "both are ready")
    hosts.wait(lambda: sorted(hosts.standings()) == ["follower", "leader"], "one leads, the other follows")
    hosts.wait(lambda: [place.hosts for place in hosts.places()] == [2, 2], "the leader counts two")
    places = hosts.places()
    leads = hosts.standings().index("leader")
    follows = 1 - leads
    assert {place.leader for place in places} == {places[leads].leader}
    assert all(place.age_s is not None and place.age_s < 30 for place in places)
    assert [status.notes for status in hosts.statuses()] == [(), ()]
    assert f"follower of {places[leads].leader}, 2 hosts, last message" in as_text(hosts.statuses()[follows])
    assert 'bgpool_fleet_role{bgpool_bg_id="seen",bgpool_fleet_role="leader"} 1.0' in hosts.scraped(leads)
    assert 'bgpool_fleet_hosts{bgpool_bg_id="seen"} 2.0' in hosts.scraped(follows)
    hosts.wait(lambda: len(lines(own_log)) == 2, "each host's log has the line")
    assert lines(own_log) == [("fleet_joined", logging.INFO)] * 2

    director.run()
    hosts.wait(lambda: all(status.phase is Phase.COMPLETED for status in hosts.statuses()), "both have gone through")
    hosts.wait(lambda: all(status.last_switchover is not None for status in hosts.statuses()), "both have kept it")
    assert hosts.standings()[leads] == "leader"
    assert HEARD not in hosts.told(leads)
    events = hosts.told(follows)
    assert events.count(HEARD) == 1
    assert events[events.index(HEARD) - 1] == "PREPARATION"
    released = [status.last_switchover.evidence for status in hosts.statuses() if status.last_switchover is not None]
    assert released[0] == released[1]

    redis.stop()
    hosts.wait(lambda: hosts.standings() == ["direct", "direct"], "both ask the database themselves")
    for status in hosts.statuses():
        assert status.fleet is not None
        assert status.fleet.reason
        assert status.notes == (f"this host has a fleet's bus, but queries the database itself: {status.fleet.reason}",)
    hosts.wait(lambda: lines(own_log).count(("fleet_fallback", logging.WARNING)) == 2, "each host's log has the line")
    assert lines(own_log, "fleet_bus").count(("fleet_bus_failed", logging.WARNING)) == 2

    told = "\n".join([*(json.dumps(status.as_dict()) for status in hosts.statuses()), own_log.text, hosts.scraped(0)])
    kept = [path.read_bytes() for directory in hosts.directories for path in directory.iterdir() if path.is_file()]
    for secret in (PASSWORD, KEY):
        assert secret not in told
        assert not any(secret.encode() in data for data in kept)
