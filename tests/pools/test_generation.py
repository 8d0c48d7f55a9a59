"""The behavior of a generation on its own, without a server."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from bgpool.pools.generation import Generation
from bgpool.pools.waits import BLOCKING


def test_the_wait_for_a_turn_ends() -> None:
    """A silent server uses up each caller's connect timeout; these times must not add up for waiting callers."""
    answers, began = threading.Event(), threading.Semaphore(0)

    async def admitted(_purpose: object, *, timeout_s: float) -> Any:
        return timeout_s, None

    async def connect(_decision: object, _kwargs: object) -> Any:
        began.release()
        assert answers.wait(60.0)
        raise KeyError

    recipe: Any = SimpleNamespace(
        settings=SimpleNamespace(bg_connect_timeout_ms=2000),
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
        assert began.acquire(timeout=30.0)
        assert not began.acquire(timeout=0.02), "only one caller connects at a time"
        assert began.acquire(timeout=30.0)
        assert began.acquire(timeout=30.0)
    finally:
        answers.set()
        for thread in threads:
            thread.join()


def test_a_callers_own_attempt_gets_its_remaining_time() -> None:
    """The caller first waits for a turn and for the gate: the attempt to connect gets the rest of the caller's time."""
    limits: list[float] = []

    async def admitted(_purpose: object, *, timeout_s: float) -> Any:
        await BLOCKING.sleep(0.2)
        return timeout_s, None

    async def connect(_decision: object, _kwargs: object) -> Any:
        raise KeyError

    def limited(kwargs: object, _decision: object, limit_s: float) -> object:
        limits.append(limit_s)
        return kwargs

    recipe: Any = SimpleNamespace(
        settings=SimpleNamespace(bg_connect_timeout_ms=30_000),
        failures=(OSError,),
        gate=SimpleNamespace(await_admitted=admitted, note_cut=lambda: None),
        waits=BLOCKING,
        aconnect=connect,
        ends_within=lambda left_s: left_s > 0.1,
        limited=limited,
    )
    inner: Any = SimpleNamespace(keep=None, opened_by_callers=True, failure="")
    generation = Generation(recipe, lambda _: inner, 1, lambda _: True, follows=True)
    with contextlib.suppress(KeyError), generation.within(20.0):
        generation.connect()
    with pytest.raises(TimeoutError, match="too short"), generation.within(0.1):
        generation.connect()
    (limit_s,) = limits
    assert 0.0 < limit_s <= 19.8
