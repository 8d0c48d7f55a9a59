"""A test of what SQLAlchemy does in both of its forms, in the one for asyncio: its body runs in a greenlet of a task's.

There SQLAlchemy's plain API works on an AsyncEngine's ``sync_engine``, and whatever waits gives way to the loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.util.concurrency import await_only, greenlet_spawn, in_greenlet

from bgpool.integrations.sqlalchemy import arun
from bgpool.integrations.sqlalchemy import run as run_in_thread
from tests.engines import Kit

__all__ = ["call_in_greenlet", "create_engine", "end", "run", "start"]

_sleep = time.sleep

#: Engines on asyncpg: Python warns of connections that are closed later than their loop.
_of_the_loop: list[sqlalchemy.Engine] = []


def call_in_greenlet(function: Callable[..., object], **arguments: Any) -> None:
    """Call *function* in a greenlet of a new loop's task, where time.sleep lets other tasks run."""

    def sleep(seconds: float) -> None:
        if in_greenlet():
            await_only(asyncio.sleep(seconds))
        else:
            _sleep(seconds)

    async def main() -> None:
        try:
            await greenlet_spawn(function, **arguments)
        finally:
            while _of_the_loop:
                await greenlet_spawn(_close, _of_the_loop.pop())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        asyncio.run(main())


def _close(engine: sqlalchemy.Engine) -> None:
    assert engine.pool.checkedout() == 0, "a slot was lost"  # type: ignore[attr-defined]  # of a QueuePool
    engine.dispose()


def start(function: Callable[[], object]) -> Callable[[float], object]:
    """Call *function* in a thread or a task; return a function that waits for its end for some seconds."""
    if in_greenlet():
        task = asyncio.get_running_loop().create_task(greenlet_spawn(function))
        return lambda timeout_s: await_only(asyncio.wait_for(task, timeout_s))
    thread = threading.Thread(target=function)
    thread.start()
    return thread.join


def run(maker: Any, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """bgpool.integrations.sqlalchemy.run; in a greenlet its arun, whose coroutine function calls *fn* in a greenlet."""
    if not in_greenlet():
        return run_in_thread(maker, fn, *args, **options)

    async def awaits(work: Any) -> Any:
        return await work.run_sync(fn, *args)

    return await_only(arun(_of_asyncio(maker), awaits, **options))


def _of_asyncio(maker: Any) -> Any:
    if not isinstance(maker, sessionmaker):
        return AsyncEngine(maker)
    # Separate sessions, so that their listeners are called.
    return async_sessionmaker(sync_session_class=lambda **_options: maker())


def create_engine(kit: Kit, *args: Any, **options: Any) -> sqlalchemy.Engine:
    """An engine in the form of *kit*."""
    if kit.in_greenlet:
        kind = options.get("poolclass")
        if kind is pool.QueuePool:
            options["poolclass"] = pool.AsyncAdaptedQueuePool
        elif kind is not None and issubclass(kind, (pool.QueuePool, pool.SingletonThreadPool)):
            pytest.skip(f"{kind.__name__} is for threads")
        engine = create_async_engine(*args, **options).sync_engine
        if engine.dialect.driver == "asyncpg":
            _of_the_loop.append(engine)
        return engine
    return sqlalchemy.create_engine(*args, **options)


def end(kit: Kit, engine: sqlalchemy.Engine) -> None:
    """Close the connections of *engine* after a test, of which a loop may be gone."""
    if kit.in_greenlet:
        asyncio.run(greenlet_spawn(engine.dispose))
    else:
        engine.dispose()
