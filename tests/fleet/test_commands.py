"""``bgpool fleet`` with real monitors: what an operator sees of two hosts, and what they do as he orders."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import bgpool
from bgpool.cli.app import app
from bgpool.lab import Director, Pair
from bgpool.lab.director import Schedule
from bgpool.lab.redis import RedisServer
from bgpool.lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

KEY = "a key of thirty-two bytes at least"


class Hosts:
    """Hosts of one fleet, which are run directories of this process.

    Attributes:
        pools: One of each.
    """

    def __init__(self, pair: Pair, redis: RedisServer, directory: Path) -> None:
        self.directory = directory
        self.pair = pair
        self.redis = redis
        self.pools: list[bgpool.Pool[Any]] = []

    def begin(self) -> None:
        """One host more."""
        number = len(self.pools)
        options: dict[str, Any] = {
            "bg_id": "ordered",
            "bg_fleet": self.redis.url(),
            "bg_fleet_key": KEY,
            "bg_resolver": self.pair.resolver,
            "bg_run_dir": self.directory / str(number),
            "bg_interval_baseline_ms": 1000,
            "bg_connect_timeout_ms": 60_000,
            "min_size": 1,
            "max_size": 1,
            # Another pool for the same DSN would be the same pool.
            "name": f"ordered-{number}",
        }
        self.pools.append(bgpool.get_pool(self.pair.dsn, **options))

    def status(self, number: int) -> bgpool.Status:
        return bgpool.status("ordered", self.directory / str(number))

    def by_hand(self) -> list[str]:
        found = [self.status(number).by_hand for number in range(len(self.pools))]
        return [order.order if order is not None else "" for order in found]


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["fleet", words[0], "--bg-id", "ordered", *words[1:]])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    with RedisServer() as redis, Pair() as pair:
        # The pools get the bus by their parameters; the environment is the operator's.
        monkeypatch.setenv("BGPOOL_FLEET", redis.url())
        monkeypatch.setenv("BGPOOL_FLEET_KEY", KEY)
        hosts = Hosts(pair, redis, tmp_path)
        try:
            Director(pair, Schedule(scale=0.5)).create_deployment()
            yield hosts
        finally:
            for pool in hosts.pools:
                pool.close()


def test_an_operator_and_a_fleet(hosts: Hosts) -> None:
    for _ in range(2):
        hosts.begin()
    for pool in hosts.pools:
        with pool.connection():
            pass
    wait_until(lambda: run("status", "--ready", "--hosts", "2")[0] == 0, timeout_s=60, what="both hosts are ready")
    status, text = run("status", "--ready")
    assert (status, text) == (0, "fleet 'ordered' is ready for a switchover: 2 hosts, 2 workers\n")

    begun = time.monotonic()
    status, text = run("hold", "--for", "60")
    took_s = time.monotonic() - begun
    assert (status, "every checkout on 2 hosts waits until" in text) == (0, True), text
    assert took_s < 20
    assert hosts.by_hand() == ["hold", "hold"]
    served = threading.Semaphore(0)

    def check_out(pool: bgpool.Pool[Any]) -> None:
        with pool.connection():
            served.release()

    callers = [threading.Thread(target=check_out, args=(pool,), daemon=True) for pool in hosts.pools]
    for caller in callers:
        caller.start()
    assert not served.acquire(timeout=1)
    status, text = run("status", "--ready")
    assert status == 1
    assert text.count("is not ready: an operator holds every checkout (bgpool hold)") == 2

    # A host that starts now holds, too, once it has joined the fleet. Its monitor starts with its first caller.
    hosts.begin()
    newcomer = threading.Thread(target=check_out, args=(hosts.pools[2],), daemon=True)
    newcomer.start()
    wait_until(lambda: hosts.by_hand() == ["hold"] * 3, timeout_s=60, what="the new host has taken the order")

    status, text = run("release")
    assert (status, "3 hosts accepted the release" in text) == (0, True), text
    for caller in (*callers, newcomer):
        caller.join(30)
        assert served.acquire(blocking=False)
    assert hosts.by_hand() == ["", "", ""]
