"""A source whose callers are tasks: the shared code of async pools and async connectors.

All objects that belong to an event loop, such as connections, are created in the loop that first needs them, and end
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
        # The loop of the last call, and its connections, so that the common case is one comparison.
        self._last: tuple[asyncio.AbstractEventLoop | None, Generations | None] = (None, None)
        self._loops: dict[asyncio.AbstractEventLoop, Generations] = {}
        # For closed loops: the connections that are being closed, and the counts of the earlier ones.
        self._closing: list[Generations] = []
        self._before = Usage()

    # -- the generations of each loop ----------------------------------------------------------------------------

    @staticmethod
    def _waits_of(participant: Participant) -> Waits:
        """See ConnectionSource."""
        return participant.loops

    def _here(self) -> Generations:
        """See ConnectionSource; return the connections of the running loop."""
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
        """See ConnectionSource."""
        return list(self._loops.values())

    def _bury_closed(self) -> None:
        """Close the connections that belong to closed loops."""
        with self._lock:
            closed = [self._loops.pop(loop) for loop in list(self._loops) if loop.is_closed()]
            self._closing += closed
        # Without the lock: a connector's figures take it, and its owner is queried.
        for generations in closed:
            generations.close(0)
            was = generations.usage()
            with self._lock:
                self._before = Usage.merged((self._before, was._replace(in_use=0, idle=0, waiting=0)))
                self._closing.remove(generations)

    # -- following the segment -----------------------------------------------------------------------------------

    def tick(self) -> float:
        """Like ConnectionSource.tick; also close the connections of closed loops."""
        self._bury_closed()
        return super().tick()

    def _count_connections(self) -> Usage:
        """Like ConnectionSource's; closed loops are included, so that no count falls when a loop ends."""
        with self._lock:
            before, all_generations = self._before, [*self._loops.values(), *self._closing]
        return Usage.merged((before, *(one.usage() for one in all_generations)))

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to connect and to watch the deployment now instead of at the first checkout. It does not wait."""
        fork.notice()
        running_loop()
        await self._ajoin()
        reading = self.participant.reader.refresh()
        if self._gate.decide(reading, Purpose.CHECKOUT).action in (Action.PASS, Action.ROUTE):
            self._here().adopt(reading).begin()

    async def close(self, timeout: float = 5.0) -> None:
        """Close idle connections and refuse further checkouts; connections in use are closed when they are returned.

        Held callers get PoolClosed.

        Args:
            timeout: The longest wait for these callers, in seconds.
        """
        fork.notice()
        running_loop()
        deadline_of(timeout)
        try:
            await self._gate.aclose(timeout)
        finally:
            self._end()
        # Tasks that were started in this loop need one turn of it.
        await asyncio.sleep(0)

    def start(self) -> None:
        """See ConnectionSource; watch the deployment. Connections are opened in a loop."""
        fork.notice()
        self._join()

    def stop(self, timeout: float = 5.0) -> None:  # noqa:ARG002  # it does not wait
        """See ConnectionSource."""
        fork.notice()
        self._gate.closed = True
        self._gate.waits.wake()
        self._end()

    def _end(self) -> None:
        for generations in self._generations_by_loop():
            generations.close(0)
        self.participant.leave(self)
