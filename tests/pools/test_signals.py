"""bgpool's threads leave the process's signals to the application's threads."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgpool.auth import PasswordMaker
from bgpool.pools.pool import Pool
from bgpool.signals import refusing
from tests.engines import Kit

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="only Linux shows the signals that another thread blocks"
    ),
]


def blocked_by(thread: threading.Thread) -> int:
    """Return the signals that *thread* blocks, according to the kernel."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("SigBlk:"))
    return int(line.split()[1], 16)


def bit(number: signal.Signals) -> int:
    return 1 << (number - 1)


def test_threads_of_a_pool_block_signals(kit: Kit, make_pool: Callable[..., Pool[Any]]) -> None:
    before = {*threading.enumerate()}
    with make_pool().connection() as conn:
        kit.read(conn)
        # Another pool's watcher may also serve this pool.
        ours = [one for one in threading.enumerate() if one not in before or one.name == "bgpool-watch"]
        blocked = {thread.name: blocked_by(thread) for thread in ours if thread.is_alive()}
    assert [name for name in blocked if name.startswith("bgpool-watch")]
    assert len(blocked) > 1, "the pool's own threads are included"
    for name, mask in blocked.items():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            assert mask & bit(number), f"{name} takes {number.name}"
        assert not mask & bit(signal.SIGSEGV), "a fault is reported by the thread that causes it"
    assert not blocked_by(threading.main_thread()) & bit(signal.SIGTERM)


def test_a_password_callable_runs_with_signals() -> None:
    seen: list[object] = []

    def make(host: str, port: int, user: str) -> str:  # noqa:ARG001  # the signature of password callables
        seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return "secret"

    maker = PasswordMaker(make)
    outside = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    thread = threading.Thread(target=refusing(lambda: maker.make("host", 1, "app")))
    thread.start()
    thread.join()
    assert seen == [outside], "a program started by the callable would ignore SIGTERM"


def test_a_green_thread_leaves_the_signals_of_its_thread_alone() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    refusing(lambda: None)()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
