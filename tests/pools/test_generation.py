"""What a generation does by itself, without a server."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

from bgpool.pools.generation import Generation
from bgpool.pools.waits import BLOCKING


def test_a_turn_is_not_waited_for_without_end() -> None:
    """A server that is silent takes the driver's connect timeout from each: not one after the other."""
    answers, began = threading.Event(), threading.Semaphore(0)

    async def admitted(_purpose: object, *, timeout_s: float) -> Any:
        return timeout_s, None

    async def connect(_decision: object, _kwargs: object) -> Any:
        began.release()
        assert answers.wait(5.0)
        raise KeyError

    recipe: Any = SimpleNamespace(
        settings=SimpleNamespace(bg_connect_timeout_ms=400),
        failures=(OSError,),
        gate=SimpleNamespace(await_admitted=admitted),
        waits=BLOCKING,
        aconnect=connect,
    )
    inner: Any = SimpleNamespace(keep=None, opened_by_callers=False)
    generation = Generation(recipe, lambda _: inner, 1, lambda _: True, follows=True, at_once=1)

    def call() -> None:
        with contextlib.suppress(KeyError):
            generation.connect()

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert began.acquire(timeout=2.0)
        assert not began.acquire(timeout=0.02), "one at a time"
        assert began.acquire(timeout=2.0)
        assert began.acquire(timeout=2.0)
    finally:
        answers.set()
        for thread in threads:
            thread.join()
