"""TCP is configured to detect a dead network on every connection: those of pools, and those of the monitor."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgpool.core.engine import Engine
from bgpool.core.plan import Target
from bgpool.dsn import parse
from bgpool.lab import Pair
from bgpool.monitor.process import SESSIONS
from bgpool.pools.pool import Pool

pytestmark = [pytest.mark.lab, pytest.mark.skipif(sys.platform != "linux", reason="names of Linux's options")]

ENGINES = tuple(Engine)

OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")


def liveness(fd: int) -> list[int]:
    """Return whether keepalive is on, and the values of OPTIONS."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        on = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return [on, *(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in OPTIONS)]


def test_connections_of_a_pool_and_of_the_monitor_have_keepalive(
    make_pool: Callable[..., Pool[Any]], pair: Pair
) -> None:
    with make_pool().connection() as conn:
        assert liveness(conn.fileno()) == [1, 10, 5, 3, 25_000]
    place = parse(pair.dsn, {})[0]
    session = SESSIONS[place.engine](place.monitoring, Target("", place.port, (pair.blue.address,)), None)
    try:
        assert liveness(session.socket) == [1, 10, 5, 3, 25_000]
    finally:
        session.close()


def test_the_users_own_values_win(make_pool: Callable[..., Pool[Any]]) -> None:
    with make_pool(kwargs={"tcp_user_timeout": 0}).connection() as conn:
        assert liveness(conn.fileno())[-1] == 0


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))),
    reason="makes network namespaces",
)
def test_a_silent_network_is_detected_in_a_query_and_a_commit() -> None:
    """The promise of the documentation of MySQL: 25 s, in a network made for the test."""
    script = Path(__file__).with_name("silent_network.py")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("the kernel gives no network namespaces here")
    waited = [float(word) for word in done.stdout.split()]
    assert len(waited) == 2, done.stderr
    assert all(20 < seconds < 30 for seconds in waited)
