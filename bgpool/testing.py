"""Deployments for tests: phases that a test sets, where in production a monitor reads them.

>>> with bgpool.testing.deployment(green="127.0.0.2") as deployment:
...     pool = bgpool.get_pool("postgresql://app@127.0.0.1/app", bg_run_dir=deployment.run_dir)
...     deployment.phase(bgpool.Phase.IN_PROGRESS)  # checkouts are held
...     deployment.release()  # and go on, to green's address

With ``async with`` it is a coroutine's, and so is ``await_held``; what sets a phase only writes to memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from bgpool.core.endpoints import name_after, normalise_host
from bgpool.core.events import Answered, Event, Instant, MetadataAbsent, Resolved, StatusRead, StatusRow, Tick
from bgpool.core.limits import HEARTBEAT_S
from bgpool.core.machine import Rules, step
from bgpool.core.phase import PHASE_OF_STATUS, SWITCHING, Phase, Role
from bgpool.core.snapshot import Snapshot
from bgpool.errors import ConfigurationError, Error
from bgpool.monitor.election import claim
from bgpool.monitor.probe import now
from bgpool.pools.loop_source import LoopSource
from bgpool.pools.waits import BLOCKING
from bgpool.registry import close_pools, pools_of
from bgpool.resolver import make_resolver
from bgpool.segment.locks import try_lock
from bgpool.segment.paths import RunFiles, look_in, memory_dir, prepare_run_dir
from bgpool.segment.presence import workers
from bgpool.segment.writer import Superseded, Writer
from bgpool.settings import Settings

__all__ = ["Block", "Deployment", "deployment"]

#: Where blue's names lead once they have moved. Nobody goes there: it is none of the recorded addresses (RFC 5737).
_ELSEWHERE: Final = ("192.0.2.1",)

_STATUS_OF_PHASE: Final = {phase: status for status, phase in PHASE_OF_STATUS.items()}


class Deployment:
    """A deployment whose phases a test sets. What follows from each is decided by the state machine of production.

    Attributes:
        run_dir: To be given to pools as bg_run_dir, or as ``$BGPOOL_RUN_DIR``.
        bg_id: As the pools' settings spell it.
        snapshot: What every pool reads.
    """

    def __init__(self, run_dir: Path, blue: str, green: str, settings: Settings) -> None:
        """Put a segment into *run_dir*, in CREATED and ready for a switchover. To be made by deployment()."""
        self.run_dir: Final = run_dir
        self.bg_id: Final = settings.bg_id
        self._blue, self._green = normalise_host(blue), normalise_host(green)
        self._rules: Final = Rules(settings.bg_switchover_timeout_ms)
        self._files: Final = RunFiles.of(run_dir, settings.bg_id)
        self._addresses: dict[str, tuple[str, ...]] = {}
        hosts = self._after(Snapshot(settings.bg_id), *self._facts(Phase.CREATED)).hosts
        self._addresses |= {host.name: make_resolver(settings.bg_resolver).resolve(host.name) for host in hosts}
        self.snapshot = self._after(Snapshot(settings.bg_id), *self._facts(Phase.CREATED))
        if not self.snapshot.ready:
            known = ", ".join(f"{name}={'/'.join(found) or 'not found'}" for name, found in self._addresses.items())
            raise ConfigurationError(f"blue and green must be two hosts with an address each: {known}")
        prepare_run_dir(run_dir)
        tenure = claim(self._files)
        if tenure is None:
            raise Error(f"a monitor of bg_id {self.bg_id!r} lives in {run_dir}; a test needs a directory of its own")
        # Both: the one that monitors are elected by, and the one that keeps pools from starting any.
        self._locks: Final = (tenure.lock, try_lock(self._files.spawning))
        self._writer: Final = Writer(self._files, tenure.term, self.snapshot)
        # Whatever an earlier test has left in the directory.
        self._publish(self.snapshot)
        self._over: Final = threading.Event()
        self._heart: Final = threading.Thread(target=self._beat, name="bgpool-testing-heart", daemon=True)
        self._heart.start()

    def __repr__(self) -> str:
        return f"<Deployment {self.run_dir} bg_id={self.bg_id!r} phase={self.snapshot.phase.name}>"

    def phase(self, phase: Phase) -> None:
        """Have both sides tell of *phase*; pools act on it at once.

        ``COMPLETED`` is told by names that have moved, as DNS tells it; whether they have in truth is up to the test.

        Raises:
            ValueError: No switchover goes from the phase that there is now to *phase*; nothing was published.
        """
        if phase is self.snapshot.phase:
            return
        after = self._after(self.snapshot, *self._facts(phase))
        if after.phase is not phase:
            raise ValueError(f"a deployment in {self.snapshot.phase.name} does not go to {phase.name}")
        self._publish(after)

    def release(self) -> None:
        """Promote green: held callers go on, on new connections to green's address. The same as ``phase(POST)``.

        Raises:
            ValueError: There is no way to POST from here.
        """
        self.phase(Phase.POST)

    def roll_back(self) -> None:
        """Go back to blue: held callers go on there.

        Raises:
            ValueError: No switchover is under way that could still be rolled back.
        """
        if self.snapshot.phase not in (Phase.PREPARATION, Phase.IN_PROGRESS):
            raise ValueError(f"nothing is rolled back from {self.snapshot.phase.name}")
        self.phase(Phase.CREATED)

    def expire_timer(self) -> None:
        """Publish what the running out of ``bg_switchover_timeout_ms`` leads to, without waiting for it.

        Raises:
            ValueError: No switchover is under way.
        """
        if self.snapshot.phase not in SWITCHING:
            raise ValueError(f"no timer runs in {self.snapshot.phase.name}")
        self.tell(Tick(Instant(self.snapshot.deadline_ns, time.time_ns())))

    def tell(self, *events: Event) -> None:
        """Publish what follows from *events* of bgpool.core.events, for what the other methods have no word for."""
        self._publish(self._after(self.snapshot, *events))

    def wait_held(self, callers: int = 1, *, timeout_s: float = 5.0) -> None:
        """Wait until at least *callers* are held, in all processes that use the deployment. Linux.

        It blocks the thread: where that runs an event loop, none of the loop's tasks goes on meanwhile; see await_held.

        Raises:
            TimeoutError: Fewer were after *timeout_s* seconds.
        """
        BLOCKING.finish(self._await_held(BLOCKING.sleep, callers, timeout_s))

    async def await_held(self, callers: int = 1, *, timeout_s: float = 5.0) -> None:
        """As wait_held, for a coroutine of asyncio's: the loop goes on."""
        await self._await_held(asyncio.sleep, callers, timeout_s)

    async def _await_held(self, sleep: Callable[[float], Awaitable[None]], callers: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (held := sum(row.usage.held for row in workers(self._files))) < callers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{held} callers were held after {timeout_s} s, not {callers}")
            await sleep(0.01)

    def close(self) -> None:
        """Close the pools of this process that use the deployment, and take the segment away.

        A caller who is still held gets PoolClosed. Pools of other processes should be gone by now: those that are not
        would start a monitor.
        """
        close_pools(self.run_dir, self.bg_id)
        self._take_away()

    async def aclose(self) -> None:
        """As close, for a coroutine of asyncio's: what its loop has of the pools is closed when it returns."""
        for pool in pools_of(self.run_dir, self.bg_id):
            if isinstance(pool, LoopSource):
                await pool.close()
            else:
                await asyncio.to_thread(pool.stop)
        self._take_away()

    def _take_away(self) -> None:
        self._publish(Snapshot(self.bg_id, epoch=self.snapshot.epoch))
        self._over.set()
        self._heart.join()
        self._writer.remove()
        for lock in self._locks:
            if lock is not None:
                lock.release()

    def _beat(self) -> None:
        # Whoever deletes the directory under us has ended the deployment.
        with contextlib.suppress(Superseded):
            while not self._over.wait(HEARTBEAT_S):
                self._writer.beat()

    def _publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._writer.publish(snapshot)

    def _after(self, snapshot: Snapshot, *events: Event) -> Snapshot:
        for event in events:
            snapshot = step(snapshot, event, self._rules)
        return snapshot

    def _facts(self, phase: Phase) -> list[Event]:
        """What tells of *phase*. Green speaks first: whether a switchover was rolled back, only it can say."""
        at = now()
        if phase is Phase.NOT_CREATED:
            return [MetadataAbsent(at, Role.SOURCE, "the deployment was deleted")]
        sides = {Role.SOURCE: self._blue, Role.TARGET: self._green}
        if phase is Phase.COMPLETED:
            sides = {Role.TARGET: name_after(self._green)}
        rows = tuple(StatusRow(name, 0, role.value, _STATUS_OF_PHASE[phase]) for role, name in sides.items())
        facts: list[Event] = [StatusRead(at, role, rows) for role in (Role.TARGET, Role.SOURCE)]
        if phase >= Phase.POST:
            # The metadata release nobody while green answers that it takes no writes. In CREATED that would say what
            # green was before.
            first = self.snapshot.phase > Phase.CREATED
            facts.insert(0 if first else len(facts), Answered(at, Role.TARGET, read_only=False))
        if phase is Phase.CREATED:
            facts += [Answered(at, role, read_only=role is Role.TARGET) for role in Role]
            facts.append(Resolved(at, self._addresses))
        if phase is Phase.COMPLETED:
            blue = {host.name for host in self.snapshot.hosts_of(Role.SOURCE)}
            facts.append(Resolved(at, {name: _ELSEWHERE if name in blue else () for name in self._addresses}))
        return facts


def deployment(
    run_dir: str | os.PathLike[str] | None = None,
    *,
    blue: str = "127.0.0.1",
    green: str = "127.0.0.2",
    bg_id: str | int = "1",
    bg_resolver: str = "system",
    bg_switchover_timeout_ms: int = 180_000,
) -> Block:
    """A deployment for as long as a ``with`` or ``async with`` block lasts, in ``CREATED`` and ready for a switchover.

    It is what an elected monitor is to the pools: it holds the monitor's lock and shows signs of life, so that no pool
    starts one. Nothing connects anywhere but the pools.

    Args:
        run_dir: A directory of the test's own, such as pytest's ``tmp_path``; without, one in memory is made and
            removed.
        blue: The host of the DSN under test.
        green: Another host, where connections go after the release.
        bg_id, bg_resolver: As for the pools. The names are resolved once.
        bg_switchover_timeout_ms: As for the pools; runs from PREPARATION in real time.

    Raises:
        ConfigurationError: A parameter that cannot be used, or a host without an address.
        SegmentError: The directory cannot be used.
        Error: A monitor uses it already.
    """
    given = {"bg_id": bg_id, "bg_resolver": bg_resolver, "bg_switchover_timeout_ms": bg_switchover_timeout_ms}
    return Block(run_dir, blue, green, Settings.from_mapping(given))


class Block:
    """What deployment() returns, for ``with`` or ``async with``, once."""

    def __init__(self, run_dir: str | os.PathLike[str] | None, blue: str, green: str, settings: Settings) -> None:
        """As deployment(); nothing is made before the block begins."""
        self._run_dir: Final = run_dir
        self._hosts: Final = (blue, green)
        self._settings: Final = settings

    def __enter__(self) -> Deployment:
        with contextlib.ExitStack() as stack:
            run_dir = self._run_dir
            if run_dir is None:
                run_dir = tempfile.mkdtemp(prefix="bgpool-test-", dir=memory_dir())
                stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
            self._made = Deployment(look_in(Path(run_dir)), *self._hosts, self._settings)
            self._after = stack.pop_all()
        return self._made

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._after:
            self._made.close()

    async def __aenter__(self) -> Deployment:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._after:
            await self._made.aclose()
