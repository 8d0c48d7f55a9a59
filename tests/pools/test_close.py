"""Closing a pool takes no longer than its caller allows."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from pathlib import Path

import pytest

import bgpool
from bgpool import testing
from bgpool.core.phase import Phase
from bgpool.dsn import parse
from bgpool.pools.alias import Endpoint


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_threads_that_are_connecting_are_waited_for_together(scheme: str, tmp_path: Path) -> None:
    """psycopg_pool waits the whole time for each of its threads: 15 s if three of them connect to a silent host."""
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        deployment = stack.enter_context(testing.deployment(tmp_path))
        port = silent.getsockname()[1]
        dsn = f"{scheme}://app@127.0.0.1:{port}/app"
        pool = bgpool.get_pool(dsn, bg_run_dir=deployment.run_dir, min_size=3, kwargs={"connect_timeout": 30})
        pool.open()
        for _ in range(3):
            stack.enter_context(silent.accept()[0])
        began = time.monotonic()
        pool.close(timeout=2.0)
        took_s = time.monotonic() - began
    # Waits one after the other would take three times as long.
    assert took_s < 5.5


def test_held_callers_and_threads_are_waited_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with testing.deployment(tmp_path) as deployment:
        pool = bgpool.get_pool("postgresql://app@127.0.0.1:1/app", bg_run_dir=deployment.run_dir)
        deployment.phase(Phase.PREPARATION)
        given: list[float] = []
        monkeypatch.setattr(pool._gate, "aclose", pool._gate.waits.sleep)
        monkeypatch.setattr(pool._generations, "close", given.append)
        pool.close(timeout=0.2)
        assert given == [0.0]
        monkeypatch.undo()


@pytest.mark.parametrize("stated", [False, True])
def test_a_global_database_is_warned_about_once(stated: bool, caplog: pytest.LogCaptureFixture) -> None:
    name = "ledger.global-abc123.global.rds.amazonaws.com"
    dsn = f"postgresql://app@10.0.0.1/app?endpoint={name}" if stated else f"postgresql://app@{name}/app"
    place, settings, _ = parse(dsn, {})
    endpoint = Endpoint(place, settings)
    endpoint.read()
    endpoint.read()
    (record,) = caplog.records
    assert (record.levelno, vars(record)["event"]) == (logging.WARNING, "global_database_untested")
    assert name in record.getMessage()
