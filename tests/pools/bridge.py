"""An AsyncPool with the methods of a pool for threads: what is promised of the one is tested on the other.

Every coroutine runs in one event loop, in a thread of its own. What is called with a connection (a unit of work, a
hook) runs in another thread, as the loop must go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from bgpool.pools.postgres.async_pool import AsyncCheckout

__all__ = ["Bridge", "BridgedPool", "Facade"]

#: What is awaited that a pool or a connection gives.
_AWAITED = (
    psycopg.AsyncConnection,
    psycopg.AsyncCursor,
    psycopg.AsyncServerCursor,
    psycopg.AsyncCopy,
    AsyncConnectionPool,
    contextlib.AbstractAsyncContextManager,
    AsyncCheckout,
)
#: Attributes that an AsyncConnection has a coroutine to set for.
_MODES = ("autocommit", "isolation_level", "read_only", "deferrable")
_HOOKS = ("configure", "check", "reset", "reconnect_failed")


class Bridge:
    """An event loop, and what threads need to use what belongs to it."""

    def __init__(self) -> None:
        self._facades: weakref.WeakValueDictionary[int, Facade] = weakref.WeakValueDictionary()

        self._pools: list[BridgedPool] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="bridge", daemon=True)
        self._thread.start()
        self._executor = ThreadPoolExecutor(32, "bridge-call")

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, *_: object) -> None:
        """End the loop, as asyncio.run does."""
        for pool in self._pools:
            pool.close()
        self.run(self._cancel_all)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self._executor.shutdown()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What *call* returned in the loop, awaited where it can be."""
        if self._pid != os.getpid():
            self._begin()  # the parent's did not come along

        async def steps() -> Any:
            result = call(*args, **kwargs)
            return await result if isinstance(result, Awaitable) else result

        return asyncio.run_coroutine_threadsafe(steps(), self.loop).result(60)

    def facade(self, value: Any) -> Any:
        """*value* as threads may use it."""
        if isinstance(value, _AWAITED) or inspect.isasyncgen(value):
            known = self._facades.get(id(value))
            if known is None:
                known = self._facades[id(value)] = Facade(self, value)
            return known
        if inspect.isroutine(value) and not isinstance(value, type):
            return functools.partial(self._call, value)
        return value

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(map(bare, args))
        returned = function(*args, **kwargs)
        if isinstance(returned, Awaitable) and not isinstance(returned, _AWAITED):
            returned = self.run(lambda: returned)
        return self.facade(returned)

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """What *function* returns for what is in *args*, in a thread."""
        facades = map(self.facade, args)
        future = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def call() -> None:
            outcome: tuple[Any, BaseException | None]
            try:
                # No future takes a StopIteration, and the loop would end with a SystemExit.
                outcome = (function(*facades), None)
            except BaseException as error:
                outcome = (None, error)
            loop.call_soon_threadsafe(future.set_result, outcome)

        self._executor.submit(call)
        result, error = await future
        if error is not None:
            try:
                raise error
            finally:
                del error
        return result

    def hook(self, function: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
        """*function*, which blocks, as a coroutine function."""

        async def call(subject: Any) -> Any:
            return await self.in_thread(function, subject)

        return call

    def maker(self, make: Callable[..., Any]) -> Callable[..., BridgedPool]:
        """*make*, which makes AsyncPools, as one for threads: its hooks are functions."""

        def made(*args: Any, **options: Any) -> BridgedPool:
            wrapped = {name: self.hook(options[name]) for name in _HOOKS if callable(options.get(name))}
            pool = BridgedPool(self, make(*args, **{**options, **wrapped}))
            self._pools.append(pool)
            return pool

        return made


def bare(value: Any) -> Any:
    """What *value* is a facade of."""
    return object.__getattribute__(value, "_subject") if isinstance(value, Facade) else value


class Facade:
    """A connection, a cursor, a block or a generator of psycopg's for asyncio, with methods that block."""

    def __init__(self, bridge: Bridge, subject: Any) -> None:
        vars(self).update(_bridge=bridge, _subject=subject)

    def __repr__(self) -> str:
        return repr(self._subject)

    def __getattr__(self, name: str) -> Any:
        return self._bridge.facade(getattr(self._subject, name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODES:
            self._bridge.run(getattr(self._subject, f"set_{name}"), value)
        else:
            setattr(self._subject, name, bare(value))

    def __delattr__(self, name: str) -> None:
        delattr(self._subject, name)

    def __enter__(self) -> Any:
        return self._bridge.facade(self._bridge.run(type(self._subject).__aenter__, self._subject))

    def __exit__(self, *error: Any) -> Any:
        return self._bridge.run(type(self._subject).__aexit__, self._subject, *error)

    def __iter__(self) -> Iterator[Any]:
        rows = type(self._subject).__aiter__(self._subject)
        while True:
            try:
                row = self._bridge.run(rows.__anext__)
            except StopAsyncIteration:
                return
            yield row

    def __next__(self) -> Any:
        return next(iter(self))


class BridgedPool(Facade):
    """An AsyncPool with the methods of a pool for threads."""

    @property
    def _generations(self) -> Any:
        return self._bridge.run(self._subject._here)

    def run(self, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """As Pool.run."""

        async def call(conn: Any) -> Any:
            return await self._bridge.in_thread(lambda facade: fn(facade, *args), conn)

        return self._bridge.run(self._subject.run, call, **options)

    def close(self, *args: Any) -> None:
        """As Pool.close."""
        self._bridge.run(self._subject.close, *args)
