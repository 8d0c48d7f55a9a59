"""An AsyncPool with the methods of a pool for threads, so that tests of a blocking pool also run on an AsyncPool.

Every coroutine runs in one event loop, in its own thread. Functions that are called with a connection (a unit of work,
a hook) run in another thread, because the loop must keep running.
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

#: The awaitable objects that a pool or a connection returns.
_AWAITED = (
    psycopg.AsyncConnection,
    psycopg.AsyncCursor,
    psycopg.AsyncServerCursor,
    psycopg.AsyncCopy,
    AsyncConnectionPool,
    contextlib.AbstractAsyncContextManager,
    AsyncCheckout,
)
#: Attributes for which an AsyncConnection has a coroutine as setter.
_MODES = ("autocommit", "isolation_level", "read_only", "deferrable")
_HOOKS = ("configure", "check", "reset", "reconnect_failed")


class Bridge:
    """An event loop, and the methods by which threads use its objects."""

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
        """End the loop, like asyncio.run."""
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
        """Return the result of *call* in the loop, awaited if it is awaitable."""
        if self._pid != os.getpid():
            self._begin()  # the parent's loop does not exist in a child

        async def steps() -> Any:
            result = call(*args, **kwargs)
            return await result if isinstance(result, Awaitable) else result

        return asyncio.run_coroutine_threadsafe(steps(), self.loop).result(60)

    def facade(self, value: Any) -> Any:
        """Return *value* with an interface for threads."""
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
        """Return the result of *function* for *args*, called in a thread."""
        facades = map(self.facade, args)
        future = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def call() -> None:
            outcome: tuple[Any, BaseException | None]
            try:
                # A future accepts no StopIteration, and a SystemExit would end the loop.
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
        """Return the blocking *function* as a coroutine function."""

        async def call(subject: Any) -> Any:
            return await self.in_thread(function, subject)

        return call

    def maker(self, make: Callable[..., Any]) -> Callable[..., BridgedPool]:
        """Return *make*, which makes AsyncPools, as a maker of blocking pools: its hooks are functions."""

        def made(*args: Any, **options: Any) -> BridgedPool:
            wrapped = {name: self.hook(options[name]) for name in _HOOKS if callable(options.get(name))}
            pool = BridgedPool(self, make(*args, **{**options, **wrapped}))
            self._pools.append(pool)
            return pool

        return made


def bare(value: Any) -> Any:
    """Return the object behind the facade *value*."""
    return object.__getattribute__(value, "_subject") if isinstance(value, Facade) else value


class Facade:
    """A connection, cursor, block or generator of psycopg for asyncio, with blocking methods."""

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
        """See Pool.run."""

        async def call(conn: Any) -> Any:
            return await self._bridge.in_thread(lambda facade: fn(facade, *args), conn)

        return self._bridge.run(self._subject.run, call, **options)

    def close(self, *args: Any) -> None:
        """See Pool.close."""
        self._bridge.run(self._subject.close, *args)
