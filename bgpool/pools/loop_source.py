"""A source whose callers are tasks: what is the same for those that keep connections and those that open them.

Everything that belongs to an event loop, connections among it, is made in the loop that asks for it first, and ends
with that loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from bgpool.core.routing import Action, Purpose
from bgpool.pools import fork
from bgpool.pools.generations import Generations
from bgpool.pools.loops import running_loop
from bgpool.pools.options import deadline_of
from bgpool.pools.participant import Participant
from bgpool.pools.source import ConnectionSource
from bgpool.pools.waits import Waits
from bgpool.segment.table import Usage

__all__ = ["LoopSource"]

C = TypeVar("C")


class LoopSource(ConnectionSource[C]):
    """A source whose callers await; each event loop has connections of its own."""

    def _reset(self) -> None:
        super()._reset()
        # The loop that was here last, and its connections: the common case is one compare.
        self._last: tuple[asyncio.AbstractEventLoop | None, Generations | None] = (None, None)
        self._loops: dict[asyncio.AbstractEventLoop, Generations] = {}
        # Of closed loops: what is being closed, and what those before it have counted.
        self._closing: list[Generations] = []
        self._before = Usage()

    # -- one succession for each loop ----------------------------------------------------------------------------

    @staticmethod
    def _waits_of(participant: Participant) -> Waits:
        """As ConnectionSource says."""
        return participant.loops

    def _here(self) -> Generations:
        """As ConnectionSource says: those of the running loop."""
        loop = running_loop()
        last, generations = self._last
        if last is loop and generations is not None:
            return generations
        with self._lock:
            generations = self._loops.get(loop)
            if generations is None:
                generations = Generations(self._recipe, self._make_inner, self.participant.count_workers)
                self._loops[loop] = generations
            self._last = (loop, generations)
        self._bury_closed()
        return generations

    def _generations_by_loop(self) -> Sequence[Generations]:
        """As ConnectionSource says."""
        return list(self._loops.values())

    def _bury_closed(self) -> None:
        """End what belongs to loops that are closed."""
        with self._lock:
            closed = [self._loops.pop(loop) for loop in list(self._loops) if loop.is_closed()]
            self._closing += closed
        # Not under the lock: a connector's figures take it, and its owner is asked.
        for generations in closed:
            generations.close(0)
            was = generations.usage()
            with self._lock:
                self._before = Usage.merged((self._before, was._replace(in_use=0, idle=0, waiting=0)))
                self._closing.remove(generations)

    # -- following the segment -----------------------------------------------------------------------------------

    def tick(self) -> float:
        """As ConnectionSource's; and what loops have left behind that are closed is closed as well."""
        self._bury_closed()
        return super().tick()

    def _count_connections(self) -> Usage:
        """As ConnectionSource's; closed loops included, so that no count falls when one ends."""
        with self._lock:
            before, all_generations = self._before, [*self._loops.values(), *self._closing]
        return Usage.merged((before, *(one.usage() for one in all_generations)))

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to connect, and to watch the deployment, now instead of at the first checkout. Waits for nothing."""
        fork.notice()
        running_loop()
        await self._ajoin()
        reading = self.participant.reader.refresh()
        if self._gate.decide(reading, Purpose.CHECKOUT).action in (Action.PASS, Action.ROUTE):
            self._here().adopt(reading).begin()

    async def close(self, timeout: float = 5.0) -> None:
        """Close idle connections and refuse further checkouts; those in use are closed when returned.

        Callers who are held get PoolClosed.

        Args:
            timeout: Longest wait for these callers, in seconds.
        """
        fork.notice()
        running_loop()
        deadline_of(timeout)
        try:
            await self._gate.aclose(timeout)
        finally:
            self._end()
        # What was begun in this loop takes one turn of it.
        await asyncio.sleep(0)

    def start(self) -> None:
        """As ConnectionSource says: watches the deployment. Connections are opened in a loop."""
        fork.notice()
        self._join()

    def stop(self, timeout: float = 5.0) -> None:  # noqa:ARG002  # nothing is waited for
        """As ConnectionSource says."""
        fork.notice()
        self._gate.closed = True
        self._gate.waits.wake()
        self._end()

    def _end(self) -> None:
        for generations in self._generations_by_loop():
            generations.close(0)
        self.participant.leave(self)
