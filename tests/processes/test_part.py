"""A pool's participation in a deployment: reported in the process's row, and logged once if there is none."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bgpool
from bgpool import testing
from bgpool.core.phase import Phase
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import parse
from bgpool.pools.alias import Endpoint
from bgpool.segment.paths import RunFiles
from bgpool.segment.presence import workers
from tests.pools.callers import wait_until

BLUE = "ledger.c0.eu-west-1.rds.amazonaws.com"
GREEN = "ledger-green-x1y2z3.c0.eu-west-1.rds.amazonaws.com"
HOSTS = f"127.0.0.1 {BLUE} db.shop.example\n127.0.0.2 {GREEN}\n"


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    return path


@pytest.fixture
def deployment(hosts: Path, tmp_path: Path) -> Iterator[testing.Deployment]:
    with testing.deployment(
        tmp_path / "run", bg_id="ledger", blue=BLUE, green=GREEN, bg_resolver=f"hosts:{hosts}"
    ) as it:
        yield it


def endpoint(host: str, hosts: Path, **options: Any) -> Endpoint:
    return Endpoint(*parse(f"postgresql://app@{host}/app", {"bg_resolver": f"hosts:{hosts}", **options})[:2])


def parts(deployment: testing.Deployment) -> list[tuple[int, int]]:
    rows = workers(RunFiles.of(deployment.run_dir, "ledger"))
    return [(row.usage.taking_part, row.usage.outside) for row in rows if row.pid == os.getpid()]


@pytest.mark.parametrize("host", [BLUE, GREEN, "db.shop.example"])
def test_endpoints_of_the_deployment_take_part(
    host: str, deployment: testing.Deployment, hosts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = endpoint(host, hosts)
    found.read()
    assert found.takes_part(deployment.snapshot)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("host", "options"),
    [("10.0.0.1", {}), ("db", {}), ("private.shop.example", {}), ("db.shop.example", {"endpoint": f"x{BLUE}"})],
)
def test_any_other_endpoint_takes_no_part_and_this_is_logged_once(
    host: str,
    options: dict[str, str],
    deployment: testing.Deployment,
    hosts: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = endpoint(host, hosts, **options)
    found.read()
    for snapshot in (None, Snapshot("1"), Snapshot("1", Phase.CREATED)):
        assert found.takes_part(snapshot) is None, "not known yet"
    assert caplog.text == ""
    assert found.takes_part(deployment.snapshot) is False
    assert found.takes_part(deployment.snapshot) is False
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("bgpool.pool", logging.WARNING)
    assert (vars(record)["event"], vars(record)["host"]) == ("pool_takes_no_part", host)
    assert f"{host} " in record.getMessage()
    assert "is neither a blue nor a green endpoint: the pool takes no part in switchovers" in record.getMessage()
    assert "endpoint=" in record.getMessage()
    # Another process has a separate log.
    found.after_fork_in_child()
    found.takes_part(deployment.snapshot)
    assert len(caplog.records) == 2


def test_a_proxy_on_another_port_takes_no_part_and_both_ports_are_logged(
    deployment: testing.Deployment, hosts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = deployment.snapshot
    known = replace(known, hosts=tuple(replace(host, port=5432) for host in known.hosts))
    for direct in (endpoint(BLUE, hosts), endpoint("127.0.0.9", hosts, endpoint=BLUE)):
        assert (direct.takes_part(known), direct.is_behind_proxy(known)) == (True, False)
        assert direct.decides_as(known) == BLUE
    proxied = endpoint("127.0.0.9:6432", hosts, endpoint=BLUE)
    assert caplog.text == ""
    for _ in range(2):
        assert (proxied.takes_part(known), proxied.is_behind_proxy(known)) == (False, True)
    assert (proxied.host(known), proxied.decides_as(known)) == (None, "")
    (record,) = caplog.records
    assert f"127.0.0.9 with port 6432 is a proxy of {BLUE}, which has port 5432" in record.getMessage()


def test_an_alias_that_is_not_resolved_yet_causes_no_warning(
    deployment: testing.Deployment, hosts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = endpoint("db.shop.example", hosts)
    assert found.takes_part(deployment.snapshot) is False
    assert caplog.text == ""


def test_the_row_counts_the_pools_that_take_part(
    deployment: testing.Deployment, hosts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {
        "bg_id": "ledger",
        "bg_run_dir": deployment.run_dir,
        "bg_resolver": f"hosts:{hosts}",
        "min_size": 0,
        "max_size": 1,
    }
    pools = [bgpool.get_pool(f"postgresql://app@{host}:1/app", **options) for host in (BLUE, "127.0.0.1", "127.0.0.3")]
    try:
        for pool in pools:
            pool.open()
        wait_until(lambda: parts(deployment) == [(1, 2)])
        said = [record.getMessage() for record in caplog.records if record.name == "bgpool.pool"]
        assert len([text for text in said if "takes no part" in text]) == 2
        assert any("workers have a pool that takes no part" in text for text in missing(deployment))
    finally:
        for pool in pools:
            pool.close(0)


def missing(deployment: testing.Deployment) -> tuple[str, ...]:
    return bgpool.status("ledger", deployment.run_dir).missing
